"""Where the files of virtual folders lie on the host, and how a folder comes and goes.

Below the state folder:

    folders/<id>/data/      the folder's root: what its users see, mount and fill
    folders/<id>/uploads/   files on their way in; on the same file system and in the same project
                            (quota.py), out of everybody's view
    folders/<id>/*.done     an upload that is finished
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
from collections.abc import Iterable, Iterator
from pathlib import Path

from retort.core import faults
from retort.core.vfolder import Quota
from retort.errors import VFolderNotFound
from retort.hostfs.beneath import RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV
from retort.hostfs.emptying import is_gone_name, remove_tree
from retort.hostfs.folders import FolderTree
from retort.hostfs.quota import Held, open_projects, project_of, set_project

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAKING = "making"
_TRASH = "trash"
_DATA_MODE = 0o755
_PARTS = ("data", "uploads")
FIRST_PROJECT = 1_400_000_000
NO_QUOTA = Quota()


class Volume:
    """The directories of all virtual folders. Calls block, for a few system calls each.

    Args:
        folder: made if missing; nobody but the server may write to its parents.
        owner: user and group that folders' files belong to; None: whoever runs the server.
        first_project: ids of project quotas are drawn from here on.

    Attributes:
        uncounted: why the host kernel does not count what folders hold; "" if it does.
        clashes: folders that have another one's project: a copy of it, made beside this server.
    """

    def __init__(
        self,
        folder: Path,
        owner: tuple[int, int] | None = None,
        first_project: int = FIRST_PROJECT,
    ) -> None:
        self.owner = owner
        folder.mkdir(mode=0o700, exist_ok=True)
        self._root = os.open(folder, _FOLDER)
        # A folder that is published while it is discarded must not slip between the two places
        # that `discard` looks at.
        self._moving = threading.Lock()
        for name in (_MAKING, _TRASH):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self._root)
        self._projects, self.uncounted = open_projects(self._root, first_project)
        self.clashes = self._find_projects()

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

    def open_folder(self, folder_id: uuid.UUID) -> int:
        """Open what holds both, out of everybody's view. Raises VFolderNotFound."""
        return self._open(folder_id.hex)

    # --- coming -----------------------------------------------------------------------------

    def make(self, folder_id: uuid.UUID, quota: Quota = NO_QUOTA) -> None:
        """Make an empty folder where nobody finds it yet; `publish` follows its record."""
        above = f"{_MAKING}/{folder_id.hex}"
        os.mkdir(above, 0o700, dir_fd=self._root)
        for name in _PARTS:
            os.mkdir(f"{above}/{name}", 0o700, dir_fd=self._root)
        with self._parts(above) as (data, uploads):
            if self._projects is not None:
                project = self._projects.draw(folder_id.hex)
                self._projects.bound(project, (data, uploads), quota)
                for fd in (data, uploads):
                    set_project(fd, project)
            os.fchmod(data, _DATA_MODE)  # whatever the umask says
            if self.owner is not None:
                os.fchown(data, *self.owner)
            os.fsync(data)

    def held(self, folder_id: uuid.UUID) -> Held | None:
        """Tell what the host kernel counts in a folder; None: it does not. Raises VFolderNotFound.

        An upload on its way is part of it.
        """
        if self._projects is None:
            return None
        with self._parts(folder_id.hex) as fds:
            project = self._own_project(fds, folder_id)
            return None if project is None else self._projects.held(project, fds)

    def settle(self, folder_id: uuid.UUID) -> None:
        """Have the host kernel count what was removed just now. Raises VFolderNotFound."""
        if self._projects is not None:
            with self._parts(folder_id.hex) as fds:
                if (project := self._own_project(fds, folder_id)) is not None:
                    self._projects.settle(project)

    def bound(self, folder_id: uuid.UUID, quota: Quota) -> None:
        """Have the host kernel bound a folder, if it counts it. Raises VFolderNotFound."""
        if self._projects is not None:
            with self._parts(folder_id.hex) as fds:
                if (project := self._own_project(fds, folder_id)) is not None:
                    self._projects.bound(project, fds, quota)

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

    def empty_trash(self, folder_ids: Iterable[uuid.UUID]) -> list[uuid.UUID]:
        """Remove discarded folders, and what an emptying left that was cut short. Blocks.

        Nothing else of what `trash` lists: a folder whose record is not gone yet may be restored.

        Returns:
            list: those of which something is left.
        """
        left = []
        fd = self._open(_TRASH)
        try:
            for name in os.listdir(fd):  # noqa: PTH208 - a descriptor, not a path
                if is_gone_name(os.fsencode(name)):
                    remove_tree(fd, os.fsencode(name))
            for folder_id in folder_ids:
                if not remove_tree(fd, folder_id.hex.encode()):
                    left.append(folder_id)
                elif self._projects is not None:
                    self._projects.release(folder_id.hex)
                faults.reached(faults.Point.EMPTIED)
        finally:
            os.close(fd)
        return left

    @contextlib.contextmanager
    def _parts(self, path: str) -> Iterator[tuple[int, int]]:
        """Open both parts of a folder."""
        with contextlib.ExitStack() as stack:
            fds = []
            for name in _PARTS:
                fds.append(self._open(f"{path}/{name}"))
                stack.callback(os.close, fds[-1])
            yield fds[0], fds[1]

    def _own_project(self, fds: tuple[int, int], folder_id: uuid.UUID) -> int | None:
        """Give the project of a folder that has one to itself."""
        assert self._projects is not None
        project = project_of(fds[0])
        return project if self._projects.is_of(project, folder_id.hex) else None

    def _find_projects(self) -> list[uuid.UUID]:
        """Take down which project is whose; give the folders that have another one's."""
        clashes: list[uuid.UUID] = []
        if self._projects is None:
            return clashes
        for above in ("", f"{_MAKING}/", f"{_TRASH}/"):
            for folder_id in self._ids_in(above or "."):
                path = f"{above}{folder_id.hex}"
                with contextlib.suppress(VFolderNotFound), self._parts(path) as (data, _):
                    if not self._projects.take(project_of(data), folder_id.hex):
                        clashes.append(folder_id)
        return clashes

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
