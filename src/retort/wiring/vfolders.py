"""Building what serves virtual folders."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time

import structlog

from retort.api.sharing import SharingRoutes
from retort.api.storage import StorageRoutes
from retort.api.tasks import TaskRoutes
from retort.api.vfolders import VFolderRoutes
from retort.config import Config
from retort.core.ports import Clock, VFolderStore
from retort.hostfs.vfolder_disk import DiskLimits, HostVFolders
from retort.hostfs.volume import Volume
from retort.services.keypairs import KeyRing
from retort.services.tasks import BackgroundTasks
from retort.services.vfolder_files import VFolderFiles
from retort.services.vfolder_life import VFolderService
from retort.services.vfolder_quota import Quotas
from retort.services.vfolder_sharing import VFolderSharing
from retort.services.vfolders import VFolderLookup
from retort.sql.engine import Database
from retort.sql.vfolders import SqlVFolders
from retort.wiring.store import host_moment

log = structlog.get_logger()

SWEEP_S = 3600.0


@dataclasses.dataclass(frozen=True, slots=True)
class VFolderParts:
    """What others need of it.

    Attributes:
        volume: where the folders lie.
        life: how they come, change and go.
        lookup: which folders a caller sees.
        store: their records.
        quotas: what they hold, and may hold.
    """

    volume: Volume
    life: VFolderService
    lookup: VFolderLookup
    store: VFolderStore
    quotas: Quotas
    folders: VFolderRoutes
    sharing: SharingRoutes
    storage: StorageRoutes
    tasks: TaskRoutes


async def open_vfolders(
    config: Config,
    database: Database,
    keys: KeyRing,
    clock: Clock,
    secret: bytes,
    stack: contextlib.AsyncExitStack,
) -> VFolderParts:
    """Build it, and finish what an earlier server was killed at.

    Args:
        stack: closes it all.

    Raises:
        StoreFault: the database failed.
    """
    uid = config.vfolders.host_uid
    owner = (uid, uid) if os.geteuid() == 0 else None
    volume = await asyncio.to_thread(
        Volume, config.state.folder / "folders", owner, config.vfolders.project_first
    )
    log.info("vfolder.quotas", enforced_by="count" if volume.uncounted else "project",
             reason=volume.uncounted)  # fmt: skip
    for folder_id in volume.clashes:
        log.error("vfolder.project_clash", folder=folder_id.hex)
    disk = HostVFolders(
        volume,
        DiskLimits(
            listing_entries=config.http.listing_entries,
            archive_entries=config.http.archive_entries,
            counted_entries=config.vfolders.counted_entries,
        ),
    )
    stack.callback(disk.close)
    store, tasks = SqlVFolders(database), BackgroundTasks()
    lookup = VFolderLookup(store)
    quotas = Quotas(disk, time.monotonic, count_s=config.vfolders.count_s)
    life = VFolderService(
        store, disk, lookup, tasks, clock, quotas, max_inodes=config.vfolders.max_inodes
    )
    await life.recover()
    files = VFolderFiles(
        lookup,
        disk,
        keys,
        host_moment,
        quotas,
        secret=secret,
        token_s=config.vfolders.token_s,
        max_file_bytes=config.vfolders.file_bytes,
    )
    stack.push_async_callback(life.close)
    stack.push_async_callback(tasks.close)
    sweeping = asyncio.ensure_future(_sweep_forever(files))
    stack.callback(sweeping.cancel)
    base_url, base_path = config.server.public_url, config.server.base_path
    return VFolderParts(
        volume,
        life,
        lookup,
        store,
        quotas,
        VFolderRoutes(life, files, base_url=base_url, base_path=base_path),
        SharingRoutes(VFolderSharing(store, lookup, keys, clock)),
        StorageRoutes(files),
        TaskRoutes(tasks),
    )


async def _sweep_forever(files: VFolderFiles) -> None:
    """Remove what uploads and deletions left, now and every hour."""
    while True:
        try:
            await files.sweep()
        except Exception as exc:  # the next time it may go
            log.error("vfolder.sweep_failed", reason=str(exc))
        await asyncio.sleep(SWEEP_S)
