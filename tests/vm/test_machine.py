"""What comes out of the virtual machine: output and marks, however they are cut."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

import pytest

from vm import machine

SENT = (
    b"\x1ebooted 12.5\x1e"
    b"\x1ebegin root\x1eone\ntwo\n\x1eend root 0\x1e"
    b"\x1ebegin user\x1e\xff\x1eend user 3\x1e\x1edone\x1e"
)


@pytest.mark.parametrize("seed", range(20))
def test_output_and_status_of_each_environment_are_told_apart(seed: int) -> None:
    shown, begun = bytearray(), []
    progress = machine._Progress(shown.extend, begun.append)
    rest, cut = SENT, random.Random(seed)
    while rest:
        size = cut.randint(1, 20)
        progress.feed(rest[:size])
        rest = rest[size:]
    assert bytes(shown) == b"one\ntwo\n\xff"
    assert begun == ["root", "user"]
    assert [(e.environment, e.status, e.output) for e in progress.ended] == [
        ("root", 0, b"one\ntwo\n"),
        ("user", 3, b"\xff"),
    ]
    assert progress.boot_s is not None


def test_what_was_not_run_in_time_has_timed_out() -> None:
    progress = machine._Progress(lambda data: None, lambda environment: None)
    progress.feed(SENT[: SENT.index(b"two")])
    progress.give_up(["root", "user"])
    assert [(e.environment, e.status, e.output) for e in progress.ended] == [
        ("root", machine.TIMED_OUT, b"one\n"),
        ("user", machine.TIMED_OUT, b""),
    ]


def test_a_lone_separator_of_a_program_is_output() -> None:
    shown = bytearray()
    progress = machine._Progress(shown.extend, lambda environment: None)
    progress.feed(b"a\x1e" + b"b" * 300)
    assert bytes(shown) == b"a\x1e" + b"b" * 300
    progress.feed(b"\x1ec\x1eend root 0\x1e")
    assert bytes(shown[-2:]) == b"\x1ec"
    assert [end.environment for end in progress.ended] == ["root"]


def test_the_job_holds_the_tree_and_what_to_do(tmp_path: Path) -> None:
    job = tmp_path / "job.tar"
    machine._write_job(job, "true", ["root", "user"])
    with tarfile.open(job) as tar:
        names = set(tar.getnames())
        told = tar.extractfile(".vm/environments")
        assert told is not None
        assert told.read() == b"root\nuser\n"
    assert {"vm/guest", "pyproject.toml", ".vm/command"} <= names
    assert not any(name.startswith((".cache", ".venv", ".git/")) for name in names)
    assert job.stat().st_size % 512 == 0  # a disk has whole sectors
