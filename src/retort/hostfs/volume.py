"""Where the files of virtual folders lie on the host, and how a folder comes and goes.

Below the state folder:

    folders/<id>/data/      the folder's root: what its users see, mount and fill
    folders/<id>/uploads/   files on their way in; on the same file system, out of everybody's view
    folders/making/<id>/    a folder whose record is not there yet
    folders/trash/<id>/     a folder whose record is gone, or about to go

`<id>` is a UUID as 32 hex digits. `folders` and each `<id>` are closed to everybody but the server
(0700). `data` and all that the server makes in it belong to `owner`: the server's own user or, when
the server is root, the one host user id that stands for the users of every folder on the disk. It
is never a session's id: a mount maps it to the session's (node/), so that what one session writes
the next one and the server can read and remove.

Only what lies in `making` and `trash` is ever removed as a whole, never a folder that merely has no
record: the database may be another one than yesterday's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from retort.errors import VFolderNotFound
from retort.hostfs.beneath import RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV
from retort.hostfs.folders import FolderTree

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAKING = "making"
_TRASH = "trash"
_DATA_MODE = 0o755


class Volume:
    """The directories of all virtual folders. Calls block, for a few system calls each.

    Args:
        folder: made if missing; nobody but the server may write to its parents.
        owner: user and group that folders' files belong to; None: whoever runs the server.
    """

    def __init__(self, folder: Path, owner: tuple[int, int] | None = None) -> None:
        self.owner = owner
        folder.mkdir(mode=0o700, exist_ok=True)
        self._root = os.open(folder, _FOLDER)
        # A folder that is published while it is discarded must not slip between the two places
        # that `discard` looks at.
        self._moving = threading.Lock()
        for name in (_MAKING, _TRASH):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self._root)

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self._root)

    def open_data(self, folder_id: uuid.UUID) -> int:
        """Open a folder's root; the caller closes it.

        Raises:
            VFolderNotFound: it is not there.
        """
        return self._open(f"{folder_id.hex}/data")

    def open_made(self, folder_id: uuid.UUID) -> int:
        """Open the root of a folder that is not published yet. Raises VFolderNotFound."""
        return self._open(f"{_MAKING}/{folder_id.hex}/data")

    async def has_folder(self, folder_id: uuid.UUID, path: str) -> bool:
        """Tell whether there is a folder in a folder, by a way without links and other mounts."""
        root = self.open_data(folder_id)
        try:
            rules = RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
            tree = FolderTree(root)
            os.close(await tree.open(os.fsencode(path), os.O_PATH | os.O_DIRECTORY, 0, rules))
        except OSError:
            return False
        finally:
            os.close(root)
        return True

    def open_uploads(self, folder_id: uuid.UUID) -> int:
        """Open where a folder's uploads are collected. Raises VFolderNotFound."""
        return self._open(f"{folder_id.hex}/uploads")

    # --- coming -----------------------------------------------------------------------------

    def make(self, folder_id: uuid.UUID) -> None:
        """Make an empty folder where nobody finds it yet; `publish` follows its record."""
        above = f"{_MAKING}/{folder_id.hex}"
        os.mkdir(above, 0o700, dir_fd=self._root)
        for name in ("data", "uploads"):
            os.mkdir(f"{above}/{name}", 0o700, dir_fd=self._root)
        fd = self._open(f"{above}/data")
        try:
            os.fchmod(fd, _DATA_MODE)  # whatever the umask says
            if self.owner is not None:
                os.fchown(fd, *self.owner)
            os.fsync(fd)
        finally:
            os.close(fd)

    def publish(self, folder_id: uuid.UUID) -> None:
        """Put a made folder in its place; nothing happens if it is there, or was discarded."""
        with self._moving:
            self._move(f"{_MAKING}/{folder_id.hex}", folder_id.hex)

    # --- going ------------------------------------------------------------------------------

    def discard(self, folder_id: uuid.UUID) -> None:
        """Take a folder away, made or published; `trash` lists it from now on."""
        with self._moving:
            for name in (folder_id.hex, f"{_MAKING}/{folder_id.hex}"):
                self._move(name, f"{_TRASH}/{folder_id.hex}")

    def restore(self, folder_id: uuid.UUID) -> None:
        """Take a discard back."""
        self._move(f"{_TRASH}/{folder_id.hex}", folder_id.hex)

    def published(self) -> list[uuid.UUID]:
        """List the folders in their place."""
        return list(_ids(self._root))

    def made(self) -> list[uuid.UUID]:
        """List the folders that were not published."""
        return self._ids_in(_MAKING)

    def trash(self) -> list[uuid.UUID]:
        """List the folders that wait for their end."""
        return self._ids_in(_TRASH)

    def open_trash(self) -> int:
        """Open the folder that `trash` lists; the caller closes it."""
        return self._open(_TRASH)

    def _ids_in(self, name: str) -> list[uuid.UUID]:
        fd = self._open(name)
        try:
            return list(_ids(fd))
        finally:
            os.close(fd)

    def _open(self, path: str) -> int:
        """Open a directory of our own layout: none of its names is a user's."""
        try:
            return os.open(path, _FOLDER, dir_fd=self._root)
        except FileNotFoundError as exc:
            raise VFolderNotFound from exc

    def _move(self, source: str, target: str) -> None:
        """Rename, and have the disk know; a missing source was moved before."""
        try:
            os.rename(source, target, src_dir_fd=self._root, dst_dir_fd=self._root)
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise
            return
        os.fsync(self._root)


def _ids(fd: int) -> Iterator[uuid.UUID]:
    for name in os.listdir(fd):
        with contextlib.suppress(ValueError):
            yield uuid.UUID(hex=name)
