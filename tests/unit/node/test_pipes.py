from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.core.console import Stream
from retort.node.pipes import FEED_BYTES, StepPipes

Seen = list[tuple[Stream, bytes]]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Program:
    """The other ends of a step's pipes."""

    def __init__(self, *, with_stdin: bool = True) -> None:
        self.seen: Seen = []
        self.pipes = StepPipes(
            asyncio.get_running_loop(),
            lambda *chunk: self.seen.append(chunk),
            with_stdin=with_stdin,
            feed=self.feed,
        )
        self.fed: list[int] = []  # bytes of each piece
        self.stdin, self.stdout, self.stderr = map(os.dup, self.pipes.stdio)
        self.pipes.started()

    def close(self) -> None:
        self.pipes.close()
        for end in (self.stdin, self.stdout, self.stderr):
            os.close(end)

    def feed(self, data: bytes) -> asyncio.Future[int]:
        """Write as init does; its word comes later."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            done.set_result(os.write(self.pipes.held[0], data))
        except BlockingIOError:
            done.set_result(0)
        except BrokenPipeError as exc:
            done.set_exception(exc)
        self.fed.append(len(data))
        return done

    def printed(self, stream: Stream) -> bytes:
        return b"".join(data for name, data in self.seen if name is stream)


@pytest.fixture
async def program() -> Iterator[Program]:
    before = open_descriptors()
    made = Program()
    yield made
    made.close()
    assert open_descriptors() == before


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_output_arrives_while_the_program_runs(program: Program) -> None:
    os.write(program.stdout, b"one")
    await turns()
    os.write(program.stderr, b"two")
    await turns()
    assert program.seen == [(Stream.STDOUT, b"one"), (Stream.STDERR, b"two")]


async def test_draining_takes_all_there_is(program: Program) -> None:
    os.set_blocking(program.stdout, False)
    written = 0
    try:
        while True:
            written += os.write(program.stdout, b"x" * 4096)
    except BlockingIOError:
        pass
    os.write(program.stderr, b"e")
    program.pipes.drain()
    assert len(program.printed(Stream.STDOUT)) == written
    assert program.printed(Stream.STDERR) == b"e"


async def test_an_end_that_the_program_closed_costs_nothing(program: Program) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, program.stdout)
    os.close(null)
    await turns()
    os.write(program.stderr, b"still")
    await turns()
    assert program.seen == [(Stream.STDERR, b"still")]


async def test_input_goes_into_the_pipe_as_there_is_room(program: Program) -> None:
    data = os.urandom(300_000)
    program.pipes.write(data[:200_000])
    program.pipes.write(data[200_000:])
    await turns()
    assert 0 < program.pipes.pending_bytes < len(data)
    assert not program.pipes.input_is_consumed
    got = b""
    for _ in range(1000):
        if len(got) == len(data):
            break
        got += os.read(program.stdin, 65536)
        await turns(3)
    assert got == data
    assert program.pipes.input_is_consumed
    assert program.pipes.fed == len(data)
    assert max(program.fed) == FEED_BYTES


async def test_input_is_consumed_when_the_program_has_read_it(program: Program) -> None:
    assert program.pipes.input_is_consumed
    program.pipes.write(b"ab")
    assert not program.pipes.input_is_consumed
    await turns()
    os.read(program.stdin, 1)
    assert not program.pipes.input_is_consumed
    os.read(program.stdin, 1)
    assert program.pipes.input_is_consumed


async def test_input_that_nobody_will_read_is_dropped(program: Program) -> None:
    program.pipes.write(b"x" * 200_000)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, program.stdin)
    os.close(null)
    await turns()
    program.pipes.write(b"more")
    await turns()
    assert program.pipes.pending_bytes == 0


async def test_a_step_without_input_reads_an_empty_stdin() -> None:
    program = Program(with_stdin=False)
    assert os.read(program.stdin, 10) == b""
    program.pipes.write(b"ignored")
    assert not program.pipes.input_is_consumed
    program.close()


async def test_closing_twice_and_late_calls_do_nothing(program: Program) -> None:
    program.pipes.write(b"x" * 200_000)
    program.pipes.close()
    program.pipes.close()
    program.pipes.write(b"late")
    program.pipes.drain()
    assert program.pipes.pending_bytes == 0


@pytest.mark.parametrize("room", range(3))
async def test_without_descriptors_nothing_stays_open(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    before = open_descriptors()
    real, left = os.pipe2, iter(range(room))

    def scarce(flags: int) -> tuple[int, int]:
        if next(left, None) is None:
            raise OSError(errno.EMFILE, "too many")
        return real(flags)

    monkeypatch.setattr(os, "pipe2", scarce)
    with pytest.raises(OSError, match="too many"):
        Program()
    assert open_descriptors() == before
