"""A journal that is read again: what left an earlier server leaves this one untold."""

from __future__ import annotations

from retort.core.run import Answer, Plan, RunLimits, RunState
from retort.node.live_run import LiveRun
from retort.node.records import CancelledRun, Opened, Taken
from retort.node.replay import Replay


def test_an_answer_that_was_taken_is_not_on_its_way_a_second_time() -> None:
    told: list[Answer] = []

    def tell(run: LiveRun, answer: Answer, is_closed: bool, token: str | None) -> Answer:
        told.append(answer)
        return answer

    def make(
        run_id: str, state: RunState, limits: RunLimits, keeps: bool, is_watched: bool
    ) -> LiveRun:
        return LiveRun(run_id, state, output_chars=100, limits=limits, on_take=tell)

    replay = Replay(make)
    plan = Plan({}, reports_clean=False, reports_build=True)
    replay.read(
        [
            Opened("one", plan, RunLimits(), False, False),
            CancelledRun("one"),
            Taken(1, "one", True, None),
        ]
    )
    assert list(replay.on_their_way) == [1]
    assert not replay.runs
    assert not told
