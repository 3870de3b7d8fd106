"""Zip streams of a tree that its owner may change while it is read.

Planned and read like the tar streams of archive.py, by the same walk, so that the length is known
before the first byte. Files are stored, not deflated: the length could not be known otherwise, and
what fills large folders is compressed already. Links are left out: not every unpacker checks them.
"""

from __future__ import annotations

import tarfile
import time
import zipfile
from collections.abc import Generator
from typing import IO, cast

from retort.hostfs.archive import Archive, _Entry

_LIMIT = zipfile.ZIP64_LIMIT  # above this, a size or an offset takes eight bytes
_LOCAL, _CENTRAL, _END = 30, 46, 22  # bytes of the records, without names and extras
_END_64 = 56 + 20  # the end record of large archives, and its locator
_DESCRIPTOR, _DESCRIPTOR_64 = 16, 24
_EXTRA_LOCAL = 20  # of a file whose sizes take eight bytes: both of them
_MANY = zipfile.ZIP_FILECOUNT_LIMIT
_FIRST_YEAR, _LAST_YEAR = 1980, 2107


class Zip(Archive):
    """One zip stream of a folder; arguments as `Archive`."""

    def _total(self) -> int:
        offset = central = 0
        for entry in self._entries:
            name = len(_name(self._member(entry)).encode())
            extra = 4 if offset > _LIMIT or entry.size > _LIMIT else 0
            extra += 8 if offset > _LIMIT else 0
            extra += 16 if entry.size > _LIMIT else 0
            central += _CENTRAL + name + extra
            offset += _LOCAL + name + entry.size
            if entry.kind == tarfile.REGTYPE:
                is_large = _is_large(entry.size)
                offset += _DESCRIPTOR_64 + _EXTRA_LOCAL if is_large else _DESCRIPTOR
        is_large = len(self._entries) > _MANY or offset > _LIMIT or central > _LIMIT
        return offset + central + _END + (_END_64 if is_large else 0)

    def _stream(self) -> Generator[bytes, None, None]:
        out = _Collected()
        with zipfile.ZipFile(cast(IO[bytes], out), "w", zipfile.ZIP_STORED) as archive:
            for entry in self._entries:
                info = self._info(entry)
                if entry.kind != tarfile.REGTYPE:
                    archive.mkdir(info)
                    continue
                with archive.open(info, "w", force_zip64=_is_large(entry.size)) as member:
                    for piece in self._content(entry) if entry.size else ():
                        member.write(piece)
                        yield out.take()
        yield out.take()

    def _info(self, entry: _Entry) -> zipfile.ZipInfo:
        moment = time.gmtime(entry.mtime)
        year = min(max(moment.tm_year, _FIRST_YEAR), _LAST_YEAR)
        info = zipfile.ZipInfo(_name(self._member(entry)), (year, *moment[1:6]))
        info.create_system = 3  # Unix: the mode counts
        info.file_size = entry.size
        info.compress_size = info.CRC = 0  # of a folder; a file's follow its contents
        is_folder = entry.kind != tarfile.REGTYPE
        info.external_attr = (entry.mode | (0o040000 if is_folder else 0o100000)) << 16
        info.external_attr |= 0x10 if is_folder else 0  # MS-DOS's own mark
        return info


def _is_large(size: int) -> bool:
    """Tell as zipfile does whether a member's sizes take eight bytes."""
    return size * 1.05 > _LIMIT


def _name(member: bytes) -> str:
    """Give a name that a zip can hold: what is no UTF-8 becomes U+FFFD, a backslash `_`.

    Some unpackers take a backslash for a slash, and would leave their folder by it.
    """
    return member.decode("utf-8", "replace").replace("\\", "_")


class _Collected:
    """What zipfile writes, until it is taken; cannot seek, so lengths follow the contents."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Keep some bytes."""
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        """Give what was written since."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken
