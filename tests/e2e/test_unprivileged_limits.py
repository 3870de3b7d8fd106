"""What holds for a server without privileges and without control groups."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import ROOT, printed, run_to_end, running_server

pytestmark = pytest.mark.slow
FORKS = """
import os, time
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        made += 1
except BlockingIOError:
    pass
print(made)
"""
UID = 64_123  # of nobody on this host
SOMEBODY = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "/usr/bin/python3")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that another user may enter; pytest's own are closed to it."""
    folder = Path("/var/tmp") / f"retort-unprivileged-{os.getpid()}"
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


def paths_for_anybody() -> str:
    """PYTHONPATH with which the system's Python runs this tree as somebody else; skips if none."""
    paths = f"{ROOT / 'src'}:{sysconfig.get_path('platlib')}"
    probe = [*SOMEBODY, "-c", "import retort.wiring.server"]
    done = subprocess.run(probe, env={"PYTHONPATH": paths}, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"another user cannot run this tree: {done.stderr[-200:]!r}")
    return paths


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_processes_are_capped_without_groups_and_with_a_shared_uid(place: Path) -> None:
    paths = paths_for_anybody()
    state = place / "state"
    state.mkdir()
    os.chown(state, UID, UID)
    settings = {"RETORT_SANDBOX_PROCESSES": "40", "HOME": str(place), "PYTHONPATH": paths}
    with running_server(state, command=SOMEBODY, **settings) as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        async with aiohttp.ClientSession(server.url, headers=headers) as api:
            for name in ("first", "second"):
                async with api.post("/session", json={"name": name, "image": "bash"}) as made:
                    assert made.status == 201, await made.text()
            command = f"python3 -c '{FORKS}'"
            counts = []
            for name in ("first", "second"):
                answers = await run_to_end(api, name, build=None, exec=command)
                counts.append(printed(answers))
    assert answers[-1]["walls"]["processes"] in ("rlimit", "cgroup-v1", "cgroup-v2")
    for count in counts:
        assert 20 < int(count or 0) <= 40
