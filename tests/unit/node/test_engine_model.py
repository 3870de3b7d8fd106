"""The run engine beside a slow, obvious model, on a scripted init, over deaths of the server.

Hypothesis draws what programs, callers and the host do, in any order: starts, output cut anywhere,
input, polls whose answers arrive or not, interrupts, cancellations, SIGKILL of the server at any
time between two system calls, and another server that goes on. In the end every run has ended as
the model says, and its answers joined are what its programs wrote, once; programs ran first come,
first served, one at a time, and read what was typed, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from retort.core.image import Image, ImageKind, ImageRef
from retort.core.run import Answer, Mode, RunRequest, Status
from retort.errors import RunNotFound
from retort.node import journal as journal_module
from retort.node.adopt import replay_of, resume
from retort.node.journal import Journal, read_journal
from retort.node.run_settings import RunSettings
from retort.node.runner import Runner
from retort.sandbox.protocol import ExecFlags, Phase, Scope, State
from retort.sandbox.step_values import (
    ExecStep,
    Started,
    StepExit,
    StepNotStarted,
    StepRecord,
    StepUsage,
)

T = TypeVar("T")
IMAGE = Image(ImageRef.parse("bash:5"), ImageKind.BASH)
STREAMS = ("stdout", "stderr")
MAX_RUNS = 7
USAGE = StepUsage(1000, 2000, 64, 0, 0, 0, 0, 0, 0)


class Program:
    """A step as init has it: it outlives servers."""

    def __init__(self, asked: ExecStep) -> None:
        self.number = asked.number
        self.run_id = asked.tag.decode()
        self.told: Told  # the run it belongs to
        self.command = asked.argv[-1]
        self.stdin, *outs = (os.dup(end) for end in asked.stdio)
        os.set_blocking(self.stdin, False)
        self.outs = dict(zip(STREAMS, outs, strict=True))
        self.held = [os.dup(end) for end in asked.held]
        self.started: asyncio.Future[Started] | None = None
        self.exit: StepExit | None = None
        self.is_killed = self.is_interrupted = False
        self.unwritten = dict.fromkeys(STREAMS, b"")
        self.fed = 0
        self.got = b""

    def read(self) -> None:
        """Read whatever there is on its stdin."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.stdin, 4096):
                self.got += data

    def close(self) -> None:
        for end in (self.stdin, *self.outs.values()):
            os.close(end)
        self.outs.clear()

    def forget(self) -> None:
        for end in self.held:
            os.close(end)
        self.held.clear()


class Init:
    """All of init that lasts."""

    def __init__(self) -> None:
        self.programs: dict[int, Program] = {}
        self.on_exec: Callable[[Program], None] = lambda program: None
        self.is_slow = False  # what it says of input comes later, or never

    @property
    def running(self) -> Program | None:
        return next((p for p in self.programs.values() if p.exit is None), None)


class Connection:
    """One server's client of init: as much of `InitClient` as an engine uses."""

    def __init__(self, init: Init) -> None:
        self._init = init
        self.withheld: list[Callable[[], None]] = []
        self.on_exit: dict[int, Callable[[StepExit], None]] = {}

    def exec(self, asked: ExecStep, on_exit: Any) -> asyncio.Future[Started]:
        assert self._init.running is None, "init runs one step at a time"
        program = self._init.programs[asked.number] = Program(asked)
        self._init.on_exec(program)
        self.on_exit[asked.number] = on_exit
        program.started = asyncio.get_running_loop().create_future()
        return program.started

    def feed(self, number: int, data: bytes) -> asyncio.Future[int]:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            program = self._init.programs[number]
            written = os.write(program.held[0], data)
        except (KeyError, BrokenPipeError):
            done.set_exception(BrokenPipeError())
            return done
        program.fed += written
        if self._init.is_slow:
            self.withheld.append(lambda: done.set_result(written))
        else:
            done.set_result(written)
        return done

    def tell(self) -> None:
        """Say what was withheld."""
        withheld, self.withheld = self.withheld, []
        for say in withheld:
            say()

    def kill(self, number: int, signum: int, scope: Scope) -> asyncio.Future[None]:
        program = self._init.programs.get(number)
        if program is not None:
            program.is_killed |= scope is Scope.EVERYTHING
            program.is_interrupted |= scope is Scope.GROUP
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def steps(self) -> list[StepRecord]:
        return [
            StepRecord(
                p.number,
                State.RUNNING if p.exit is None else State.ENDED,
                2,
                ExecFlags(0),
                p.run_id.encode(),
                tuple([*map(os.dup, p.held), None, None][:3]),  # type: ignore[arg-type]
                p.exit,
                p.fed,
            )
            for p in self._init.programs.values()
        ]

    def adopt(self, number: int, on_exit: Callable[[StepExit], None]) -> None:
        program = self._init.programs[number]
        program.started, ended = None, program.exit
        if ended is None:
            self.on_exit[number] = on_exit
        else:
            asyncio.get_running_loop().call_soon(on_exit, ended)

    async def release(self, number: int) -> None:
        if (program := self._init.programs.pop(number, None)) is not None:
            program.forget()

    async def prepare(self) -> Any:
        raise OSError

    async def is_waiting(self, number: int) -> bool:
        return False

    async def open(self, path: bytes, flags: int) -> int:
        raise FileNotFoundError(path)


@dataclasses.dataclass(eq=False)
class Told:
    """A run as the model has it."""

    run_id: str
    number: int  # by its start
    build: bool
    wrote: dict[str, bytes] = dataclasses.field(default_factory=lambda: dict.fromkeys(STREAMS, b""))
    typed: str = ""
    expected: list[tuple[Status, int]] = dataclasses.field(default_factory=list)
    is_cancelled: bool = False
    heard: dict[str, str] = dataclasses.field(default_factory=lambda: dict.fromkeys(STREAMS, ""))
    ends: list[tuple[Status, int | None]] = dataclasses.field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether no program of it will run any more."""
        return bool(self.expected) and self.expected[-1][0] is Status.FINISHED

    @property
    def is_told(self) -> bool:
        """Whether its caller has heard of its end."""
        return bool(self.ends) and self.ends[-1][0] is Status.FINISHED

    def hear(self, answer: Answer) -> None:
        for stream, text in answer.console:
            self.heard[stream] += text
        if answer.status is not Status.CONTINUED:
            self.ends.append((answer.status, answer.exit_code))


runs = st.integers(0, MAX_RUNS - 1)
streams = st.sampled_from(STREAMS)


class Engine(RuleBasedStateMachine):
    """One session, its programs, its callers, and its servers."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="retort-model-"))
        self.large = mock.patch.object(journal_module, "LARGE_BYTES", 300)
        self.large.start()  # so that journals begin anew in the middle of everything
        self.init = Init()
        self.init.on_exec = self._begun
        self.runs: list[Told] = []
        self.refused: set[tuple[int, Any]] = set()  # steps whose first child had died
        self.order: list[Told] = []  # by their first program
        self.printed: set[int] = set()  # numbers of programs
        self.held: dict[str, tuple[Answer, str | None]] = {}  # answers on their way, by run
        self.servers = self.pieces = self.tokens = 0
        self.runner: Runner | None = None
        self.connection: Connection | None = None
        self.is_input_due = False  # a server died before it could give all of it
        self._serve()

    # --- servers --------------------------------------------------------------------------

    @property
    def journal_path(self) -> Path:
        return self.folder / f"journal-{self.servers}"

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        async def and_settle() -> T:
            result = await coroutine
            for _ in range(12):
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(and_settle())

    def _serve(self) -> None:
        async def make() -> None:
            records, end = read_journal(self.journal_path)
            self.connection = Connection(self.init)
            self.runner = Runner(
                self.connection,  # type: ignore[arg-type]
                IMAGE,
                {},
                (),
                RunSettings(),
                journal=Journal(self.journal_path, end),
            )
            replay = await replay_of(records, self.runner.make, self._is_kept)
            await resume(self.runner, replay, self.connection)  # type: ignore[arg-type]

        self._do(make())
        self.held.clear()
        self.is_input_due = False

    async def _is_kept(self, token: str) -> bool:
        return token in self.kept

    kept: frozenset[str] = frozenset()

    @precondition(lambda self: self.runner is not None)
    @rule(data=st.data())
    def server_is_killed(self, data: st.DataObject) -> None:
        """What it did not write is lost, and so is every answer on its way, unless it was kept."""
        assert self.runner is not None
        kept = set()
        for run_id, (answer, token) in self.held.items():
            if token is not None and data.draw(st.booleans(), label=f"{run_id}'s answer was kept"):
                kept.add(token)
                self._run(run_id).hear(answer)  # by the repeat of its call
        self.kept = frozenset(kept)
        left = self.journal_path.read_bytes()
        assert self.connection is not None
        self.is_input_due = bool(self.connection.withheld)
        self.servers += 1
        self.journal_path.write_bytes(left)
        runner, self.runner, self.connection = self.runner, None, None

        async def die() -> None:
            runner.let_go()

        self._do(die())

    @precondition(lambda self: self.runner is None)
    @rule()
    def another_server_starts(self) -> None:
        self._serve()

    # --- callers --------------------------------------------------------------------------

    def _run(self, run_id: str) -> Told:
        """Find the newest of this name; an older one has ended and is told (R2)."""
        return next(run for run in reversed(self.runs) if run.run_id == run_id)

    def _pick(self, number: int) -> Told | None:
        return self._run(self.runs[number % len(self.runs)].run_id) if self.runs else None

    def _token(self, has_token: bool) -> str | None:
        self.tokens += 1
        return f"token-{self.tokens}" if has_token else None

    def _ask(self, request: RunRequest, fate: str) -> None:
        """Make a call; its answer arrives, gets lost, or is on its way for a while."""
        assert self.runner is not None
        answer = self._do(self.runner.execute(request, 0))
        self.held[answer.run_id] = answer, request.token
        if fate != "later":
            self._decide(answer.run_id, arrives=fate == "arrives" or request.token is not None)

    def _decide(self, run_id: str, *, arrives: bool) -> None:
        assert self.runner is not None
        answer, _ = self.held.pop(run_id)
        if arrives:
            self._run(run_id).hear(answer)
            self._do(_call(self.runner.delivered, answer))
        else:
            self._do(_call(self.runner.undeliver, answer))

    fates = st.sampled_from(["arrives", "arrives", "is lost", "later"])

    @precondition(lambda self: self.runner is not None and len(self.runs) < MAX_RUNS)
    @rule(build=st.booleans(), fate=fates, has_token=st.booleans(), reuses=st.booleans())
    def start(self, build: bool, fate: str, has_token: bool, reuses: bool) -> None:
        """Start a run, perhaps by the name of one that has ended."""
        free = [run.run_id for run in self.runs if self._run(run.run_id).is_told]
        free = [run_id for run_id in free if run_id not in self.held]
        number = len(self.runs)
        run = Told(free[-1] if reuses and free else f"r{number}", number, build)
        self.runs.append(run)
        request = RunRequest(
            Mode.BATCH, run_id=run.run_id, build="build" if build else None, exec="exec",
            token=self._token(has_token),
        )  # fmt: skip
        self._ask(request, fate)

    @precondition(lambda self: self.runner is not None)
    @rule(number=runs, fate=fates, has_token=st.booleans())
    def poll(self, number: int, fate: str, has_token: bool) -> None:
        run = self._pick(number)
        if run is None or run.run_id in self.held:
            return
        try:
            self._ask(
                RunRequest(Mode.CONTINUE, run_id=run.run_id, token=self._token(has_token)), fate
            )
        except RunNotFound:
            assert run.is_told

    @precondition(lambda self: self.runner is not None and self.held)
    @rule(number=runs, arrives=st.booleans())
    def answer_arrives_or_not(self, number: int, arrives: bool) -> None:
        run_id = sorted(self.held)[number % len(self.held)]
        self._decide(run_id, arrives=arrives or self.held[run_id][1] is not None)

    @precondition(lambda self: self.runner is not None)
    @rule(number=runs, text=st.sampled_from(["a", "", "é\n", "two\nlines"]), twice=st.booleans())
    def type_in(self, number: int, text: str, twice: bool) -> None:
        """Give a line, and again with the same token: it counts once."""
        assert self.runner is not None
        run = self._pick(number)
        if run is None:
            return
        request = RunRequest(Mode.INPUT, text, run_id=run.run_id, token=self._token(twice))
        try:
            for _ in range(1 + twice):
                self._do(_call(self.runner.open, request))
        except RunNotFound:
            return
        if not run.is_over:
            run.typed += text if text.endswith("\n") else f"{text}\n"

    @precondition(lambda self: self.runner is not None)
    @rule()
    def interrupt(self) -> None:
        """A program may ignore it, and these do."""
        assert self.runner is not None
        self._do(_call(self.runner.interrupt))

    @precondition(lambda self: self.runner is not None)
    @rule()
    def cancel_all(self) -> None:
        assert self.runner is not None
        self._do(_call(self.runner.cancel_all))
        for run in self.runs:
            if not run.is_over:
                run.is_cancelled = True
                run.expected.append((Status.FINISHED, 130))

    # --- init -----------------------------------------------------------------------------

    @rule(is_slow=st.booleans())
    def init_gets_slow_or_quick(self, is_slow: bool) -> None:
        self.init.is_slow = is_slow
        if not is_slow:
            self._hear_of_input()

    def _hear_of_input(self) -> None:
        while self.connection is not None and self.connection.withheld:
            self._do(_call(self.connection.tell))

    # --- programs -------------------------------------------------------------------------

    def _begun(self, program: Program) -> None:
        """A build that a run does without has finished when its program begins (R6)."""
        run = next(r for r in self.runs if r.run_id == program.run_id and not r.is_over)
        program.told = run
        if run not in self.order:
            self.order.append(run)
        if not run.build and not run.expected:
            run.expected.append((Status.BUILD_FINISHED, 0))

    @precondition(lambda self: self._unstarted is not None)
    @rule(is_refused=st.booleans())
    def program_starts_or_its_child_had_died(self, is_refused: bool) -> None:
        program = self._unstarted
        assert program is not None
        assert program.started is not None
        key = (program.told.number, program.command)
        has_run = bool(program.number in self.printed or program.got)
        if is_refused and not has_run and key not in self.refused and not program.is_killed:
            self.refused.add(key)
            self._drop(program)
            if program.is_interrupted:  # it shall not run now
                self._ended(program, 130)
            program.started.set_exception(StepNotStarted(Phase.STANDBY, 0))
        else:
            program.started.set_result(Started(program.number, 2))
        self._do(asyncio.sleep(0))

    @property
    def _unstarted(self) -> Program | None:
        program = self.init.running
        if self.runner is None or program is None or program.started is None:
            return None
        return program if not program.started.done() else None

    def _drop(self, program: Program) -> None:
        del self.init.programs[program.number]
        program.close()
        program.forget()

    @precondition(lambda self: self.init.running is not None)
    @rule(stream=streams, cut=st.integers(0, 30))
    def print(self, stream: str, cut: int) -> None:
        """Write a piece of an endless text, which ends in the middle of anything."""
        program = self.init.running
        assert program is not None
        if program.is_killed:
            return
        self.pieces += 1
        whole = program.unwritten[stream] + f"<{self.pieces}é世🎈>".encode()
        program.unwritten[stream] = whole[cut:]
        self._write(program, stream, whole[:cut])

    def _write(self, program: Program, stream: str, data: bytes) -> None:
        self.printed.add(program.number)
        os.write(program.outs[stream], data)
        run = program.told
        if not run.is_cancelled:
            run.wrote[stream] += data
        self._do(asyncio.sleep(0))

    @precondition(lambda self: self.init.running is not None)
    @rule()
    def read(self) -> None:
        program = self.init.running
        assert program is not None
        program.read()

    @precondition(lambda self: self.init.running is not None)
    @rule(code=st.sampled_from([0, 0, 3]))
    def program_ends(self, code: int) -> None:
        program = self.init.running
        assert program is not None
        run = program.told
        if self._unstarted is program:
            assert program.started is not None
            program.started.set_result(Started(program.number, 2))
            self._do(asyncio.sleep(0))
        if not program.is_killed:
            for stream in STREAMS:
                self._write(program, stream, program.unwritten[stream])
        self._hear_of_input()  # or the rest of it would wait for that
        program.read()
        if program.command == "exec" and not run.is_cancelled:
            got = program.got.decode()
            assert got == run.typed or (self.is_input_due and run.typed.startswith(got))
        program.close()
        program.exit = StepExit(program.number, 9 if program.is_killed else code << 8, USAGE, 0, 10)
        self._ended(program, code)
        if self.connection is not None:
            told = self.connection.on_exit.pop(program.number)
            self._do(_call(told, program.exit))

    def _ended(self, program: Program, code: int) -> None:
        run = program.told
        if run.is_over:
            return
        if program.command == "exec":
            run.expected.append((Status.FINISHED, code))
            return
        run.expected.append((Status.BUILD_FINISHED, code))
        if code:
            run.expected.append((Status.FINISHED, 127))

    # --- what must hold ---------------------------------------------------------------------

    @invariant()
    def runs_come_in_their_order(self) -> None:
        numbers = [run.number for run in self.order]
        assert numbers == sorted(numbers)

    @invariant()
    def nobody_hears_what_was_not_written_or_twice(self) -> None:
        for run in self.runs:
            for stream in STREAMS:
                assert run.wrote[stream].decode("utf-8", "replace").startswith(run.heard[stream])
            assert run.ends == run.expected[: len(run.ends)]

    def teardown(self) -> None:
        """Let everything come to its end, and compare."""
        try:
            if self.runner is None:
                self._serve()
            for run_id in list(self.held):
                self._decide(run_id, arrives=True)
            for _ in range(2 * MAX_RUNS):
                if self.init.running is not None:
                    self.program_ends(0)
            assert self.init.running is None
            for run in self.runs:
                for _ in range(10):
                    if run.is_told:
                        break
                    assert run is self._run(run.run_id)
                    self._ask(RunRequest(Mode.CONTINUE, run_id=run.run_id), "arrives")
                assert run.ends == run.expected, run
                for stream in STREAMS:
                    wrote = run.wrote[stream].decode("utf-8", "replace")
                    assert run.heard[stream] == wrote
        finally:
            self._end()

    def _end(self) -> None:
        async def end() -> None:
            if self.runner is not None:
                self.runner.broken("the test is over")

        self._do(end())
        for program in list(self.init.programs.values()):
            if program.exit is None:
                program.close()
            program.forget()
        self.loop.close()
        self.large.stop()
        shutil.rmtree(self.folder)


async def _call(function: Callable[..., T], *args: Any) -> T:
    return function(*args)


Engine.TestCase.settings = settings(
    max_examples=2000 if os.environ.get("RETORT_LONG") else 60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestEngine = pytest.mark.slow(Engine.TestCase)
