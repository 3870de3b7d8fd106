"""Runs of a session on a scripted init: every step starts and ends when the test says so."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

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

from retort.core.run import Answer, Outcome, RunLimits, Status
from retort.errors import LimitExceeded, RunNotFound, SandboxFault
from retort.node import engine as module
from retort.node import step as step_module
from retort.node.places import Place
from retort.node.runner import Runner
from retort.sandbox.protocol import Phase, Scope
from retort.sandbox.session_group import Measured

# --- starting -----------------------------------------------------------------------------------


async def test_a_program_is_asked_for_before_the_first_wait(
    runner: Runner, init: ScriptedInit
) -> None:
    runner.open(batch())
    assert [step.argv for step in init.steps] == [("/bin/bash", "-c", "x")]


@pytest.mark.parametrize(
    "failure",
    [SandboxFault("init", "gone"), ValueError("too long"), OSError(errno.ENOBUFS, "no room")],
)
async def test_a_step_that_cannot_be_sent_ends_its_run_as_our_failure(
    runner: Runner, init: ScriptedInit, failure: Exception
) -> None:
    init.failure = failure
    runner.open(batch())
    await settle()
    answers = [await runner.execute(going_on(), SOON) for _ in range(2)]
    assert [a.status for a in answers] == [Status.BUILD_FINISHED, Status.FINISHED]
    assert answers[-1].exit_code == -1
    assert not runner.is_busy


async def test_without_descriptors_a_run_ends_as_our_failure(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(step_module, "StepPipes", refuse)
    await begun(runner)
    await settle()
    assert (await runner.execute(going_on(), SOON)).exit_code == -1


async def test_a_step_whose_child_died_first_is_repeated_once_with_its_input(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    runner.open(typing("early"))
    init.steps[0].refuse(Phase.STANDBY)
    await settle()
    assert len(init.steps) == 2
    assert os.read(init.steps[1].stdin, 100) == b"early\n"
    init.steps[1].refuse(Phase.STANDBY)
    await settle()
    assert len(init.steps) == 2
    assert (await runner.execute(going_on(), SOON)).exit_code == -1


async def test_an_interrupt_before_the_program_began_ends_its_step_and_does_not_repeat_it(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    runner.interrupt()
    init.steps[0].refuse(Phase.STANDBY)
    await settle()
    assert len(init.steps) == 1
    answer = await runner.execute(going_on(), SOON)
    assert (answer.status, answer.exit_code) == (Status.FINISHED, 130)


async def test_a_program_that_cannot_be_executed_is_our_failure(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    init.steps[0].refuse(Phase.EXEC)
    await settle()
    assert (await runner.execute(going_on(), SOON)).exit_code == -1
    assert len(init.steps) == 1


# --- one after the other ------------------------------------------------------------------------


async def test_the_next_run_begins_when_the_last_has_ended(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner, "a")
    assert (await runner.execute(batch("b"), SOON)).status is Status.CONTINUED
    assert len(init.steps) == 1
    await init.steps[0].end()
    assert len(init.steps) == 2


async def test_an_abandoned_program_is_dead_before_the_next_run_begins(
    runner: Runner, init: ScriptedInit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ABANDON_S", 0.01)
    run = runner.open(batch("a"))
    runner.open(batch("b"))
    runner.abandon(run)
    assert init.kills == [(1, 2, Scope.GROUP)]
    await asyncio.wait_for(until(lambda: len(init.kills) == 2), 5)
    assert init.kills[1] == (1, 9, Scope.EVERYTHING)
    await settle()
    assert len(init.steps) == 1, "init would refuse it while the first one dies"
    await init.steps[0].end(137)
    assert len(init.steps) == 2


async def test_an_abandoned_run_starts_no_further_step(runner: Runner, init: ScriptedInit) -> None:
    run = runner.open(batch(build="b", command="e"))
    runner.abandon(run)
    await init.steps[0].end(0)
    assert len(init.steps) == 1
    assert not runner.is_busy


async def test_a_time_limit_does_not_prolong_an_abandoned_program(
    init: ScriptedInit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ABANDON_S", 0.01)
    runner = make(init, limits=RunLimits(wall_s=3600.0))
    runner.abandon(runner.open(batch()))
    await asyncio.wait_for(until(lambda: (1, 9, Scope.EVERYTHING) in init.kills), 5)
    await init.steps[0].end(137)


async def test_a_cancelled_session_ends_all_runs_and_settles_when_the_program_is_dead(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner, "a")
    runner.open(batch("b"))
    init.steps[0].print("last words")
    runner.cancel_all()
    ends = [await runner.execute(going_on(run_id), SOON) for run_id in ("a", "b")]
    assert [(a.exit_code, a.is_cancelled) for a in ends] == [(130, True)] * 2
    assert ends[0].console == (("stdout", "last words"),)
    waiting = asyncio.ensure_future(runner.settled())
    await settle()
    assert not waiting.done()
    await init.steps[0].end(137)
    await asyncio.wait_for(waiting, 5)
    await begun(runner, "c")
    assert len(init.steps) == 2


async def test_a_lost_init_ends_the_running_program_as_our_failure(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner, "a")
    runner.open(batch("b"))
    runner.broken("killed")
    ends = [await runner.execute(going_on(run_id), SOON) for run_id in ("a", "b")]
    assert [a.exit_code for a in ends] == [-1, 130]
    await asyncio.wait_for(runner.settled(), 5)


async def test_a_kill_that_cannot_be_sent_does_not_stop_the_end(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    init.failure = SandboxFault("init", "gone")
    runner.interrupt()
    runner.cancel_all()
    assert (await runner.execute(going_on(), SOON)).exit_code == 130


async def test_a_lost_connection_while_files_are_looked_for_still_ends_the_run(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    init.failure = SandboxFault("init", "gone")
    await init.steps[0].end(4)
    assert (await runner.execute(going_on(), SOON)).exit_code == 4


async def test_a_verdict_that_was_decided_outlives_an_init_that_is_lost_right_after(
    runner: Runner, init: ScriptedInit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> tuple[()]:
        await asyncio.Event().wait()
        return ()

    monkeypatch.setattr(module, "changed_since", never)
    await begun(runner)
    await init.steps[0].end(4)
    runner.broken("killed")
    answer = await runner.execute(going_on(), SOON)
    assert answer.verdict is not None
    assert (answer.exit_code, answer.verdict.outcome) == (4, Outcome.EXITED)


async def test_the_time_limit_counts_from_the_beginning_and_kills(init: ScriptedInit) -> None:
    runner = make(init, limits=RunLimits(wall_s=0.02))
    await begun(runner)
    await asyncio.wait_for(until(lambda: bool(init.kills)), 5)
    await init.steps[0].end(137)
    answer = await runner.execute(going_on(), SOON)
    assert (answer.status, answer.exit_code) == (Status.EXEC_TIMEOUT, None)
    with pytest.raises(RunNotFound):
        await runner.execute(going_on(), SOON)


async def test_usage_adds_up_over_steps(runner: Runner, init: ScriptedInit) -> None:
    runner.open(batch(build="b"))
    await init.steps[0].end()
    await init.steps[1].end()
    assert (runner.usage.user_us, runner.usage.max_rss_bytes) == (2000, 65536)
    assert init.released == [1, 2]


# --- callers ------------------------------------------------------------------------------------


async def test_of_two_callers_the_newer_one_gets_the_answer(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    older = asyncio.ensure_future(runner.execute(going_on(), 5))
    await settle()
    newer = asyncio.ensure_future(runner.execute(going_on(), 5))
    await settle()
    await init.steps[0].end(3)
    assert (await newer).exit_code == 3
    with pytest.raises(RunNotFound):
        await older


async def test_an_older_caller_takes_no_output_from_a_newer_one(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    older = asyncio.ensure_future(runner.execute(going_on(), SOON))
    await settle()
    newer = asyncio.ensure_future(runner.execute(going_on(), 5 * SOON))
    init.steps[0].print("out")
    assert (await older).console == ()
    assert (await newer).console == (("stdout", "out"),)


async def test_an_end_that_was_not_written_is_the_next_answer_again(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    await init.steps[0].end(3)
    answer = await runner.execute(going_on(), SOON)
    runner.undeliver(answer)
    assert await runner.execute(going_on(), SOON) == answer
    with pytest.raises(RunNotFound):
        await runner.execute(going_on(), SOON)


async def test_an_old_end_is_not_put_into_a_new_run_of_the_same_name(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    await init.steps[0].end(3)
    old = await runner.execute(going_on(), SOON)
    await begun(runner)
    runner.undeliver(old)
    assert (await runner.execute(going_on(), SOON)).status is Status.CONTINUED


async def test_an_answer_of_an_unknown_run_is_nobodys(runner: Runner) -> None:
    runner.undeliver(Answer("nobody", Status.FINISHED, 0))
    runner.undeliver(Answer("nobody", Status.CONTINUED))
    with pytest.raises(RunNotFound):
        runner.open(going_on("nobody"))


async def test_output_that_was_not_written_comes_before_what_follows(
    runner: Runner, init: ScriptedInit
) -> None:
    await begun(runner)
    init.steps[0].print("one ")
    first = await runner.execute(going_on(), SOON)
    await init.steps[0].end(0)
    runner.undeliver(first)
    answers = [await runner.execute(going_on(), SOON) for _ in range(2)]
    assert [a.status for a in answers] == [Status.CONTINUED, Status.FINISHED]
    assert answers[0].console == (("stdout", "one "),)


async def test_too_many_waiting_runs_are_refused(init: ScriptedInit) -> None:
    runner = make(init, max_queued=2)
    for run_id in "abc":
        runner.open(batch(run_id))
    with pytest.raises(LimitExceeded):
        runner.open(batch("d"))
    runner.open(batch("b"))  # the same run, not one more
    runner.broken("over")


async def test_ended_runs_are_forgotten_and_others_are_not(init: ScriptedInit) -> None:
    runner = make(init, forget_s=-1.0)
    await begun(runner, "a")
    await init.steps[0].end()
    await begun(runner, "b")
    runner.forget_old()
    with pytest.raises(RunNotFound):
        runner.open(going_on("a"))
    assert runner.open(going_on("b")).run_id == "b"
    runner.broken("over")


async def test_only_so_many_ended_runs_are_kept(init: ScriptedInit) -> None:
    runner = make(init, max_kept=2)
    for run_id in "abc":
        runner.open(batch(run_id, command=None))
    with pytest.raises(RunNotFound):
        runner.open(going_on("a"))
    assert runner.open(going_on("b")).is_ended


# --- nothing is left ----------------------------------------------------------------------------


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_descriptor_is_left_whatever_way_runs_end(init: ScriptedInit) -> None:
    runner = make(init)
    before = open_descriptors()
    for number in range(12):
        run = runner.open(batch(str(number), build="b"))
        step = init.steps[-1]
        match number % 4:
            case 0:
                await step.end(1)
            case 1:
                runner.cancel_all()
                await step.end(137)
            case 2:
                runner.abandon(run)
                await step.end(130)
            case _:
                step.refuse(Phase.EXEC)
                await settle()
        assert not runner.is_busy
    assert open_descriptors() == before
    assert not runner._tasks


class DeadlyGroup:
    """A session's group that saw the host kernel kill for want of memory."""

    counted = None
    is_short = False
    has_given_up = False

    def take(self) -> Measured:
        return Measured(oom_kills=2)

    def give_up_room(self) -> None:
        self.has_given_up = True


async def test_init_is_asked_for_nothing_while_its_session_is_short_of_memory(
    init: ScriptedInit,
) -> None:
    group = DeadlyGroup()
    runner = make(init, Place(group))  # type: ignore[arg-type]
    await begun(runner)
    init.steps[-1].start()
    group.is_short = True
    await init.steps[-1].end(137)
    assert runner.is_busy
    assert init.released == []
    group.is_short = False
    answer = await runner.execute(going_on(), 5)
    assert answer.verdict is not None
    assert (answer.exit_code, answer.verdict.outcome) == (137, Outcome.OUT_OF_MEMORY)
    await settle()
    assert init.released == [init.steps[-1].number]


class CrowdedGroup:
    """A session's group without room for one more process."""

    counted = None
    is_short = False
    is_roomy = True
    killed = 0

    def __init__(self, refused: int) -> None:
        self._refused = refused

    def take(self) -> Measured:
        return Measured(refused_forks=self._refused)

    def look_whether_filling(self) -> bool:
        return False


@pytest.mark.parametrize(("refused", "outcome"), [(1, Outcome.EXITED), (2, Outcome.PIDS_LIMIT)])
async def test_a_child_that_only_init_was_refused_is_no_limit_of_the_program(
    init: ScriptedInit, refused: int, outcome: Outcome
) -> None:
    runner = make(init, Place(CrowdedGroup(refused)))  # type: ignore[arg-type]
    init.no_standby = errno.EAGAIN
    await begun(runner)
    init.steps[-1].start()
    init.is_reading = True
    assert (await runner.execute(going_on(), 5)).status is Status.WAITING_INPUT
    assert init.prepared == 1  # by the first of two looks, and not again
    await init.steps[-1].end(1)
    answer = await runner.execute(going_on(), 5)
    assert answer.verdict is not None
    assert (answer.exit_code, answer.verdict.outcome) == (1, outcome)


async def test_a_spare_child_is_made_again_after_a_kill_and_never_where_memory_is_nearly_full(
    init: ScriptedInit,
) -> None:
    group = CrowdedGroup(0)
    runner = make(init, Place(group))  # type: ignore[arg-type]
    await begun(runner)
    init.steps[-1].start()
    init.is_reading = True
    group.is_roomy = False
    assert (await runner.execute(going_on(), 5)).status is Status.WAITING_INPUT
    assert init.prepared == 0
    group.is_roomy = True
    assert (await runner.execute(going_on(), 5)).status is Status.WAITING_INPUT
    assert init.prepared == 1
    group.killed = 1
    assert (await runner.execute(going_on(), 5)).status is Status.WAITING_INPUT
    assert init.prepared == 2


async def test_a_limit_that_passes_while_memory_comes_back_is_not_the_verdict(
    init: ScriptedInit,
) -> None:
    group = DeadlyGroup()
    runner = make(init, Place(group), limits=RunLimits(wall_s=0.5))  # type: ignore[arg-type]
    await begun(runner)
    init.steps[-1].start()
    group.is_short = True
    await init.steps[-1].end(137)
    deadline = runner._current.deadline if runner._current else None
    assert deadline is not None
    await asyncio.sleep(deadline.when() + 0.02 - asyncio.get_running_loop().time())
    group.is_short = False
    answer = await runner.execute(going_on(), 5)
    assert answer.status is Status.FINISHED
    assert answer.verdict is not None
    assert (answer.exit_code, answer.verdict.outcome) == (137, Outcome.OUT_OF_MEMORY)


async def test_a_session_whose_init_was_killed_for_memory_says_so(init: ScriptedInit) -> None:
    runner = make(init, Place(DeadlyGroup()))  # type: ignore[arg-type]
    await begun(runner)
    runner.broken("init ended")
    answer = await runner.execute(going_on(), SOON)
    assert answer.verdict is not None
    assert (answer.exit_code, answer.verdict.outcome) == (137, Outcome.OUT_OF_MEMORY)


@pytest.mark.parametrize("comes_first", ["interrupt", "place"])
async def test_an_interrupt_is_not_lost_while_a_session_gets_into_its_place(
    init: ScriptedInit, comes_first: str
) -> None:
    placed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    runner = make(init, Place(placed=placed))
    await begun(runner)
    assert not init.steps
    if comes_first == "place":
        placed.set_result(None)
        await settle()
        assert len(init.steps) == 1
        return
    runner.interrupt()
    placed.set_result(None)
    await settle()
    assert not init.steps
    assert (await runner.execute(going_on(), SOON)).exit_code == 130
