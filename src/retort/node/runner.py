"""The runs of one session: first come first served, one step at a time, one init beneath.

core/run.py decides what follows what; this room carries its orders out: it starts programs, kills
them, and closes answers. On the way from a request to its process there is no query, no file of
ours, no thread and no wait.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import os
import secrets
import signal
import time
from collections.abc import Coroutine, Mapping

import structlog

from retort.core.image import Image
from retort.core.limits import Usage
from retort.core.run import (
    OUR_FAULT_EXIT,
    Answer,
    Begun,
    Cancelled,
    Event,
    KillStep,
    Mode,
    Outcome,
    OutputFile,
    Phase,
    Report,
    RunRequest,
    RunState,
    Stage,
    StartStep,
    StepEnded,
    StepResult,
    TimeUp,
    advance,
    step_result,
)
from retort.errors import LimitExceeded, RunNotFound, SandboxFault
from retort.node.live_run import LiveRun
from retort.node.output_files import changed_since
from retort.node.pipes import StepPipes
from retort.node.plan import plan_of
from retort.sandbox.init import ExecStep, InitClient, Started, StepExit
from retort.sandbox.protocol import Scope

log = structlog.get_logger()

FIRST_LOOK_S = 0.010  # a program that ends at once is never looked at
SECOND_LOOK_S = 0.050  # two looks this far apart mean that it really waits (spec R11)
SLOWEST_LOOK_S = 0.400
HOME = b"/home/work"
ABANDON_S = 5.0  # between SIGINT and SIGKILL for a program whose watcher is gone


@dataclasses.dataclass(frozen=True, slots=True)
class RunSettings:
    """What the server's configuration says about runs; units as in config.py."""

    output_chars: int = 524_288
    forget_s: float = 900.0
    max_queued: int = 64
    max_kept: int = 256
    input_bytes: int = 1024 * 1024
    wall_s: float | None = None


@dataclasses.dataclass(slots=True)
class _Step:
    """The program that runs now."""

    number: int
    phase: Phase
    pipes: StepPipes
    run: LiveRun
    began_at: float  # wall clock, seconds since 1970
    cut_before: int


class Runner:
    """All runs of one session.

    Args:
        client: the session's init.
        environment: the whole environment of its programs.
        rlimits: (resource, soft, hard) of each program, as setrlimit(2) takes them.
    """

    def __init__(
        self,
        client: InitClient,
        image: Image,
        environment: Mapping[str, str],
        rlimits: tuple[tuple[int, int, int], ...],
        settings: RunSettings,
    ) -> None:
        self._client = client
        self._image = image
        self._environment = environment
        self._rlimits = rlimits
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._runs: dict[str, LiveRun] = {}
        self._queue: collections.deque[LiveRun] = collections.deque()
        self._delivered: collections.deque[LiveRun] = collections.deque(maxlen=8)
        self._current: LiveRun | None = None
        self._step: _Step | None = None
        self._last_number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.usage = Usage()  #: of all steps that ended
        self.last_used = self._loop.time()  #: when a caller or a program last did something

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
        self.last_used = self._loop.time()
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
        self._watch(run)
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
        self._watch(run)
        return await run.wait(until)

    def give_input(self, run: LiveRun, text: str) -> None:
        """Give a line to the run's program, now or when it starts (R11)."""
        data = text.encode("utf-8", "replace")
        data += b"" if data.endswith(b"\n") else b"\n"
        step = self._step
        is_reading = step is not None and step.run is run and step.phase is Phase.EXEC
        waiting = step.pipes.pending_bytes if step and is_reading else len(run.typed)
        if waiting + len(data) > self._settings.input_bytes:
            raise LimitExceeded("Too much input waits to be read")
        run.is_blocked = False
        run.blocked_since = None
        if step and is_reading:
            step.pipes.write(data)
        else:
            run.typed += data

    def undeliver(self, answer: Answer) -> None:
        """Put back an answer that could not be written."""
        run = self._runs.get(answer.run_id)
        if run is None:
            run = next((r for r in self._delivered if r.run_id == answer.run_id), None)
            if run is None:
                return
            self._delivered.remove(run)
            self._runs[run.run_id] = run
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
        run.deadline = run.deadline or self._loop.call_later(
            ABANDON_S, self._advance, run, Cancelled()
        )

    def interrupt(self) -> None:
        """Send SIGINT to the process group of the running program (spec 7.6)."""
        if self._step is not None:
            self._kill(self._step.number, signal.SIGINT, Scope.GROUP)

    def cancel_all(self) -> None:
        """End every run: the session is destroyed or restarted (R15)."""
        queued, self._queue = list(self._queue), collections.deque()
        current, self._current = self._current, None
        step, self._step = self._step, None
        if step is not None:
            step.pipes.drain()
            step.pipes.close()
            self._kill(step.number, signal.SIGKILL, Scope.EVERYTHING)
        for run in ([current] if current else []) + queued:
            self._advance(run, Cancelled())

    def broken(self, reason: str) -> None:
        """End every run as a failure of ours: the sandbox is gone or talks nonsense."""
        log.warning("session.broken", reason=reason)
        step, self._step = self._step, None
        if step is not None:
            step.pipes.drain()
            step.pipes.close()
        failed = StepResult(Outcome.INFRASTRUCTURE, OUR_FAULT_EXIT)
        queued, self._queue = list(self._queue), collections.deque()
        current, self._current = self._current, None
        for run in ([current] if current else []) + queued:
            if run.state.stage is Stage.QUEUED:
                self._advance(run, Cancelled())
            else:
                self._advance(run, StepEnded(failed))

    def forget_old(self) -> None:
        """Drop ended runs whose answers nobody fetched for a long time (R16)."""
        oldest = self._loop.time() - self._settings.forget_s
        for run in [r for r in self._runs.values() if r.is_ended and r.last_call < oldest]:
            del self._runs[run.run_id]

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
        )
        run.last_call = self._loop.time()
        self._runs[run.run_id] = run
        if len(self._runs) > self._settings.max_kept:
            self._drop_oldest_ended()
        self._queue.append(run)
        self._begin_next()
        return run

    def _begin_next(self) -> None:
        while self._current is None and self._queue:
            run = self._current = self._queue.popleft()
            if self._settings.wall_s is not None:
                run.deadline = self._loop.call_later(
                    self._settings.wall_s, self._advance, run, TimeUp()
                )
            self._advance(run, Begun())

    def _advance(self, run: LiveRun, event: Event, files: tuple[OutputFile, ...] = ()) -> None:
        if run.is_abandoned and isinstance(event, StepEnded):
            event = Cancelled()  # nobody wants the steps that would follow
        run.state, orders = advance(run.state, event)
        for order in orders:
            match order:
                case StartStep(phase, argv):
                    self._start_step(run, phase, argv)
                case KillStep():
                    if self._step is not None and self._step.run is run:
                        self._kill(self._step.number, signal.SIGKILL, Scope.EVERYTHING)
                case Report():
                    run.close_answer(order, files if order.status.ends_run else ())
        if run.is_ended:
            self._ended(run)

    def _ended(self, run: LiveRun) -> None:
        if run.deadline is not None:
            run.deadline.cancel()
        if run.watch is not None:
            run.watch.cancel()
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

    def _start_step(self, run: LiveRun, phase: Phase, argv: tuple[str, ...]) -> None:
        self._last_number += 1
        try:
            pipes = StepPipes(self._loop, run.console.feed, with_stdin=phase is Phase.EXEC)
        except OSError as exc:  # our descriptors ran out: not the program's fault
            self._later(self._fail_step(run, f"pipes: {exc}"))
            return
        step = _Step(self._last_number, phase, pipes, run, time.time(), run.console.cut_chars)
        self._step = step
        program = ExecStep(
            number=step.number,
            argv=argv,
            env=self._environment,
            cwd=HOME,
            rlimits=self._rlimits,
            tag=run.run_id.encode()[:128],
            stdio=pipes.stdio,
            held=pipes.held,
        )
        try:
            started = self._client.exec(program, lambda end: self._step_exited(step, end))
        except (SandboxFault, ValueError) as exc:
            pipes.close()
            self._step = None
            self._later(self._fail_step(run, str(exc)))
            return
        pipes.started()
        if phase is Phase.EXEC and run.typed:
            pipes.write(bytes(run.typed))
            run.typed.clear()
        started.add_done_callback(lambda f: self._step_started(step, f))
        if run.is_watched:
            self._watch(run)

    def _step_started(self, step: _Step, future: asyncio.Future[Started]) -> None:
        if future.cancelled() or (error := future.exception()) is None:
            return
        if self._step is step:
            step.pipes.close()
            self._step = None
            self._later(self._fail_step(step.run, str(error)))

    async def _fail_step(self, run: LiveRun, reason: str) -> None:
        log.error("step.failed", run=run.run_id, reason=reason)
        self._advance(run, StepEnded(StepResult(Outcome.INFRASTRUCTURE, OUR_FAULT_EXIT)))

    def _step_exited(self, step: _Step, end: StepExit) -> None:
        if self._step is not step:  # cancelled meanwhile
            self._later(self._tidy(step.number))
            return
        step.pipes.drain()
        step.pipes.close()
        self._step = None
        usage = _usage_of(end, step.run.console.cut_chars - step.cut_before)
        self.usage = self.usage.plus(usage)
        self.last_used = self._loop.time()
        result = step_result(end.wait_status, usage)
        log.debug("step.ended", run=step.run.run_id, phase=step.phase.value,
                  outcome=result.outcome.value, exit_code=result.exit_code)  # fmt: skip
        step.run.is_blocked = False
        if step.phase is Phase.EXEC:
            if run_deadline := step.run.deadline:
                run_deadline.cancel()  # it ended in time; only our reading of files follows
            self._later(self._end_exec(step, result))
        else:
            self._advance(step.run, StepEnded(result))
            self._later(self._tidy(step.number))

    async def _end_exec(self, step: _Step, result: StepResult) -> None:
        """Report the end of exec with the files it made, then get ready for the next step."""
        files = await changed_since(self._client, step.began_at)
        self._advance(step.run, StepEnded(result), files)
        await self._tidy(step.number)

    async def _tidy(self, number: int) -> None:
        """Let init forget a step, and have the next standby made while nobody waits."""
        try:
            await self._client.release(number)
            if self._step is None:
                os.close((await self._client.prepare()).pidfd)
        except (SandboxFault, OSError) as exc:
            log.debug("step.untidy", reason=str(exc))

    def _kill(self, number: int, signum: int, scope: Scope) -> None:
        future = self._client.kill(number, signum, scope)
        future.add_done_callback(_ignore)  # ended before the signal came: nothing to do

    def _later(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- waiting for input (R11) --------------------------------------------------------

    def _watch(self, run: LiveRun) -> None:
        if run.watch is None and not run.is_ended and not run.is_blocked:
            run.watch = self._loop.call_later(FIRST_LOOK_S, self._look, run, FIRST_LOOK_S)

    def _look(self, run: LiveRun, waited_s: float) -> None:
        run.watch = None
        step = self._step
        if not run.is_watched or run.is_ended or run.is_blocked:
            return
        if step is None or step.run is not run or step.phase is not Phase.EXEC:
            self._look_again(run, SECOND_LOOK_S)
        elif not step.pipes.input_is_consumed:
            run.blocked_since = None
            self._look_again(run, SECOND_LOOK_S)
        else:
            self._later(self._ask_init(run, step, waited_s))

    async def _ask_init(self, run: LiveRun, step: _Step, waited_s: float) -> None:
        try:
            is_waiting = await self._client.is_waiting(step.number)
        except (SandboxFault, OSError):
            return
        if self._step is not step or run.is_ended or run.is_blocked:
            return
        if not is_waiting or not step.pipes.input_is_consumed:
            run.blocked_since = None
            self._look_again(run, min(max(waited_s * 2, SECOND_LOOK_S), SLOWEST_LOOK_S))
        elif run.blocked_since is None:
            run.blocked_since = self._loop.time()
            self._look_again(run, SECOND_LOOK_S)
        elif self._loop.time() - run.blocked_since < SECOND_LOOK_S * 0.9:
            self._look_again(run, SECOND_LOOK_S)
        else:
            step.pipes.drain()  # whatever it printed before it fell asleep comes first
            run.is_blocked = True
            run.waits += 1
            run.wake()

    def _look_again(self, run: LiveRun, delay_s: float) -> None:
        if run.watch is None:
            run.watch = self._loop.call_later(delay_s, self._look, run, delay_s)


def _usage_of(end: StepExit, cut_chars: int) -> Usage:
    return Usage(
        wall_ns=max(0, end.ended_ns - end.started_ns),
        user_us=end.user_us,
        system_us=end.system_us,
        max_rss_bytes=end.max_rss_kib * 1024,
        read_bytes=end.usage.in_blocks * 512,
        written_bytes=end.usage.out_blocks * 512,
        cut_chars=cut_chars,
    )


def _ignore(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()
