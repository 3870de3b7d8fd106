"""Virtual folders on this host's disk: the VFolderDisk of core/ports.py.

Every path is resolved from a descriptor of its folder's root (folders.py), never on the host. What
takes long (large listings, copies, removals) happens in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import functools
import os
import stat
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from retort.core import faults
from retort.core.files import Download, Listing, OpenFile
from retort.core.vfolder import EnforcedBy, FolderUsage, Quota
from retort.errors import (
    PathNotFound,
    SandboxFault,
    VFolderFull,
    VFolderNotFound,
    VFolderOperation,
)
from retort.hostfs.archive import ArchiveLimits
from retort.hostfs.beneath import (
    RENAME_NOREPLACE,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    BeneathPath,
    folder_path,
    folder_refusal,
)
from retort.hostfs.copying import Copy
from retort.hostfs.counting import count_tree
from retort.hostfs.emptying import allow, gone_name, remove_tree
from retort.hostfs.folders import FolderTree, renameat2
from retort.hostfs.listing import read_folder
from retort.hostfs.staging import finished
from retort.hostfs.stream import Stream, in_thread
from retort.hostfs.uploads import Upload, sweep_uploads, written
from retort.hostfs.volume import NO_QUOTA, Volume
from retort.hostfs.zip import Zip

T = TypeVar("T")

_RESOLVE = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS
_FOLDER_MODE = 0o755
_THREADS = 2  # for what takes minutes: copies and removals


@dataclasses.dataclass(frozen=True, slots=True)
class DiskLimits:
    """What one call may touch.

    Attributes:
        listing_entries: of a larger folder, so many are listed.
        archive_entries: a folder with more is not sent as a zip.
        counted_entries: a count of what a folder holds stops there.
    """

    listing_entries: int = 100_000
    archive_entries: int = 100_000
    counted_entries: int = 100_000


class HostVFolders:
    """A `core.ports.VFolderDisk` on a Volume."""

    def __init__(self, volume: Volume, limits: DiskLimits | None = None) -> None:
        self._volume = volume
        self._limits = limits or DiskLimits()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="retort-vfolders")
        self._copies: set[Copy] = set()

    def close(self) -> None:
        """Stop copies, wait for the threads and release the volume."""
        for copy in self._copies:
            copy.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._volume.close()

    # --- coming and going -------------------------------------------------------------------

    async def make(self, folder_id: uuid.UUID, quota: Quota = NO_QUOTA) -> None:
        """Make an empty folder where nobody finds it yet."""
        await self._step(functools.partial(self._volume.make, quota=quota), folder_id)

    async def bound(self, folder_id: uuid.UUID, quota: Quota) -> None:
        """Have the host kernel bound a folder, where it can. Raises VFolderNotFound."""
        await self._step(functools.partial(self._volume.bound, quota=quota), folder_id)

    async def publish(self, folder_id: uuid.UUID) -> None:
        """Put a made folder in its place."""
        await self._step(self._volume.publish, folder_id)

    async def discard(self, folder_id: uuid.UUID) -> None:
        """Take a folder away at once; `empty_trash` removes what it holds."""
        await self._step(self._volume.discard, folder_id)

    async def restore(self, folder_id: uuid.UUID) -> None:
        """Take a discard back."""
        await self._step(self._volume.restore, folder_id)

    async def leftovers(self) -> tuple[Sequence[uuid.UUID], Sequence[uuid.UUID]]:
        """List what was made but not published, and what was discarded but is not gone."""
        return await in_thread(lambda: (self._volume.made(), self._volume.trash()))

    async def empty_trash(self, folder_ids: Sequence[uuid.UUID]) -> Sequence[uuid.UUID]:
        """Remove discarded folders for good; give those that cannot be removed now."""
        return await self._long(functools.partial(self._volume.empty_trash, folder_ids))

    async def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove uploads that are over and what an interrupted deletion of files left."""
        await self._long(functools.partial(self._sweep, is_over))

    async def copy(
        self,
        source: uuid.UUID,
        target: uuid.UUID,
        *,
        max_bytes: int | None,
        max_inodes: int | None,
        on_progress: Callable[[int, int], None],
    ) -> None:
        """Copy a folder's files into another that is made but not published.

        Raises:
            VFolderNotFound, VFolderFull, VFolderOperation: as it stands it cannot be copied.
        """
        copy = Copy(self._volume.owner, max_bytes, max_inodes, on_progress)
        self._copies.add(copy)
        try:
            await finished(
                asyncio.get_running_loop().run_in_executor(
                    self._threads, functools.partial(self._copy, copy, source, target)
                ),
                copy.stop,
            )
        finally:
            self._copies.discard(copy)

    async def usage(self, folder_id: uuid.UUID, max_entries: int = 0) -> FolderUsage:
        """Tell what a folder holds, unfinished uploads among it. Raises VFolderNotFound.

        Without a project quota it is counted, up to `counted_entries`, or `max_entries` if more.
        """
        if (held := self._volume.held(folder_id)) is not None:
            return FolderUsage(held.bytes, held.inodes, enforced_by=EnforcedBy.PROJECT)
        most = max(max_entries, self._limits.counted_entries)
        with self._data(folder_id) as data, self._uploads(folder_id) as uploads:
            # First what comes: a file that gets into its place meanwhile must not be missed.
            coming = await in_thread(functools.partial(count_tree, uploads, most))
            found = await in_thread(functools.partial(count_tree, data, most))
        return dataclasses.replace(found, bytes=found.bytes + coming.bytes)

    async def settle(self, folder_id: uuid.UUID) -> None:
        """Have the host kernel count what was removed just now. Raises VFolderNotFound."""
        await in_thread(functools.partial(self._volume.settle, folder_id))

    # --- files ------------------------------------------------------------------------------

    async def listing(self, folder_id: uuid.UUID, path: str) -> Listing:
        """List a folder in a folder. Raises PathNotFound, PathRefused, VFolderOperation."""
        where = folder_path(path, may_be_root=True)
        with self._tree(folder_id) as tree, _refusing(where, PathNotFound):
            fd = await tree.open(bytes(where), os.O_RDONLY | os.O_DIRECTORY)
            with _closing(fd):
                most = self._limits.listing_entries
                entries, truncated = await in_thread(functools.partial(read_folder, fd, most))
        return Listing(os.fsdecode(bytes(where)), entries, truncated)

    async def mkdir(
        self, folder_id: uuid.UUID, path: str, *, parents: bool, exist_ok: bool
    ) -> None:
        """Make a directory. Raises VFolderOperation (it exists, a parent is missing), PathRefused.

        Args:
            parents: make missing ones above it too.
            exist_ok: one that is there already is fine.
        """
        where = folder_path(path, may_be_root=exist_ok)
        if not where.parts:
            return
        with self._tree(folder_id) as tree, _refusing(where):
            above = where.parents()
            if above and not parents:
                with _refusing(above[-1]):
                    flags = os.O_PATH | os.O_DIRECTORY
                    os.close(await tree.open(bytes(above[-1]), flags, 0, _RESOLVE))
            if not await tree.mkdirs(bytes(where), _FOLDER_MODE, _RESOLVE) and not exist_ok:
                raise VFolderOperation(f"{_shown(where)}: it is there already")

    async def rename(self, folder_id: uuid.UUID, path: str, new_name: str) -> None:
        """Give a file or directory another name in its place.

        Raises:
            PathNotFound, PathRefused; VFolderOperation: the new name is taken.
        """
        where = folder_path(path)
        renamed = folder_path(new_name)
        if len(renamed.parts) != 1:
            raise VFolderOperation("The new name must not have a slash.")
        target = BeneathPath((*where.parts[:-1], *renamed.parts))
        with self._tree(folder_id) as tree:
            await _moved(tree, where, target)

    async def move(self, folder_id: uuid.UUID, source: str, target: str) -> None:
        """Move a file or directory; a directory as the target receives it.

        Raises:
            PathNotFound, PathRefused; VFolderOperation: something is there already.
        """
        old, new = folder_path(source), folder_path(target, may_be_root=True)
        with self._tree(folder_id) as tree:
            with _refusing(old, PathNotFound):
                flags = os.O_PATH | os.O_NOFOLLOW
                os.close(await tree.open(bytes(old), flags, 0, _RESOLVE))
            if await _is_folder(tree, new):
                new = BeneathPath((*new.parts, old.name))
            await _moved(tree, old, new)

    async def delete(self, folder_id: uuid.UUID, paths: Sequence[str], *, recursive: bool) -> None:
        """Delete files and, if `recursive`, directories with all that they hold.

        Raises:
            PathNotFound, PathRefused; VFolderOperation: one is a directory, or cannot be deleted.
                Nothing was deleted if one of the names was not fit for it.
        """
        asked = sorted({folder_path(path) for path in paths})
        with self._tree(folder_id) as tree:
            folders = {where: await self._deletable(tree, where, recursive) for where in asked}
            with self._uploads(folder_id) as uploads:
                for where, is_folder in folders.items():
                    if any(above in folders for above in where.parents()):
                        continue  # went with the folder above
                    with _refusing(where, PathNotFound):
                        if is_folder:
                            await self._remove(tree, where, uploads)
                        else:
                            await self._unlink(tree, where)

    async def open_file(self, folder_id: uuid.UUID, path: str) -> OpenFile:
        """Open a regular file to be sent; the caller closes it.

        Raises:
            PathNotFound, PathRefused; VFolderOperation: it is something else.
        """
        fd, status = await self._open(folder_id, path)
        if stat.S_ISREG(status.st_mode):
            return OpenFile(_name(path), fd, status.st_size, status.st_mtime)
        os.close(fd)
        raise VFolderOperation(f"{path}: it is a directory")

    async def open_zip(self, folder_id: uuid.UUID, path: str, name: str) -> Download:
        """Open a directory as a zip stream. Raises as `open_file`, and FileTooLarge.

        Args:
            path: of the directory.
            name: what the archive's top is called if the path is the folder's root.
        """
        fd, status = await self._open(folder_id, path)
        if not stat.S_ISDIR(status.st_mode):
            os.close(fd)
            raise VFolderOperation(f"{path}: it is not a directory")
        where = folder_path(path, may_be_root=True)
        top = where.name if where.parts else name.encode()
        limits = ArchiveLimits(1 << 62, self._limits.archive_entries)
        source = Zip(fd, top, limits, links=False)
        stream = Stream(source)
        try:
            with _refusing(where, PathNotFound):
                await stream.plan()
        except BaseException:
            await stream.close()
            raise
        return Download(f"{os.fsdecode(top)}.zip", source.size, stream.chunks, stream.close)

    async def is_directory(self, folder_id: uuid.UUID, path: str) -> bool:
        """Tell a directory from a regular file; both can be read. Raises as `open_file`."""
        fd, status = await self._open(folder_id, path)
        os.close(fd)
        return stat.S_ISDIR(status.st_mode)

    # --- uploads ----------------------------------------------------------------------------

    async def begin_upload(
        self, folder_id: uuid.UUID, upload_id: str, path: str, size: int
    ) -> None:
        """Get ready for a file; an empty one appears at once.

        Raises:
            PathRefused; VFolderOperation: a directory is there; VFolderFull.
        """
        where = folder_path(path)
        with self._upload(folder_id, upload_id, path, size) as upload:
            with self._tree(folder_id) as tree:
                if await _is_folder(tree, where):
                    raise VFolderOperation(f"{_shown(where)}: it is a directory")
            upload.begin()
            if not size:
                await upload.finish()

    async def upload_offset(
        self, folder_id: uuid.UUID, upload_id: str, path: str, size: int
    ) -> int:
        """Tell how much of an upload has come; a complete one is in place then.

        Raises:
            PathNotFound: there is none; else as `append`.
        """
        with self._upload(folder_id, upload_id, path, size) as upload:
            offset = upload.offset()
            if offset == size:
                await upload.finish()
            return offset

    async def append(
        self,
        folder_id: uuid.UUID,
        upload_id: str,
        path: str,
        size: int,
        offset: int,
        chunks: AsyncIterator[bytes],
    ) -> int:
        """Add to an upload; what came before an error stays, to go on from there.

        Returns:
            int: how much has come; all of it: the file is in its place.

        Raises:
            OffsetMismatch: the upload does not stand at `offset`.
            FileTooLarge: more than `size` came; what this call brought is dropped.
            PathNotFound, VFolderOperation, VFolderFull; whatever `chunks` raises.
        """
        with self._upload(folder_id, upload_id, path, size) as upload:
            fd = upload.open_at(offset) if offset < size else -1
            if fd >= 0:
                with _closing(fd):
                    offset = await written(fd, folder_path(path), offset, size, chunks)
            elif upload.offset() != size:
                upload.open_at(offset)  # raises
            if offset == size:
                await upload.finish()
            return offset

    # --- below ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _data(self, folder_id: uuid.UUID) -> Iterator[int]:
        with _closing(self._volume.open_data(folder_id)) as fd:
            yield fd

    @contextlib.contextmanager
    def _uploads(self, folder_id: uuid.UUID) -> Iterator[int]:
        with _closing(self._volume.open_uploads(folder_id)) as fd:
            yield fd

    @contextlib.contextmanager
    def _tree(self, folder_id: uuid.UUID) -> Iterator[FolderTree]:
        with self._data(folder_id) as fd:
            yield FolderTree(fd, owner=self._volume.owner)

    @contextlib.contextmanager
    def _upload(
        self, folder_id: uuid.UUID, upload_id: str, path: str, size: int
    ) -> Iterator[Upload]:
        where = folder_path(path)
        with self._data(folder_id) as data, self._uploads(folder_id) as uploads:
            yield Upload(data, uploads, upload_id, where, size, self._volume.owner)

    async def _open(self, folder_id: uuid.UUID, path: str) -> tuple[int, os.stat_result]:
        """Open what may be sent: a regular file or a directory."""
        where = folder_path(path, may_be_root=True)
        with self._tree(folder_id) as tree, _refusing(where, PathNotFound):
            fd = await tree.open(bytes(where), os.O_RDONLY)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            return fd, status
        os.close(fd)
        raise VFolderOperation(f"{_shown(where)}: not a regular file")

    async def _deletable(self, tree: FolderTree, where: BeneathPath, recursive: bool) -> bool:
        """Check one name; tell whether it is a directory."""
        with _refusing(where, PathNotFound):
            flags = os.O_PATH | os.O_NOFOLLOW
            fd = await tree.open(bytes(where), flags, 0, _RESOLVE)
        with _closing(fd):
            is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        if is_folder and not recursive:
            raise VFolderOperation(f"{_shown(where)}: it is a directory")
        return is_folder

    async def _unlink(self, tree: FolderTree, where: BeneathPath) -> None:
        """Remove a name; what had it is freed in a thread, which may take long."""
        fd = await tree.open(bytes(where), os.O_PATH | os.O_NOFOLLOW, 0, _RESOLVE)
        try:
            await tree.unlink(bytes(where), resolve=_RESOLVE)
        finally:
            await in_thread(functools.partial(os.close, fd))

    async def _remove(self, tree: FolderTree, where: BeneathPath, uploads: int) -> None:
        """Take a directory out of sight by one rename, then remove it."""
        above = where.parents()
        flags = os.O_PATH | os.O_DIRECTORY
        parent = await tree.open(bytes(above[-1]) if above else b".", flags, 0, _RESOLVE)
        gone = gone_name()
        with _closing(parent):
            allow(parent, where.name)  # its `..` changes, which needs the right to write into it
            renameat2(parent, where.name, uploads, gone, 0)
        faults.reached(faults.Point.FILES_REMOVED)
        await self._long(functools.partial(remove_tree, uploads, gone))

    def _sweep(self, is_over: Callable[[str], bool]) -> None:
        for folder_id in self._volume.published():
            with (
                contextlib.suppress(VFolderNotFound),
                _closing(self._volume.open_folder(folder_id)) as folder,
                self._uploads(folder_id) as uploads,
            ):
                sweep_uploads(folder, uploads, is_over)

    def _copy(self, copy: Copy, source: uuid.UUID, target: uuid.UUID) -> None:
        with self._data(source) as old, _closing(self._volume.open_made(target)) as new:
            copy.run(old, new)

    async def _step(self, step: Callable[[uuid.UUID], None], folder_id: uuid.UUID) -> None:
        """Do one step of a folder's coming or going."""
        try:
            await in_thread(functools.partial(step, folder_id))
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise VFolderFull("The disk of the virtual folders is full.") from exc
            raise SandboxFault("vfolders", f"{folder_id.hex}: {exc}") from exc

    async def _long(self, work: Callable[[], T]) -> T:
        """Do something that may take minutes, beside everything else."""
        loop = asyncio.get_running_loop()
        return await finished(loop.run_in_executor(self._threads, work))


async def _moved(tree: FolderTree, old: BeneathPath, new: BeneathPath) -> None:
    if new.parts[: len(old.parts)] == old.parts:
        if new == old:
            raise VFolderOperation(f"{_shown(old)}: it is there already")
        raise VFolderOperation(f"{_shown(old)}: it cannot be moved into itself")
    with _refusing(old, PathNotFound):
        try:
            await tree.rename(bytes(old), bytes(new), RENAME_NOREPLACE, _RESOLVE)
        except FileExistsError:
            raise VFolderOperation(f"{_shown(new)}: it is there already") from None


async def _is_folder(tree: FolderTree, path: BeneathPath) -> bool:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        os.close(await tree.open(bytes(path), flags, 0, _RESOLVE))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _refusing(path: BeneathPath, missing: type[PathNotFound] | None = None) -> Iterator[None]:
    try:
        yield
    except NotADirectoryError as exc:
        raise folder_refusal(exc, path) from exc
    except OSError as exc:
        raise folder_refusal(exc, path, missing) from exc


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _shown(path: BeneathPath) -> str:
    return os.fsdecode(bytes(path))


def _name(path: str) -> str:
    return os.fsdecode(folder_path(path, may_be_root=True).name)
