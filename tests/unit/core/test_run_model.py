"""`advance` beside a slow, obvious model: the story of a run, told from its whole history."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

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
    StartStep,
    Status,
    StepEnded,
    StepResult,
    TimeUp,
    advance,
)

PHASES = (Phase.CLEAN, Phase.BUILD, Phase.EXEC)
STATUS = {Phase.CLEAN: Status.CLEAN_FINISHED, Phase.BUILD: Status.BUILD_FINISHED}
plans = st.builds(
    Plan,
    st.dictionaries(st.sampled_from(PHASES), st.just(("sh",))),
    st.booleans(),
    st.booleans(),
)
results = st.one_of(
    st.integers(0, 2).map(lambda code: StepResult(Outcome.EXITED, code)),
    st.just(StepResult(Outcome.INFRASTRUCTURE, -1)),
)
events = st.lists(
    st.one_of(st.just(Begun()), results.map(StepEnded), st.just(TimeUp()), st.just(Cancelled())),
    max_size=12,
)


def told(plan: Plan, history: list[Event]) -> list[tuple[Status, int | None]]:
    """Say from the beginning what a run has reported after these events."""
    reports: list[tuple[Status, int | None]] = []
    left: list[Phase] | None = None  # phases not ended yet; None: it waits for its turn
    is_late = False

    def skip() -> bool:
        """Report what has no command; True when nothing is left."""
        assert left is not None
        while left and left[0] not in plan.commands:
            tell(left.pop(0), 0)
        return not left

    def tell(phase: Phase, code: int) -> None:
        if phase is Phase.EXEC:
            reports.append((Status.FINISHED, code))
        elif plan.reports_clean if phase is Phase.CLEAN else plan.reports_build:
            reports.append((STATUS[phase], code))

    for event in history:
        if isinstance(event, Cancelled):
            return [*reports, (Status.FINISHED, 130)]
        if isinstance(event, Begun) and left is None:
            left = list(PHASES)
            if skip():
                return reports
        elif isinstance(event, TimeUp) and left is not None:
            is_late = True
        elif isinstance(event, StepEnded) and left is not None:
            code = event.result.exit_code
            if is_late:
                return [*reports, (Status.EXEC_TIMEOUT, None)]
            if event.result.outcome is Outcome.INFRASTRUCTURE:
                return [*reports, (Status.FINISHED, code)]
            phase = left.pop(0)
            tell(phase, code)
            if phase is Phase.BUILD and code:
                return [*reports, (Status.FINISHED, 127)]
            if phase is Phase.EXEC or skip():
                return reports
    return reports


@settings(max_examples=300, deadline=None)
@given(plans, events)
def test_a_run_reports_what_its_history_says_and_breaks_no_rule(
    plan: Plan, history: list[Event]
) -> None:
    state, orders = RunState(plan), list[Order]()
    for event in history:
        state, more = advance(state, event)
        orders += more
    reports = [order for order in orders if isinstance(order, Report)]
    assert [(r.status, r.exit_code) for r in reports] == told(plan, history)
    ends = [r for r in reports if r.status.ends_run]
    assert len(ends) <= 1
    assert not ends or orders[-1] is ends[0]
    started = [order.phase for order in orders if isinstance(order, StartStep)]
    assert started == sorted(set(started), key=PHASES.index)
    assert all(phase in plan.commands for phase in started)
    kills = [n for n, order in enumerate(orders) if isinstance(order, KillStep)]
    assert all(any(isinstance(o, StartStep) for o in orders[:n]) for n in kills)
