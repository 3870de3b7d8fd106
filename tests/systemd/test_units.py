"""The shipped units under a real systemd: sessions outlive the server's restart and stop.

They install units and restart services, so they run nowhere but in the virtual machine that vm/run
boots (docs/testing-in-a-vm.md): Debian 12, systemd 252, control groups v2 alone.
"""

# ruff: noqa: ASYNC110, ASYNC221, ASYNC240 - a test may block, and systemd tells by being asked

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import ROOT, printed, run_to_end, upload
from tests.e2e.running import create, destroy, go_on, sh, start, until, wait_for_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/srv/retort/.vm/command").exists(), reason="installs units: only in vm/run"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="installs units: only as root"),
]
UNITS = Path("/etc/systemd/system")
STATE = Path("/var/lib/retort")
URL = "http://127.0.0.1:8090"
SERVER, HOLDER = "retort.service", "retort-sessions.service"
SLICE = Path("/sys/fs/cgroup/retort.slice")
AS_ROOT = "[Service]\nUser=\n"
NO_POOL = "[Service]\nEnvironment=RETORT_POOL_SIZE=0\n"  # its groups would look like sessions'

COUNT = "i=0; while [ ! -e stop ]; do i=$((i+1)); echo $i; sleep 0.05; done; exit 7"


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}\n{journal()}"
    return done.stdout


def journal() -> str:
    words = ["journalctl", "--no-pager", "-o", "cat", "-n", "80", "-u", SERVER, "-u", HOLDER]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def shown(unit: str, name: str) -> str:
    return systemctl("show", "--value", "--property", name, unit).strip()


def groups() -> list[str]:
    """Name the sessions' groups that are there."""
    return sorted(str(f.relative_to(SLICE)) for f in SLICE.glob("*/retort-*/*") if f.is_dir())


def processes_of(group: str) -> list[int]:
    return [int(pid) for pid in (SLICE / group / "cgroup.procs").read_text().split()]


@pytest.fixture(params=["user", "root"])
async def api(request: pytest.FixtureRequest) -> AsyncIterator[aiohttp.ClientSession]:
    """Calls to a server in the shipped units, as they are or as root."""
    if not Path("/opt/retort").exists():
        Path("/opt/retort/bin").mkdir(parents=True)
        Path("/opt/retort/bin/retort").symlink_to("/usr/local/bin/retort")
        subprocess.run(["useradd", "--system", "retort"], check=True)
    for unit in (SERVER, HOLDER):
        shutil.copy(ROOT / "packaging" / unit, UNITS / unit)
        drop_ins = UNITS / f"{unit}.d"
        drop_ins.mkdir()
        (drop_ins / "pool.conf").write_text(NO_POOL)
        if request.param == "root":
            (drop_ins / "as-root.conf").write_text(AS_ROOT)
    systemctl("daemon-reload")
    try:
        systemctl("start", SERVER)
        made = subprocess.run(
            ["/opt/retort/bin/retort", "keys", "create", "--state", str(STATE), "--json"],
            user=request.param if request.param == "root" else "retort",
            env={"PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE,
            check=True,
        )
        headers = {"Authorization": f"Bearer {json.loads(made.stdout)['token']}"}
        # No connection is kept over a restart: systemctl holds the loop up, which then would not
        # know yet that the old server closed it, and lose a call on it.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(URL, headers=headers, connector=connector) as session:
            await _known(session)
            yield session
    finally:
        systemctl("stop", SERVER, HOLDER)
        assert not SLICE.exists() or groups() == []
        for unit in (SERVER, HOLDER):
            shutil.rmtree(UNITS / f"{unit}.d", ignore_errors=True)
        shutil.rmtree(STATE)
        systemctl("daemon-reload")
        subprocess.run(["systemctl", "reset-failed"], check=False)


async def _known(api: aiohttp.ClientSession) -> None:
    """Wait until the running server has seen the new key."""
    async with asyncio.timeout(60):
        while True:
            async with api.get("/session/none") as answer:
                if answer.status == 404:
                    return
            await asyncio.sleep(0.1)


async def test_sessions_files_and_runs_outlive_restart_kill_and_stop(
    api: aiohttp.ClientSession,
) -> None:
    name = await create(api)
    await upload(api, name, hello__txt="hello\n")
    first = await start(api, name, "long", exec=COUNT)
    answers = [first]
    (group,) = groups()
    assert group.startswith(f"{HOLDER}/")
    inside = processes_of(group)
    for act in ("restart", "stop, start", "kill -9", "restart"):
        before = shown(SERVER, "MainPID")
        match act:
            case "restart":
                systemctl("restart", SERVER)
            case "stop, start":
                systemctl("stop", SERVER)
                assert shown(SERVER, "ActiveState") == "inactive"
                systemctl("start", SERVER)
            case _:
                os.kill(int(before), signal.SIGKILL)
                async with asyncio.timeout(60):
                    while shown(SERVER, "MainPID") in (before, "0"):
                        await asyncio.sleep(0.2)
                systemctl("start", SERVER)  # returns once it listens
        assert shown(SERVER, "MainPID") != before
        assert groups() == [group], act
        assert set(inside) <= set(processes_of(group)), act
        answers += await until(api, name, await go_on(api, name, "long"), text="\n")
        assert (await (await api.get(f"/session/{name}")).json())["status"] == "RUNNING"
    assert "status=219" not in journal()  # systemd's: the group has others below it
    await upload(api, name, stop="")
    answers += await until(api, name, await go_on(api, name, "long"), "finished")
    assert answers[-1]["exitCode"] == 7
    lines = printed(answers).split()
    assert lines == [str(number) for number in range(1, len(lines) + 1)]
    assert await sh(api, name, "cat hello.txt") == (0, "hello\n")
    await destroy(api, name)
    async with asyncio.timeout(60):
        while groups():
            await asyncio.sleep(0.1)
    assert not [pid for pid in inside if Path(f"/proc/{pid}").exists()]


async def test_a_stop_answers_those_who_wait(api: aiohttp.ClientSession) -> None:
    name = await create(api)
    await start(api, name, "quiet", exec="touch begun; sleep 1000")
    await wait_for_file(api, name, "begun")
    waiting = asyncio.create_task(go_on(api, name, "quiet"))
    await asyncio.sleep(0.2)  # so that it waits there; earlier, it would be answered as well
    await asyncio.to_thread(systemctl, "restart", SERVER)
    assert (await waiting)["status"] == "continued"
    await destroy(api, name)


async def test_limits_of_a_session_hold_after_a_restart(api: aiohttp.ClientSession) -> None:
    name = await create(api, config={"resources": {"mem": "128m"}})
    systemctl("restart", SERVER)
    answers = await run_to_end(api, name, exec="/usr/bin/python3 -c 'bytearray(300 << 20)'")
    verdict = answers[-1]
    assert (verdict["outcome"], verdict["walls"]["memory"]) == ("out-of-memory", "cgroup-v2")
    await destroy(api, name)


async def test_stopping_the_holder_ends_every_session(api: aiohttp.ClientSession) -> None:
    name = await create(api)
    await start(api, name, "r", exec="sleep 1000")
    (group,) = groups()
    inside = processes_of(group)
    systemctl("stop", HOLDER)
    assert shown(SERVER, "ActiveState") == "inactive"
    assert not [pid for pid in inside if Path(f"/proc/{pid}").exists()]
    systemctl("start", SERVER)
    status, told = await _asked(api, name)
    assert status in (404, 410), told
    assert "init was killed while no server ran" in json.dumps(told)
    name = await create(api)
    assert await sh(api, name, "echo again") == (0, "again\n")
    await destroy(api, name)


async def test_a_holder_that_dies_is_started_again_with_its_server(
    api: aiohttp.ClientSession,
) -> None:
    name = await create(api)
    before = shown(HOLDER, "MainPID"), shown(SERVER, "MainPID")
    os.kill(int(before[0]), signal.SIGKILL)
    async with asyncio.timeout(120):
        while any(
            shown(unit, "ActiveState") != "active" or shown(unit, "MainPID") == old
            for unit, old in zip((HOLDER, SERVER), before, strict=True)
        ):
            await asyncio.sleep(0.2)
    status, _ = await _asked(api, name)
    assert status in (404, 410)
    name = await create(api)
    assert await sh(api, name, "echo again") == (0, "again\n")
    await destroy(api, name)


async def _asked(api: aiohttp.ClientSession, name: str) -> tuple[int, Any]:
    async with api.get(f"/session/{name}") as answer:
        return answer.status, await answer.json()


def test_systemd_finds_no_unknown_key_in_the_units() -> None:
    units = [str(ROOT / "packaging" / unit) for unit in (SERVER, HOLDER)]
    words = ["systemd-analyze", "verify", *units]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    complaints = [
        line for line in done.stderr.splitlines() if re.search(r"retort.*\.service:", line)
    ]
    assert [line for line in complaints if "is not executable" not in line] == []
