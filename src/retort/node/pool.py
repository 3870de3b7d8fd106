"""Sandboxes made ahead, so that a session is there before its caller notices.

A box in the pool has its control group, its files are capped and its standby child waits: all that
is left to do is to hand it over. It goes to one session and never comes back, so that no program
ever finds what another left. How many stand ready, and of which limits, is demand.py's. What the
pool holds when the server is killed has no session, and the next server's sweep ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path

import structlog

from retort.core.limits import MIB, Limits
from retort.errors import RetortError
from retort.node import reserve
from retort.node.boxes import Box, Boxes
from retort.node.demand import Demand

log = structlog.get_logger()

BOX_BYTES = 2 * MIB  # what one is counted as: bubblewrap, init, its standby and kernel memory
LOOK_S = 5.0  # how often demand and the host's memory are looked at when nobody asks
GAP_S = 0.05  # between two boxes, while enough stand ready: whoever works comes first
FAILED_S = 5.0  # after a box could not be made
YIELD_S = 0.001  # from a box that was taken to the next thought of filling: its caller comes first


@dataclasses.dataclass(frozen=True, slots=True)
class PoolSettings:
    """What the server's configuration says about the pool; units as in config/sections.py."""

    size: int = 16
    ready: int = 2
    memory_bytes: int = 64 * MIB
    spare_bytes: int = 256 * MIB

    @property
    def most(self) -> int:
        """How many boxes there may be."""
        return min(self.size, self.memory_bytes // BOX_BYTES)


class Pool:
    """Boxes that wait for sessions.

    Args:
        folder: with one folder per sandbox, beside those of sessions.
        usual: limits of a session that does not ask for its own: `ready` of these wait always.
        free_bytes: gives the host's memory that is free for use.
    """

    def __init__(
        self,
        boxes: Boxes,
        folder: Path,
        usual: Limits,
        settings: PoolSettings,
        *,
        free_bytes: Callable[[], int],
    ) -> None:
        self._boxes = boxes
        self._folder = folder
        self._settings = settings
        self._free_bytes = free_bytes
        self._demand = Demand(usual, settings.ready, settings.most)
        self._ready: dict[Limits, deque[Box]] = {}
        self._asked = asyncio.Event()
        self._clearing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Boxes that stand ready."""
        return sum(len(boxes) for boxes in self._ready.values())

    def take(self, limits: Limits) -> Box | None:
        """Give a box of exactly these limits, if one stands ready, for good."""
        loop = asyncio.get_running_loop()
        self._demand.asked(limits, loop.time())
        loop.call_later(YIELD_S, self._asked.set)
        waiting = self._ready.get(limits)
        while waiting:
            box = waiting.popleft()
            if not box.loss.has_happened:
                return box
            self._discard(box)
        return None

    async def fill_forever(self) -> None:
        """Make boxes one at a time while too few wait, and end those that are too many."""
        try:
            while True:
                self._asked.clear()
                pause_s = await self._fill()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._asked.wait()
        finally:
            await asyncio.shield(self.close())

    async def close(self) -> None:
        """End every box that waits."""
        self._ready, ready = {}, self._ready
        for waiting in ready.values():
            for box in waiting:
                self._discard(box)
        await asyncio.gather(*self._clearing, return_exceptions=True)

    async def _fill(self) -> float:
        """Make what is missing; give the seconds until the next look."""
        try:
            while True:
                if self._is_host_short():
                    await self.close()
                    return LOOK_S
                wanted = self._demand.wanted(self._now())
                self._drop_what_is_too_much(wanted)
                limits = self._scarcest(wanted)
                if limits is None or reserve.is_short(reserve.Need.AHEAD):
                    return LOOK_S
                if 2 * len(self._ready.get(limits, ())) >= wanted[limits]:
                    await asyncio.sleep(GAP_S)
                await self._make(limits)
        except (RetortError, OSError) as exc:
            log.warning("pool.failed", reason=str(exc))
            return FAILED_S

    async def _make(self, limits: Limits) -> None:
        folder = self._folder / f"pool-{uuid.uuid4().hex[:16]}"
        making = asyncio.ensure_future(self._boxes.make(limits, folder))
        try:
            box = await asyncio.shield(making)
        except asyncio.CancelledError:  # the server stops: half a box could not be cleared whole
            self._discard(await making)
            raise
        try:
            if box.place.placed is not None:
                await asyncio.shield(box.place.placed)
        except BaseException:
            self._discard(box)
            raise
        self._ready.setdefault(limits, deque()).append(box)

    def _is_host_short(self) -> bool:
        """Tell whether what waits here is better given to those who ask for something else."""
        if reserve.is_short(reserve.Need.SESSION):
            return True  # first: to read of memory takes a descriptor
        return self._free_bytes() < self._settings.spare_bytes

    def _scarcest(self, wanted: dict[Limits, int]) -> Limits | None:
        missing = {
            limits: len(self._ready.get(limits, ())) / count
            for limits, count in wanted.items()
            if len(self._ready.get(limits, ())) < count
        }
        return min(missing, key=missing.__getitem__, default=None)

    def _drop_what_is_too_much(self, wanted: dict[Limits, int]) -> None:
        for limits, waiting in list(self._ready.items()):
            for box in [box for box in waiting if box.loss.has_happened]:
                waiting.remove(box)
                self._discard(box)
            while len(waiting) > wanted.get(limits, 0):
                self._discard(waiting.popleft())
            if not waiting:
                del self._ready[limits]

    def _discard(self, box: Box) -> None:
        task = asyncio.ensure_future(self._boxes.clear(box))
        self._clearing.add(task)
        task.add_done_callback(self._discarded)

    def _discarded(self, task: asyncio.Task[None]) -> None:
        self._clearing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("pool.unended", reason=str(error))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def free_memory_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Give the host's memory that programs could still get (proc(5), MemAvailable)."""
    for line in meminfo.read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
