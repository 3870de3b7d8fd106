from __future__ import annotations

import asyncio

import pytest

from retort.core.console import Stream
from retort.core.run import Outcome, Plan, Report, RunState, Status, StepResult
from retort.errors import RunNotFound
from retort.node.live_run import LiveRun


@pytest.fixture
async def run() -> LiveRun:
    return LiveRun("r", RunState(Plan({})), output_chars=100)


def prints(run: LiveRun, text: str) -> None:
    run.console.feed(Stream.STDOUT, text.encode())


async def test_output_belongs_to_the_answer_that_was_open(run: LiveRun) -> None:
    prints(run, "build")
    run.close_answer(Report(Status.BUILD_FINISHED, 0))
    prints(run, "exec")
    run.close_answer(Report(Status.FINISHED, 3))
    answers = [await run.next_answer(0) for _ in range(2)]
    assert [(a.status, a.console) for a in answers] == [
        (Status.BUILD_FINISHED, (("stdout", "build"),)),
        (Status.FINISHED, (("stdout", "exec"),)),
    ]
    with pytest.raises(RunNotFound):
        await run.next_answer(0)


async def test_a_cancelled_end_is_marked(run: LiveRun) -> None:
    run.close_answer(Report(Status.FINISHED, 130, StepResult(Outcome.CANCELLED, 130)))
    assert (await run.next_answer(0)).is_cancelled


async def test_without_news_the_time_is_waited_for(run: LiveRun) -> None:
    waiting = asyncio.ensure_future(run.next_answer(0.02))
    prints(run, "out")
    answer = await waiting
    assert (answer.status, answer.console) == (Status.CONTINUED, (("stdout", "out"),))
    assert not run.is_watched


async def test_a_blocked_run_says_so_until_it_is_not(run: LiveRun) -> None:
    prints(run, "? ")
    run.is_blocked = True
    answers = [await run.next_answer(5) for _ in range(2)]
    assert [(a.status, a.console) for a in answers] == [
        (Status.WAITING_INPUT, (("stdout", "? "),)),
        (Status.WAITING_INPUT, ()),
    ]
    run.is_blocked = False
    assert (await run.next_answer(0)).status is Status.CONTINUED


@pytest.mark.parametrize("status", [Status.CONTINUED, Status.WAITING_INPUT])
async def test_what_was_not_delivered_is_merged_with_what_follows(
    run: LiveRun, status: Status
) -> None:
    prints(run, "a")
    run.is_blocked = status is Status.WAITING_INPUT
    answer = await run.next_answer(0)
    prints(run, "b")
    run.put_back(answer)
    again = await run.next_answer(0)
    assert (again.status, again.console) == (status, (("stdout", "ab"),))


async def test_a_caller_that_was_cancelled_is_no_caller_any_more(run: LiveRun) -> None:
    older = asyncio.ensure_future(run.next_answer(5))
    newer = asyncio.ensure_future(run.next_answer(5))
    await asyncio.sleep(0)
    newer.cancel()
    await asyncio.wait([newer])
    run.close_answer(Report(Status.BUILD_FINISHED, 0))
    assert (await older).status is Status.BUILD_FINISHED
    assert not run.is_watched
