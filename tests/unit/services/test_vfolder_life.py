"""How folders come and go, on a real file system: what a failure or a kill finds half-way."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes import FakeClock, MemoryVFolders

from retort.core.keypair import KeyPair
from retort.core.vfolder import NewVFolder
from retort.errors import StoreFault
from retort.hostfs.vfolder_disk import HostVFolders
from retort.hostfs.volume import Volume
from retort.services.tasks import BackgroundTasks
from retort.services.vfolder_life import VFolderService
from retort.services.vfolder_quota import Quotas
from retort.services.vfolders import VFolderLookup

ANN = KeyPair("AKANN", "", "", uuid.UUID(int=1), "ann@example.org", FakeClock().now())


class SlowToForget(MemoryVFolders):
    """A store whose first removal waits, and then fails as a database does."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def remove(self, folder_id: uuid.UUID) -> None:
        if not self.asked.is_set():
            self.asked.set()
            await self.go_on.wait()
            raise StoreFault("database: disk I/O error")
        await super().remove(folder_id)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[HostVFolders]:
    disk = HostVFolders(Volume(tmp_path / "folders"))
    yield disk
    disk.close()


def service(store: MemoryVFolders, disk: HostVFolders) -> VFolderService:
    quotas = Quotas(disk, time.monotonic, count_s=60.0)
    return VFolderService(store, disk, VFolderLookup(store), BackgroundTasks(), FakeClock(), quotas)


async def half_deleted(
    store: SlowToForget, disk: HostVFolders
) -> tuple[VFolderService, uuid.UUID, asyncio.Task[None]]:
    """Have a folder's deletion wait for its record while another folder goes, files and all."""
    life = service(store, disk)
    folder, other = [await life.create(ANN, NewVFolder(name)) for name in ("kept", "other")]
    deletion = asyncio.ensure_future(life.delete(ANN, "kept"))
    await store.asked.wait()
    await life.delete(ANN, "other")
    await life.close()
    assert (await disk.leftovers())[1] == [folder.id], other.id
    return life, folder.id, deletion


async def test_a_deletion_that_fails_gives_the_folder_back_though_others_are_emptied(
    disk: HostVFolders,
) -> None:
    store = SlowToForget()
    life, folder_id, deletion = await half_deleted(store, disk)
    store.go_on.set()
    with pytest.raises(StoreFault):
        await deletion
    assert (await life.info(ANN, "kept"))[1].entries == 0
    assert (await disk.listing(folder_id, ".")).entries == ()


async def test_a_kill_between_a_folders_files_and_its_record_leaves_neither(
    disk: HostVFolders,
) -> None:
    store = SlowToForget()
    _, _, deletion = await half_deleted(store, disk)
    deletion.cancel()  # killed: the record stays
    again = service(store, disk)
    await again.recover()
    await again.close()
    assert await again.listed(ANN) == []
    assert await disk.leftovers() == ([], [])
