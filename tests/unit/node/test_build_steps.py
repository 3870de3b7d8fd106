"""Runs whose build is looked up: hits, misses, and what may happen to them meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.unit.node.scripted_init import ScriptedInit, settle

from retort.core.console import Stream
from retort.core.image import Image, ImageKind, ImageRef
from retort.core.limits import Usage
from retort.core.run import Answer, Mode, Outcome, RunLimits, RunRequest, Status, StepResult
from retort.errors import SandboxFault
from retort.node.build_cache import Build
from retort.node.run_settings import RunSettings
from retort.node.runner import Runner
from retort.sandbox.protocol import Phase

HIT = Build(
    key=b"k",
    hit=StepResult(Outcome.EXITED, 0, usage=Usage(user_us=40)),
    printed=[(Stream.STDOUT, b"as then")],
)


class Builds:
    """A session's cache that answers when the test says so."""

    is_default = False

    def __init__(self) -> None:
        self.looks: list[asyncio.Future[Build]] = []
        self.dropped: list[Build] = []
        self.kept: list[tuple[Build, bool]] = []

    async def look(self, argv: Sequence[str], limits: RunLimits, *, is_alone: bool) -> Build:
        self.looks.append(asyncio.get_running_loop().create_future())
        return await self.looks[-1]

    async def keep(
        self, build: Build, result: StepResult, *, is_pure: bool, is_valid: Callable[[], bool]
    ) -> StepResult:
        self.kept.append((build, is_pure and is_valid()))
        return result

    def drop(self, build: Build) -> None:
        self.dropped.append(build)


@pytest.fixture
def builds() -> Builds:
    return Builds()


@pytest.fixture
async def runner(init: ScriptedInit, builds: Builds) -> Any:
    image = Image(ImageRef.parse("bash:5"), ImageKind.BASH)
    made = Runner(init, image, {}, (), RunSettings(), None, builds)  # type: ignore[arg-type]
    yield made
    made.broken("the test is over")
    await settle()


def request(run_id: str = "r", **more: Any) -> RunRequest:
    more = {"build": "make", "caches_build": True} | more
    return RunRequest(Mode.BATCH, run_id=run_id, **more)


async def rest(runner: Runner, run_id: str = "r") -> list[Answer]:
    answers = []
    while not answers or not answers[-1].status.ends_run:
        following = RunRequest(Mode.CONTINUE, run_id=run_id)
        answers.append(await runner.execute(following, 5.0))
    return answers


async def test_hit_starts_no_program_and_says_what_was_printed(
    runner: Runner, init: ScriptedInit, builds: Builds
) -> None:
    run = runner.open(request())
    await settle()
    builds.looks[0].set_result(HIT)
    answers = await rest(runner)
    assert init.steps == []
    ended = next(a for a in answers if a.status is Status.BUILD_FINISHED)
    assert (ended.exit_code, ended.console) == (0, (("stdout", "as then"),))
    assert run.cpu_us == 40  # what is left of its limit is as after a build
    assert runner.usage == Usage()  # but nothing was used


async def test_exec_follows_a_hit(runner: Runner, init: ScriptedInit, builds: Builds) -> None:
    runner.open(request(exec="run"))
    await settle()
    builds.looks[0].set_result(HIT)
    await settle()
    assert [step.argv[-1] for step in init.steps] == ["run"]
    await init.steps[0].end()
    assert (await rest(runner))[-1].status is Status.FINISHED


async def test_miss_is_run_recorded_and_kept(
    runner: Runner, init: ScriptedInit, builds: Builds
) -> None:
    run = runner.open(request())
    await settle()
    miss = Build(key=b"k")
    builds.looks[0].set_result(miss)
    await settle()
    init.steps[0].print("now")
    await init.steps[0].end()
    assert (await rest(runner))[-1].exit_code == 0
    assert builds.kept == [(miss, True)]
    assert miss.recording is not None
    assert miss.recording.items == [(Stream.STDOUT, b"now")]
    run.console.feed(Stream.STDOUT, b"later")
    assert len(miss.recording.items) == 1


@pytest.mark.parametrize("asks", [False, None])
async def test_build_that_does_not_ask_is_not_looked_up(
    runner: Runner, init: ScriptedInit, builds: Builds, asks: bool | None
) -> None:
    runner.open(request(caches_build=asks))
    assert len(init.steps) == 1  # at once: nothing is put between a request and its program
    assert builds.looks == []


async def test_server_default_decides_when_the_request_does_not(
    runner: Runner, init: ScriptedInit, builds: Builds
) -> None:
    builds.is_default = True
    runner.open(request(caches_build=None))
    await settle()
    assert len(builds.looks) == 1
    assert init.steps == []


async def test_interrupt_ends_a_look_up_as_it_ends_a_program(
    runner: Runner, init: ScriptedInit, builds: Builds
) -> None:
    runner.open(request())
    await settle()
    runner.interrupt()
    last = (await rest(runner))[-1]
    assert last.verdict is not None
    assert (last.verdict.outcome, last.verdict.signal) == (Outcome.SIGNALLED, 2)
    assert init.steps == []


async def test_time_limit_ends_a_look_up(
    runner: Runner, init: ScriptedInit, builds: Builds
) -> None:
    runner.open(request(limits=RunLimits(wall_s=0.01)))
    assert (await rest(runner))[-1].status is Status.EXEC_TIMEOUT
    assert init.steps == []


async def test_next_run_waits_for_the_end_of_a_look_up_that_was_cancelled(
    runner: Runner, init: ScriptedInit, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files may still be put in place; only then may another program start."""
    placed = asyncio.Event()

    async def look(argv: Sequence[str], limits: RunLimits, *, is_alone: bool) -> Build:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await placed.wait()
            raise
        raise AssertionError

    monkeypatch.setattr(builds, "look", look)
    first = runner.open(request())
    await settle()
    runner.abandon(first)
    runner.open(request("next", caches_build=False))
    await settle()
    assert init.steps == []
    placed.set()
    await settle()
    assert len(init.steps) == 1


async def test_session_is_settled_when_its_look_up_has_ended(
    runner: Runner, builds: Builds
) -> None:
    runner.open(request())
    await settle()
    waiting = asyncio.ensure_future(runner.settled())
    await settle()
    assert not waiting.done()
    runner.cancel_all()
    await settle()
    await waiting


async def test_look_up_that_fails_is_our_fault(
    runner: Runner, init: ScriptedInit, builds: Builds
) -> None:
    runner.open(request())
    await settle()
    builds.looks[0].set_exception(SandboxFault("cache", "put in place in part"))
    last = (await rest(runner))[-1]
    assert last.verdict is not None
    assert last.verdict.outcome is Outcome.INFRASTRUCTURE


@pytest.mark.parametrize("how", ["cancelled", "broken", "refused"])
async def test_build_that_comes_to_nothing_is_dropped(
    runner: Runner, init: ScriptedInit, builds: Builds, how: str
) -> None:
    runner.open(request())
    await settle()
    miss = Build(key=b"k")
    builds.looks[0].set_result(miss)
    await settle()
    if how == "cancelled":
        runner.cancel_all()
    elif how == "broken":
        runner.broken("init is gone")
    else:
        init.steps[0].refuse(Phase.EXEC)
        await settle()
    assert miss in builds.dropped
    assert builds.kept == []


async def test_interrupted_build_is_not_pure(
    runner: Runner, init: ScriptedInit, builds: Builds
) -> None:
    runner.open(request())
    await settle()
    miss = Build(key=b"k")
    builds.looks[0].set_result(miss)
    await settle()
    init.steps[0].start()
    await settle()
    runner.interrupt()
    await init.steps[0].end()
    await rest(runner)
    assert builds.kept == [(miss, False)]
