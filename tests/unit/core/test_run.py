from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from retort.core.run import (
    Begun,
    Cancelled,
    Event,
    KillStep,
    Order,
    Outcome,
    Phase,
    Plan,
    Report,
    RunState,
    Stage,
    StartStep,
    Status,
    StepEnded,
    StepResult,
    TimeUp,
    advance,
)

OK = StepEnded(StepResult(Outcome.EXITED, 0))
FAILS = StepEnded(StepResult(Outcome.EXITED, 3))
SIGNALLED = StepEnded(StepResult(Outcome.SIGNALLED, 137, 9))
OUR_FAULT = StepEnded(StepResult(Outcome.INFRASTRUCTURE, -1))
EVENTS: tuple[Event, ...] = (Begun(), OK, FAILS, SIGNALLED, OUR_FAULT, TimeUp(), Cancelled())


def plans() -> Iterator[Plan]:
    for count in range(len(Phase) + 1):
        for phases in itertools.combinations(Phase, count):
            for clean, build in itertools.product((False, True), repeat=2):
                commands = {phase: ("/bin/bash", phase.value) for phase in phases}
                yield Plan(commands, reports_clean=clean, reports_build=build)


class Model:
    """The rules R5 to R9, R13 and R15 as one would tell them: slowly, by a list of what is left."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.left = list(Phase)
        self.running: Phase | None = None
        self.is_begun = self.is_ended = self.is_late = False

    def tell(self, event: Event) -> list[object]:
        if self.is_ended:
            return []
        match event:
            case Begun():
                if self.is_begun:
                    return []
                self.is_begun = True
                return self._go_on([])
            case Cancelled():
                self.is_ended = True
                kill = ["kill"] if self.is_begun else []
                return [*kill, (Status.FINISHED, 130)]
            case TimeUp():
                if not self.is_begun or self.is_late:
                    return []
                self.is_late = True
                return ["kill"]
            case StepEnded(result):
                return self._ended(result) if self.is_begun else []

    def _ended(self, result: StepResult) -> list[object]:
        if self.is_late:
            self.is_ended = True
            return [(Status.EXEC_TIMEOUT, None)]
        if result.outcome is Outcome.INFRASTRUCTURE:
            self.is_ended = True
            return [(Status.FINISHED, result.exit_code)]
        assert self.running is not None
        told = self._told(self.running, result.exit_code)
        if self.running is Phase.BUILD and result.exit_code != 0:
            self.is_ended = True
            return [*told, (Status.FINISHED, 127)]
        if self.is_ended:
            return told
        return self._go_on(told)

    def _told(self, phase: Phase, code: int) -> list[object]:
        if phase is Phase.CLEAN:
            return [(Status.CLEAN_FINISHED, code)] if self.plan.reports_clean else []
        if phase is Phase.BUILD:
            return [(Status.BUILD_FINISHED, code)] if self.plan.reports_build else []
        self.is_ended = True
        return [(Status.FINISHED, code)]

    def _go_on(self, told: list[object]) -> list[object]:
        while self.left:
            self.running = self.left.pop(0)
            if self.running in self.plan.commands:
                return [*told, self.running]
            told += self._told(self.running, 0)
        return told


def short(orders: tuple[Order, ...]) -> list[object]:
    def one(order: Order) -> object:
        match order:
            case StartStep(phase):
                return phase
            case KillStep():
                return "kill"
            case Report(status, code):
                return (status, code)

    return [one(order) for order in orders]


def told(plan: Plan, *events: Event) -> list[object]:
    state, orders = RunState(plan), []
    for event in events:
        state, more = advance(state, event)
        orders += short(more)
    return orders


# --- everything ---------------------------------------------------------------------------------


def test_every_reachable_state_answers_every_event_as_the_rules_say() -> None:
    for plan in plans():
        paths: list[tuple[Event, ...]] = [()]
        seen: set[tuple[Stage, bool]] = set()
        while paths:
            path = paths.pop()
            for event in EVENTS:
                model, state = Model(plan), RunState(plan)
                for earlier in path:
                    model.tell(earlier)
                    state, _ = advance(state, earlier)
                after, orders = advance(state, event)
                assert short(orders) == model.tell(event), (plan, path, event)
                assert (after.stage is Stage.ENDED) == model.is_ended
                if (after.stage, after.is_timed_out) not in seen:
                    seen.add((after.stage, after.is_timed_out))
                    paths.append((*path, event))


def test_whatever_happens_a_run_ends_with_exactly_one_last_report() -> None:
    for plan in plans():
        for events in itertools.product(EVENTS, repeat=3):
            state, reports, running = RunState(plan), [], False
            for event in (*events, Cancelled()):
                state, orders = advance(state, event)
                for order in orders:
                    assert not reports or not reports[-1].ends_run, "nothing follows the end"
                    if isinstance(order, Report):
                        reports.append(order.status)
                    running = isinstance(order, StartStep) or running
            assert state.stage is Stage.ENDED
            assert [status.ends_run for status in reports].count(True) == 1
            assert len(set(reports)) == len(reports)
            if not running:
                assert Status.EXEC_TIMEOUT not in reports or not plan.commands


@pytest.mark.parametrize("event", EVENTS, ids=repr)
def test_nothing_follows_the_end(event: Event) -> None:
    ended, _ = advance(RunState(Plan({})), Cancelled())
    assert advance(ended, event) == (ended, ())


class RunMachine(RuleBasedStateMachine):
    """Long random lives against the model."""

    @initialize(plan=st.sampled_from(list(plans())))
    def start(self, plan: Plan) -> None:
        self.model, self.state = Model(plan), RunState(plan)

    @rule(event=st.sampled_from(EVENTS))
    def happens(self, event: Event) -> None:
        self.state, orders = advance(self.state, event)
        assert short(orders) == self.model.tell(event)

    @invariant()
    def stage_agrees(self) -> None:
        if hasattr(self, "model"):
            assert (self.state.stage is Stage.ENDED) == self.model.is_ended
            assert (self.state.stage is Stage.QUEUED) == (
                not self.model.is_begun and not self.model.is_ended
            )


TestRunMachine = RunMachine.TestCase
TestRunMachine.settings = settings(max_examples=20, stateful_step_count=12, derandomize=True)


# --- the rules as tables ------------------------------------------------------------------------

CLEAN, BUILD, EXEC = Phase.CLEAN, Phase.BUILD, Phase.EXEC
CLEANED, BUILT = (Status.CLEAN_FINISHED, 0), (Status.BUILD_FINISHED, 0)
DONE = (Status.FINISHED, 0)


def plan_of(*phases: Phase, clean: bool = True) -> Plan:
    return Plan(dict.fromkeys(phases, ("sh",)), reports_clean=clean)


@pytest.mark.parametrize(
    ("plan", "events", "expected"),
    [
        # R5: clean, build, exec
        (
            plan_of(CLEAN, BUILD, EXEC),
            [OK, OK, OK],
            [CLEAN, CLEANED, BUILD, BUILT, EXEC, DONE],
        ),
        # R6: skipped phases
        (plan_of(clean=False), [], [BUILT, DONE]),
        (plan_of(), [], [CLEANED, BUILT, DONE]),
        (plan_of(EXEC, clean=False), [FAILS], [BUILT, EXEC, (Status.FINISHED, 3)]),
        (plan_of(BUILD), [OK], [CLEANED, BUILD, BUILT, DONE]),
        # R7: a failing clean
        (
            plan_of(CLEAN, EXEC),
            [SIGNALLED, OK],
            [CLEAN, (Status.CLEAN_FINISHED, 137), BUILT, EXEC, DONE],
        ),
        # R9: a failing build
        (
            plan_of(BUILD, EXEC),
            [FAILS],
            [CLEANED, BUILD, (Status.BUILD_FINISHED, 3), (Status.FINISHED, 127)],
        ),
        (
            plan_of(BUILD),
            [SIGNALLED],
            [CLEANED, BUILD, (Status.BUILD_FINISHED, 137), (Status.FINISHED, 127)],
        ),
        # R13: time
        (
            plan_of(EXEC, clean=False),
            [TimeUp(), TimeUp(), SIGNALLED],
            [BUILT, EXEC, "kill", (Status.EXEC_TIMEOUT, None)],
        ),
        (
            plan_of(CLEAN, BUILD, EXEC),
            [TimeUp(), OK],
            [CLEAN, "kill", (Status.EXEC_TIMEOUT, None)],
        ),
        # R15: the session's end
        (
            plan_of(EXEC, clean=False),
            [Cancelled(), SIGNALLED],
            [BUILT, EXEC, "kill", (Status.FINISHED, 130)],
        ),
        (
            plan_of(BUILD),
            [TimeUp(), Cancelled(), SIGNALLED],
            [CLEANED, BUILD, "kill", "kill", (Status.FINISHED, 130)],
        ),
        # spec 5.2: our own failures
        (plan_of(CLEAN, EXEC), [OUR_FAULT], [CLEAN, (Status.FINISHED, -1)]),
    ],
)
def test_a_run_tells_what_the_rules_say(
    plan: Plan, events: list[Event], expected: list[object]
) -> None:
    assert told(plan, Begun(), *events) == expected


def test_r12_a_waiting_run_begins_only_once_and_keeps_its_time() -> None:
    waiting = RunState(plan_of(EXEC))
    assert advance(waiting, TimeUp()) == (waiting, ())
    assert advance(waiting, OK) == (waiting, ())
    begun, _ = advance(waiting, Begun())
    assert advance(begun, Begun()) == (begun, ())


def test_r15_a_waiting_run_has_nothing_to_kill() -> None:
    assert told(plan_of(EXEC), Cancelled()) == [(Status.FINISHED, 130)]


def test_a_query_reports_its_end_only() -> None:
    plan = Plan({EXEC: ("sh",)}, reports_clean=False, reports_build=False)
    assert told(plan, Begun(), FAILS) == [EXEC, (Status.FINISHED, 3)]
