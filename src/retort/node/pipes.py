"""The three pipes of one step, on the server's side: output is always drained, input never blocks.

Two pipes bring what the program prints, one takes what the user types. Each end that the program
gets is a pipe or /dev/null, never a socket (bash takes a socket for a remote shell, DESIGN 3).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import termios
from collections.abc import Callable

from retort.core import faults
from retort.core.console import Stream
from retort.errors import SandboxFault

READ_BYTES = 65_536  # a pipe's default capacity: one read empties it
DRAIN_BYTES = 16 * 1024 * 1024  # more than any pipe can hold (fs.pipe-max-size is 1 MiB)


FEED_BYTES = 32_768  # asked of init at once; less than a request may hold

ReadPipe = Callable[[Stream, int], bytes]
Feed = Callable[[bytes], "asyncio.Future[int]"]


class StepPipes:
    """Pipes of one step: made before it starts, drained while it runs, emptied when it ended.

    Args:
        on_output: called with the stream and the bytes, in the order of their arrival.
        with_stdin: make a pipe for input; else the program reads an empty /dev/null.
        read: reads a stream's pipe without waiting, as os.read(2) does; b"" at its end.
        feed: has init write input into the pipe, at most `FEED_BYTES`; gives how many it wrote.
        held: our ends of a program that runs already, as init kept them: input if it has any,
            output, errors. They are closed with the rest.

    Attributes:
        stdio: the program's ends, to be handed over and then closed by `started`.
        held: the server's ends, for init to keep for the next server (docs/init-protocol.md); of
            input the first.
        fed: bytes of input that are in the pipe, or were read.
    """

    __slots__ = (
        "_err",
        "_feed",
        "_feeding",
        "_in",
        "_loop",
        "_on_output",
        "_out",
        "_pending",
        "_read_now",
        "_theirs",
        "fed",
        "held",
        "stdio",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_output: Callable[[Stream, bytes], None],
        *,
        with_stdin: bool,
        read: ReadPipe = lambda stream, pipe: os.read(pipe, READ_BYTES),
        feed: Feed,
        held: tuple[int, ...] = (),
    ) -> None:
        self._loop = loop
        self._on_output = on_output
        self._read_now = read
        self._feed = feed
        self._feeding: asyncio.Future[int] | None = None
        self._pending = bytearray()
        self.fed = 0
        if held:
            self.stdio = (-1, -1, -1)
            self._theirs: tuple[int, ...] = ()
            self._in = held[0] if with_stdin else -1
            self._out, self._err = held[-2:]
        else:
            self._make(with_stdin)
        self.held = tuple(end for end in (self._in, self._out, self._err) if end >= 0)
        loop.add_reader(self._out, self._read, Stream.STDOUT, self._out)
        loop.add_reader(self._err, self._read, Stream.STDERR, self._err)

    def _make(self, with_stdin: bool) -> None:
        made: list[int] = []
        try:
            if with_stdin:
                made += os.pipe2(os.O_CLOEXEC)
            else:
                made += (os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1)
            made += os.pipe2(os.O_CLOEXEC)
            made += os.pipe2(os.O_CLOEXEC)
        except OSError:
            _close(*made)
            raise
        child_in, self._in, self._out, child_out, self._err, child_err = made
        for end in (self._in, self._out, self._err):
            if end >= 0:
                os.set_blocking(end, False)
        self.stdio = self._theirs = (child_in, child_out, child_err)

    def started(self) -> None:
        """Close the program's ends: from here on only the program holds them."""
        _close(*self._theirs)
        self._theirs = ()

    def write(self, data: bytes) -> None:
        """Queue input; it goes into the pipe as there is room."""
        if self._in < 0:
            return
        self._pending += data
        self._feed_some()

    @property
    def input_is_consumed(self) -> bool:
        """Whether the program has read all it was given."""
        if self._pending or self._in < 0:
            return False
        unread = array.array("i", [0])
        fcntl.ioctl(self._in, termios.FIONREAD, unread)
        return unread[0] == 0

    @property
    def pending(self) -> bytes:
        """Input that waits for room in the pipe, or for init's word that it is there."""
        return bytes(self._pending)

    @property
    def pending_bytes(self) -> int:
        """Input that waits for room in the pipe, in bytes."""
        return len(self._pending)

    def drain(self) -> None:
        """Read what is in the pipes now, without waiting."""
        for stream, end in ((Stream.STDOUT, self._out), (Stream.STDERR, self._err)):
            left = DRAIN_BYTES
            while end >= 0 and left > 0 and (data := self._read_if_any(stream, end)):
                left -= len(data)
                self._on_output(stream, data)

    def close(self) -> None:
        """Close every end; what is still in the pipes is lost, so `drain` first."""
        for end in (self._out, self._err):
            if end >= 0:
                self._loop.remove_reader(end)
        if self._in >= 0:
            self._loop.remove_writer(self._in)
        _close(*self._theirs, self._in, self._out, self._err)
        self._theirs = ()
        self._in = self._out = self._err = -1
        self._pending.clear()

    def _read(self, stream: Stream, end: int) -> None:
        try:
            data = self._read_now(stream, end)
        except BlockingIOError:
            return
        if data:
            self._on_output(stream, data)
        else:  # end of file: the descriptor would be readable for ever
            self._loop.remove_reader(end)

    def _read_if_any(self, stream: Stream, end: int) -> bytes:
        try:
            return self._read_now(stream, end)
        except BlockingIOError:
            return b""

    def _feed_some(self) -> None:
        """Have init write what waits, one piece at a time."""
        if self._feeding is not None or not self._pending or self._in < 0:
            return
        self._loop.remove_writer(self._in)
        piece = bytes(self._pending[:FEED_BYTES])
        try:
            self._feeding = self._feed(piece)
        except SandboxFault:  # init is gone, and the program with it
            self._pending.clear()
            return
        faults.reached(faults.Point.INPUT_FED)
        self._feeding.add_done_callback(self._was_fed)

    def _was_fed(self, feeding: asyncio.Future[int]) -> None:
        self._feeding = None
        if feeding.cancelled() or feeding.exception() is not None or self._in < 0:
            self._pending.clear()  # the program closed its input or ended: nobody will read this
            return
        written = feeding.result()
        self.fed += written
        del self._pending[:written]
        if written:
            self._feed_some()
        elif self._pending:
            self._loop.add_writer(self._in, self._feed_some)


def _close(*ends: int) -> None:
    for end in ends:
        if end >= 0:
            with contextlib.suppress(OSError):
                os.close(end)
