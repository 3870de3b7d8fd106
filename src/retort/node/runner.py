"""The runs of one session: first come first served, one step at a time, one init beneath.

core/run.py decides what follows what; this room carries its orders out: it starts programs, kills
them, and closes answers. On the way from a request to its process there is no query, no file of
ours, no thread and no wait.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import os
import secrets
import signal
import time
from collections.abc import Coroutine, Mapping

import structlog

from retort.core import faults
from retort.core.image import Image
from retort.core.limits import Usage
from retort.core.run import (
    Answer,
    Begun,
    Cancelled,
    Event,
    KillStep,
    Mode,
    Outcome,
    OutputFile,
    Report,
    RunRequest,
    RunState,
    Stage,
    StartStep,
    StepEnded,
    StepResult,
    Stop,
    TimeUp,
    advance,
)
from retort.core.verdict import Counters, judge
from retort.errors import LimitExceeded, RunNotFound, SandboxFault
from retort.node.build_cache import Build, SessionBuilds
from retort.node.build_steps import BuildSteps
from retort.node.input_watch import InputWatch
from retort.node.live_run import LiveRun
from retort.node.output_files import changed_since
from retort.node.places import Place
from retort.node.plan import plan_of
from retort.node.run_settings import RunSettings as RunSettings
from retort.node.step import RLimits, Step, Stepper
from retort.sandbox import protocol
from retort.sandbox.init import InitClient
from retort.sandbox.protocol import Scope
from retort.sandbox.step_values import Started, StepExit, StepNotStarted

log = structlog.get_logger()

HOME = b"/home/work"
DYING_S = 0.002  # between looks at processes that were killed
ABANDON_S = 5.0  # between SIGINT and SIGKILL for a program whose watcher is gone


@dataclasses.dataclass(slots=True, eq=False)
class _Start:
    """A program that waits for its session to be in its place; only the first one ever does."""

    run: LiveRun
    order: StartStep
    is_interrupted: bool = False


class Runner:
    """All runs of one session.

    Args:
        client: the session's init.
        environment: the whole environment of its programs.
        rlimits: (resource, soft, hard) of each program, as setrlimit(2) takes them.
        place: where they run; without one, nothing counts or caps them as a whole.
        builds: the build cache, where there is one.
    """

    def __init__(
        self,
        client: InitClient,
        image: Image,
        environment: Mapping[str, str],
        rlimits: RLimits,
        settings: RunSettings,
        place: Place | None = None,
        builds: SessionBuilds | None = None,
    ) -> None:
        self._client = client
        self._place = place or Place()
        self._image = image
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._runs: dict[str, LiveRun] = {}
        self._queue: collections.deque[LiveRun] = collections.deque()
        self._delivered: collections.deque[LiveRun] = collections.deque(maxlen=8)
        self._current: LiveRun | None = None
        self._step: Step | None = None
        self._starting: _Start | None = None  # until the session is in its place
        self._settled: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stepper = Stepper(
            client,
            environment,
            rlimits,
            self._place,
            spawn=self._later,
            on_limit=self._limit_reached,
        )
        self._builds = BuildSteps(builds, self, self._stepper, self._place)
        self.usage = Usage()  #: of all steps that ended

    # --- callers ------------------------------------------------------------------------

    async def execute(self, request: RunRequest, wait_s: float) -> Answer:
        """Start, continue or feed a run and give its next answer (spec 6.2).

        Raises:
            RunNotFound: the call continues a run that is not there (R3).
            LimitExceeded: too many runs wait in this session, or too much input.
        """
        run = self.open(request)
        return await self.next_answer(run, wait_s)

    def open(self, request: RunRequest) -> LiveRun:
        """Find the run a request is about; start it when it is new, feed it its input."""
        run = self._runs.get(request.run_id) if request.run_id is not None else None
        if request.mode.starts:
            return run or self._start(request)
        if run is None:
            raise RunNotFound
        if request.mode is Mode.INPUT:
            self.give_input(run, request.code)
        return run

    async def next_answer(self, run: LiveRun, wait_s: float) -> Answer:
        """Wait for a run's next answer, looking whether its program waits for input."""
        if (watch := self._watch_of(run)) is not None:
            if run.is_blocked:
                await watch.confirm()
            watch.look_soon()
        answer = await run.next_answer(wait_s)
        self._taken(run)
        return answer

    def take_ready(self, run: LiveRun) -> Answer:
        """Give the answer that is ready now; without one, what was printed so far."""
        answer = run.take() or run.take_output()
        self._taken(run)
        return answer

    async def wait(self, run: LiveRun, until: float) -> bool:
        """Wait for a change of a run, until the loop's clock shows `until`; True: it changed."""
        if (watch := self._watch_of(run)) is not None:
            watch.look_soon()
        return await run.wait(until)

    def give_input(self, run: LiveRun, text: str) -> None:
        """Give a line to the run's program, now or when it starts (R11)."""
        data = text.encode("utf-8", "replace")
        data += b"" if data.endswith(b"\n") else b"\n"
        step, watch = self._step, self._watch_of(run)
        waiting = len(run.typed) + (step.pipes.pending_bytes if step and watch else 0)
        if waiting + len(data) > self._settings.input_bytes:
            raise LimitExceeded("Too much input waits to be read")
        if step is None or watch is None or not step.is_started:
            run.typed += data
        if step is not None and watch is not None:
            step.pipes.write(data)
            watch.input_given()

    def undeliver(self, answer: Answer) -> None:
        """Put back an answer that could not be written."""
        run = self._runs.get(answer.run_id)
        if answer.status.ends_run:
            if run is not None:
                return  # another run has this id by now
            run = next((r for r in self._delivered if r.run_id == answer.run_id), None)
            if run is not None:
                self._delivered.remove(run)
                self._runs[run.run_id] = run
        if run is not None:
            run.put_back(answer)

    def abandon(self, run: LiveRun) -> None:
        """Interrupt a run whose only watcher is gone, and forget it (spec 9.1).

        A program that ignores the signal is killed after `ABANDON_S`: nobody is left to end it,
        and it would hold the session for ever.
        """
        self._runs.pop(run.run_id, None)
        if run.is_ended:
            return
        run.is_abandoned = True
        if run is not self._current:
            self._queue.remove(run)
            self._advance(run, Cancelled())
            return
        self.interrupt()
        if run.deadline is not None:
            run.deadline.cancel()
        run.deadline = self._loop.call_later(ABANDON_S, self._advance, run, Cancelled())

    def interrupt(self) -> None:
        """Send SIGINT to the process group of the running program (spec 7.6)."""
        if self._starting is not None:
            self._starting.is_interrupted = True
        self._builds.interrupt()
        if self._step is not None:
            self._step.is_interrupted = True
            self._kill(self._step.number, signal.SIGINT, Scope.GROUP)

    def cancel_all(self) -> None:
        """End every run: the session is destroyed or restarted (R15)."""
        for run in self._take_all():
            self._advance(run, Cancelled())

    async def end_background(self) -> None:
        """Kill what earlier runs were asked to leave running, and wait until it is dead."""
        if not self._stepper.keeps_background:
            return
        self._stepper.keeps_background = False
        with contextlib.suppress(SandboxFault, OSError):  # the last says: nobody is there
            while True:
                await self._client.kill(0, signal.SIGKILL, Scope.EVERYTHING)
                await asyncio.sleep(DYING_S)

    async def settled(self) -> None:
        """Wait until no program of this session is left."""
        while self._is_occupied:
            ended: asyncio.Future[None] = self._loop.create_future()
            self._settled.append(ended)
            await ended

    def broken(self, reason: str) -> None:
        """End every run as a failure of ours: the sandbox is gone or talks nonsense."""
        log.warning("session.broken", reason=reason)
        self._builds.stop()
        if self._step is not None:
            self._step.close()
            self._forget_step()
        failed = self._stepper.failed()
        for run in self._take_all():
            is_queued = run.state.stage is Stage.QUEUED
            end = StepEnded(run.decided or failed)  # decided: only its files were still looked for
            self._advance(run, Cancelled() if is_queued else end)

    def _take_all(self) -> list[LiveRun]:
        queued, self._queue = list(self._queue), collections.deque()
        return ([self._current] if self._current else []) + queued

    def forget_old(self) -> None:
        """Drop ended runs whose answers nobody fetched for a long time (R16)."""
        oldest = self._loop.time() - self._settings.forget_s
        for run in [r for r in self._runs.values() if r.is_ended and r.last_call < oldest]:
            del self._runs[run.run_id]

    @property
    def has_answers(self) -> bool:
        """Whether a caller may still come for an answer."""
        return bool(self._runs)

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way or waits."""
        return self._current is not None or bool(self._queue)

    # --- the life of a run --------------------------------------------------------------

    def _start(self, request: RunRequest) -> LiveRun:
        if len(self._queue) >= self._settings.max_queued:
            raise LimitExceeded("Too many runs wait in this session")
        run = LiveRun(
            request.run_id or secrets.token_hex(16),
            RunState(plan_of(request, self._image)),
            output_chars=self._settings.output_chars,
            limits=self._settings.limits.stricter(request.limits),
            keeps_background=request.keeps_background,
            walls=self._place.walls,
        )
        run.caches_build = request.caches_build
        run.last_call = self._loop.time()
        self._runs[run.run_id] = run
        if len(self._runs) > self._settings.max_kept:
            self._drop_oldest_ended()
        self._queue.append(run)
        self._begin_next()
        return run

    def _begin_next(self) -> None:
        # A step whose run was cancelled may still be dying: init would refuse the next one.
        while self._current is None and not self._is_occupied and self._queue:
            run = self._current = self._queue.popleft()
            run.began_at = time.time()
            if run.limits.wall_s is not None:
                run.deadline = self._loop.call_later(
                    run.limits.wall_s, self._out_of_time, run, Stop.WALL
                )
            self._advance(run, Begun())

    def _advance(self, run: LiveRun, event: Event, files: tuple[OutputFile, ...] = ()) -> None:
        if run.is_abandoned and isinstance(event, StepEnded):
            event = Cancelled()  # nobody wants the steps that would follow
        run.state, orders = advance(run.state, event)
        for order in orders:
            match order:
                case StartStep():
                    self._start_step(run, order)
                case KillStep():
                    self._builds.stop(run)
                    if self._step is not None and self._step.run is run:
                        self._step.pipes.drain()
                        self._kill(self._step.number, signal.SIGKILL, Scope.EVERYTHING)
                case Report():
                    run.close_answer(order, files if order.status.ends_run else ())
        if run.is_ended:
            self._ended(run)

    def _out_of_time(self, run: LiveRun, why: Stop) -> None:
        if self._step is not None and self._step.run is run and self._step.stop is None:
            self._step.stop = why
        self._advance(run, TimeUp())

    def _limit_reached(self, step: Step, why: Stop) -> None:
        if self._step is not step or step.stop is not None:
            return
        if why is Stop.CPU:
            self._out_of_time(step.run, why)
        else:
            step.stop = why
            self._kill(step.number, signal.SIGKILL, Scope.EVERYTHING)

    def _ended(self, run: LiveRun) -> None:
        if run.deadline is not None:
            run.deadline.cancel()
        if self._step is not None and self._step.run is run:
            self._step.close()
            self._builds.drop(run, self._step.build)
            self._step.build = None
        if run is self._current:
            self._current = None
            self._begin_next()

    def _taken(self, run: LiveRun) -> None:
        if run.is_gone and self._runs.get(run.run_id) is run:
            del self._runs[run.run_id]
            self._delivered.append(run)

    def _drop_oldest_ended(self) -> None:
        for run_id, run in self._runs.items():
            if run.is_ended:
                del self._runs[run_id]
                return

    # --- steps --------------------------------------------------------------------------

    @property
    def _is_occupied(self) -> bool:
        """Whether a step, or a stored build, still changes the session's files."""
        return self._step is not None or self._builds.is_busy

    def _start_step(
        self,
        run: LiveRun,
        order: StartStep,
        *,
        is_repeated: bool = False,
        build: Build | None = None,
    ) -> None:
        if build is None and not is_repeated and self._builds.wants(run, order):
            self._builds.begin(run, order)
            return
        placed = self._place.placed
        if placed is not None and not placed.done():  # only before a session's first program
            self._starting = _Start(run, order)
            self._later(self._start_placed(self._starting, placed))
            return
        try:
            if placed is not None:
                placed.result()
            step, started = self._stepper.start(run, order, self._step_exited)
        except (SandboxFault, ValueError, OSError) as exc:  # not the program's fault
            self._builds.drop(run, build)
            self.fail(run, str(exc))
            return
        faults.reached(faults.Point.STEP_STARTED)
        step.is_repeated, step.build = is_repeated, build
        self._step = step
        started.add_done_callback(lambda f: self._step_started(step, f))

    async def _start_placed(self, start: _Start, placed: asyncio.Future[None]) -> None:
        await asyncio.wait((placed,))
        if self._starting is start:
            self._starting = None
        run = start.run
        if run.state.is_timed_out:
            self._advance(run, StepEnded(StepResult(Outcome.TIMED_OUT, 0, stop=Stop.WALL)))
        elif start.is_interrupted and not run.is_ended:  # its program shall not run now
            self._advance(run, StepEnded(judge(signal.SIGINT, Usage(), Counters(), None)))
        elif not run.is_ended:
            self._start_step(run, start.order)

    def _step_started(self, step: Step, future: asyncio.Future[Started]) -> None:
        if future.cancelled() or self._step is not step:
            return
        error = future.exception()
        if error is None:
            step.is_started = True
            if step.watch is not None:
                step.run.typed.clear()  # it is in the pipe of this program, and stays there
            return
        step.close()
        self._forget_step()
        if step.run.is_ended:
            self._begin_next()
        elif _never_ran(error) and step.is_interrupted:  # by that; its program shall not run now
            self._advance(step.run, StepEnded(judge(signal.SIGINT, Usage(), Counters(), None)))
        elif _never_ran(error) and not step.is_repeated:
            self._start_step(step.run, step.order, is_repeated=True)
        else:
            self.fail(step.run, str(error))

    def _forget_step(self) -> None:
        if (step := self._step) is not None:
            self._builds.drop(step.run, step.build)
        self._step = None
        self._tell_settled()

    def _tell_settled(self) -> None:
        settled, self._settled = self._settled, []
        for waiter in settled:
            if not waiter.done():
                waiter.set_result(None)

    def start_built(self, run: LiveRun, order: StartStep, build: Build) -> None:
        """Start a build that is to be kept."""
        self._start_step(run, order, build=build)

    def looked_up(self) -> None:
        """Go on after a look-up of a build; its run may have ended meanwhile."""
        self._tell_settled()
        self._begin_next()

    def fail(self, run: LiveRun, reason: str) -> None:
        """End a step as a failure of ours, soon."""
        self._later(self._fail_step(run, reason))

    async def _fail_step(self, run: LiveRun, reason: str) -> None:
        log.error("step.failed", run=run.run_id, reason=reason)
        self._advance(run, StepEnded(self._stepper.failed()))

    def _step_exited(self, step: Step, end: StepExit) -> None:
        if self._step is not step:
            return
        run, build = step.run, step.build
        step.build = None
        step.close()
        self._forget_step()
        result = self._stepper.judge(step, end)
        faults.reached(faults.Point.STEP_ENDED)
        self.usage = self.usage.plus(result.usage)
        run.cpu_us += result.usage.user_us + result.usage.system_us
        log.debug("step.ended", run=run.run_id, phase=step.order.phase.value,
                  outcome=result.outcome.value, exit_code=result.exit_code)  # fmt: skip
        if build is None:
            self.conclude(run, result, step.number)
        elif run.is_ended:
            self._builds.drop(run, build)
            self.conclude(run, result, step.number)
        else:
            self._later(self._builds.keep(step, build, result))

    def conclude(self, run: LiveRun, result: StepResult, number: int = 0) -> None:
        """Go on after a step ended; `number` 0: it never was one of init's."""
        if run.is_ended:  # cancelled meanwhile
            self._begin_next()
            self._later(self._tidy(number))
            return
        following, _ = advance(run.state, StepEnded(result))
        if following.stage is Stage.ENDED:
            if run.deadline is not None:
                run.deadline.cancel()  # it ended in time; only our reading of files follows
            run.decided = result
            self._later(self._end_run(run, number, result))
        else:
            self._advance(run, StepEnded(result))
            self._later(self._tidy(number))

    async def _end_run(self, run: LiveRun, number: int, result: StepResult) -> None:
        """Report the end of a run with the files it made, then get ready for the next step."""
        files = await changed_since(self._client, run.began_at)
        self._advance(run, StepEnded(result), files)
        await self._tidy(number)

    async def _tidy(self, number: int) -> None:
        """Let init forget a step, and have the next standby made while nobody waits."""
        try:
            if number:
                await self._client.release(number)
            if self._step is None:
                os.close((await self._client.prepare()).pidfd)
        except (SandboxFault, OSError) as exc:
            log.debug("step.untidy", reason=str(exc))

    def _kill(self, number: int, signum: int, scope: Scope) -> None:
        with contextlib.suppress(SandboxFault):  # the whole sandbox is gone
            future = self._client.kill(number, signum, scope)
            future.add_done_callback(_ignore)  # ended before the signal came: nothing to do

    def _watch_of(self, run: LiveRun) -> InputWatch | None:
        step = self._step
        return step.watch if step is not None and step.run is run else None

    def _later(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _ignore(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()


def _never_ran(error: BaseException) -> bool:
    """Whether a step may be repeated: its child died before it became the program."""
    return isinstance(error, StepNotStarted) and error.step_phase is protocol.Phase.STANDBY
