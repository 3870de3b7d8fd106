"""Files that go in and out of a session, as values and streams."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple


@dataclasses.dataclass(frozen=True, slots=True)
class FileUpload:
    """One file on its way in.

    Attributes:
        path: as the client wrote it, percent-decoded; relative to /home/work or absolute.
        chunks: its bytes; read once, before the next file is asked for.
    """

    path: str
    chunks: AsyncIterator[bytes]


class FileEntry(NamedTuple):  # a listing makes thousands, at a third of a frozen dataclass's price
    """One entry of a folder, links not followed. Times in seconds since 1970.

    Attributes:
        name: raw bytes, as the kernel has them; never contains a slash.
        mode: st_mode, type bits included.
    """

    name: bytes
    mode: int
    size: int
    ctime: float
    mtime: float
    atime: float


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    """A folder's entries, sorted by name.

    Attributes:
        path: normalised and absolute, e.g. "/home/work/src".
        truncated: the folder has more entries than the server lists.
    """

    path: str
    entries: tuple[FileEntry, ...]
    truncated: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Download:
    """One file or tar archive on its way out.

    Attributes:
        size: bytes that `chunks` will give, exactly; a file that shrinks meanwhile is padded.
        chunks: call once to get the stream.
        close: releases descriptors; to be called also when `chunks` was not read to its end.
    """

    name: str
    size: int
    chunks: Callable[[], AsyncIterator[bytes]]
    close: Callable[[], Awaitable[None]]


@dataclasses.dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file of this host, open for reading; whoever has it closes it.

    Attributes:
        name: without directories.
        fd: its descriptor.
        size: bytes it had when it was opened.
        modified_at: seconds since 1970.
    """

    name: str
    fd: int
    size: int
    modified_at: float
