"""A command's three standard streams, without blocking the event loop and without surprises."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys

PIECE_BYTES = select.PIPE_BUF  #: so much can be written without blocking once poll says so
READ_BYTES = 65_536


def harmless(text: str) -> str:
    """Show control and escape characters of a foreign name instead of obeying them."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode()
        for char in text
    )


class Sink:
    """Bytes to a descriptor as they come; a slow reader delays only who waits for `write`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def write(self, data: bytes) -> None:
        """Write everything. Raises OSError, BrokenPipeError when nobody reads."""
        rest = memoryview(data)
        while rest:
            await _ready(self._fd, is_input=False)
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(self._fd, rest[:PIECE_BYTES]) :]


class Lines:
    """Lines of a descriptor, read only when asked for; being cancelled loses nothing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = b""
        self._is_ended = False

    async def next(self) -> str | None:
        """Give the next line with its newline; the last may have none. None: the end."""
        while b"\n" not in self._buffer and not self._is_ended:
            await self._read()
        line, newline, self._buffer = self._buffer.partition(b"\n")
        return (line + newline).decode("utf-8", "replace") or None

    async def rest(self, limit: int) -> bytes | None:
        """Give everything up to the end; None when that is more than `limit` bytes."""
        while not self._is_ended and len(self._buffer) <= limit:
            await self._read()
        data, self._buffer = self._buffer, b""
        return data if len(data) <= limit else None

    async def _read(self) -> None:
        try:
            await _ready(self._fd, is_input=True)
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # closed, or a terminal that is another's
            data = b""
        self._buffer += data
        self._is_ended = not data


async def _ready(fd: int, *, is_input: bool) -> None:
    """Wait until a descriptor can be read or written without blocking."""
    poll = select.poll()
    poll.register(fd, select.POLLIN if is_input else select.POLLOUT)
    if poll.poll(0):  # always so for a regular file, which epoll refuses
        return
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (
        (loop.add_reader, loop.remove_reader) if is_input else (loop.add_writer, loop.remove_writer)
    )
    add(fd, _settle, ready)
    try:
        await ready
    finally:
        remove(fd)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Notes:
    """What a command itself has to say, on standard error.

    Args:
        is_quiet: only `error` is shown.
    """

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet

    def say(self, text: str) -> None:
        """Tell about progress."""
        if not self._is_quiet:
            _print(text, "dim")

    def error(self, text: str) -> None:
        """Tell what went wrong."""
        _print(text, "red")


def _print(text: str, style: str) -> None:
    if sys.stderr is None:
        return
    line = f"retort: {harmless(text)}"
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr.isatty():
            # Imported here: half of all calls have no terminal, and it takes a while.
            from rich.console import Console

            Console(stderr=True).print(line, style=style, markup=False, highlight=False)
        else:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
