"""A run: one execute, its steps, and what may follow what (spec 6.2, rules R1-R17).

`advance` is the whole life of a run as a pure function: a state and an event give the next state
and the orders to carry out. node/runner.py carries them out; nothing here does I/O or knows time.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import TypeVar

from retort.core.build import CacheNote
from retort.core.console import ConsoleItem
from retort.core.limits import Usage

N = TypeVar("N", int, float)

BUILD_FAILED_EXIT = 127  #: exit code of `finished` when the build failed (R9)
SESSION_DIED_EXIT = 130  #: exit code of `finished` when the session ended during the run (R15)
OUR_FAULT_EXIT = -1  #: negative only for failures of Retort itself (spec 5.2)


class Mode(enum.Enum):
    """What an execute call asks for (spec 6.2)."""

    BATCH = "batch"
    QUERY = "query"
    CONTINUE = "continue"
    INPUT = "input"

    @property
    def starts(self) -> bool:
        """Whether the call starts a run, rather than going on with one."""
        return self in (Mode.BATCH, Mode.QUERY)


@dataclasses.dataclass(frozen=True, slots=True)
class RunLimits:
    """What one run may take; None: no limit of its own. The server's own limits hold as well.

    Attributes:
        wall_s: from the start of its first step.
        cpu_s: CPU time of all its processes together, over all of its steps.
        output_bytes: printed by one step on both streams; more ends the step.
    """

    wall_s: float | None = None
    cpu_s: float | None = None
    output_bytes: int | None = None

    def stricter(self, other: RunLimits) -> RunLimits:
        """Give the smaller of each."""
        return RunLimits(
            _least(self.wall_s, other.wall_s),
            _least(self.cpu_s, other.cpu_s),
            _least(self.output_bytes, other.output_bytes),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class RunRequest:
    """One execute call, parsed.

    Attributes:
        code: query: source text; input: the user's line; else ignored.
        run_id: None draws a random one (R1).
        has_clean: whether `options` had a `clean` key; it decides on `clean-finished` (R6).
        clean, build, exec: shell commands; None: skipped; "*": the image's default (spec 5.1).
        limits: additive option `limits` of the batch object.
        keeps_background: what exec leaves running lives on, for those who want a server in their
            session (additive option `keepBackground`).
        token: names the call for ever, also when it is repeated: what it did is not done twice.
        caches_build: an identical earlier build may stand for this one (additive option `cache`);
            None: as the server's settings say.
    """

    mode: Mode
    code: str = ""
    run_id: str | None = None
    has_clean: bool = False
    clean: str | None = None
    build: str | None = None
    exec: str | None = None
    limits: RunLimits = RunLimits()
    keeps_background: bool = False
    token: str | None = None
    caches_build: bool | None = None


class Status(enum.Enum):
    """The status of an answer (spec 5.2)."""

    CONTINUED = "continued"
    WAITING_INPUT = "waiting-input"
    CLEAN_FINISHED = "clean-finished"
    BUILD_FINISHED = "build-finished"
    FINISHED = "finished"
    EXEC_TIMEOUT = "exec-timeout"

    @property
    def ends_run(self) -> bool:
        """Whether no further call may name the run."""
        return self in (Status.FINISHED, Status.EXEC_TIMEOUT)


@dataclasses.dataclass(frozen=True, slots=True)
class OutputFile:
    """A file a run made under /home/work/.output (spec 5.4); `name` is relative to that."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a caller (spec 5.2).

    Attributes:
        is_cancelled: the session died during the run (R15).
        verdict: on the step that this answer reports the end of; None when none ran.
        walls: what this host enforced on it, by name; comes with a verdict.
        ticket: names its delivery, for `Node.delivered` and `Node.undeliver`; 0: it tells nothing
            that could be lost.
    """

    run_id: str
    status: Status
    exit_code: int | None = None
    console: tuple[ConsoleItem, ...] = ()
    files: tuple[OutputFile, ...] = ()
    is_cancelled: bool = False
    verdict: StepResult | None = None
    walls: Mapping[str, str] | None = None
    ticket: int = dataclasses.field(default=0, compare=False)  # of the way, not of what is said


class Phase(enum.Enum):
    """The steps of a run, in their order (R5)."""

    CLEAN = "clean"
    BUILD = "build"
    EXEC = "exec"

    @property
    def has_input(self) -> bool:
        """Whether the step reads what its caller types; any other reads nothing (spec 5.7)."""
        return self is Phase.EXEC


class Outcome(enum.Enum):
    """How a step ended. A value, never an exception: the program's fate is not our error."""

    EXITED = "exited"  #: by itself; exit_code may be non-zero
    SIGNALLED = "signalled"  #: by a signal Retort did not send
    TIMED_OUT = "timed-out"  #: its time ran out, by the wall clock or of CPU; Retort killed it
    OUT_OF_MEMORY = "out-of-memory"  #: the host kernel killed of it, at the session's limit
    PIDS_LIMIT = "pids-limit"  #: it failed after forks were refused by the process limit
    DISK_FULL = "disk-full"  #: it failed with the session's file space used up
    OUTPUT_LIMIT = "output-limit"  #: it printed more than it may; Retort killed it
    CANCELLED = "cancelled"  #: the session was destroyed or restarted
    INFRASTRUCTURE = "infrastructure"  #: the sandbox or the host failed; never the program's fault


class Stop(enum.Enum):
    """Why Retort ended a step before its time."""

    WALL = "wall"  #: its wall-clock limit
    CPU = "cpu"  #: its limit of CPU time, over all its processes
    OUTPUT = "output"  #: it printed more than it may


@dataclasses.dataclass(frozen=True, slots=True)
class StepResult:
    """The end of one step.

    Attributes:
        exit_code: 0-255; 128+n when signal n ended it (D6); negative: our fault.
        signal: its number when one ended it, else None.
        stop: why Retort ended it before its time, if it did.
        cache: of a build that asked for the cache; else None.
    """

    outcome: Outcome
    exit_code: int
    signal: int | None = None
    usage: Usage = Usage()
    stop: Stop | None = None
    cache: CacheNote | None = None


def _least(one: N | None, other: N | None) -> N | None:
    given = [value for value in (one, other) if value is not None]
    return min(given, default=None)


# --- the machine ----------------------------------------------------------------------------


class Stage(enum.Enum):
    """Where a run is."""

    QUEUED = "queued"  #: an earlier run holds the session (R12)
    CLEAN = "clean"
    BUILD = "build"
    EXEC = "exec"
    ENDED = "ended"  #: nothing follows

    @property
    def phase(self) -> Phase | None:
        """The step that runs in this stage."""
        return None if self in (Stage.QUEUED, Stage.ENDED) else Phase(self.value)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do: a command per phase (absent: skipped), decided when it starts.

    Attributes:
        commands: argv lists by phase.
        reports_clean: `clean-finished` is sent (R6).
        reports_build: `build-finished` is sent; not in query mode (spec 7.10).
    """

    commands: Mapping[Phase, tuple[str, ...]]
    reports_clean: bool = True
    reports_build: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class RunState:
    """One run at one moment."""

    plan: Plan
    stage: Stage = Stage.QUEUED
    is_timed_out: bool = False  #: its wall limit ran out; its step is being killed


# Events


@dataclasses.dataclass(frozen=True, slots=True)
class Begun:
    """The run is first in its session's queue."""


@dataclasses.dataclass(frozen=True, slots=True)
class StepEnded:
    """The main process of the present step ended, and all of its output was collected."""

    result: StepResult


@dataclasses.dataclass(frozen=True, slots=True)
class TimeUp:
    """The run's wall limit ran out (R13)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cancelled:
    """The session is destroyed or restarted (R15)."""


Event = Begun | StepEnded | TimeUp | Cancelled

# Orders


@dataclasses.dataclass(frozen=True, slots=True)
class StartStep:
    """Start a program."""

    phase: Phase
    argv: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class KillStep:
    """Kill every process of the present step; its end will come as StepEnded."""


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """Close the present answer with this status; later output belongs to the next one."""

    status: Status
    exit_code: int | None
    result: StepResult | None = None  #: of the step that ended; None when it was skipped


Order = StartStep | KillStep | Report
Next = tuple[RunState, tuple[Order, ...]]


def advance(state: RunState, event: Event) -> Next:
    """Give the run's next state and the orders to carry out, in their order.

    Events that come too late (a step's end after the run was cancelled) change nothing.
    """
    if state.stage is Stage.ENDED:
        return state, ()
    match event:
        case Begun():
            return _enter_clean(state) if state.stage is Stage.QUEUED else (state, ())
        case Cancelled():
            return _cancel(state)
        case TimeUp():
            return _time_up(state)
        case StepEnded(result):
            return _step_ended(state, result)


def _enter_clean(state: RunState) -> Next:
    if argv := state.plan.commands.get(Phase.CLEAN):
        return _at(state, Stage.CLEAN), (StartStep(Phase.CLEAN, argv),)
    done = (Report(Status.CLEAN_FINISHED, 0),) if state.plan.reports_clean else ()
    return _then(done, _enter_build(state))


def _enter_build(state: RunState) -> Next:
    if argv := state.plan.commands.get(Phase.BUILD):
        return _at(state, Stage.BUILD), (StartStep(Phase.BUILD, argv),)
    done = (Report(Status.BUILD_FINISHED, 0),) if state.plan.reports_build else ()
    return _then(done, _enter_exec(state))


def _enter_exec(state: RunState) -> Next:
    if argv := state.plan.commands.get(Phase.EXEC):
        return _at(state, Stage.EXEC), (StartStep(Phase.EXEC, argv),)
    return _end(state, Report(Status.FINISHED, 0))


def _step_ended(state: RunState, result: StepResult) -> Next:
    if state.stage is Stage.QUEUED:
        return state, ()
    if state.is_timed_out:
        return _end(state, Report(Status.EXEC_TIMEOUT, None, result))
    if result.outcome is Outcome.INFRASTRUCTURE:
        return _end(state, Report(Status.FINISHED, result.exit_code, result))
    code = result.exit_code
    if state.stage is Stage.CLEAN:  # a failing clean does not stop the run (R7)
        reports = (Report(Status.CLEAN_FINISHED, code, result),) if state.plan.reports_clean else ()
        return _then(reports, _enter_build(state))
    if state.stage is Stage.BUILD:
        done = (Report(Status.BUILD_FINISHED, code, result),) if state.plan.reports_build else ()
        if code:
            return _then(done, _end(state, Report(Status.FINISHED, BUILD_FAILED_EXIT, result)))
        return _then(done, _enter_exec(state))
    return _end(state, Report(Status.FINISHED, code, result))


def _time_up(state: RunState) -> Next:
    if state.stage is Stage.QUEUED or state.is_timed_out:
        return state, ()
    return dataclasses.replace(state, is_timed_out=True), (KillStep(),)


def _cancel(state: RunState) -> Next:
    kill: tuple[Order, ...] = () if state.stage is Stage.QUEUED else (KillStep(),)
    cancelled = StepResult(Outcome.CANCELLED, SESSION_DIED_EXIT)
    return _then(kill, _end(state, Report(Status.FINISHED, SESSION_DIED_EXIT, cancelled)))


def _at(state: RunState, stage: Stage) -> RunState:
    return dataclasses.replace(state, stage=stage)


def _end(state: RunState, report: Report) -> Next:
    return _at(state, Stage.ENDED), (report,)


def _then(first: tuple[Order, ...], following: Next) -> Next:
    return following[0], first + following[1]
