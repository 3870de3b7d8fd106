"""Uploads into a virtual folder: collected out of sight, put in place whole.

An upload is a file in the folder's `uploads`, named by its id: its length is how much has come, so
it goes on after any crash. Complete, it is renamed over its target. `<id>.done` is made just before
that, so that whoever asks later can tell a finished upload from one that never was. It lies beside
`uploads`, where no quota counts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator

from retort.core import faults
from retort.errors import FileTooLarge, OffsetMismatch, PathNotFound
from retort.hostfs.beneath import (
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    BeneathPath,
    folder_refusal,
)
from retort.hostfs.emptying import is_gone_name, remove_tree
from retort.hostfs.folders import FolderTree, renameat2
from retort.hostfs.stream import freed_in_thread, in_thread

_RESOLVE = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS
_DONE = ".done"
_MODE = 0o644
_FOLDER_MODE = 0o755
_WRITE_BYTES = 1024 * 1024  # collected before a thread writes them
_VECTOR = 1024  # IOV_MAX
_FLUSH_BYTES = 8 * 1024 * 1024

_libc = ctypes.CDLL(None)


class Upload:
    """One upload, by descriptors of its folder's `data` and `uploads`. Every call may block.

    Args:
        upload_id: hex digits, drawn by the server.
        path: where the file goes.
        size: its final length in bytes.
        owner: whom it will belong to; None: whoever runs the server.
    """

    def __init__(
        self,
        data: int,
        uploads: int,
        upload_id: str,
        path: BeneathPath,
        size: int,
        owner: tuple[int, int] | None,
    ) -> None:
        self._tree = FolderTree(data, owner=owner)
        self._uploads = uploads
        self._name = upload_id
        self._done = f"../{upload_id}{_DONE}"
        self._path = path
        self._size = size
        self._owner = owner

    def begin(self) -> None:
        """Make the file that collects. Raises VFolderFull."""
        with _refusing(self._path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(self._name, flags, 0o600, dir_fd=self._uploads)
        os.close(fd)

    def offset(self) -> int:
        """Tell how much has come. Raises PathNotFound when there is no such upload (any more)."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self._name, dir_fd=self._uploads).st_size
        try:
            os.stat(self._done, dir_fd=self._uploads)
        except FileNotFoundError:
            raise PathNotFound("No such upload.") from None
        return self._size

    def open_at(self, offset: int) -> int:
        """Open the collecting file to write on; the caller closes it.

        Raises:
            OffsetMismatch: more or less has come than the caller thinks.
            PathNotFound: there is no such upload.
        """
        if (stands := self.offset()) != offset:
            raise OffsetMismatch(f"The upload stands at {stands}.")
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._name, flags, dir_fd=self._uploads)

    async def finish(self) -> None:
        """Put a complete file in its place; again does nothing.

        Missing folders are made. A file that was there is replaced by one rename.

        Raises:
            VFolderOperation: a folder is in the file's place, or something else in a folder's.
            VFolderFull: no room for the names.
        """
        try:
            fd = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._uploads)
        except FileNotFoundError:
            return
        try:
            with _refusing(self._path):
                await self._place(fd)
        finally:
            os.close(fd)

    async def _place(self, fd: int) -> None:
        if self._owner is not None:
            os.fchown(fd, *self._owner)
        os.fchmod(fd, _MODE)
        above = self._path.parents()
        if above:
            await self._tree.mkdirs(bytes(above[-1]), _FOLDER_MODE, _RESOLVE)
        flags = os.O_PATH | os.O_DIRECTORY
        parent = await self._tree.open(bytes(above[-1]) if above else b".", flags, 0, _RESOLVE)
        try:
            async with freed_in_thread(self._path.name, parent):
                self._mark()
                faults.reached(faults.Point.UPLOAD_WHOLE)
                renameat2(self._uploads, self._name.encode(), parent, self._path.name, 0)
                faults.reached(faults.Point.UPLOAD_PLACED)
        finally:
            os.close(parent)

    def _mark(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        os.close(os.open(self._done, flags, 0o600, dir_fd=self._uploads))


def sweep_uploads(folder: int, uploads: int, is_over: Callable[[str], bool]) -> None:
    """Remove uploads and their marks that are over, and what deletions left. Blocks.

    Args:
        folder: what holds `uploads`.
        is_over: tells it by an upload's id.
    """
    for at in (folder, uploads):
        for name in os.listdir(at):  # noqa: PTH208 - a descriptor, not a path
            raw = os.fsencode(name)
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=at, follow_symlinks=False)
                if is_gone_name(raw):
                    remove_tree(at, raw)
                elif stat.S_ISREG(status.st_mode) and is_over(name.removesuffix(_DONE)):
                    os.unlink(name, dir_fd=at)


async def written(
    fd: int, path: BeneathPath, offset: int, size: int, chunks: AsyncIterator[bytes]
) -> int:
    """Write what comes to a collecting file, from an offset on; give how far it got.

    A file that is complete is on the disk when this returns.

    Raises:
        FileTooLarge: it would become longer than `size`; all that came is cut off again.
        VFolderFull; whatever `chunks` raises: what came before it stays.
    """
    began = offset
    waiting: list[bytes] = []
    held = 0
    try:
        async for chunk in chunks:
            held += len(chunk)
            waiting.append(chunk)
            if offset + held > size:
                waiting.clear()
                await in_thread(functools.partial(os.ftruncate, fd, began))
                raise FileTooLarge("More came than the upload's size")
            if held >= _WRITE_BYTES:
                pieces, waiting, held = waiting, [], 0
                offset = await _write_in_thread(fd, path, offset, pieces)
                faults.reached(faults.Point.CHUNK_WRITTEN)
    finally:
        if waiting:
            offset = await _write_in_thread(fd, path, offset, waiting)
    if offset == size:
        with _refusing(path):
            await in_thread(functools.partial(os.fsync, fd))
    return offset


async def _write_in_thread(fd: int, path: BeneathPath, offset: int, pieces: list[bytes]) -> int:
    with _refusing(path):
        return await in_thread(functools.partial(_write, fd, offset, pieces))


def _write(fd: int, offset: int, pieces: list[bytes]) -> int:
    began = offset // _FLUSH_BYTES
    rest = [memoryview(piece) for piece in pieces]
    while rest:
        count = os.pwritev(fd, rest[:_VECTOR], offset)
        offset += count
        while rest and count >= len(rest[0]):
            count -= len(rest.pop(0))
        if count:
            rest[0] = rest[0][count:]
    if (now := offset // _FLUSH_BYTES) != began:
        # Begins to write to the disk what is in memory, so that less is left for the sync that the
        # last answer waits for. What does not work here costs only that.
        _libc.sync_file_range(
            fd,
            ctypes.c_int64(began * _FLUSH_BYTES),
            ctypes.c_int64((now - began) * _FLUSH_BYTES),
            2,
        )
    return offset


@contextlib.contextmanager
def _refusing(path: BeneathPath) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise folder_refusal(exc, path) from exc
