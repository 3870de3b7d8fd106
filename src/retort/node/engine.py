"""The runs of one session: first come first served, one step at a time, one init beneath.

core/run.py decides what follows what; this room carries its orders out: it starts programs, kills
them, and closes answers. On the way from a request to its process there is no query, no
thread and no wait, and one write into a file: the journal's.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Coroutine, Mapping, Sequence

import structlog

from retort.core import faults
from retort.core.console import Stream
from retort.core.image import Image
from retort.core.limits import Usage
from retort.core.run import (
    Begun,
    Cancelled,
    Event,
    KillStep,
    Outcome,
    OutputFile,
    Report,
    Stage,
    StartStep,
    StepEnded,
    StepResult,
    Stop,
    TimeUp,
    advance,
)
from retort.core.verdict import Counters, judge
from retort.errors import SandboxFault
from retort.node import stamps
from retort.node.build_cache import Build, SessionBuilds
from retort.node.build_steps import BuildSteps
from retort.node.input_watch import InputWatch
from retort.node.journal import Journal, Unkept
from retort.node.live_run import LiveRun
from retort.node.output_files import OUTPUT_DIR, changed_since
from retort.node.places import Place
from retort.node.records import (
    BackgroundEnded,
    Began,
    CancelledRun,
    Recalled,
    Sent,
    Stopped,
    TimedOut,
)
from retort.node.replay import MakeRun, Replay
from retort.node.run_book import RunBook
from retort.node.run_settings import RunSettings
from retort.node.step import RLimits, Step, Stepper
from retort.sandbox import protocol
from retort.sandbox.init import InitClient
from retort.sandbox.protocol import Scope
from retort.sandbox.step_values import Started, StepExit, StepNotStarted, StepRecord

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


class RunEngine:
    """The queue of one session, its current run, and that run's step.

    Args:
        client: the session's init.
        environment: the whole environment of its programs.
        rlimits: (resource, soft, hard) of each program, as setrlimit(2) takes them.
        place: where they run; without one, nothing counts or caps them as a whole.
        builds: the build cache, where there is one.
        journal: what a later server learns of them; without one, they end with this server.
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
        journal: Journal | None = None,
    ) -> None:
        self._client = client
        self._place = place or Place()
        self._image = image
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._book = RunBook(journal or Unkept(), settings, self._place.walls)
        self._queue: collections.deque[LiveRun] = collections.deque()
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
            self._book,
            spawn=self._later,
            on_limit=self._limit_reached,
        )
        self._builds = BuildSteps(builds, self, self._stepper, self._place)

    @property
    def usage(self) -> Usage:
        """What all steps that ended used."""
        return self._book.usage

    @property
    def started(self) -> int:
        """How many runs there were since the session was made."""
        return self._book.started

    # --- from server to server --------------------------------------------------------------

    def let_go(self) -> None:
        """Look after the runs no more; programs, init and journal go on without us."""
        for run in self._take_all():
            if run.deadline is not None:
                run.deadline.cancel()
        if self._step is not None:
            self._step.let_go()
        for task in self._tasks:
            task.cancel()
        self._book.journal.close()

    def close_journal(self) -> None:
        """Write nothing down any more: the session is over, or its folder another server's."""
        self._book.journal.close()

    @property
    def make(self) -> MakeRun:
        """How its runs are made; for `Replay`."""
        return self._book.make

    def tell_of(self, replay: Replay, reason: str) -> None:
        """Know what runs came to whose sandbox ended while no server ran, and end them."""
        self._book.restore(replay)
        current = self._current = replay.current
        self._queue.extend(run for run in replay.queue if run is not current)
        self.broken(reason)

    def take_over(self, replay: Replay, record: StepRecord | None) -> None:
        """Go on with the runs of an earlier server.

        Args:
            replay: what its journal comes to.
            record: of the step it had sent, as init knows it; None: nothing of that ever ran.
        """
        self._book.restore(replay)
        self._stepper.last_number = replay.last_number
        self._stepper.keeps_background = replay.keeps_background
        now = self._loop.time()
        for run in self._book:
            run.last_call = now
        self._current = current = replay.current
        self._queue.extend(run for run in replay.queue if run is not current)
        if record is not None and replay.sent_run is not None and replay.sent is not None:
            self._adopt_step(replay, replay.sent_run, replay.sent, record)
        elif current is not None and replay.sent_run is current:
            current.typed[:] = replay.given
        self._shorten(always=True)
        if current is not None:
            self._set_deadline(current)
            if self._step is None and replay.order is not None:
                self._start_step(current, replay.order)
        for run in [r for r in self._book if r.is_watched_by_stream]:
            self.abandon(run)  # its connection went with the server
        self._begin_next()

    def _adopt_step(self, replay: Replay, run: LiveRun, sent: Sent, record: StepRecord) -> None:
        order = StartStep(sent.phase, tuple(run.state.plan.commands[sent.phase]))
        step = self._step = self._stepper.adopt(run, order, replay, record, self._step_exited)
        if run.is_ended or run.state.is_timed_out or step.stop is not None:
            self._kill(step.number, signal.SIGKILL, Scope.EVERYTHING)

    # --- ends ----------------------------------------------------------------------------

    def abandon(self, run: LiveRun) -> None:
        """Interrupt a run whose only watcher is gone, and forget it (spec 9.1).

        A program that ignores the signal is killed after `ABANDON_S`: nobody is left to end it,
        and it would hold the session for ever.
        """
        self._book.forget(run.run_id)
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
        self._book.journal.later(BackgroundEnded())
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

    # --- the life of a run --------------------------------------------------------------

    def _begin_next(self) -> None:
        # A step whose run was cancelled may still be dying: init would refuse the next one.
        while self._current is None and not self._is_occupied and self._queue:
            run = self._current = self._queue.popleft()
            run.began_at, run.began_ns = stamps.earliest_ns() / 1e9, time.monotonic_ns()
            self._book.journal.later(Began(run.run_id, run.began_at, run.began_ns))
            self._set_deadline(run)
            self._advance(run, Begun())

    def _set_deadline(self, run: LiveRun) -> None:
        if run.limits.wall_s is not None and not run.is_ended and not run.is_abandoned:
            left_s = run.limits.wall_s - (time.monotonic_ns() - run.began_ns) / 1e9
            run.deadline = self._loop.call_later(left_s, self._out_of_time, run, Stop.WALL)

    def _advance(
        self, run: LiveRun, event: Event, files: tuple[OutputFile, ...] = (), number: int = 0
    ) -> None:
        match event:
            case StepEnded(result):
                self._book.ended(run, number, result, files)
                if run.is_abandoned:
                    event = Cancelled()  # nobody wants the steps that would follow
            case Cancelled():
                self._book.journal.add(CancelledRun(run.run_id))
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
        self._book.journal.add(TimedOut(run.run_id, why))
        self._advance(run, TimeUp())

    def _limit_reached(self, step: Step, why: Stop) -> None:
        if self._step is not step or step.stop is not None:
            return
        if why is Stop.CPU:
            self._out_of_time(step.run, why)
        else:
            step.stop = why
            self._book.journal.add(Stopped(why))
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

    def _shorten(self, *, always: bool = False) -> None:
        """Leave out of the journal what nobody needs any more."""
        step = self._step
        if step is not None and not step.is_started:
            return  # whether its input was read is not known
        queue = [self._current, *self._queue] if self._current else [*self._queue]
        self._book.shorten(
            queue,
            self._stepper.last_number,
            keeps_background=self._stepper.keeps_background,
            step=step.now if step is not None else None,
            always=always,
        )

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
            self._book.journal.flush()  # or a later server would run it after all
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
        if self._place.is_short:
            self._later(self._step_exited_late(step, end))
        elif self._step is step:
            self._step_ended(step, end)

    async def _step_exited_late(self, step: Step, end: StepExit) -> None:
        step.stop_watching()
        await self._place.room()
        if self._step is step:
            self._step_ended(step, end)
            self._set_deadline(step.run)

    def _step_ended(self, step: Step, end: StepExit) -> None:
        run, build = step.run, step.build
        if run.is_late(end.ended_ns) and not run.is_ended:
            self._out_of_time(run, Stop.WALL)
        step.build = None
        step.close()
        self._forget_step()
        result = self._stepper.judge(step, end)
        faults.reached(faults.Point.STEP_ENDED)
        self._book.usage = self.usage.plus(result.usage)
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

    def recall(self, run: LiveRun, printed: Sequence[tuple[Stream, bytes]]) -> None:
        """Have a stored build print what it printed."""
        self._book.journal.later(Recalled(run.run_id, tuple(printed)))
        for stream, data in printed:
            run.console.feed(stream, data)

    def conclude(self, run: LiveRun, result: StepResult, number: int = 0) -> None:
        """Go on after a step ended; `number` 0: it never was one of init's."""
        if run.is_ended:  # cancelled meanwhile
            self._book.ended(run, number, result, ())
            self._begin_next()
            self._later(self._tidy(number))
            return
        following, _ = advance(run.state, StepEnded(result))
        if following.stage is Stage.ENDED:
            if run.deadline is not None:
                run.deadline.cancel()  # it ended in time; only our reading of files follows
            if not self._place.lacks(OUTPUT_DIR):
                run.decided = result
                self._later(self._end_run(run, number, result))
                return
        self._advance(run, StepEnded(result), number=number)
        self._later(self._tidy(number))

    async def _end_run(self, run: LiveRun, number: int, result: StepResult) -> None:
        """Report the end of a run with the files it made, then get ready for the next step."""
        # A clock that was set back meanwhile stamps files with times before the run's beginning.
        lasted_s = (time.monotonic_ns() - run.began_ns) / 1e9
        set_back_s = max(0.0, run.began_at + lasted_s - time.time())
        files = await changed_since(self._client, run.began_at - set_back_s)
        self._advance(run, StepEnded(result), files, number)
        await self._tidy(number)

    async def _tidy(self, number: int) -> None:
        """Let init forget a step, and have the next standby made while nobody waits."""
        self._book.journal.flush()  # before init forgets: one of the two must know the end
        try:  # both at once: init is woken once for them
            released = self._client.release(number) if number else None
            prepared = self._client.prepare() if self._step is None else None
        except SandboxFault as exc:
            log.debug("step.untidy", reason=str(exc))
            return
        for asked in (prepared, released):
            try:
                if asked is not None and (standby := await asked) is not None:
                    os.close(standby.pidfd)
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
