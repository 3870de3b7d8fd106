"""Quotas by counting: what is refused, what is counted anew, who is ended."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid

import pytest
from tests.fakes import START, MemoryVFolders

from retort.core.mount import Mount
from retort.core.session import Session, SessionStatus
from retort.core.vfolder import EnforcedBy, FolderUsage, Permission, VFolder
from retort.errors import VFolderFull, VFolderNotFound
from retort.services.vfolder_quota import Quotas, QuotaWatch

ID = uuid.UUID(int=3)
FOLDER = VFolder(ID, "data", uuid.UUID(int=1), "a@example.org", START, max_bytes=100, max_inodes=10)


@dataclasses.dataclass
class Disk:
    """A disk with one folder, which counts how often it was counted."""

    usages: FolderUsage = dataclasses.field(default_factory=lambda: FolderUsage(0, 0))
    counts: int = 0
    asked: int = 0
    late: FolderUsage | None = None

    async def settle(self, folder_id: uuid.UUID) -> None:
        self.usages = self.late or self.usages

    async def usage(self, folder_id: uuid.UUID, max_entries: int = 0) -> FolderUsage:
        self.counts += 1
        self.asked = max_entries
        await asyncio.sleep(0)
        if folder_id != ID:
            raise VFolderNotFound
        return self.usages


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(disk: Disk, clock: Clock) -> Quotas:
    return Quotas(disk, clock, count_s=60.0)  # type: ignore[arg-type]


async def test_what_calls_add_is_added_up_without_counting_again(
    quotas: Quotas, disk: Disk
) -> None:
    for _ in range(10):
        async with quotas.taking(FOLDER, 10, entries=1):
            pass
    assert disk.counts == 1
    assert disk.asked == 11  # so far that more than the quota is seen
    disk.usages = FolderUsage(100, 10)
    with pytest.raises(VFolderFull, match="101 of 100 bytes"):
        async with quotas.taking(FOLDER, 1, entries=0):
            pass
    with pytest.raises(VFolderFull, match="11 of 10 files"):
        await quotas.check(FOLDER, 0, entries=1)


async def test_a_refusal_is_never_by_an_old_count(quotas: Quotas, disk: Disk) -> None:
    disk.usages = FolderUsage(100, 1)
    with pytest.raises(VFolderFull):
        await quotas.check(FOLDER, 1, entries=0)
    disk.usages = FolderUsage(10, 1)  # a program removed files
    await quotas.check(FOLDER, 90, entries=0)


async def test_an_old_count_is_counted_anew(quotas: Quotas, disk: Disk, clock: Clock) -> None:
    await quotas.check(FOLDER, 1, entries=1)
    disk.usages = FolderUsage(100, 1)  # a program wrote
    clock.now += 59
    await quotas.check(FOLDER, 1, entries=1)
    clock.now += 1
    with pytest.raises(VFolderFull):
        await quotas.check(FOLDER, 1, entries=1)


async def test_two_at_once_get_no_more_than_there_is(quotas: Quotas, disk: Disk) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with quotas.taking(FOLDER, 60, entries=1):
            began.set()
            await may_end.wait()
        disk.usages = FolderUsage(60, 1)

    async def second() -> None:
        await began.wait()
        async with quotas.taking(FOLDER, 60, entries=1):
            raise AssertionError("there was no room")

    one, other = asyncio.create_task(first()), asyncio.create_task(second())
    await began.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not other.done()  # it may fit when the first one fails
    disk.usages = FolderUsage(60, 1)
    may_end.set()
    await one
    with pytest.raises(VFolderFull, match="120 of 100"):
        await other


async def test_two_at_once_that_fit_do_not_wait(quotas: Quotas) -> None:
    async with quotas.taking(FOLDER, 50, entries=1), quotas.taking(FOLDER, 50, entries=1):
        pass


async def test_a_folder_without_a_quota_is_never_counted(quotas: Quotas, disk: Disk) -> None:
    free = dataclasses.replace(FOLDER, max_bytes=None, max_inodes=None)
    async with quotas.taking(free, 1 << 60, entries=1):
        pass
    assert disk.counts == 0


async def test_a_folder_is_overfull_from_a_count_until_it_is_tidied_up(
    quotas: Quotas, disk: Disk
) -> None:
    disk.usages = FolderUsage(101, 1)
    assert not await quotas.is_overfull(FOLDER)  # nobody counted: a mount waits for no count
    await quotas.usage(FOLDER)
    assert await quotas.is_overfull(FOLDER)
    disk.usages = FolderUsage(99, 1)
    assert not await quotas.is_overfull(FOLDER)


async def test_a_folder_that_the_kernel_counts_is_asked_for_each_time(
    quotas: Quotas, disk: Disk
) -> None:
    disk.usages = FolderUsage(100, 1, enforced_by=EnforcedBy.PROJECT)
    with pytest.raises(VFolderFull):
        await quotas.check(FOLDER, 1, entries=0)
    await quotas.usage(FOLDER)
    assert not await quotas.is_overfull(FOLDER)  # its programs get EDQUOT, and may tidy up


async def test_what_the_kernel_has_still_to_count_is_no_reason_to_refuse(
    disk: Disk, quotas: Quotas
) -> None:
    disk.usages = FolderUsage(80, 1, enforced_by=EnforcedBy.PROJECT)
    with pytest.raises(VFolderFull):
        await quotas.check(FOLDER, 30, 1)
    disk.late = FolderUsage(10, 1, enforced_by=EnforcedBy.PROJECT)
    await quotas.check(FOLDER, 30, 1)


class Sessions:
    """As much of the session service as a watch needs."""

    def __init__(self, *sessions: Session) -> None:
        self.live = list(sessions)
        self.ended: dict[uuid.UUID, str] = {}

    def all(self) -> list[Session]:
        return self.live

    async def end(self, session_id: uuid.UUID, reason: str) -> None:
        self.ended[session_id] = reason
        self.live = [session for session in self.live if session.id != session_id]


def session(number: int, access: Permission) -> Session:
    return Session(
        id=uuid.UUID(int=number),
        name=f"name-{number}",
        owner="AKOWNER",
        user_id=uuid.UUID(int=99),
        image="gcc:12-debian",
        asked_image="gcc",
        status=SessionStatus.RUNNING,
        created_at=START,
        mounts=(Mount(ID, "data", "/home/work/data", access=access),),
    )


async def test_who_writes_into_a_folder_found_too_full_twice_is_ended(
    quotas: Quotas, disk: Disk, clock: Clock
) -> None:
    store = MemoryVFolders()
    await store.add(FOLDER)
    sessions = Sessions(session(1, Permission.WRITE), session(2, Permission.READ))
    watch = QuotaWatch(sessions, store, quotas, clock, every_s=1.0)  # type: ignore[arg-type]

    await watch.look()
    disk.usages = FolderUsage(101, 1)
    await watch.look()
    disk.usages = FolderUsage(100, 10)  # tidied up: it is exactly full
    await watch.look()
    disk.usages = FolderUsage(100, 11)
    await watch.look()
    assert sessions.ended == {}
    await watch.look()
    assert sessions.ended == {uuid.UUID(int=1): "virtual-folder-full: data"}


async def test_the_kernels_quota_ends_nobody(quotas: Quotas, disk: Disk, clock: Clock) -> None:
    store = MemoryVFolders()
    await store.add(FOLDER)
    sessions = Sessions(session(1, Permission.WRITE))
    watch = QuotaWatch(sessions, store, quotas, clock, every_s=1.0)  # type: ignore[arg-type]
    disk.usages = FolderUsage(101, 1, enforced_by=EnforcedBy.PROJECT)
    await watch.look()
    await watch.look()
    assert sessions.ended == {}
