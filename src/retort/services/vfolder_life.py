"""How virtual folders come, change and go.

A folder is there as long as its record is. Its directory is made before the record and published
after it, taken away before the record goes and emptied afterwards: at whatever moment the server is
killed, `recover` finds on which side of that moment each folder was.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid

import structlog

from retort.core import faults
from retort.core.keypair import KeyPair
from retort.core.ports import Clock, VFolderDisk, VFolderStore
from retort.core.vfolder import (
    DEFAULT_GROUP,
    FolderUsage,
    NewVFolder,
    Permission,
    SeenVFolder,
    VFolder,
    VFolderStatus,
    checked_name,
)
from retort.errors import (
    InsufficientPrivilege,
    NotPermitted,
    QuotaExceeded,
    RetortError,
    VFolderExists,
    VFolderNotFound,
    VFolderOperation,
)
from retort.services.tasks import BackgroundTasks, Task
from retort.services.vfolder_quota import Quotas
from retort.services.vfolders import VFolderLookup

log = structlog.get_logger()

CLONE_WAIT_S = 0.2  # a copy that takes no longer has no background task


class VFolderService:
    """Making, listing, changing, copying and deleting folders.

    Args:
        quotas: tells what folders hold.
        max_inodes: files of any kind that a new folder may hold; None: no end.
    """

    def __init__(
        self,
        store: VFolderStore,
        disk: VFolderDisk,
        lookup: VFolderLookup,
        tasks: BackgroundTasks,
        clock: Clock,
        quotas: Quotas,
        *,
        max_inodes: int | None = None,
    ) -> None:
        self._store = store
        self._disk = disk
        self._lookup = lookup
        self._tasks = tasks
        self._clock = clock
        self._quotas = quotas
        self._max_inodes = max_inodes
        self._making = asyncio.Lock()  # a name is looked for and taken, a number counted, as one
        self._gone: set[uuid.UUID] = set()  # whose files may go: their records are gone
        self._emptying: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait for what is being emptied."""
        await asyncio.gather(*self._emptying, return_exceptions=True)

    # --- coming -----------------------------------------------------------------------------

    async def create(self, caller: KeyPair, asked: NewVFolder) -> VFolder:
        """Make an empty folder.

        Raises:
            InvalidRequest: the name is none.
            VFolderExists: the caller sees one of that name.
            QuotaExceeded: the owner has as many as the key's policy allows.
            InsufficientPrivilege: a group's folder, and the caller is no administrator.
            StoreFault, SandboxFault: nothing is left of it.
        """
        folder = self._new(caller, asked)
        async with self._making:
            await self._check_new(caller, folder)
            await self._disk.make(folder.id, folder.quota)
            faults.reached(faults.Point.FOLDER_MADE)
            await self._record(folder)
        faults.reached(faults.Point.FOLDER_RECORDED)
        await self._disk.publish(folder.id)
        log.info("vfolder.created", folder=folder.id.hex, owner=caller.access_key)
        return folder

    async def clone(
        self, caller: KeyPair, ref: str, asked: NewVFolder
    ) -> tuple[VFolder, uuid.UUID | None]:
        """Copy a folder into a new one of the caller's.

        Returns:
            The new folder, and the background task that still copies into it, if one does.

        Raises:
            VFolderNotFound: no such folder.
            NotPermitted: its owner does not let it be cloned.
            InvalidRequest, VFolderExists, QuotaExceeded: as `create`.
            VFolderFull, VFolderOperation: it cannot be copied; nothing is left.
        """
        seen = await self._lookup.find(caller, ref)
        if not seen.is_owner and not seen.folder.is_cloneable:
            raise NotPermitted("The virtual folder is not cloneable")
        made = self._new(caller, dataclasses.replace(asked, is_of_group=False))
        folder = dataclasses.replace(made, status=VFolderStatus.CLONING)
        async with self._making:
            await self._check_new(caller, folder)
            await self._disk.make(folder.id, folder.quota)
            await self._record(folder)
        ready = dataclasses.replace(folder, status=VFolderStatus.READY)
        problem: list[RetortError] = []

        async def work(task: Task) -> None:
            try:
                await self._copy(seen.folder, ready, task)
            except RetortError as exc:
                problem.append(exc)
                raise

        task, running = self._tasks.start(
            caller.user_id, f"Cloning {seen.folder.name} into {folder.name}", work
        )
        done, _ = await asyncio.wait([running], timeout=CLONE_WAIT_S)
        if not done:
            return folder, task.progress.id
        if problem:
            raise problem[0]
        return ready, None

    def _new(self, caller: KeyPair, asked: NewVFolder) -> VFolder:
        if asked.is_of_group and not caller.is_admin:
            raise InsufficientPrivilege("Folders of a group are made by administrators")
        most = caller.policy.max_vfolder_bytes
        wanted = asked.max_bytes or most
        return VFolder(
            id=uuid.uuid4(),
            name=checked_name(asked.name),
            user_id=None if asked.is_of_group else caller.user_id,
            group_id=DEFAULT_GROUP if asked.is_of_group else None,
            creator=caller.email,
            created_at=self._clock.now(),
            permission=asked.permission,
            usage_mode=asked.usage_mode,
            is_cloneable=asked.is_cloneable,
            max_bytes=wanted if wanted is None or most is None else min(wanted, most),
            max_inodes=min(filter(None, (asked.max_inodes, self._max_inodes)), default=None),
        )

    async def _check_new(self, caller: KeyPair, folder: VFolder) -> None:
        visible = await self._lookup.visible(caller)
        if any(seen.folder.name == folder.name for seen in visible):
            raise VFolderExists
        most = caller.policy.max_vfolders
        if not folder.is_of_group and sum(seen.is_owner for seen in visible) >= most:
            raise QuotaExceeded(f"This key's owner may have {most} virtual folders")

    async def _record(self, folder: VFolder) -> None:
        try:
            await self._store.add(folder)
        except BaseException:
            await self._disk.discard(folder.id)
            self._empty_soon(folder.id)
            raise

    async def _copy(self, source: VFolder, ready: VFolder, task: Task) -> None:
        loop = asyncio.get_running_loop()
        try:
            usage = await self._disk.usage(source.id)
            total = usage.entries if usage.is_whole else 0

            def on_progress(entries: int, _size: int) -> None:
                loop.call_soon_threadsafe(task.tell, entries, max(total, entries))

            await self._disk.copy(
                source.id,
                ready.id,
                max_bytes=ready.max_bytes,
                max_inodes=ready.max_inodes,
                on_progress=on_progress,
            )
            if await self._store.get(source.id) is None:
                raise VFolderOperation("The virtual folder was deleted while it was copied.")
            await self._store.update(ready)
        except BaseException:
            await asyncio.shield(self._forget(ready))
            raise
        faults.reached(faults.Point.CLONED)
        await self._disk.publish(ready.id)
        log.info("vfolder.cloned", folder=ready.id.hex, source=source.id.hex)

    async def _forget(self, folder: VFolder) -> None:
        """Take a folder away, then its record: whatever fails, `recover` goes on with it."""
        await self._disk.discard(folder.id)
        with contextlib.suppress(VFolderNotFound):
            await self._store.remove(folder.id)
        self._empty_soon(folder.id)

    # --- looking ----------------------------------------------------------------------------

    async def listed(self, caller: KeyPair, user_id: uuid.UUID | None = None) -> list[SeenVFolder]:
        """Give the folders that a caller sees.

        Args:
            user_id: only those of this owner; other than the caller for administrators.
        """
        return [
            seen
            for seen in await self._lookup.visible(caller)
            if user_id is None or seen.folder.user_id == user_id
        ]

    async def every(self, caller: KeyPair) -> list[SeenVFolder]:
        """Give every folder there is. Raises InsufficientPrivilege."""
        if not caller.is_admin:
            raise InsufficientPrivilege
        return [
            SeenVFolder(
                folder, folder.permission, Permission.DELETE, caller.user_id == folder.user_id
            )
            for folder in await self._store.all()
        ]

    async def info(self, caller: KeyPair, ref: str) -> tuple[SeenVFolder, FolderUsage]:
        """Tell about one folder, and what it holds. Raises VFolderNotFound."""
        seen = await self._lookup.find_any(caller, ref)
        if seen.folder.status is not VFolderStatus.READY:
            return seen, FolderUsage(0, 0, is_whole=False)
        return seen, await self._quotas.usage(seen.folder)

    # --- changing ---------------------------------------------------------------------------

    async def rename(self, caller: KeyPair, ref: str, name: str) -> None:
        """Give a folder another name.

        Raises:
            VFolderNotFound, InvalidRequest; VFolderExists: the caller sees one of that name;
            VFolderOperation: the caller does not own it.
        """
        seen = await self._owned(caller, ref)
        folder = dataclasses.replace(seen.folder, name=checked_name(name))
        async with self._making:
            visible = await self._lookup.visible(caller)
            if any(o.folder.name == name and o.folder.id != folder.id for o in visible):
                raise VFolderExists
            await self._store.update(folder)
        faults.reached(faults.Point.FOLDER_RENAMED)

    async def update(
        self,
        caller: KeyPair,
        ref: str,
        *,
        is_cloneable: bool | None,
        permission: Permission | None,
    ) -> None:
        """Change a folder's options; None leaves one as it is. Raises as `rename`."""
        folder = (await self._owned(caller, ref)).folder
        if is_cloneable is not None:
            folder = dataclasses.replace(folder, is_cloneable=is_cloneable)
        if permission is not None:
            folder = dataclasses.replace(folder, permission=permission)
        await self._store.update(folder)

    async def _owned(self, caller: KeyPair, ref: str) -> SeenVFolder:
        seen = await self._lookup.find_any(caller, ref)
        if not seen.is_owner and not (seen.folder.is_of_group and caller.is_admin):
            raise VFolderOperation("You do not own this virtual folder")
        if seen.folder.status is not VFolderStatus.READY:
            raise VFolderOperation("The virtual folder is still being copied.")
        return seen

    # --- going ------------------------------------------------------------------------------

    async def delete(self, caller: KeyPair, ref: str) -> None:
        """Delete a folder and all it holds; it is gone when this returns.

        Raises:
            VFolderNotFound: no such folder.
            VFolderOperation: the caller neither owns it nor may delete it, or it is being made.
        """
        seen = await self._lookup.find_any(caller, ref)
        if not seen.access.allows(Permission.DELETE):
            raise VFolderOperation("You may not delete this virtual folder")
        if seen.folder.status is not VFolderStatus.READY:
            raise VFolderOperation("The virtual folder is still being copied.")
        await self._delete(seen.folder)

    async def delete_by_id(self, caller: KeyPair, folder_id: uuid.UUID) -> None:
        """Delete anybody's folder. Raises InsufficientPrivilege, VFolderNotFound."""
        if not caller.is_admin:
            raise InsufficientPrivilege
        folder = await self._store.get(folder_id)
        if folder is None:
            raise VFolderNotFound
        if folder.status is not VFolderStatus.READY:
            raise VFolderOperation("The virtual folder is still being copied.")
        await self._delete(folder)

    async def _delete(self, folder: VFolder) -> None:
        await self._disk.discard(folder.id)
        faults.reached(faults.Point.FOLDER_DISCARDED)
        try:
            await self._store.remove(folder.id)
        except VFolderNotFound:
            pass  # somebody else was first
        except RetortError:
            await self._disk.restore(folder.id)
            raise
        faults.reached(faults.Point.FOLDER_FORGOTTEN)
        log.info("vfolder.deleted", folder=folder.id.hex)
        self._empty_soon(folder.id)

    def _empty_soon(self, *folder_ids: uuid.UUID) -> None:
        """Remove the files of folders whose records are gone; not of those about to go."""
        self._gone.update(folder_ids)
        emptying = asyncio.ensure_future(self._empty())
        self._emptying.add(emptying)
        emptying.add_done_callback(self._emptied)

    async def _empty(self) -> None:
        folder_ids = tuple(self._gone)
        left = await self._disk.empty_trash(folder_ids)
        self._gone.difference_update(set(folder_ids).difference(left))

    def _emptied(self, emptying: asyncio.Task[None]) -> None:
        self._emptying.discard(emptying)
        if not emptying.cancelled() and (exc := emptying.exception()) is not None:
            log.error("vfolder.emptying_failed", reason=str(exc))

    # --- after a crash ----------------------------------------------------------------------

    async def recover(self) -> None:
        """Finish what an earlier server was killed at; to be called before the first request.

        Raises:
            StoreFault: the database failed.
        """
        records = {folder.id: folder for folder in await self._store.all()}
        made, discarded = await self._disk.leftovers()
        for folder_id in discarded:
            if folder_id in records:
                await self._store.remove(folder_id)
                log.info("vfolder.deletion_finished", folder=folder_id.hex)
        gone = list(discarded)
        for folder_id in made:
            folder = records.get(folder_id)
            if folder is not None and folder.status is VFolderStatus.READY:
                await self._disk.publish(folder_id)
            else:
                await self._disk.discard(folder_id)
                gone.append(folder_id)
        for folder in records.values():  # a quota check of the file system may have lost limits
            with contextlib.suppress(VFolderNotFound):
                await self._disk.bound(folder.id, folder.quota)
        for folder in records.values():
            if folder.status is VFolderStatus.CLONING and folder.id not in discarded:
                await self._store.remove(folder.id)
                log.info("vfolder.clone_abandoned", folder=folder.id.hex)
        self._empty_soon(*gone)
