"""One program of a session: its pipes, its watches, and how to start it.

The order of programs is runner.py's. On the way from an order to its process there is no query, no
file of ours, no thread and no wait.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import math
import os
import resource
import signal
from collections.abc import Callable, Coroutine, Mapping

from retort.core.console import Stream
from retort.core.run import OUR_FAULT_EXIT, Outcome, StartStep, StepResult, Stop
from retort.core.verdict import Counters, judge
from retort.errors import SandboxFault
from retort.node.build_cache import Build
from retort.node.cpu_watch import CpuWatch
from retort.node.input_watch import InputWatch
from retort.node.live_run import LiveRun
from retort.node.pipes import READ_BYTES, ReadPipe, StepPipes
from retort.node.places import Place
from retort.node.records import Sent
from retort.node.replay import Replay
from retort.node.run_book import RunBook, StepNow
from retort.node.step_usage import usage_of
from retort.sandbox.channel import close_all
from retort.sandbox.init import InitClient
from retort.sandbox.session_group import Measured
from retort.sandbox.step_values import ExecStep, Started, StepExit, StepRecord

HOME = b"/home/work"
TAG_BYTES = 128

RLimits = tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(slots=True, eq=False)
class Step:
    """A program that runs; its run may have ended already, and it is being killed.

    Attributes:
        cut_before: characters of the run's output that were cut before this step.
        watch: of exec, which alone has input.
        is_started: init said that it runs.
        is_repeated: it is the second try of a step that never ran.
        stop: why we ended it, if we did.
        is_interrupted: the user sent it SIGINT.
        waited_us: the host's counter of waiting for processors when it was started.
        build: what the build cache knows of it, if it was asked.
        sent: what the journal says of it.
        spared: `SessionGroup.killed` when the spare child was last made; -1: never.
        refused_to_us: processes that the process limit refused to us, not to the program.
    """

    number: int
    order: StartStep
    pipes: StepPipes
    run: LiveRun
    cut_before: int
    watch: InputWatch | None = None
    cpu_watch: CpuWatch | None = None
    is_started: bool = False
    is_repeated: bool = False
    is_interrupted: bool = False
    stop: Stop | None = None
    waited_us: int | None = None
    build: Build | None = None
    sent: Sent | None = None
    spared: int = -1
    refused_to_us: int = 0

    @property
    def now(self) -> StepNow | None:
        """What a journal that begins anew must say of it."""
        if self.sent is None:
            return None
        return StepNow(self.sent, self.run, self.stop, self.pipes.fed, self.pipes.pending)

    def let_go(self) -> None:
        """Look after it no more: what it prints stays in its pipes, for the next server."""
        if self.cpu_watch is not None:
            self.cpu_watch.close()
        if self.watch is not None:
            self.watch.close()
        self.pipes.close()

    def stop_watching(self) -> None:
        """Hold it to no limit any more: it has ended, and its end is told later."""
        if self.cpu_watch is not None:
            self.cpu_watch.close()
        if self.watch is not None:
            self.watch.close()
        if self.run.deadline is not None and not self.run.is_abandoned:
            self.run.deadline.cancel()

    def close(self) -> None:
        """Take what was printed so far, and no more."""
        self.pipes.drain()
        self.let_go()


class Stepper:
    """Starts the programs of one session and judges their ends.

    Args:
        environment: the whole environment of every program.
        rlimits: (resource, soft, hard) of each program, as setrlimit(2) takes them.
        spawn: runs a coroutine in the background.
        on_limit: called when a step must end, with the reason.
    """

    def __init__(
        self,
        client: InitClient,
        environment: Mapping[str, str],
        rlimits: RLimits,
        place: Place,
        book: RunBook,
        *,
        spawn: Callable[[Coroutine[None, None, None]], None],
        on_limit: Callable[[Step, Stop], None],
    ) -> None:
        self._client = client
        self._environment = environment
        self._rlimits = rlimits
        self._place = place
        self._book = book
        self._spawn = spawn
        self._on_limit = on_limit
        self._loop = asyncio.get_running_loop()
        self.last_number = 0
        self._is_out_of_memory = False  # during the last step
        self.met_limit = False  #: the last step that was judged met one of its session
        self.keeps_background = False  #: from the first run that asked for it, until a restart

    def start(
        self, run: LiveRun, order: StartStep, on_exit: Callable[[Step, StepExit], None]
    ) -> tuple[Step, asyncio.Future[Started]]:
        """Send a program to init.

        Raises:
            OSError: no descriptors for its pipes.
            SandboxFault, ValueError: init cannot be told.
        """
        self.last_number += 1
        number, has_input = self.last_number, order.phase.has_input
        step = self._step(run, order, number)
        pipes = step.pipes
        self.keeps_background |= has_input and run.keeps_background
        program = ExecStep(
            number=number,
            argv=order.argv,
            env=self._environment,
            cwd=HOME,
            rlimits=(*self._rlimits, *self._cpu_rlimit(run)),
            tag=run.run_id.encode("utf-8", "replace")[:TAG_BYTES],
            stdio=pipes.stdio,
            held=pipes.held,
            keep_background=self.keeps_background,
        )
        group = self._place.group
        step.sent = Sent(
            run.run_id, number, order.phase, group.counted if group is not None else None
        )
        self._book.sent(step.sent)
        try:
            started = self._client.exec(program, lambda end: on_exit(step, end))
        except BaseException:
            pipes.close()
            raise
        pipes.started()
        self._watch(step)
        step.waited_us = self._waited_us()  # after the start was sent: nobody waits for it
        return step, started

    def adopt(
        self,
        run: LiveRun,
        order: StartStep,
        replay: Replay,
        record: StepRecord,
        on_exit: Callable[[Step, StepExit], None],
    ) -> Step:
        """Look after a step that an earlier server sent to init; its figures go on.

        Raises:
            SandboxFault: init kept other descriptors than it was given.
        """
        has_input = order.phase.has_input
        held = tuple(end for end in record.held if end is not None)
        if replay.sent is None or len(held) != 2 + has_input:
            close_all(held)
            raise SandboxFault("init", f"{len(held)} pipes of step {record.number}")
        if (group := self._place.group) is not None and replay.sent.counted is not None:
            group.go_on_from(replay.sent.counted)
        step = self._step(run, order, record.number, held)
        step.sent, step.stop, step.is_started = replay.sent, replay.stop, True
        self._client.adopt(record.number, lambda end: on_exit(step, end))
        self._watch(step)
        step.pipes.fed = record.fed
        step.pipes.write(bytes(replay.unfed[max(0, record.fed - replay.fed) :]))
        return step

    def _step(
        self, run: LiveRun, order: StartStep, number: int, held: tuple[int, ...] = ()
    ) -> Step:
        """Make a step with its pipes."""
        limit = run.limits.output_bytes
        counter = _OutputCounter(run, limit) if limit is not None else None
        feed = run.console.feed if counter is None else counter.feed
        pipes = StepPipes(
            self._loop,
            feed,
            with_stdin=order.phase.has_input,
            read=self._reader(run),
            feed=lambda data: self._client.feed(number, data),
            held=held,
        )
        step = Step(number, order, pipes, run, run.console.cut_chars)
        if counter is not None:
            counter.on_over = lambda: self._on_limit(step, Stop.OUTPUT)
        return step

    def _reader(self, run: LiveRun) -> ReadPipe:
        """Give how a run's output is read: into the journal, unless nobody will ever ask for it."""
        journal, console = self._book.journal, run.console

        def read(stream: Stream, pipe: int) -> bytes:
            if not run.is_watched_by_stream and not console.is_full(stream):
                return journal.read_pipe(stream, pipe)
            self._book.cut(run)
            return os.read(pipe, READ_BYTES)

        return read

    def judge(self, step: Step, end: StepExit) -> StepResult:
        """Say what happened to a step, by what the host kernel counted."""
        group = self._place.group
        measured = group.take() if group is not None else Measured()
        self._is_out_of_memory = _is_out_of_memory(measured)
        cut = step.run.console.cut_chars - step.cut_before
        is_out_of_cpu = end.signal == signal.SIGXCPU and bool(self._cpu_rlimit(step.run))
        counters = Counters(
            oom_kills=measured.oom_kills,
            is_own_limit=measured.is_own_limit,
            # What refused us may have been another limit, which nothing counts.
            refused_forks=max(0, measured.refused_forks - step.refused_to_us),
            is_scratch_full=self._place.is_scratch_full,
        )
        self.met_limit = step.stop is not None or bool(
            counters.oom_kills or counters.refused_forks or counters.is_scratch_full
        )
        return judge(
            end.wait_status,
            usage_of(end, measured, cut, self._waited_since(step)),
            counters,
            Stop.CPU if is_out_of_cpu else step.stop,
            is_late=step.run.is_late(end.ended_ns),
        )

    def failed(self) -> StepResult:
        """Judge a step that init did not start or did not end: our failure, with one exception.

        Where a session's files fill its memory, no program is left to kill in the end but init.
        """
        if (group := self._place.group) is not None:
            self._is_out_of_memory |= _is_out_of_memory(group.take())
        if not self._is_out_of_memory:
            return StepResult(Outcome.INFRASTRUCTURE, OUR_FAULT_EXIT)
        return StepResult(Outcome.OUT_OF_MEMORY, 128 + signal.SIGKILL, signal.SIGKILL)

    def _waited_us(self) -> int | None:
        return self._place.pressure.waited_us() if self._place.pressure is not None else None

    def _waited_since(self, step: Step) -> int | None:
        now = self._waited_us()
        return None if now is None or step.waited_us is None else max(0, now - step.waited_us)

    def _watch(self, step: Step) -> None:
        run, group = step.run, self._place.group
        if step.order.phase.has_input:
            step.watch = InputWatch(
                self._loop,
                run,
                step.pipes,
                lambda: self._is_waiting(step),
                self._spawn,
            )
            if run.typed and not step.is_started:
                step.pipes.write(bytes(run.typed))
            if run.is_watched:
                step.watch.look_soon()
        if run.limits.cpu_s is not None and group is not None:
            left_us = int(run.limits.cpu_s * 1e6) - run.cpu_us
            step.cpu_watch = CpuWatch(
                self._loop, group.cpu_us, left_us, lambda: self._on_limit(step, Stop.CPU)
            )

    async def _is_waiting(self, step: Step) -> bool:
        group = self._place.group
        if group is not None:
            if group.is_short or group.look_whether_filling():
                return False
            if step.spared != group.killed and group.is_roomy:
                step.spared = group.killed
                await self._make_spare(step)
                if group.is_short:
                    return False
        return await self._client.is_waiting(step.number)

    async def _make_spare(self, step: Step) -> None:
        """Have a child made while a program runs: the host kernel takes it before it takes init."""
        try:
            os.close((await self._client.prepare()).pidfd)
        except OSError as exc:  # the step is ending, or its program has all processes there may be
            step.refused_to_us += exc.errno == errno.EAGAIN

    def _cpu_rlimit(self, run: LiveRun) -> RLimits:
        """Give the next best where nothing counts CPU time over all processes: one each."""
        if run.limits.cpu_s is None or self._place.group is not None:
            return ()
        left_s = max(1, math.ceil(run.limits.cpu_s - run.cpu_us / 1e6))
        return ((resource.RLIMIT_CPU, left_s, left_s + 1),)


def _is_out_of_memory(measured: Measured) -> bool:
    return bool(measured.oom_kills) and measured.is_own_limit


class _OutputCounter:
    """Takes a step's output and tells once when it is more than its limit."""

    __slots__ = ("_left", "_run", "on_over")

    def __init__(self, run: LiveRun, limit: int) -> None:
        self._run = run
        self._left = limit
        self.on_over: Callable[[], None] | None = None

    def feed(self, stream: Stream, data: bytes) -> None:
        self._run.console.feed(stream, data)
        self._left -= len(data)
        if self._left < 0 and self.on_over is not None:
            tell, self.on_over = self.on_over, None
            tell()
