from __future__ import annotations

import datetime as dt
import itertools
import uuid

import pytest

from retort.core.session import IllegalTransition, Session, SessionStatus

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
LATER = NOW + dt.timedelta(seconds=5)
S = SessionStatus
ALLOWED = {
    (S.PENDING, S.PREPARING),
    (S.PENDING, S.CANCELLED),
    (S.PENDING, S.ERROR),
    (S.PREPARING, S.RUNNING),
    (S.PREPARING, S.ERROR),
    (S.PREPARING, S.TERMINATING),
    (S.PREPARING, S.CANCELLED),
    (S.RUNNING, S.RESTARTING),
    (S.RUNNING, S.TERMINATING),
    (S.RESTARTING, S.RUNNING),
    (S.RESTARTING, S.ERROR),
    (S.RESTARTING, S.TERMINATING),
    (S.ERROR, S.TERMINATING),
    (S.ERROR, S.TERMINATED),
    (S.TERMINATING, S.TERMINATED),
}


def session(status: SessionStatus) -> Session:
    return Session(
        uuid.UUID(int=1), "name", "AK", uuid.UUID(int=2), "gcc:12", "gcc", status, NOW, reason="old"
    )


@pytest.mark.parametrize(("before", "after"), list(itertools.product(S, S)))
def test_a_state_is_followed_only_by_those_that_may(
    before: SessionStatus, after: SessionStatus
) -> None:
    if (before, after) in ALLOWED:
        assert session(before).moved(after, LATER).status is after
    else:
        with pytest.raises(IllegalTransition):
            session(before).moved(after, LATER)


@pytest.mark.parametrize("status", S)
def test_only_terminated_and_cancelled_are_not_live(status: SessionStatus) -> None:
    assert status.is_live == (status not in (S.TERMINATED, S.CANCELLED))


@pytest.mark.parametrize("status", [s for s in S if s.is_live])
def test_a_live_session_can_come_to_its_end(status: SessionStatus) -> None:
    reached = {status}
    for _ in S:
        reached |= {after for before, after in ALLOWED if before in reached}
    assert reached & {S.TERMINATED, S.CANCELLED}


def test_a_move_is_remembered_with_its_time_and_reason() -> None:
    ending = session(S.RUNNING).moved(S.TERMINATING, LATER, "user-requested")
    ended = ending.moved(S.TERMINATED, LATER)
    assert (ending.terminated_at, ended.terminated_at) == (None, LATER)
    assert ended.reason == "user-requested"
    assert ended.history == (("terminating", LATER.isoformat()), ("terminated", LATER.isoformat()))
