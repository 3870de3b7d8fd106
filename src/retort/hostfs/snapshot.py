"""A whole tree as a value: what every path is and holds, read by descriptor.

For the build cache, which asks whether two trees are the same and what a build changed. Whatever
cannot be told exactly and put back exactly makes the tree Unfit, with the reason: never a guess.
Everything here blocks, and is meant for a thread; no program of the session runs meanwhile.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable, Mapping

from retort.hostfs.listing import breathe

MAX_DEPTH = 64  #: folders in folders; each is one open descriptor
CHUNK_BYTES = 256 * 1024
_BREATH_ENTRIES = 64  # about 1 ms
_SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_NAME = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


class Unfit(Exception):
    """The tree cannot be told or kept exactly; the text says why, and may be shown."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One path of a tree.

    Attributes:
        kind: stat.S_IFREG, S_IFDIR or S_IFLNK.
        mode: permission bits.
        content: SHA-256 of a file, the target of a link, empty for a folder.
    """

    kind: int
    mode: int
    mtime_ns: int
    size: int
    content: bytes


Tree = Mapping[bytes, Entry]  #: by path relative to the root; the root itself is b""
Keep = Callable[[int], bytes]  #: copies what a descriptor holds away and gives its SHA-256


@dataclasses.dataclass(frozen=True, slots=True)
class TreeLimits:
    """How large a tree may be.

    Attributes:
        max_entries: files, folders and links together.
        max_bytes: contents of all files together.
    """

    max_entries: int = 10_000
    max_bytes: int = 64 * 1024 * 1024


def digest_of(fd: int) -> bytes:
    """Give the SHA-256 of what a descriptor holds from its start."""
    hashed = hashlib.sha256()
    os.lseek(fd, 0, os.SEEK_SET)
    while piece := os.read(fd, CHUNK_BYTES):
        hashed.update(piece)
    return hashed.digest()


def read_tree(
    root: int, limits: TreeLimits, before: Tree | None = None, keep: Keep | None = None
) -> dict[bytes, Entry]:
    """Read a tree whole.

    Every file is read, for times tell nothing: a write through a mapping leaves those of a tmpfs
    alone.

    Args:
        root: its folder, open for reading; stays open.
        limits: what is too large.
        before: an earlier look at the same tree.
        keep: called with each file that is not in `before` as it is now.

    Raises:
        Unfit: too large or too deep; a FIFO, socket, device, hard link, other mount, extended
            attribute, set-id bit, or something that may not be read; or it changed meanwhile.
        OSError: what no program causes.
    """
    reader = _Reader(limits, before or {}, keep)
    try:
        reader.read(root)
    except PermissionError:
        raise Unfit("a file or folder cannot be read") from None
    except (FileNotFoundError, NotADirectoryError):
        raise Unfit("the files changed while they were read") from None
    return reader.found


class _Reader:
    def __init__(self, limits: TreeLimits, before: Tree, keep: Keep | None) -> None:
        self.found: dict[bytes, Entry] = {}
        self._limits = limits
        self._before = before
        self._keep = keep
        self._bytes = 0
        self._device = -1

    def read(self, root: int) -> None:
        status = os.fstat(root)
        self._device = status.st_dev
        self._add(b"", status, b"")
        self._folder(root, b"", 0)

    def _folder(self, folder: int, prefix: bytes, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Unfit(f"folders are nested more than {MAX_DEPTH} deep")
        _check_attributes(folder)
        with os.scandir(folder) as entries:
            names = [os.fsencode(entry.name) for entry in entries]
            if len(names) + len(self.found) > self._limits.max_entries:
                raise Unfit(f"there are more than {self._limits.max_entries} files and folders")
        for name in sorted(names):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            path = prefix + name
            if stat.S_ISLNK(status.st_mode):
                self._add(path, status, os.readlink(name, dir_fd=folder))
            elif stat.S_ISDIR(status.st_mode):
                self._open(folder, name, path, depth, os.O_DIRECTORY)
            elif stat.S_ISREG(status.st_mode):
                self._open(folder, name, path, depth, 0)
            else:
                raise Unfit(f"there is {_KINDS.get(stat.S_IFMT(status.st_mode), 'a strange file')}")

    def _open(self, folder: int, name: bytes, path: bytes, depth: int, flags: int) -> None:
        fd = os.open(name, _NAME | flags, dir_fd=folder)
        try:
            status = os.fstat(fd)  # of what was opened: the name may mean another thing by now
            if stat.S_ISDIR(status.st_mode):
                self._add(path, status, b"")
                self._folder(fd, path + b"/", depth + 1)
            elif stat.S_ISREG(status.st_mode):
                _check_attributes(fd)
                self._add(path, status, self._content(fd, path, status))
            else:
                raise Unfit("the files changed while they were read")
        finally:
            os.close(fd)

    def _add(self, path: bytes, status: os.stat_result, content: bytes) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if status.st_dev != self._device:
            raise Unfit("a folder is mounted there")
        if kind != stat.S_IFDIR and status.st_nlink != 1:
            raise Unfit("there is a hard link")
        if kind != stat.S_IFLNK and status.st_mode & _SPECIAL:
            raise Unfit("a file has a set-id or sticky bit")
        mode = status.st_mode & 0o777
        self.found[path] = Entry(kind, mode, status.st_mtime_ns, status.st_size, content)
        if len(self.found) % _BREATH_ENTRIES == 0:
            breathe()

    def _content(self, fd: int, path: bytes, status: os.stat_result) -> bytes:
        self._bytes += status.st_size
        if self._bytes > self._limits.max_bytes:
            raise Unfit(f"the files are more than {self._limits.max_bytes} bytes together")
        old = self._before.get(path)
        if self._keep is None:
            return digest_of(fd)
        looks_same = old is not None and (old.kind, old.mode, old.size, old.mtime_ns) == (
            stat.S_IFREG, status.st_mode & 0o777, status.st_size, status.st_mtime_ns
        )  # fmt: skip
        if looks_same and (digest := digest_of(fd)) == old.content:  # type: ignore[union-attr]
            return digest
        return self._keep(fd)


def _check_attributes(fd: int) -> None:
    try:
        names = os.listxattr(fd)
    except OSError:  # a file system without any
        return
    # Security modules of the host set their own on every file; no program of ours does.
    if any(not name.startswith("security.") for name in names):
        raise Unfit("a file has an extended attribute")
