"""Counters of control groups, read after every step, and kept open for a few groups.

To open and close a file costs twice what reading it does. Descriptors are few, though, and a server
may hold a thousand groups: only those that opened theirs last keep them, and one that is read
again after so many others opens them anew.
"""

from __future__ import annotations

import os
import threading

READ_BYTES = 4096  # no file that is read here is longer
MOST_GROUPS = 8  #: that have files open; of each some ten

_open: dict[CounterFiles, None] = {}  # who has files open, the eldest first
_lock = threading.Lock()  # groups are closed in threads


class CounterFiles:
    """The files of one group, for the event loop's thread; only `close` is for any.

    What cannot be opened or read is empty.
    """

    __slots__ = ("_fds",)

    def __init__(self) -> None:
        self._fds: dict[tuple[str, int], int] = {}

    def read(self, file: str) -> bytes:
        """Read a file from its beginning; at most `READ_BYTES`."""
        fd = self._fd(file, os.O_RDONLY)
        try:
            return os.pread(fd, READ_BYTES, 0) if fd >= 0 else b""
        except OSError:  # the group is gone
            return b""

    def write(self, file: str, text: bytes) -> bool:
        """Write a setting; False if it cannot be."""
        fd = self._fd(file, os.O_WRONLY)
        try:
            return fd >= 0 and os.write(fd, text) == len(text)
        except OSError:
            return False

    def close(self) -> None:
        """Close them; the next use opens them anew. No other call may be under way."""
        with _lock:
            _open.pop(self, None)
            self._close()

    def _fd(self, file: str, flags: int) -> int:
        fd = self._fds.get((file, flags))
        if fd is not None:
            return fd
        try:
            fd = os.open(file, flags | os.O_CLOEXEC)
        except OSError:
            return -1
        with _lock:
            self._fds[file, flags] = fd
            _open.setdefault(self)
            if len(_open) > MOST_GROUPS:
                eldest = next(iter(_open))
                del _open[eldest]
                eldest._close()
        return fd

    def _close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def read_once(file: str) -> bytes:
    """Read a file as `CounterFiles.read` does, and keep nothing open; from any thread."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, READ_BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)
