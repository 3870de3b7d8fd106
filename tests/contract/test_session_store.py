"""What every SessionStore promises (core/ports.py)."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import uuid

import pytest
from tests.fakes import START

from retort.core.limits import Limits, Usage
from retort.core.ports import SessionStore
from retort.core.session import Session, SessionStatus
from retort.errors import Conflict, NotFound

LIVE = [status for status in SessionStatus if status.is_live]
ENDED = [status for status in SessionStatus if not status.is_live]


def session(number: int = 0, **changes: object) -> Session:
    made = Session(
        id=uuid.UUID(int=number),
        name=f"name-{number}",
        owner="AKOWNER",
        user_id=uuid.UUID(int=99),
        image="gcc:12-debian",
        asked_image="gcc",
        status=SessionStatus.PENDING,
        created_at=START + dt.timedelta(seconds=number),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


async def test_what_is_added_is_found_whole(sessions: SessionStore) -> None:
    whole = session(
        1,
        status=SessionStatus.TERMINATED,
        tag="a tag, 한국어",
        environ={"A": "1", "B": "ünï\n\x01", "C": ""},
        limits=Limits(scratch_bytes=2**40, cpus=0.5),
        resource_slots={"cpu": "1"},
        bootstrap_script="#!/bin/sh\necho 'hi'\n",
        num_queries=12,
        reason="user-requested",
        usage=Usage(wall_ns=2**62, max_rss_bytes=3),
        terminated_at=START + dt.timedelta(microseconds=1),
        history=(("pending", START.isoformat()), ("terminated", START.isoformat())),
    )
    await sessions.add(whole)

    assert await sessions.get(whole.id) == whole


async def test_defaults_are_found_whole(sessions: SessionStore) -> None:
    await sessions.add(session(1))

    assert await sessions.get(session(1).id) == session(1)


async def test_unknown_is_none(sessions: SessionStore) -> None:
    assert await sessions.get(uuid.UUID(int=5)) is None


async def test_a_known_id_is_a_conflict(sessions: SessionStore) -> None:
    await sessions.add(session(1))

    with pytest.raises(Conflict):
        await sessions.add(session(1, name="other"))


@pytest.mark.parametrize("status", LIVE, ids=lambda status: status.value)
async def test_a_live_sessions_name_is_taken(sessions: SessionStore, status: SessionStatus) -> None:
    await sessions.add(session(1, name="same", status=status))

    with pytest.raises(Conflict):
        await sessions.add(session(2, name="same"))


@pytest.mark.parametrize("status", ENDED, ids=lambda status: status.value)
async def test_an_ended_sessions_name_is_free(
    sessions: SessionStore, status: SessionStatus
) -> None:
    for number in (1, 2):
        await sessions.add(session(number, name="same", status=status))

    await sessions.add(session(3, name="same"))


async def test_another_owner_may_have_the_name(sessions: SessionStore) -> None:
    await sessions.add(session(1, name="same"))

    await sessions.add(session(2, name="same", owner="AKOTHER"))


async def test_names_differ_by_letter_case(sessions: SessionStore) -> None:
    await sessions.add(session(1, name="same"))

    await sessions.add(session(2, name="Same"))


async def test_update_replaces_by_id_only(sessions: SessionStore) -> None:
    await sessions.add(session(1))
    await sessions.add(session(2))
    moved = session(1).moved(SessionStatus.PREPARING, START)

    await sessions.update(moved)

    assert await sessions.get(moved.id) == moved
    assert await sessions.get(session(2).id) == session(2)


async def test_update_of_an_unknown_session_is_not_found(sessions: SessionStore) -> None:
    with pytest.raises(NotFound):
        await sessions.update(session(1))


async def test_renaming_to_a_taken_name_is_a_conflict(sessions: SessionStore) -> None:
    await sessions.add(session(1))
    await sessions.add(session(2))

    with pytest.raises(Conflict):
        await sessions.update(session(2, name=session(1).name))
    assert await sessions.get(session(2).id) == session(2)


async def test_ending_a_session_frees_its_name(sessions: SessionStore) -> None:
    await sessions.add(session(1, name="same"))
    await sessions.update(session(1, name="same").moved(SessionStatus.CANCELLED, START))

    await sessions.add(session(2, name="same"))


async def test_live_gives_the_live_ones_oldest_first(sessions: SessionStore) -> None:
    statuses = list(SessionStatus)
    for number, status in reversed(list(enumerate(statuses))):
        await sessions.add(session(number, status=status))

    assert [found.status for found in await sessions.live()] == LIVE


async def test_find_gives_the_owners_newest_first(sessions: SessionStore) -> None:
    for number in (2, 1, 3):
        await sessions.add(session(number))
    await sessions.add(session(4, owner="AKOTHER"))

    assert [found.id.int for found in await sessions.find("AKOWNER")] == [3, 2, 1]
    assert {found.id.int for found in await sessions.find(None)} == {4, 3, 2, 1}


async def test_find_breaks_ties_by_id(sessions: SessionStore) -> None:
    for number in (2, 1, 2**127, 3):
        await sessions.add(session(number % 1000, id=uuid.UUID(int=number), created_at=START))

    assert [found.id.int for found in await sessions.find("AKOWNER")] == [2**127, 3, 2, 1]


async def test_find_keeps_to_statuses(sessions: SessionStore) -> None:
    for number, status in enumerate(SessionStatus):
        await sessions.add(session(number, status=status))

    found = await sessions.find("AKOWNER", statuses=ENDED)

    assert {one.status for one in found} == set(ENDED)


async def test_find_pages_without_gap_or_overlap(sessions: SessionStore) -> None:
    for number in range(5):
        await sessions.add(session(number))

    pages = [await sessions.find("AKOWNER", limit=2, offset=offset) for offset in (0, 2, 4, 6)]

    assert [[found.id.int for found in page] for page in pages] == [[4, 3], [2, 1], [0], []]


async def test_forgetting_takes_only_what_ended_before(sessions: SessionStore) -> None:
    for number, status in enumerate(ENDED):
        await sessions.add(session(number, status=status, terminated_at=START))
    later = session(8, status=SessionStatus.TERMINATED, terminated_at=START.replace(year=2027))
    alive = session(9, status=SessionStatus.RUNNING)
    await sessions.add(later)
    await sessions.add(alive)

    assert await sessions.forget_ended_before(START) == 0
    assert await sessions.forget_ended_before(START + dt.timedelta(microseconds=1)) == len(ENDED)
    assert await sessions.find("AKOWNER") == [alive, later]


async def test_of_twenty_equal_names_at_once_one_wins(sessions: SessionStore) -> None:
    same = (sessions.add(session(number, name="same")) for number in range(20))

    outcomes = await asyncio.gather(*same, return_exceptions=True)

    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19
