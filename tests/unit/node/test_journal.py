"""The journal as a file: what is in it after a kill at any byte, and when the disk is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.core.console import Stream
from retort.core.run import Phase, Plan, RunLimits, Stop
from retort.errors import Unavailable
from retort.node.journal import Journal, read_journal
from retort.node.records import Delivered, Opened, Printed, Record, SessionRecord, Stopped

OPENED = Opened("r", Plan({Phase.EXEC: ("/bin/true",)}), RunLimits(wall_s=1.5), False, False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for end in ends:
        os.close(end)


def write_some(path: Path, pipe: tuple[int, int]) -> list[Record | Printed]:
    journal = Journal(path)
    journal.add(OPENED)
    os.write(pipe[1], b"hello\n")
    assert journal.read_pipe(Stream.STDOUT, pipe[0]) == b"hello\n"
    journal.later(Stopped(Stop.OUTPUT))
    os.write(pipe[1], b"x" * 1000)
    assert journal.read_pipe(Stream.STDERR, pipe[0]) == b"x" * 1000
    journal.close()
    return [
        OPENED, Printed(Stream.STDOUT, b"hello\n"), Stopped(Stop.OUTPUT),
        Printed(Stream.STDERR, b"x" * 1000),
    ]  # fmt: skip


def test_records_and_output_come_back_in_their_order(path: Path, pipe: tuple[int, int]) -> None:
    wanted = write_some(path, pipe)
    assert read_journal(path) == (wanted, path.stat().st_size)


def test_a_journal_cut_at_any_byte_has_what_was_whole_and_every_byte_of_output(
    path: Path, pipe: tuple[int, int]
) -> None:
    wanted = write_some(path, pipe)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        records, end = read_journal(path)
        assert end <= length
        whole, last = records[:-1], records[-1:]
        assert whole == wanted[: len(whole)]
        for record in last:
            same = wanted[len(whole)]
            if isinstance(record, Printed) and isinstance(same, Printed):
                assert same.data.startswith(record.data)
            else:
                assert record == same
    assert read_journal(path.with_name("missing")) == ([], 0)


def test_an_empty_pipe_blocks_and_a_closed_one_ends(path: Path, pipe: tuple[int, int]) -> None:
    journal = Journal(path)
    with pytest.raises(BlockingIOError):
        journal.read_pipe(Stream.STDOUT, pipe[0])
    end = os.dup(pipe[0])
    os.dup2(os.open(os.devnull, os.O_RDONLY), pipe[1])  # the last writer is gone
    assert journal.read_pipe(Stream.STDOUT, end) == b""
    os.close(end)
    journal.add(OPENED)
    assert read_journal(path)[0] == [OPENED]
    journal.close()


def test_a_journal_that_goes_on_overwrites_what_was_half_written(path: Path) -> None:
    journal = Journal(path)
    journal.add(OPENED)
    journal.close()
    with path.open("ab") as file:
        file.write(b"\xff\x00\x00\x00\x00abc")
    records, end = read_journal(path)
    assert records == [OPENED]
    again = Journal(path, end)
    again.add(Delivered(1))
    again.close()
    assert read_journal(path)[0] == [OPENED, Delivered(1)]


def test_a_record_that_makes_no_sense_ends_the_journal_and_not_the_server(path: Path) -> None:
    journal = Journal(path)
    journal.add(OPENED)
    whole = journal.size_bytes
    journal.close()
    with path.open("ab") as file:
        file.write(b"\x03\x00\x00\x00\x00\xc1\xc1\xc1")
    assert read_journal(path) == ([OPENED], whole)


def test_a_renewed_journal_says_only_what_it_was_given(path: Path) -> None:
    journal = Journal(path)
    for ticket in range(1000):
        journal.add(Delivered(ticket))
    before = path.stat().st_size
    assert journal.renew([SessionRecord(runs=7)])
    journal.add(Delivered(5))
    journal.close()
    assert read_journal(path)[0] == [SessionRecord(runs=7), Delivered(5)]
    assert path.stat().st_size < before / 10
    assert [entry.name for entry in path.parent.iterdir()] == ["journal"]


def test_on_a_full_disk_output_is_still_read_and_new_runs_are_refused_until_it_has_room(
    path: Path, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path)
    journal.add(OPENED)

    def full(*args: object, **more: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        os.write(pipe[1], b"kept in memory")
        assert journal.read_pipe(Stream.STDOUT, pipe[0]) == b"kept in memory"
        assert journal.is_behind
        with pytest.raises(Unavailable):
            journal.insist()
        assert not journal.renew([SessionRecord()])
        journal.add(Delivered(1))
        assert read_journal(path)[0] == [OPENED]
    assert journal.renew([SessionRecord(runs=1)])
    journal.insist()
    journal.add(Delivered(2))
    journal.close()
    assert read_journal(path)[0] == [SessionRecord(runs=1), Delivered(2)]


def test_a_file_system_without_splice_keeps_output_all_the_same(
    path: Path, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **more: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "splice", refused)
    assert write_some(path, pipe) == read_journal(path)[0]
