"""Streams of a command: whole, in order, and never obeying a foreign name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.cli.terminal import Lines, Sink, harmless


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            continue


def test_escapes_of_a_name_are_shown_and_not_obeyed() -> None:
    assert harmless("a\x1b]0;x\x07\r\nü\u202e\x9b") == "a\\x1b]0;x\\x07\\r\\nü\\u202e\\x9b"
    assert harmless("\udcff") == "\\udcff"


async def test_lines_come_one_by_one_and_the_last_without_newline(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"one\ntwo\nthr")
    lines = Lines(pipe[0])
    assert [await lines.next(), await lines.next()] == ["one\n", "two\n"]
    os.write(pipe[1], b"ee")
    os.close(pipe[1])
    assert [await lines.next(), await lines.next(), await lines.next()] == ["three", None, None]


async def test_waiting_for_a_line_can_be_given_up_without_losing_any(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"half")
    lines = Lines(pipe[0])
    waiting = asyncio.ensure_future(lines.next())
    await asyncio.sleep(0)  # it has read what there is, and waits for more
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    os.write(pipe[1], b" line\n")
    assert await lines.next() == "half line\n"


async def test_a_regular_file_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"a\nb")
    fd = os.open(tmp_path / "in", os.O_RDONLY)
    lines = Lines(fd)
    assert [await lines.next(), await lines.next(), await lines.next()] == ["a\n", "b", None]
    os.close(fd)


async def test_all_of_the_input_is_given_up_to_a_limit(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"12345")
    os.close(pipe[1])
    assert await Lines(os.dup(pipe[0])).rest(5) == b"12345"


async def test_more_input_than_the_limit_is_none(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"123456")
    assert await Lines(pipe[0]).rest(5) is None


async def test_a_closed_input_is_an_end() -> None:
    assert await Lines(987).next() is None


async def test_much_output_arrives_whole_while_the_reader_is_slow(pipe: tuple[int, int]) -> None:
    data = bytes(range(256)) * 4096
    writing = asyncio.ensure_future(Sink(pipe[1]).write(data))
    await asyncio.sleep(0)  # the loop goes on although the pipe is full
    assert not writing.done()
    got = b""
    while len(got) < len(data):
        got += await asyncio.to_thread(os.read, pipe[0], 65_536)
    await writing
    assert got == data


async def test_output_that_nobody_reads_is_an_error(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    with pytest.raises(BrokenPipeError):
        await Sink(pipe[1]).write(b"x")
