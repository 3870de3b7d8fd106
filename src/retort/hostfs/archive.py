"""Tar streams of a tree that its owner may change while it is read.

An Archive is planned first (walk by descriptors, sizes fixed), so that its size is known exactly,
and then read in chunks. What shrinks or vanishes in between is padded with zeros, what grows is
cut: the stream is a valid archive of the planned size whatever happens.

What an archive has: folders, regular files (each hard link as a file of its own), and last the
symbolic links that cannot lead out of the unpacked tree. Left out: other symbolic links, FIFOs,
sockets, devices. Owners are 1000 `work`, modes the permission bits, times whole seconds from 1970.
Unpacked naively into an empty folder, nothing lands outside (spec/attacks.md D6, D7, D9).

Everything here blocks, on the disk at most; a program cannot make it wait.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import os
import stat
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator

from retort.errors import FileTooLarge, PathRefused
from retort.hostfs.listing import breathe

_BLOCK = tarfile.BLOCKSIZE
_MTIME_MAX = 8**11 - 1  # the header's twelve octal digits, one of them NUL
_NAME_MAX = 4095  # no unpacker can open more by one path (PATH_MAX)
_OPEN_FOLDERS = 64
_BREATH_ENTRIES = 64  # about 1 ms
_NAME = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = _NAME | os.O_DIRECTORY
#: What opening a name gives when a program changed the tree since it was read.
_CHANGED = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ESTALE}
_ZEROS = bytes(64 * 1024)


class Stopped(Exception):
    """The archive was closed while it was planned or read."""


@dataclasses.dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What one archive may hold.

    Attributes:
        max_bytes: apparent sizes of its files, and the headers that long names need.
        max_entries: folders, files and links together.
        chunk_bytes: about what one read gives.
    """

    max_bytes: int
    max_entries: int
    chunk_bytes: int = 256 * 1024


@dataclasses.dataclass(slots=True)
class _Folder:
    """A folder of the tree: `parent` is its index, -1 for the root; identity as st_dev, st_ino."""

    parent: int
    name: bytes
    identity: tuple[int, int]


@dataclasses.dataclass(slots=True)
class _Entry:
    """A member: a file or link called `name` in a folder, or (empty name) the folder itself."""

    folder: int
    name: bytes
    kind: bytes  # tarfile's REGTYPE, DIRTYPE or SYMTYPE
    mode: int
    mtime: int
    size: int = 0
    target: bytes = b""


class _Source(ABC):
    """A stream of known size, read in chunks."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self.limits = limits
        self.is_stopped = False
        self.size = 0  #: bytes of the whole stream; right once `plan` has returned
        self._pieces: Generator[bytes, None, None] | None = None

    def read(self) -> bytes:
        """Give the next chunk, about `chunk_bytes` long; empty at the end.

        Raises:
            Stopped: `stop` or `close` was called.
            OSError: what no program causes (EMFILE, EIO): zeros would be a lie then.
        """
        if self._pieces is None:
            self._pieces = self._stream()
        collected = bytearray()
        for piece in self._pieces:
            if not collected and len(piece) >= self.limits.chunk_bytes:
                return piece
            collected += piece
            if len(collected) >= self.limits.chunk_bytes:
                break
        return bytes(collected)

    def stop(self) -> None:
        """Make a `plan` or `read` in another thread end soon."""
        self.is_stopped = True

    def close(self) -> None:
        """Release every descriptor; not while another thread is in `plan` or `read`."""
        self.is_stopped = True
        if self._pieces is not None:
            self._pieces.close()

    @abstractmethod
    def _stream(self) -> Generator[bytes, None, None]:
        """Give the bytes of the whole stream, `size` in all."""


class SingleFile(_Source):
    """The bytes of one regular file as they are.

    Args:
        fd: open for reading and checked to be a regular file; belongs to this from now on.
        limits: what is too large, and the length of chunks.
    """

    entries = 1

    def __init__(self, fd: int, limits: ArchiveLimits) -> None:
        super().__init__(limits)
        self._fd = fd

    def plan(self) -> None:
        """Fix the size. Raises FileTooLarge."""
        self.size = os.fstat(self._fd).st_size
        if self.size > self.limits.max_bytes:
            raise FileTooLarge

    def close(self) -> None:
        """Release the descriptor; not while another thread is in `plan` or `read`."""
        super().close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _stream(self) -> Generator[bytes, None, None]:
        yield from _exactly(self._fd, self.size, self)


class Archive(_Source):
    """One tar stream of a file or folder.

    Args:
        fd: open for reading and checked to be a regular file or a folder; belongs to the archive
            from now on.
        name: what the top member is called; no slash, not `..`.
        limits: what is too large.
        links: keep symbolic links that stay inside. Turn off for an archive that is unpacked over
            another of the same name, whose links could bend its paths.
    """

    def __init__(self, fd: int, name: bytes, limits: ArchiveLimits, *, links: bool = True) -> None:
        super().__init__(limits)
        self._links = links
        self._folders: list[_Folder] = []
        self._entries: list[_Entry] = []
        self._tree = _OpenFolders(fd, name, self._folders)
        self._name = name
        self._counted = 0

    @property
    def entries(self) -> int:
        """How many members are planned."""
        return len(self._entries)

    def plan(self) -> None:
        """Walk the tree and fix what the archive will hold.

        Raises:
            FileTooLarge: over the limits, before anything is read.
            PathRefused: a part may not be read, or is nested too deep for any unpacker.
            OSError: the kernel's, for what no program causes.
            Stopped: `stop` was called meanwhile.
        """
        status = os.fstat(self._tree.root)
        if stat.S_ISDIR(status.st_mode):
            self._plan_tree(status)
        else:
            self._add(_Entry(-1, self._name, tarfile.REGTYPE, *_attributes(status), status.st_size))
        self.size = self._total()
        self._tree.close_all()

    def _total(self) -> int:
        """Count the bytes of what is planned."""
        total = 2 * _BLOCK + sum(self._header_bytes(e) + _padded(e.size) for e in self._entries)
        return -(-total // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def close(self) -> None:
        """Release every descriptor; not while another thread is in `plan` or `read`."""
        super().close()
        self._tree.close()

    # --- planning ---

    def _plan_tree(self, root: os.stat_result) -> None:
        """Walk depth first; folders come before what they hold, links after everything."""
        self._add_folder(_Folder(-1, self._name, _identity(root)), root)
        links: list[_Entry] = []
        pending = [0]
        while pending:
            index = pending.pop()
            try:
                fd = self._tree.open(index)
            except PermissionError as exc:
                raise self._unreadable(index, b"") from exc
            if fd is None:
                continue
            below = []
            for name, status in self._scan(fd, index).items():
                kind = stat.S_IFMT(status.st_mode)
                if kind == stat.S_IFDIR:
                    below.append(len(self._folders))
                    self._add_folder(_Folder(index, name, _identity(status)), status)
                elif kind == stat.S_IFREG:
                    self._check_readable(fd, index, name, status)
                    self._add(
                        _Entry(index, name, tarfile.REGTYPE, *_attributes(status), status.st_size)
                    )
                elif kind == stat.S_IFLNK and self._links:
                    target = self._inner_target(fd, index, name)
                    if target is not None:
                        links.append(
                            _Entry(index, name, tarfile.SYMTYPE, *_attributes(status), 0, target)
                        )
            pending.extend(reversed(below))
        for link in links:
            self._add(link)

    def _scan(self, fd: int, index: int) -> dict[bytes, os.stat_result]:
        """Read one folder, sorted. A dict: readdir may give a name twice while it is renamed."""
        found = {}
        room = self.limits.max_entries - len(self._entries)
        try:
            with os.scandir(fd) as listed:
                for entry in listed:
                    if self.is_stopped:
                        raise Stopped
                    try:
                        found[os.fsencode(entry.name)] = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if len(found) % _BREATH_ENTRIES == 0:
                        breathe()
                    if len(found) > room:
                        raise self._too_many()
        except PermissionError as exc:
            raise self._unreadable(index, b"") from exc
        return dict(sorted(found.items()))

    def _add_folder(self, folder: _Folder, status: os.stat_result) -> None:
        self._folders.append(folder)
        index = len(self._folders) - 1
        self._add(_Entry(index, b"", tarfile.DIRTYPE, *_attributes(status)))

    def _add(self, entry: _Entry) -> None:
        if self.is_stopped:
            raise Stopped
        self._entries.append(entry)
        if len(self._entries) % _BREATH_ENTRIES == 0:
            breathe()
        if len(self._entries) > self.limits.max_entries:
            raise self._too_many()
        name = self._member(entry)
        if len(name) > _NAME_MAX:
            raise PathRefused(f"A path in it is longer than {_NAME_MAX} bytes.")
        self._counted += entry.size + self._header_bytes(entry) - _BLOCK
        if self._counted > self.limits.max_bytes:
            raise FileTooLarge

    def _too_many(self) -> FileTooLarge:
        return FileTooLarge(f"Too large file: more than {self.limits.max_entries} entries")

    def _check_readable(self, fd: int, index: int, name: bytes, status: os.stat_result) -> None:
        """Refuse instead of sending zeros for a file that its owner made unreadable."""
        if status.st_mode & stat.S_IRUSR:
            return
        try:
            os.close(os.open(name, _NAME, dir_fd=fd))
        except PermissionError as exc:
            raise self._unreadable(index, name) from exc
        except OSError:
            pass  # changed meanwhile; padded if it stays so

    def _unreadable(self, index: int, name: bytes) -> PathRefused:
        shown = os.fsdecode(self._tree.prefix(index) + name)
        return PathRefused(f"{shown}: permission denied")

    def _inner_target(self, fd: int, index: int, name: bytes) -> bytes | None:
        """Read a link; give its target if no unpacked archive can be left by it.

        It may climb only at its start, from a folder that the archive itself makes, and not above
        the top. What comes then may be other links, for which the same holds.
        """
        try:
            target = os.readlink(name, dir_fd=fd)
        except OSError:
            return None
        steps = [step for step in target.split(b"/") if step not in (b"", b".")]
        climbs = 0
        while climbs < len(steps) and steps[climbs] == b"..":
            climbs += 1
        if target.startswith(b"/") or b".." in steps[climbs:]:
            return None
        return target if climbs <= self._tree.depth(index) else None

    # --- streaming ---

    def _stream(self) -> Generator[bytes, None, None]:
        sent = 0
        for number, entry in enumerate(self._entries):
            if self.is_stopped:
                raise Stopped
            if number and number % _BREATH_ENTRIES == 0:
                breathe()
            header = self._header(entry)
            yield header
            sent += len(header) + _padded(entry.size)
            if entry.size:
                yield from self._content(entry)
                yield _ZEROS[: _padded(entry.size) - entry.size]
        yield from _zeros(self.size - sent)

    def _content(self, entry: _Entry) -> Iterator[bytes]:
        fd = self._open_file(entry)
        try:
            yield from _exactly(fd, entry.size, self)
        finally:
            if fd is not None and fd != self._tree.root:
                os.close(fd)

    def _open_file(self, entry: _Entry) -> int | None:
        """Open a planned file again; None when it vanished or is no regular file any more."""
        if entry.folder < 0:
            return self._tree.root
        try:
            folder = self._tree.open(entry.folder)
            if folder is None:
                return None
            fd = os.open(entry.name, _NAME, dir_fd=folder)
        except OSError as exc:
            if exc.errno in _CHANGED or isinstance(exc, PermissionError):
                return None
            raise
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        return None

    def _header(self, entry: _Entry) -> bytes:
        info = tarfile.TarInfo(self._member(entry).decode("utf-8", "surrogateescape"))
        info.type, info.size, info.mode, info.mtime = (
            entry.kind,
            entry.size,
            entry.mode,
            entry.mtime,
        )
        info.linkname = entry.target.decode("utf-8", "surrogateescape")
        info.uid = info.gid = 1000
        info.uname = info.gname = "work"
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")

    def _header_bytes(self, entry: _Entry) -> int:
        """Give the length of the header; most are known without making them."""
        name = self._member(entry)
        is_short = len(name) <= 100 and len(entry.target) <= 100 and entry.size < 8**11
        if is_short and name.isascii() and entry.target.isascii():
            return _BLOCK
        return len(self._header(entry))

    def _member(self, entry: _Entry) -> bytes:
        if entry.folder < 0:
            return entry.name
        return self._tree.prefix(entry.folder) + entry.name


class _OpenFolders:
    """Folders of a tree by index, the last used of them open.

    A tree may be thousands of levels deep, descriptors are few: the rest is opened again from the
    nearest open ancestor, one component at a time. Whatever is not the very folder that was
    planned counts as vanished.
    """

    def __init__(self, root: int, name: bytes, folders: list[_Folder]) -> None:
        self.root = root
        self._folders = folders
        self._open: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._places: dict[int, tuple[bytes, int]] = {0: (name + b"/", 0)}

    def open(self, index: int) -> int | None:
        """Give a folder's descriptor, valid until the next call; None when it vanished.

        Raises:
            OSError: EACCES, or what no program causes.
        """
        chain = []
        while index and index not in self._open:
            chain.append(index)
            index = self._folders[index].parent
        fd = self._open[index] if index else self.root
        if index:
            self._open.move_to_end(index)
        for below in reversed(chain):
            folder = self._folders[below]
            try:
                fd = os.open(folder.name, _FOLDER, dir_fd=fd)
            except OSError as exc:
                if exc.errno in _CHANGED:
                    return None
                raise
            self._open[below] = fd
            if _identity(os.fstat(fd)) != folder.identity:
                os.close(self._open.pop(below))
                return None
            if len(self._open) > _OPEN_FOLDERS:
                os.close(self._open.popitem(last=False)[1])
        return fd

    def prefix(self, index: int) -> bytes:
        """Give the member name of a folder, ending in a slash."""
        return self._place(index)[0]

    def depth(self, index: int) -> int:
        """Give the number of folders between a folder and the top."""
        return self._place(index)[1]

    def _place(self, index: int) -> tuple[bytes, int]:
        chain = []
        while index not in self._places:
            chain.append(index)
            index = self._folders[index].parent
        prefix, depth = self._places[index]
        if chain and len(self._places) > 4096:
            self._places = {0: self._places[0]}
        for below in reversed(chain):
            prefix, depth = prefix + self._folders[below].name + b"/", depth + 1
            self._places[below] = prefix, depth
        return prefix, depth

    def close_all(self) -> None:
        """Close every folder but the root."""
        while self._open:
            os.close(self._open.popitem()[1])

    def close(self) -> None:
        """Close everything."""
        self.close_all()
        if self.root >= 0:
            os.close(self.root)
            self.root = -1


def _attributes(status: os.stat_result) -> tuple[int, int]:
    """Give a member's mode and time; no setuid bits, no time that a header cannot hold."""
    return status.st_mode & 0o777, min(max(int(status.st_mtime), 0), _MTIME_MAX)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _exactly(fd: int | None, size: int, source: _Source) -> Iterator[bytes]:
    """Read exactly so many bytes from where the descriptor is, or give zeros in their place."""
    left = size
    while left and fd is not None:
        if source.is_stopped:
            raise Stopped
        piece = os.read(fd, min(left, source.limits.chunk_bytes))
        if not piece:
            break
        left -= len(piece)
        yield piece
    yield from _zeros(left)


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield _ZEROS[:count]
        count -= len(_ZEROS)
