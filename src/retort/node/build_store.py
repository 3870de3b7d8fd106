"""Results of builds on the server's own disk: one file each, named after the build's key.

A pack is the contents of the files that a build made, then what else is to be known of it, then a
footer. It is written under a temporary name and renamed when it is whole, so that a crash leaves
either all of it or nothing; whatever is read of it is compared with its digest, so that a disk that
lost or changed something costs a build and never gives a wrong one. Total size and number are
bounded; what was not used for the longest time goes first.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import re
import struct
import threading
from pathlib import Path

import msgspec
import structlog

from retort.core.limits import Usage
from retort.hostfs.snapshot import CHUNK_BYTES, Unfit

log = structlog.get_logger()

MAX_PACKS = 65_536  #: with more, the index in memory would grow beyond some 20 MB
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
BLOCK_BYTES = 4096  #: a file takes whole blocks of a disk
_FOOTER = struct.Struct("=Q32s8s")  # length and SHA-256 of the manifest, magic
_MAGIC = b"RETORT\x00\x01"  # its last byte is the version of everything in a pack
_NAME = re.compile(r"[0-9a-f]{64}\.pack")


class Damaged(Exception):
    """A pack is not what was written."""


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """A modification time: the first of these that is set.

    Attributes:
        rank: it was set during the build, as the rank-th time of all.
        like: it was that of this path before the build.
        ns: since 1970.
    """

    rank: int = -1
    like: bytes | None = None
    ns: int = 0


class PackedFile(msgspec.Struct, frozen=True, array_like=True):
    """A file that the build made or changed; its content is at `offset` of the pack."""

    path: bytes
    mode: int
    stamp: Stamp
    offset: int
    size: int
    digest: bytes


class PackedFolder(msgspec.Struct, frozen=True, array_like=True):
    """A folder that the build made or changed."""

    path: bytes
    mode: int
    stamp: Stamp
    is_new: bool


class Manifest(msgspec.Struct, frozen=True):
    """All that is known of one build.

    Attributes:
        key: of the build, so that a renamed pack is noticed.
        console: (stream, bytes) in the order they came.
        removed: (path, whether it was a folder), deepest first.
        folders: shallow ones first.
    """

    key: bytes
    console: list[tuple[str, bytes]]
    exit_code: int
    usage: Usage
    removed: list[tuple[bytes, bool]]
    folders: list[PackedFolder]
    files: list[PackedFile]


class Pack:
    """A stored build, open for reading; stays readable when it is evicted meanwhile."""

    def __init__(self, fd: int, manifest: Manifest) -> None:
        self.fd = fd
        self.manifest = manifest

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)

    def copy(self, file: PackedFile, target: int) -> None:
        """Copy one file's content to a descriptor.

        Raises:
            Damaged: it is not what was stored; something of it may have been written.
            OSError: of the target.
        """
        hashed, at, left = hashlib.sha256(), file.offset, file.size
        while left:
            try:
                piece = os.pread(self.fd, min(left, CHUNK_BYTES), at)
            except OSError as exc:
                raise Damaged(str(exc)) from exc
            if not piece:
                raise Damaged("cut short")
            hashed.update(piece)
            at, left = at + len(piece), left - len(piece)
            _write_all(target, piece)
        if hashed.digest() != file.digest:
            raise Damaged("a file is not what was stored")


class PackWriter:
    """A pack on its way; `discard` it unless it is stored.

    Args:
        max_bytes: of all contents; more is Unfit.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._path = folder / f"{os.urandom(12).hex()}.part"
        self._left = max_bytes
        self._at = 0
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.places: dict[bytes, tuple[int, int]] = {}  #: digest to (offset, size)

    def keep(self, source: int) -> bytes:
        """Copy what a descriptor holds, from its start, and give its SHA-256."""
        hashed, start = hashlib.sha256(), self._at
        os.lseek(source, 0, os.SEEK_SET)
        while piece := os.read(source, CHUNK_BYTES):
            self._left -= len(piece)
            if self._left < 0:
                raise Unfit("what the build made is too large to keep")
            hashed.update(piece)
            _write_all(self._fd, piece)
            self._at += len(piece)
        self.places[hashed.digest()] = start, self._at - start
        return hashed.digest()

    def finish(self, manifest: Manifest) -> tuple[Path, int]:
        """Write what else there is; give the temporary name and the whole size."""
        text = msgspec.msgpack.encode(manifest)
        if len(text) > MAX_MANIFEST_BYTES:
            raise Unfit("what the build made is too much to keep")
        footer = _FOOTER.pack(len(text), hashlib.sha256(text).digest(), _MAGIC)
        _write_all(self._fd, text + footer)
        return self._path, self._at + len(text) + len(footer)

    def discard(self) -> None:
        """Close it, and remove it unless it was stored. Again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._path.unlink(missing_ok=True)


class BuildStore:
    """The folder of packs; one process has it to itself.

    Args:
        folder: the server's own; made with mode 0700 if missing.
        max_bytes: of all packs together, in whole blocks.
        max_packs: so many at most.
    """

    def __init__(self, folder: Path, max_bytes: int, max_packs: int = MAX_PACKS) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_packs = max_packs
        self._bytes = 0
        self._sizes: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._lock = threading.Lock()  # packs are stored from threads
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._load()

    @property
    def used_bytes(self) -> int:
        """What all packs take together."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._sizes)

    def open(self, key: bytes) -> Pack | None:
        """Open the pack of a key, and count it as used now; None when there is none.

        One that is damaged is removed.
        """
        name = _name(key)
        if name not in self._sizes:
            return None
        try:
            pack = _read(self._folder / name, key)
        except (OSError, Damaged) as exc:
            log.warning("cache.damaged", key=key.hex(), reason=str(exc))
            self.remove(key)
            return None
        with self._lock, contextlib.suppress(KeyError, OSError):
            self._sizes.move_to_end(name)
            os.utime(pack.fd)  # for the next start of the server
        return pack

    def remove(self, key: bytes) -> None:
        """Forget a key."""
        with self._lock:
            self._drop(_name(key))

    def writer(self) -> PackWriter:
        """Start a pack. Raises OSError."""
        return PackWriter(self._folder, self._max_bytes)

    def store(self, key: bytes, written: tuple[Path, int]) -> None:
        """Put a finished pack in its place, and remove what is too much then.

        Raises:
            Unfit: it is larger than all packs together may be.
            OSError: the disk refused.
        """
        path, size = written
        size = _whole_blocks(size)
        if size > self._max_bytes:
            raise Unfit("what the build made is too large to keep")
        name = _name(key)
        with self._lock:
            path.rename(self._folder / name)
            self._bytes += size - self._sizes.pop(name, 0)
            self._sizes[name] = size
            while self._bytes > self._max_bytes or len(self._sizes) > self._max_packs:
                self._drop(next(iter(self._sizes)))

    def _drop(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._folder / name).unlink(missing_ok=True)
        self._bytes -= self._sizes.pop(name, 0)

    def _load(self) -> None:
        """Find what an earlier server left; remove what it had not finished."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if _NAME.fullmatch(entry.name):
                    found.append((status.st_mtime_ns, entry.name, _whole_blocks(status.st_size)))
                elif entry.name.endswith(".part"):
                    (self._folder / entry.name).unlink(missing_ok=True)
        for _, name, size in sorted(found):
            self._sizes[name] = size
            self._bytes += size
        while self._bytes > self._max_bytes or len(self._sizes) > self._max_packs:
            self._drop(next(iter(self._sizes)))


def _name(key: bytes) -> str:
    return f"{key.hex()}.pack"


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _read(path: Path, key: bytes) -> Pack:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        end = os.fstat(fd).st_size - _FOOTER.size
        if end < 0:
            raise Damaged("cut short")
        length, digest, magic = _FOOTER.unpack(os.pread(fd, _FOOTER.size, end))
        if magic != _MAGIC or length > min(end, MAX_MANIFEST_BYTES):
            raise Damaged("no pack of this version")
        text = os.pread(fd, length, end - length)
        if hashlib.sha256(text).digest() != digest:
            raise Damaged("its manifest is not what was stored")
        manifest = msgspec.msgpack.decode(text, type=Manifest)
        if manifest.key != key:
            raise Damaged("it is of another key")
    except (msgspec.MsgspecError, struct.error) as exc:
        os.close(fd)
        raise Damaged(str(exc)) from exc
    except BaseException:
        os.close(fd)
        raise
    return Pack(fd, manifest)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
