"""What a server asks of retort-init about a session's files, each request a method.

Follows ``docs/init-protocol.md``. Answers are read by init.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from typing import Any, Final

from retort.sandbox import protocol
from retort.sandbox.channel import Channel
from retort.sandbox.protocol import Type

RESOLVE_NO_XDEV: Final = 0x01  #: openat2(2): refuse to enter another mount
RESOLVE_NO_SYMLINKS: Final = 0x04  #: openat2(2): refuse symbolic links in every component
RENAME_NOREPLACE: Final = 1  #: renameat2(2)
RENAME_EXCHANGE: Final = 2  #: renameat2(2)

_AT_REMOVEDIR: Final = 0x200

_LAYOUTS: Final[dict[Type, struct.Struct]] = {
    type_: getattr(protocol, type_.name) for type_ in Type if type_ < Type.WELCOME
}


class FileRequests(Channel):
    """A connection to init that can ask for files of the session's home."""

    async def open(self, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
        """Open a path relative to the session's home; the descriptor is the caller's.

        Non-blocking, close-on-exec, never outside of home, for writing never through a symlink.
        It may be of any type (FIFO, folder): fstat it.

        Args:
            path: relative; ``..`` is refused.
            flags: ``os.O_*``.
            mode: exact, no umask; only with O_CREAT or O_TMPFILE.
            resolve: RESOLVE_NO_XDEV, RESOLVE_NO_SYMLINKS.

        Raises:
            OSError: as openat2(2); EXDEV when the path leads outside, ELOOP at a refused symlink.
        """
        return await self._path_request(Type.OPEN, (flags, mode, resolve), path)

    async def mkdirs(self, path: bytes, mode: int = 0o755, resolve: int = 0) -> int:
        """Make a folder and its missing parents.

        Returns:
            How many were made, the deepest ones. On failure none remains.

        Raises:
            OSError: NotADirectoryError when a component is something else, also a symlink.
        """
        return await self._path_request(Type.MKDIRS, (mode, 0, resolve), path)

    async def link(self, fd: int, path: bytes, resolve: int = 0) -> None:
        """Give a name to a file made with O_TMPFILE.

        Raises:
            FileExistsError: the name is taken.
            OSError: EINVAL, the file has a name already, or is no regular file.
        """
        await self._path_request(Type.LINK, (resolve,), path, fds=(fd,))

    async def rename(self, src: bytes, dst: bytes, flags: int = 0, resolve: int = 0) -> None:
        """Rename inside home; flags are RENAME_NOREPLACE or RENAME_EXCHANGE."""
        await self._path_request(Type.RENAME, (flags, 0, resolve), src, dst)

    async def unlink(self, path: bytes, *, directory: bool = False, resolve: int = 0) -> None:
        """Remove a name, or an empty folder."""
        flags = _AT_REMOVEDIR if directory else 0
        await self._path_request(Type.UNLINK, (flags, 0, resolve), path)

    async def _path_request(
        self, type_: Type, fields: tuple[int, ...], *paths: bytes, fds: tuple[int, ...] = ()
    ) -> int:
        for path in paths:
            if b"\0" in path:
                raise ValueError(f"{path!r} contains NUL")
            if len(path) >= protocol.PATH_MAX:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        tail = b"".join(path + b"\0" for path in paths)
        result: int = await self._request(type_, *fields, tail=tail, fds=fds, subject=paths[0])
        return result

    def _request(
        self,
        type_: Type,
        *fields: int,
        tail: bytes = b"",
        fds: tuple[int, ...] = (),
        subject: bytes | int | None = None,
    ) -> asyncio.Future[Any]:
        id_ = self._new_id()
        head = _LAYOUTS[type_].pack(type_, id_, *fields)
        return self._send(type_, id_, [head, tail], fds, subject)
