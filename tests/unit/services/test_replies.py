from __future__ import annotations

import asyncio

import pytest
from tests.fakes import FakeClock, MemoryReplies

from retort.core.reply import Reply, ReplyKey
from retort.errors import Fault, StoreFault, TokenReused, Unavailable
from retort.services.replies import Done, Replies

KEY = ReplyKey("ANN", "one")
WHAT = b"digest"


class Work:
    """A request that counts how often it is done, and takes as long as it is told."""

    def __init__(self, *failures: Exception) -> None:
        self.done = 0
        self.undone = 0
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.failures = list(failures)

    async def __call__(self) -> Done:
        self.done += 1
        await self.may_end.wait()
        if self.failures:
            raise self.failures.pop(0)
        return Done(Reply(WHAT, 200, "text/plain", b"answer %d" % self.done), undo=self._undo)

    async def _undo(self) -> None:
        self.undone += 1


@pytest.fixture
def store() -> MemoryReplies:
    return MemoryReplies(FakeClock())


@pytest.fixture
def replies(store: MemoryReplies) -> Replies:
    return Replies(store, answer_bytes=100)


async def test_a_repeat_gets_the_same_answer_and_does_nothing(replies: Replies) -> None:
    work = Work()
    first = await replies.once(KEY, WHAT, work)
    assert await replies.once(KEY, WHAT, work) == first
    assert work.done == 1


async def test_repeats_that_come_meanwhile_wait_for_the_same_answer(replies: Replies) -> None:
    work = Work()
    work.may_end.clear()
    asked = [asyncio.ensure_future(replies.once(KEY, WHAT, work)) for _ in range(3)]
    await asyncio.sleep(0)
    work.may_end.set()
    answers = await asyncio.gather(*asked)
    assert [a.body for a in answers] == [b"answer 1"] * 3
    assert work.done == 1


async def test_a_token_with_another_request_is_a_conflict_even_while_the_first_runs(
    replies: Replies,
) -> None:
    work = Work()
    work.may_end.clear()
    asked = asyncio.ensure_future(replies.once(KEY, WHAT, work))
    await asyncio.sleep(0)
    with pytest.raises(TokenReused):
        await replies.once(KEY, b"other", work)
    work.may_end.set()
    await asked
    with pytest.raises(TokenReused):
        await replies.once(KEY, b"other", work)
    assert (await replies.once(KEY, WHAT, work)).body == b"answer 1"
    assert work.done == 1


async def test_what_failed_is_done_again(replies: Replies) -> None:
    work = Work(Fault())
    with pytest.raises(Fault):
        await replies.once(KEY, WHAT, work)
    assert (await replies.once(KEY, WHAT, work)).body == b"answer 2"


async def test_who_waits_for_one_that_failed_takes_its_place(replies: Replies) -> None:
    work = Work(Fault())
    work.may_end.clear()
    asked = [asyncio.ensure_future(replies.once(KEY, WHAT, work)) for _ in range(3)]
    await asyncio.sleep(0)
    work.may_end.set()
    first, *others = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(first, Fault)
    assert {a.body for a in others if isinstance(a, Reply)} == {b"answer 2"}
    assert work.done == 2


async def test_who_is_cancelled_does_not_take_the_others_along(replies: Replies) -> None:
    work = Work()
    work.may_end.clear()
    asked = [asyncio.ensure_future(replies.once(KEY, WHAT, work)) for _ in range(3)]
    await asyncio.sleep(0)
    asked[1].cancel()
    asked[0].cancel()
    await asyncio.sleep(0)
    work.may_end.set()
    assert (await asked[2]).body == b"answer 2"


async def test_what_a_large_answer_took_is_not_kept(replies: Replies, store: MemoryReplies) -> None:
    async def large() -> Done:
        return Done(Reply(WHAT, 200, "text/plain", bytes(101)))

    await replies.once(KEY, WHAT, large)
    assert await store.get(KEY) is None


async def test_an_answer_that_cannot_be_kept_puts_back_what_it_took(
    replies: Replies, store: MemoryReplies
) -> None:
    work = Work()

    async def break_then_do() -> Done:
        store.is_broken = True
        return await work()

    with pytest.raises(Unavailable):
        await replies.once(KEY, WHAT, break_then_do)
    assert work.undone == 1
    store.is_broken = False
    assert (await replies.once(KEY, WHAT, work)).body == b"answer 2"


async def test_an_answer_that_took_nothing_is_given_even_if_it_cannot_be_kept(
    replies: Replies, store: MemoryReplies
) -> None:
    async def break_then_do() -> Done:
        store.is_broken = True
        return Done(Reply(WHAT, 204))

    assert (await replies.once(KEY, WHAT, break_then_do)).status == 204


async def test_nothing_is_done_while_kept_answers_cannot_be_looked_at(
    replies: Replies, store: MemoryReplies
) -> None:
    store.is_broken = True
    work = Work()
    with pytest.raises(StoreFault):
        await replies.once(KEY, WHAT, work)
    assert work.done == 0
