"""The pool over boxes that are only counted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from retort.core.limits import MIB, Limits
from retort.errors import SandboxFault
from retort.node import pool as room
from retort.node import reserve
from retort.node.boxes import Box, Loss
from retort.node.places import Place
from retort.node.pool import BOX_BYTES, Pool, PoolSettings, free_memory_bytes
from retort.node.reserve import Need
from retort.sandbox.launcher import Identity, Sandbox

USUAL = Limits()
SMALL = Limits(memory_bytes=64 * MIB)


class Boxes:
    """Makes boxes of nothing, and counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Box] = []
        self.cleared: list[Box] = []
        self.placed: asyncio.Future[None] | None = None
        self.failure: Exception | None = None
        self.changed = asyncio.Event()

    async def make(self, limits: Limits, folder: Path) -> Box:
        self.changed.set()
        if self.failure is not None:
            raise self.failure
        folder.mkdir()  # noqa: ASYNC240  a moment
        sandbox = Sandbox(Identity(1, 1), -1, folder / "init.sock", folder, None)
        box = Box(limits, sandbox, None, Place(placed=self.placed), None, Loss())  # type: ignore[arg-type]
        self.made.append(box)
        return box

    async def clear(self, box: Box) -> None:
        assert box not in self.cleared
        self.cleared.append(box)
        self.changed.set()

    async def until(self, claim: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not claim():
                self.changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(
                        0.01
                    ):  # what the pool does after `make` tells nobody
                        await self.changed.wait()


class Host:
    """A host with so much free memory."""

    free_bytes = 1 << 40


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "GAP_S", 0.0)
    monkeypatch.setattr(room, "LOOK_S", 0.01)
    monkeypatch.setattr(room, "FAILED_S", 0.01)


@pytest.fixture
def boxes(tmp_path: Path) -> Boxes:
    return Boxes(tmp_path)


@pytest.fixture
def host() -> Host:
    return Host()


@contextlib.asynccontextmanager
async def filled(boxes: Boxes, host: Host, settings: PoolSettings) -> AsyncIterator[Pool]:
    pool = Pool(
        boxes,  # type: ignore[arg-type]
        boxes.folder,
        USUAL,
        settings,
        free_bytes=lambda: host.free_bytes,
    )
    filling = asyncio.ensure_future(pool.fill_forever())
    try:
        yield pool
    finally:
        filling.cancel()
        await asyncio.wait((filling,))


async def test_it_is_filled_before_anybody_asks(boxes: Boxes, host: Host) -> None:
    async with filled(boxes, host, PoolSettings(ready=2)) as pool:
        await boxes.until(lambda: len(pool) == 2)
        assert {box.limits for box in boxes.made} == {USUAL}


async def test_each_box_is_given_once_and_replaced(boxes: Boxes, host: Host) -> None:
    async with filled(boxes, host, PoolSettings(ready=2)) as pool:
        given = []
        for _ in range(20):
            await boxes.until(lambda: len(pool) > 0)
            given.append(pool.take(USUAL))
        assert len({id(box) for box in given}) == 20
        assert None not in given
    assert not {id(box) for box in given} & {id(box) for box in boxes.cleared}


async def test_whoever_takes_a_box_is_answered_before_the_next_is_thought_of(
    boxes: Boxes, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LOOK_S", 60.0)
    monkeypatch.setattr(room, "YIELD_S", 0.05)
    async with filled(boxes, host, PoolSettings(ready=1)) as pool:
        await boxes.until(lambda: len(pool) == 1)
        assert pool.take(USUAL) is not None
        for _ in range(10):  # turns of the loop, in which the answer is written
            await asyncio.sleep(0)
        assert len(boxes.made) == 1
        await boxes.until(lambda: len(pool) == 1)


async def test_only_a_box_of_exactly_these_limits_is_given(boxes: Boxes, host: Host) -> None:
    async with filled(boxes, host, PoolSettings(ready=1)) as pool:
        await boxes.until(lambda: len(pool) == 1)
        assert pool.take(SMALL) is None
        await boxes.until(lambda: len(pool) == 2)  # somebody may ask for these again
        box = pool.take(SMALL)
        assert box is not None
        assert box.limits == SMALL


async def test_an_empty_pool_gives_nothing(boxes: Boxes, host: Host) -> None:
    async with filled(boxes, host, PoolSettings(size=0)) as pool:
        assert pool.take(USUAL) is None
        await asyncio.sleep(0)
        assert boxes.made == []


async def test_no_more_wait_than_their_memory_allows(boxes: Boxes, host: Host) -> None:
    settings = PoolSettings(size=16, ready=16, memory_bytes=3 * BOX_BYTES)
    async with filled(boxes, host, settings) as pool:
        await boxes.until(lambda: len(pool) == 3)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(boxes.made) == 3


async def test_it_is_emptied_when_the_host_runs_out_of_memory(boxes: Boxes, host: Host) -> None:
    async with filled(boxes, host, PoolSettings(ready=2, spare_bytes=256 * MIB)) as pool:
        await boxes.until(lambda: len(pool) == 2)
        host.free_bytes = 255 * MIB
        await boxes.until(lambda: len(boxes.cleared) == 2)
        assert pool.take(USUAL) is None
        host.free_bytes = 257 * MIB
        await boxes.until(lambda: len(pool) == 2)


async def test_it_lives_on_when_its_looks_fail(
    boxes: Boxes, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def broken() -> int:
        nonlocal looks
        looks += 1
        raise OSError(errno.EMFILE, "no descriptor to read /proc/meminfo by")

    async with filled(boxes, host, PoolSettings(ready=2)) as pool:
        await boxes.until(lambda: len(pool) == 2)
        monkeypatch.setattr(Host, "free_bytes", property(lambda self: broken()))
        await boxes.until(lambda: looks > 3)
        monkeypatch.undo()
        assert pool.take(USUAL) is not None
        await boxes.until(lambda: len(boxes.made) == 3)


async def test_what_waits_is_given_up_when_others_find_too_few_descriptors(
    boxes: Boxes, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    short: set[Need] = set()
    asked: list[Need] = []
    monkeypatch.setattr(reserve, "is_short", lambda need: asked.append(need) or need in short)
    async with filled(boxes, host, PoolSettings(ready=2)) as pool:
        await boxes.until(lambda: len(pool) == 2)
        short |= {Need.AHEAD, Need.SESSION}
        await boxes.until(lambda: len(boxes.cleared) == 2)
        assert pool.take(USUAL) is None
        # One that is asked for finds enough again; what nobody asks for yet would take it away.
        short.remove(Need.SESSION)
        asked.clear()
        await boxes.until(lambda: asked.count(Need.AHEAD) == 2)
        assert len(boxes.made) == 2
        short.clear()
        await boxes.until(lambda: len(pool) == 2)


async def test_one_whose_init_ended_is_not_given(boxes: Boxes, host: Host) -> None:
    async with filled(boxes, host, PoolSettings(ready=1)) as pool:
        await boxes.until(lambda: len(pool) == 1)
        dead = boxes.made[0]
        dead.loss(None)
        assert pool.take(USUAL) is not dead
        await boxes.until(lambda: dead in boxes.cleared)


async def test_one_that_did_not_get_its_place_is_ended(boxes: Boxes, host: Host) -> None:
    boxes.placed = asyncio.get_running_loop().create_future()
    boxes.placed.set_exception(SandboxFault("cgroup", "no"))
    async with filled(boxes, host, PoolSettings(ready=1)) as pool:
        await boxes.until(lambda: len(boxes.cleared) == 1)
        assert len(pool) == 0
        boxes.placed = None
        await boxes.until(lambda: len(pool) == 1)


async def test_a_failure_does_not_end_the_filling(boxes: Boxes, host: Host) -> None:
    boxes.failure = SandboxFault("launch", "no")
    async with filled(boxes, host, PoolSettings(ready=1)) as pool:
        await boxes.until(boxes.changed.is_set)
        boxes.failure = None
        await boxes.until(lambda: len(pool) == 1)


async def test_what_waits_is_ended_with_it(boxes: Boxes, host: Host) -> None:
    async with filled(boxes, host, PoolSettings(ready=2)) as pool:
        await boxes.until(lambda: len(pool) == 2)
    assert {id(box) for box in boxes.cleared} == {id(box) for box in boxes.made}


def test_free_memory_is_read_as_the_host_kernel_tells_it(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2048 kB\n")
    assert free_memory_bytes(tmp_path / "meminfo") == 2 * MIB
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\n")
    assert free_memory_bytes(tmp_path / "meminfo") == 0
