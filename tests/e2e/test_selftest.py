"""`retort selftest` for real: every wall of this host holds, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import environment

pytestmark = pytest.mark.slow


def run(temp: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "retort.cli.main", "selftest", *args],
        env=environment(TMPDIR=str(temp)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture
def temp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the command makes its folder, as long as that is short enough for it."""
    folder = tmp_path_factory.mktemp("t")
    folder.chmod(0o755)
    return folder


def test_every_wall_of_this_host_holds_and_nothing_is_left(temp: Path) -> None:
    done = run(temp, "--json")
    told = json.loads(done.stdout)
    failed = [row for row in told["rows"] if row["result"] == "FAIL"]
    assert failed == []
    assert (done.returncode, done.stderr) == (0, "")
    assert {row["result"] for row in told["rows"]} <= {"pass", "not enforced"}
    assert len(told["rows"]) >= 30
    assert sum(row["seconds"] for row in told["rows"]) < 500  # in a slow virtual machine
    assert told["walls"]["namespaces"] == "bubblewrap"
    assert list(temp.iterdir()) == []
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if is_attack(path)]
    assert left == []


def is_attack(path: Path) -> bool:
    try:
        arguments = path.read_bytes().split(b"\0")
        return any(argument.rpartition(b"/")[2].startswith(b"attack-") for argument in arguments)
    except OSError:
        return False


def test_only_what_was_asked_for_is_run(temp: Path) -> None:
    done = run(temp, "--only", "A9", "--only", "E7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "raises its own limits" in done.stdout
    assert "inherited descriptors" in done.stdout
    assert "fork bomb" not in done.stdout
    assert "2 pass" in done.stdout
