"""What the server knows of a session's runs, kept so that a killed server loses nothing of it.

One file per session, written without a copy in between: a record is one `pwrite`, and output moves
from the pipe into the file inside the host kernel (splice(2)), so that there is no moment in which
a byte is in neither. Killing the process loses nothing of what was written; nothing is forced to
the disk, for a host that restarts has lost the sandboxes as well. What the records mean is
replay.py's.

Source: docs/decisions/0011-a-journal-per-session.md.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import structlog

from retort.core.console import Stream
from retort.errors import Unavailable
from retort.node.records import DECODER, ENCODER, Printed, Record

log = structlog.get_logger()

READ_BYTES = 65_536  #: moved at a time; a pipe's default capacity
QUIET_BYTES = 64 * 1024  #: below this a journal of ended runs is not worth emptying
LARGE_BYTES = 8 * 1024 * 1024  #: beyond this, what nobody needs any more is left out

_HEAD = struct.Struct("<IB")  # length of what follows, and what it is
_RECORD, _STDOUT, _STDERR = 0, 1, 2
_KINDS = {Stream.STDOUT: _STDOUT, Stream.STDERR: _STDERR}
_STREAMS = {kind: stream for stream, kind in _KINDS.items()}


class Journal:
    """The journal of one session, open for writing.

    When the disk is full the journal is *behind*: runs go on, in memory alone, and the next
    `renew` that succeeds makes it whole again.

    Args:
        path: of the file; made, or gone on with from `end`.
        end: where the last whole record ends.

    Attributes:
        is_behind: something could not be written; a killed server would lose it.
    """

    __slots__ = ("_can_splice", "_end", "_fd", "_path", "_renewed_bytes", "_unread", "_unwritten",
                 "is_behind")  # fmt: skip

    def __init__(self, path: Path, end: int = 0) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = end
        self._renewed_bytes = 0
        self._unwritten = bytearray()
        self._unread = array.array("i", [0])
        self._can_splice = True
        self.is_behind = False
        os.ftruncate(self._fd, end)

    def __repr__(self) -> str:
        return f"<Journal {self._path.parent.name} {self._end} bytes>"

    @property
    def size_bytes(self) -> int:
        """How long the file is."""
        return self._end

    @property
    def is_large(self) -> bool:
        """Whether it has grown so much that a `renew` is due."""
        return self._end > LARGE_BYTES + 2 * self._renewed_bytes

    def add(self, *records: Record) -> None:
        """Write records, after those that `later` was told of."""
        self.later(*records)
        self.flush()

    def later(self, *records: Record) -> None:
        """Write records with whatever is written next: losing them alone does no harm."""
        if self._fd < 0:
            return
        for record in records:
            content = ENCODER.encode(record)
            self._unwritten += _HEAD.pack(len(content), _RECORD)
            self._unwritten += content

    def flush(self) -> None:
        """Write what `later` was told of."""
        if self._unwritten and not self.is_behind:
            try:
                self._write(self._unwritten)
            except OSError as exc:
                self._fall_behind(exc)
        self._unwritten.clear()

    def read_pipe(self, stream: Stream, pipe: int) -> bytes:
        """Move what is in a pipe into the journal, and give it.

        Returns:
            At most `READ_BYTES`; b"" at the pipe's end.

        Raises:
            BlockingIOError: nothing is there now.
        """
        if self._fd < 0:
            return os.read(pipe, READ_BYTES)
        if self.is_behind or not self._can_splice:
            return self._read_and_write(stream, pipe)
        fcntl.ioctl(pipe, termios.FIONREAD, self._unread)
        # Never more than is there, as the length is written first; at least one, to see the end.
        length = min(max(self._unread[0], 1), READ_BYTES)
        head = _HEAD.pack(length, _KINDS[stream])
        at = self._end + len(self._unwritten) + len(head)
        try:
            os.pwrite(self._fd, self._unwritten + head, self._end)
            moved = os.splice(pipe, self._fd, length, offset_dst=at)
        except BlockingIOError:
            self._end = at - len(head)
            self._unwritten.clear()
            raise
        except OSError as exc:
            if exc.errno == errno.EINVAL:  # not every file system takes part
                self._can_splice = False
            else:
                self._fall_behind(exc)
            return self._read_and_write(stream, pipe)
        self._unwritten.clear()
        if not moved:
            self._end = at - len(head)
            return b""
        if moved != length:  # only we read, so that this does not happen; but a lie would be worse
            os.pwrite(self._fd, _HEAD.pack(moved, _KINDS[stream]), at - len(head))
        self._end = at + moved
        return os.pread(self._fd, moved, at)

    def renew(self, records: Iterable[Record]) -> bool:
        """Replace everything by a few records that say the same; False when that fails."""
        if self._fd < 0:
            return True
        fresh = self._path.with_suffix(".new")
        self._unwritten.clear()
        fd = -1
        try:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            end = 0
            for record in records:
                content = ENCODER.encode(record)
                _write_all(fd, _HEAD.pack(len(content), _RECORD) + content, end)
                end += _HEAD.size + len(content)
            os.rename(fresh, self._path)  # noqa: PTH104  the name is our own
        except OSError as exc:
            if fd >= 0:
                os.close(fd)
            self._fall_behind(exc)
            return False
        os.close(self._fd)
        self._fd, self._end, self._renewed_bytes = fd, end, end
        self.is_behind = False
        return True

    def insist(self) -> None:
        """Refuse what could not be kept.

        Raises:
            Unavailable: the state folder's disk is full.
        """
        if self.is_behind:
            raise Unavailable("The server cannot write down what it does just now")

    def close(self) -> None:
        """Write what waits, and close: what is told from now on is kept no more."""
        if self._fd >= 0:
            self.flush()
            os.close(self._fd)
            self._fd = -1

    def _read_and_write(self, stream: Stream, pipe: int) -> bytes:
        """Do the same where the two cannot be one; a kill in between loses what was read."""
        data = os.read(pipe, READ_BYTES)
        if data and not self.is_behind:
            self._unwritten += _HEAD.pack(len(data), _KINDS[stream])
            self._unwritten += data
            self.flush()
        return data

    def _write(self, data: bytes | bytearray) -> None:
        _write_all(self._fd, data, self._end)
        self._end += len(data)

    def _fall_behind(self, exc: OSError) -> None:
        if not self.is_behind:
            log.error("journal.behind", journal=repr(self), reason=str(exc))
        self.is_behind = True
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._end)  # no half record, which would read as a whole one


class Unkept(Journal):
    """A journal that keeps nothing: for runs that end with their server."""

    __slots__ = ()

    def __init__(self) -> None:
        self._path, self._fd, self._end, self._renewed_bytes = Path(os.devnull), -1, 0, 0
        self._unwritten, self.is_behind = bytearray(), False

    def later(self, *records: Record) -> None:
        """Forget them."""

    def read_pipe(self, stream: Stream, pipe: int) -> bytes:
        """Only read."""
        return os.read(pipe, READ_BYTES)

    def renew(self, records: Iterable[Record]) -> bool:
        """Forget them."""
        return True


def read_journal(path: Path) -> tuple[list[Record | Printed], int]:
    """Read what an earlier server wrote.

    The last record may be cut short: a kill came while it was written. Of output, what is there
    counts, for it is in the pipe no more; anything else has not happened.

    Returns:
        The records, and where the next one belongs. A journal that is missing is empty.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return [], 0
    records: list[Record | Printed] = []
    end = 0
    for record, end in _records(memoryview(content)):  # noqa: B007  used after the loop
        records.append(record)
    return records, end


def _records(content: memoryview) -> Iterator[tuple[Record | Printed, int]]:
    at = 0
    while at + _HEAD.size <= len(content):
        length, kind = _HEAD.unpack_from(content, at)
        body = content[at + _HEAD.size : at + _HEAD.size + length]
        if kind in _STREAMS:
            if not body:
                return
            at += _HEAD.size + len(body)
            yield Printed(_STREAMS[kind], bytes(body)), at
            if len(body) < length:
                return
        elif kind == _RECORD and len(body) == length:
            try:
                record = DECODER.decode(body)
            except msgspec.MsgspecError as exc:  # of another version: what came before still counts
                log.error("journal.unreadable", at=at, reason=str(exc))
                return
            at += _HEAD.size + length
            yield record, at
        else:
            return


def _write_all(fd: int, data: bytes | bytearray, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written
