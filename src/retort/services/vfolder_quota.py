"""Keeping virtual folders within their quotas, as far as the host kernel does not (decision 0018).

What passes through this server's calls is added up; what sessions write is found by counting, when
a call needs to know and every so often while a session may write.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import uuid
from collections.abc import AsyncIterator, Callable
from weakref import WeakValueDictionary

import structlog

from retort.core.ports import VFolderDisk, VFolderStore
from retort.core.session import Session, SessionStatus
from retort.core.vfolder import EnforcedBy, FolderUsage, Quota, VFolder
from retort.errors import RetortError, VFolderFull, VFolderNotFound
from retort.services.sessions import SessionService

log = structlog.get_logger()

MAX_KNOWN = 10_000  # folders of which the last count is remembered
BUSY_SHARE = 20  # of the time, one part goes into counting
FULL = "virtual-folder-full"


@dataclasses.dataclass(slots=True)
class _Known:
    """The last count of a folder, if there was one, and what calls added, ever and before it."""

    usage: FolderUsage | None = None
    at: float = 0.0
    bytes: int = 0
    entries: int = 0
    bytes_before: int = 0
    entries_before: int = 0
    is_over: bool = False

    def fits(self, quota: Quota, size: int, entries: int) -> bool:
        """Tell whether so much more surely is within a quota."""
        if self.usage is None:
            return False
        size += self.usage.bytes + self.bytes - self.bytes_before
        entries += self.usage.entries + self.entries - self.entries_before
        return not quota.excess(size, entries)


class Quotas:
    """What folders hold, and whether they may take more.

    Args:
        monotonic: seconds of a clock that nobody sets.
        count_s: how long a count is good, as far as this server's own calls change nothing.
    """

    def __init__(
        self, disk: VFolderDisk, monotonic: Callable[[], float], *, count_s: float
    ) -> None:
        self._disk = disk
        self._monotonic = monotonic
        self._count_s = count_s
        self._known: collections.OrderedDict[uuid.UUID, _Known] = collections.OrderedDict()
        self._promised: collections.Counter[uuid.UUID] = collections.Counter()
        self._ended: dict[uuid.UUID, asyncio.Event] = {}
        self._counting: WeakValueDictionary[uuid.UUID, asyncio.Lock] = WeakValueDictionary()

    async def usage(self, folder: VFolder) -> FolderUsage:
        """Tell what a folder holds now. Raises VFolderNotFound."""
        most = 0 if folder.max_inodes is None else folder.max_inodes + 1
        known = self._known.setdefault(folder.id, _Known())
        size, entries = known.bytes, known.entries
        try:
            usage = await self._disk.usage(folder.id, most)
        except VFolderNotFound:
            self._known.pop(folder.id, None)
            raise
        if usage.enforced_by is EnforcedBy.PROJECT or folder.quota == Quota():
            self._known.pop(folder.id, None)
            return usage
        known.usage, known.at = usage, self._monotonic()
        # What was added meanwhile may be in the count, or not.
        known.bytes_before, known.entries_before = size, entries
        known.is_over = bool(folder.quota.excess(usage.bytes, usage.entries))
        self._known[folder.id] = known
        self._known.move_to_end(folder.id)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return usage

    async def check(self, folder: VFolder, size: int, entries: int) -> None:
        """See that a folder can take more.

        Raises:
            VFolderFull: it would exceed its quota.
            VFolderNotFound: it is gone.
        """
        async with self._alone(folder):
            over = await self._excess(folder, size, entries)
        if over:
            raise VFolderFull(f"The virtual folder would hold {over}.")

    @contextlib.asynccontextmanager
    async def taking(self, folder: VFolder, size: int, entries: int) -> AsyncIterator[None]:
        """Keep room for what is added in the block; waits for others when there may not be enough.

        If the block fails, the next count finds what it added.

        Raises:
            VFolderFull, VFolderNotFound: as `check`.
        """
        await self._promise(folder, size, entries)
        try:
            yield
        finally:
            self._promised[folder.id] -= size
            if not self._promised[folder.id]:
                del self._promised[folder.id]
            if (ended := self._ended.pop(folder.id, None)) is not None:
                ended.set()
            if (known := self._known.get(folder.id)) is not None:
                known.bytes += size
                known.entries += entries

    async def _promise(self, folder: VFolder, size: int, entries: int) -> None:
        while True:
            async with self._alone(folder):
                promised = self._promised[folder.id]
                over = await self._excess(folder, size + promised, entries)
                if not over:
                    self._promised[folder.id] += size
                    return
                if not promised:
                    raise VFolderFull(f"The virtual folder would hold {over}.")
                if promised != self._promised[folder.id]:
                    continue  # one of the others ended while it was counted
                ended = self._ended.setdefault(folder.id, asyncio.Event())
            # What the others were promised may be counted already, as far as it has come.
            await ended.wait()

    def _alone(self, folder: VFolder) -> asyncio.Lock:
        """Who holds it is the only one that counts this folder, and that makes promises in it."""
        return self._counting.setdefault(folder.id, asyncio.Lock())

    async def _excess(self, folder: VFolder, size: int, entries: int) -> str:
        """Say what a folder's quota would be exceeded by; count if that is not certain."""
        if folder.quota == Quota():
            return ""
        known = self._known.get(folder.id)
        is_new = known is not None and self._monotonic() - known.at < self._count_s
        if known is not None and is_new and known.fits(folder.quota, size, entries):
            return ""
        usage = await self.usage(folder)
        over = folder.quota.excess(usage.bytes + size, usage.entries + entries)
        if over and usage.enforced_by is EnforcedBy.PROJECT:
            await self._disk.settle(folder.id)
            usage = await self.usage(folder)
            over = folder.quota.excess(usage.bytes + size, usage.entries + entries)
        return over

    async def is_overfull(self, folder: VFolder) -> bool:
        """Tell whether the last count found too much, and there still is. Raises VFolderNotFound.

        Never true where the host kernel keeps the quota: who mounts a full folder can tidy it up.
        """
        known = self._known.get(folder.id)
        if known is None or not known.is_over:
            return False
        usage = await self.usage(folder)
        return bool(folder.quota.excess(usage.bytes, usage.entries))

    def forget(self, folder_id: uuid.UUID) -> None:
        """Forget what was counted in a folder: something was taken out of it."""
        known = self._known.get(folder_id)
        if known is not None:
            known.usage = None


class QuotaWatch:
    """Counts what sessions may write into, and ends those that do not stop.

    A session may have a folder that is too full once in a row: its programs can still tidy up.

    Args:
        every_s: pause between two looks; longer if counting takes long, so that it never takes
            more than a twentieth of one processor.
    """

    def __init__(
        self,
        sessions: SessionService,
        store: VFolderStore,
        quotas: Quotas,
        monotonic: Callable[[], float],
        *,
        every_s: float,
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._quotas = quotas
        self._monotonic = monotonic
        self._every_s = every_s
        self._over: dict[uuid.UUID, VFolder] = {}

    async def look_forever(self) -> None:
        """Look every so often."""
        took_s = 0.0
        while True:
            await asyncio.sleep(max(self._every_s, (BUSY_SHARE - 1) * took_s))
            began_at = self._monotonic()
            try:
                await self.look()
            except RetortError as exc:  # the next time it may go
                log.error("vfolder.uncounted", reason=str(exc))
            took_s = self._monotonic() - began_at

    async def look(self) -> None:
        """Count once, and end the sessions that write into what was too full before, too.

        Raises:
            StoreFault: the database failed.
        """
        running = [s for s in self._sessions.all() if s.status is SessionStatus.RUNNING]
        over = {}
        for folder_id in {folder_id for s in running for folder_id in _written(s)}:
            folder = await self._store.get(folder_id)
            if folder is None or folder.quota == Quota():
                continue
            try:
                usage = await self._quotas.usage(folder)
            except VFolderNotFound:
                continue
            if usage.enforced_by is EnforcedBy.COUNTED and folder.quota.excess(
                usage.bytes, usage.entries
            ):
                over[folder_id] = folder
                log.warning("vfolder.overfull", folder=folder_id.hex, bytes=usage.bytes,
                            entries=usage.entries)  # fmt: skip
        again = over.keys() & self._over.keys()
        self._over = over
        for session in running:
            if found := again & _written(session):
                name = over[min(found)].name
                try:
                    await self._sessions.end(session.id, f"{FULL}: {name}")
                except RetortError as exc:  # it ended by itself, or will be tried again
                    log.warning("session.unended", session=str(session.id), reason=str(exc))


def _written(session: Session) -> set[uuid.UUID]:
    return {mount.source for mount in session.mounts if not mount.is_read_only}
