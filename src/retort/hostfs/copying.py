"""Copying the files of one virtual folder into another, which nobody else sees yet.

Folders, regular files and symbolic links are copied, the links as they are written; FIFOs, sockets
and devices are left out. Modes keep their permission bits, holes stay holes. Users may change the
source meanwhile: each file is copied as long as it was when it was opened. Blocks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterator

from retort.core import faults
from retort.errors import VFolderFull, VFolderOperation
from retort.hostfs.listing import breathe

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_DEPTH = 200  #: folders within each other; each holds two descriptors while it is copied
_PIECE = 8 * 1024 * 1024  # bytes copied before anyone is told
_BREATH_ENTRIES = 64
_UNCOPYABLE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO}


class Stopped(Exception):
    """`Copy.stop` was called."""


@dataclasses.dataclass(eq=False)
class Copy:
    """One copy under way.

    Attributes:
        owner: whom the new files belong to; None: whoever runs the server.
        max_bytes, max_inodes: what the copy may hold; None: whatever the disk can.
        on_progress: called in the copying thread with entries and bytes done so far.
    """

    owner: tuple[int, int] | None = None
    max_bytes: int | None = None
    max_inodes: int | None = None
    on_progress: Callable[[int, int], None] = lambda entries, size: None
    entries: int = 0
    size: int = 0
    is_stopped: bool = False

    def stop(self) -> None:
        """Make the thread end soon."""
        self.is_stopped = True

    def run(self, source: int, target: int) -> None:
        """Copy what is in one folder into another, both given as descriptors.

        Raises:
            VFolderOperation: it is nested too deep, or a part may not be read.
            VFolderFull: it does not fit.
            Stopped: `stop` was called.
            OSError: the disk failed.
        """
        try:
            self._folder(source, target, 0)
        except PermissionError as exc:
            raise VFolderOperation("A part of the folder cannot be read.") from exc
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise VFolderFull from exc
            raise

    def _folder(self, source: int, target: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise VFolderOperation(f"The folder is nested deeper than {MAX_DEPTH}.")
        with os.scandir(source) as listed:
            for entry in listed:
                self._count()
                name = os.fsencode(entry.name)
                try:
                    status = entry.stat(follow_symlinks=False)
                    self._entry(source, target, name, status, depth)
                except FileNotFoundError:
                    continue  # removed meanwhile

    def _entry(
        self, source: int, target: int, name: bytes, status: os.stat_result, depth: int
    ) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            with _opened(name, _FOLDER, source) as inner:
                os.mkdir(name, 0o700, dir_fd=target)
                with _opened(name, _FOLDER, target) as made:
                    self._folder(inner, made, depth + 1)
                    self._finish(made, status)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            if self.owner is not None:
                os.chown(name, *self.owner, dir_fd=target, follow_symlinks=False)
        elif kind == stat.S_IFREG:
            with _opened(name, _FILE, source) as old, _opened(name, _NEW, target) as new:
                status = os.fstat(old)
                if stat.S_ISREG(status.st_mode):
                    self._content(old, new, status.st_size)
                self._finish(new, status)

    def _finish(self, fd: int, status: os.stat_result) -> None:
        if self.owner is not None:
            os.fchown(fd, *self.owner)
        os.fchmod(fd, status.st_mode & 0o777)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _content(self, old: int, new: int, size: int) -> None:
        at = 0
        while at < size:
            try:
                start = os.lseek(old, at, os.SEEK_DATA)
                end = min(os.lseek(old, start, os.SEEK_HOLE), size)
            except OSError as exc:
                if exc.errno != errno.ENXIO:
                    raise
                break  # only a hole is left
            if start >= size:
                break
            at = self._piece(old, new, start, end)
            if at < end:
                break  # shorter than it was
        os.ftruncate(new, size)

    def _piece(self, old: int, new: int, start: int, end: int) -> int:
        while start < end:
            count = _copy(old, new, start, min(end - start, _PIECE))
            if not count:
                break
            start += count
            self.size += count
            if self.max_bytes is not None and self.size > self.max_bytes:
                raise VFolderFull
            self._tell()
        return start

    def _count(self) -> None:
        self.entries += 1
        faults.reached(faults.Point.CLONING)
        if self.max_inodes is not None and self.entries > self.max_inodes:
            raise VFolderFull
        if self.entries % _BREATH_ENTRIES == 0:
            breathe()
            self._tell()
        if self.is_stopped:
            raise Stopped

    def _tell(self) -> None:
        if self.is_stopped:
            raise Stopped
        self.on_progress(self.entries, self.size)


def _copy(old: int, new: int, offset: int, count: int) -> int:
    """Copy some bytes within the kernel, or through here where it cannot."""
    try:
        return os.copy_file_range(old, new, count, offset, offset)
    except OSError as exc:
        if exc.errno not in _UNCOPYABLE:
            raise
    return os.pwrite(new, os.pread(old, min(count, 1024 * 1024), offset), offset)


@contextlib.contextmanager
def _opened(name: bytes, flags: int, at: int) -> Iterator[int]:
    fd = os.open(name, flags, 0o600, dir_fd=at)
    try:
        yield fd
    finally:
        os.close(fd)
