"""What goes between a run and its caller while it goes on: input, and streams."""

from __future__ import annotations

import asyncio
import os
import uuid

import pytest
from tests.unit.node.scripted_init import (
    SOON,
    ScriptedInit,
    batch,
    begun,
    going_on,
    make,
    settle,
    typing,
    until,
)

from retort.core.run import Answer, Status
from retort.errors import LimitExceeded
from retort.node.runner import Runner
from retort.node.watched_run import WatchedRun

# --- input --------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_wait_is_told_after_two_looks_and_ends_with_input(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    init.steps[0].start()
    init.is_reading = True
    init.steps[0].print("? ")
    answer = await runner.execute(going_on(), 5)
    assert (answer.status, answer.console) == (Status.WAITING_INPUT, (("stdout", "? "),))
    init.is_reading = False
    assert (await runner.execute(typing("a"), SOON)).status is Status.CONTINUED
    assert os.read(init.steps[0].stdin, 10) == b"a\n"


@pytest.mark.slow
async def test_a_wait_that_is_over_without_input_is_not_told_again(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    init.is_reading = True
    assert (await runner.execute(going_on(), 5)).status is Status.WAITING_INPUT
    assert (await runner.execute(going_on(), 5)).status is Status.WAITING_INPUT
    init.is_reading = False
    assert (await runner.execute(going_on(), SOON)).status is Status.CONTINUED


async def test_unread_input_means_that_the_program_does_not_wait(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    runner.open(typing("early"))
    init.is_reading = True
    assert (await runner.execute(going_on(), 0.2)).status is Status.CONTINUED


async def test_input_for_a_build_waits_for_exec(runner: Runner, init: ScriptedInit) -> None:
    runner.open(batch(build="b"))
    runner.open(typing("early"))
    await init.steps[0].end()
    assert os.read(init.steps[1].stdin, 10) == b"early\n"


@pytest.mark.parametrize("is_started", [False, True])
async def test_input_beyond_its_limit_is_refused(init: ScriptedInit, is_started: bool) -> None:
    runner = make(init, input_bytes=100_000)
    runner.open(batch())
    if is_started:
        init.steps[0].start()
        await settle()
    runner.open(typing("x" * 90_000))
    if is_started:  # a pipe takes 64 KiB of it
        await settle()
        runner.open(typing("x" * 60_000))
    with pytest.raises(LimitExceeded):
        runner.open(typing("x" * 60_000))
    runner.broken("over")


# --- streams ------------------------------------------------------------------------------------


async def test_a_stream_gives_all_answers_and_ends(runner: Runner, init: ScriptedInit) -> None:
    watched = WatchedRun(uuid.uuid4(), runner, batch(has_clean=True), flush_s=0.005)
    seen: list[Answer] = []

    async def watch() -> None:
        async for answer in watched:
            seen.append(answer)

    watching = asyncio.ensure_future(watch())
    init.steps[0].print("one")
    await asyncio.wait_for(until(lambda: len(seen) == 3), 5)
    await init.steps[0].end(3)
    await asyncio.wait_for(watching, 5)
    assert [(a.status.value, a.exit_code) for a in seen] == [
        ("clean-finished", 0), ("build-finished", 0), ("continued", None), ("finished", 3),
    ]  # fmt: skip
    assert watched.run_id == "r"
