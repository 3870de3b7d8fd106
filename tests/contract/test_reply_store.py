"""The ReplyStore contract, over the file and the double."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import FakeClock, MemoryReplies

from retort.core.reply import Reply, ReplyKey
from retort.errors import StoreFault
from retort.sql.replies import SqliteReplies

KEEP_S = 60.0
KEY_BYTES = 10_000
ANN = ReplyKey("ANN", "one")


def reply(text: str = "yes", size: int = 0) -> Reply:
    return Reply(b"digest", 200, "application/json", text.encode().ljust(size, b"."))


def sized(count: int) -> Reply:
    """An answer of which `count` fill a key's room."""
    return reply(size=KEY_BYTES // count - reply().size_bytes + len(reply().body))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["sqlite", "memory"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock
) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield MemoryReplies(clock, keep_s=KEEP_S, key_bytes=KEY_BYTES)
        return
    async with SqliteReplies(
        tmp_path / "replies.db", clock, keep_s=KEEP_S, key_bytes=KEY_BYTES
    ) as opened:
        yield opened


async def test_an_answer_is_found_by_its_owner_and_token(store: Any) -> None:
    kept = Reply(b"\0digest", 201, "application/json", b'{"a": "\0\xff"}')
    await store.put(ANN, kept)
    assert await store.get(ANN) == kept
    assert await store.get(ReplyKey("BOB", "one")) is None
    assert await store.get(ReplyKey("ANN", "two")) is None


async def test_a_later_answer_takes_the_place_of_an_older_one(store: Any) -> None:
    await store.put(ANN, reply("old"))
    await store.put(ANN, reply("new"))
    assert await store.get(ANN) == reply("new")


def test_a_key_is_one_text_and_back() -> None:
    assert ReplyKey.parse(str(ReplyKey("ANN", "a:b"))) == ReplyKey("ANN", "a:b")


async def test_an_answer_is_forgotten_after_its_time(store: Any, clock: FakeClock) -> None:
    await store.put(ANN, reply())
    clock.jump(KEEP_S - 1)
    assert await store.get(ANN) == reply()
    clock.jump(2)
    assert await store.get(ANN) is None


async def test_a_clock_that_jumps_back_loses_no_answer(store: Any, clock: FakeClock) -> None:
    await store.put(ANN, reply())
    clock.jump(-86_400)
    await store.put(ReplyKey("ANN", "two"), reply("two"))
    assert await store.get(ANN) == reply()
    assert await store.get(ReplyKey("ANN", "two")) == reply("two")


async def test_the_longest_unused_answer_of_the_same_key_makes_room(store: Any) -> None:
    await store.put(ReplyKey("BOB", "one"), sized(3))
    for token in ("one", "two", "three"):
        await store.put(ReplyKey("ANN", token), sized(3))
    assert await store.get(ANN) is not None  # used now: "two" is the longest unused
    await store.put(ReplyKey("ANN", "four"), sized(3))
    there = [token for token in ("one", "two", "three", "four")
             if await store.get(ReplyKey("ANN", token))]  # fmt: skip
    assert there == ["one", "three", "four"]
    assert await store.get(ReplyKey("BOB", "one")) is not None


async def test_many_small_answers_leave_for_a_large_one(store: Any) -> None:
    for n in range(10):
        await store.put(ReplyKey("ANN", str(n)), sized(10))
    await store.put(ReplyKey("ANN", "large"), sized(2))
    there = [n for n in range(10) if await store.get(ReplyKey("ANN", str(n)))]
    assert there == [5, 6, 7, 8, 9]


async def test_another_process_finds_what_was_put(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "replies.db"
    async with SqliteReplies(path, clock, keep_s=KEEP_S, key_bytes=KEY_BYTES) as store:
        await store.put(ANN, reply())
        # The first one still has it open, as one that is killed would.
        async with SqliteReplies(path, clock, keep_s=KEEP_S, key_bytes=KEY_BYTES) as other:
            assert await other.get(ANN) == reply()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_the_file_does_not_grow_with_the_number_of_answers(
    tmp_path: Path, clock: FakeClock
) -> None:
    path = tmp_path / "replies.db"
    async with SqliteReplies(path, clock, keep_s=KEEP_S, key_bytes=KEY_BYTES) as store:
        for n in range(200):
            await store.put(ReplyKey("ANN", str(n)), sized(2))
        assert path.stat().st_size < 20 * KEY_BYTES


async def test_a_locked_file_is_a_fault_and_heals(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "replies.db"
    async with SqliteReplies(path, clock, keep_s=KEEP_S, key_bytes=KEY_BYTES, busy_s=0.01) as store:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreFault):
                await store.put(ANN, reply())
            other.execute("ROLLBACK")
        await store.put(ANN, reply())
        assert await store.get(ANN) == reply()


async def test_answers_put_at_once_are_all_kept(store: Any) -> None:
    keys = [ReplyKey(f"K{n % 4}", str(n)) for n in range(40)]
    await asyncio.gather(*(store.put(key, reply(key.token)) for key in keys))
    assert [await store.get(key) for key in keys] == [reply(key.token) for key in keys]
