"""The table of attacks, how answers are judged, and the report of `retort selftest`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from retort.cli import selftest as module
from retort.cli.attack_programs import PRELUDE
from retort.cli.attacks import ATTACKS, Attack
from retort.cli.selftest import Broken, Row, judged, missing, report, selftest
from retort.core.run import Outcome, Stop
from retort.errors import SandboxFault

WALLS = dict.fromkeys(
    ("namespaces", "seccomp", "uid", "network", "memory", "inodes", "processes", "cpu", "cpuTime"),
    "x",
)


def attack(row: str) -> Attack:
    return next(attack for attack in ATTACKS if attack.row == row)


def answer(**changes: Any) -> dict[str, Any]:
    end = {"outcome": "exited", "exitCode": 0, "limit": None, "retrySafe": False}
    return end | {"text": "noise\nheld fine\n"} | changes


def test_rows_are_named_once() -> None:
    rows = [attack.row for attack in ATTACKS]
    assert len(rows) == len(set(rows)) >= 30


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.row)
def test_every_attack_is_well_formed(attack: Attack) -> None:
    compile(PRELUDE + attack.program, attack.row, "exec")
    assert set(attack.outcomes) <= {outcome.value for outcome in Outcome}
    assert attack.limit in {None, *(stop.value for stop in Stop)}
    assert attack.wall in WALLS
    assert 0 < attack.limits["wallSeconds"] <= 20
    assert attack.then in {"", "links", "fifos", "peak", "output"}


def test_what_an_attack_must_get_passes() -> None:
    assert judged(attack("A9"), answer(), WALLS) == "fine"
    bomb = answer(outcome="pids-limit", exitCode=7)
    assert judged(attack("A1"), bomb, WALLS) == "fine"
    killed = answer(outcome="timed-out", exitCode=None, limit="cpu", text="")
    assert "cpu" in judged(attack("A5"), killed, WALLS)


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ("A9", {"text": "broken NPROC was raised\n"}),
        ("A9", {"text": ""}),
        ("A9", {"exitCode": 1}),
        ("A9", {"outcome": "infrastructure"}),
        ("A9", {"retrySafe": True}),
        ("A1", {"exitCode": 7}),
        ("A5", {"outcome": "timed-out", "exitCode": None, "limit": "wall"}),
        ("B1", {"outcome": "signalled", "exitCode": 137}),
    ],
)
def test_anything_else_is_a_finding(row: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Broken):
        judged(attack(row), answer(**changes), WALLS)


def test_a_limit_by_rlimit_has_its_own_outcome() -> None:
    weaker = WALLS | {"processes": "rlimit"}
    assert judged(attack("A1"), answer(exitCode=7), weaker) == "fine"
    with pytest.raises(Broken):
        judged(attack("A1"), answer(exitCode=7, outcome="pids-limit"), weaker)


def test_without_a_wall_its_attack_is_not_made() -> None:
    assert missing(attack("A1"), WALLS) is None
    assert missing(attack("A1"), WALLS | {"processes": "rlimit"}) is None
    assert "memory: none" in str(missing(attack("B1"), WALLS | {"memory": "none"}))
    assert missing(attack("F1"), WALLS | {"network": "host"})
    assert missing(attack("A5"), WALLS | {"cpuTime": "rlimit"})
    assert missing(attack("A5"), {})


ROWS = [
    Row("A1", "fork bomb", "pass", 0.2, "fork: EAGAIN"),
    Row("B1", "memory", "not enforced", 0.0, "no wall"),
]


def test_the_report_has_version_host_walls_and_rows() -> None:
    told = json.loads(json.dumps(report(WALLS, ROWS)))
    assert set(told) == {"version", "host", "walls", "rows", "counts"}
    assert set(told["rows"][0]) == {"row", "name", "result", "seconds", "detail"}
    assert told["rows"][0]["detail"] == "fork: EAGAIN"
    assert told["counts"] == {"pass": 1, "not enforced": 1}
    assert "kernel_release" in told["host"]


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The rows that the command finds."""
    rows = list(ROWS)

    async def give(_: object) -> tuple[dict[str, str], list[Row]]:
        return WALLS, rows

    monkeypatch.setattr(module, "_tested", give)
    return rows


def test_a_wall_that_the_host_lacks_is_no_failure(tested: list[Row]) -> None:
    done = CliRunner().invoke(selftest)
    assert done.exit_code == 0
    assert "not enforced" in done.output
    assert "1 pass" in done.output


def test_a_wall_that_failed_is_exit_code_1(tested: list[Row]) -> None:
    tested.append(Row("E2", "calls", "FAIL", 1.0, "bpf [bold]"))
    done = CliRunner().invoke(selftest)
    assert done.exit_code == 1
    assert "bpf [bold]" in done.output


def test_a_host_without_sandboxes_is_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: object) -> None:
        raise SandboxFault("probe", "no namespaces")

    monkeypatch.setattr(module, "_tested", refuse)
    done = CliRunner().invoke(selftest)
    assert done.exit_code == 2
    assert "no namespaces" in done.output


def test_an_unknown_row_is_a_usage_error() -> None:
    done = CliRunner().invoke(selftest, ["--only", "Z9"])
    assert done.exit_code == 2
    assert "Z9" in done.output


@pytest.mark.parametrize("row", ["A9", "C6", "E1", "E3", "E7", "F1"])
def test_outside_of_a_sandbox_the_attack_succeeds(row: str, tmp_path: Path) -> None:
    """The controls; rows that would change or harm this host have none."""
    if row == "E1" and os.geteuid() != 0:
        pytest.skip("new namespaces need root on many hosts")
    program = tmp_path / "attack.py"
    program.write_text(PRELUDE + attack(row).program)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = subprocess.run(
            [sys.executable, program],
            cwd=tmp_path,
            env={"SELFTEST_PORT": port, "SELFTEST_TOKEN": "x"},
            pass_fds=[server.fileno()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout.partition(" ")[0]) == (1, "broken"), done
