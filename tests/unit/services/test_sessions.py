from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Awaitable, Callable

import pytest
from tests.fakes import START, FakeClock, MemorySessions
from tests.unit.services.conftest import key
from tests.unit.services.scripted import OneNode, ScriptedNode

from retort.core.keypair import KeyPair
from retort.core.session import Session, SessionRequest, SessionStatus
from retort.errors import (
    ImageNotFound,
    InvalidRequest,
    QuotaExceeded,
    SandboxFault,
    SessionExists,
    SessionLost,
    SessionNotFound,
    StoreFault,
)
from retort.services.sessions import SessionService

A, B = key("AKA"), key("AKB")
BROKEN = SandboxFault("launch", "no")


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def made(sessions: SessionService, name: str | None = "name", owner: KeyPair = A) -> Session:
    session, is_new = await sessions.create(owner, SessionRequest("gcc:12", name))
    assert is_new
    return session


# --- making -------------------------------------------------------------------------------------


async def test_a_new_session_runs_and_is_recorded(
    sessions: SessionService, sessions_store: MemorySessions, node: ScriptedNode
) -> None:
    session = await made(sessions)
    assert session.status is SessionStatus.RUNNING
    assert sessions.find(A, "name") is sessions.find(A, str(session.id))
    assert node.held == {session.id}
    stored = await sessions_store.get(session.id)
    assert stored is not None
    assert stored.status is SessionStatus.RUNNING
    assert [state for state, _ in stored.history] == ["pending", "preparing", "running"]


async def test_one_of_the_same_image_is_reused_also_by_an_alias(sessions: SessionService) -> None:
    session = await made(sessions)
    again = await sessions.create(A, SessionRequest("c:12", "name"))
    assert again == (session, False)


@pytest.mark.parametrize(
    "request_", [SessionRequest("gcc:12", "name", reuse=False), SessionRequest("python:3", "name")]
)
async def test_a_taken_name_is_refused_with_its_session(
    sessions: SessionService, request_: SessionRequest
) -> None:
    session = await made(sessions)
    with pytest.raises(SessionExists) as caught:
        await sessions.create(A, request_)
    assert caught.value.data == {"existingSessionId": str(session.id)}


async def test_creates_of_one_name_at_once_make_one_session(
    sessions: SessionService, node: ScriptedNode
) -> None:
    node.gate.clear()
    calls = [
        asyncio.ensure_future(sessions.create(A, SessionRequest("gcc:12", "name")))
        for _ in range(4)
    ]
    await settle()
    node.gate.set()
    answers = await asyncio.gather(*calls)
    assert sorted(is_new for _, is_new in answers) == [False, False, False, True]
    assert len({session.id for session, _ in answers}) == 1
    assert sessions.live_count == 1


async def test_who_waited_for_a_session_that_failed_makes_it_anew(
    sessions: SessionService, node: ScriptedNode
) -> None:
    node.gate.clear()
    node.failure, node.fails_once = BROKEN, True
    first = asyncio.ensure_future(made(sessions))
    await settle()
    second = asyncio.ensure_future(sessions.create(A, SessionRequest("gcc:12", "name")))
    await settle()
    node.gate.set()
    with pytest.raises(SandboxFault):
        await first
    session, is_new = await second
    assert (session.status, is_new) == (SessionStatus.RUNNING, True)


async def test_the_number_of_a_keys_sessions_is_kept_also_when_they_start_together(
    sessions: SessionService,
) -> None:
    calls = (sessions.create(A, SessionRequest("gcc:12")) for _ in range(5))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(result, QuotaExceeded) for result in results].count(True) == 2
    assert sessions.live_count == 3
    await made(sessions, owner=B)


Breaks = Callable[[ScriptedNode, OneNode, MemorySessions], None]


def _node(node: ScriptedNode, placement: OneNode, store: MemorySessions) -> None:
    node.failure = BROKEN


def _placement(node: ScriptedNode, placement: OneNode, store: MemorySessions) -> None:
    placement.failure = QuotaExceeded()


def _store(node: ScriptedNode, placement: OneNode, store: MemorySessions) -> None:
    store.is_broken = True


@pytest.mark.parametrize("breaks", [_node, _placement, _store])
async def test_a_create_that_fails_midway_leaves_nothing_behind(
    sessions: SessionService,
    sessions_store: MemorySessions,
    node: ScriptedNode,
    placement: OneNode,
    breaks: Breaks,
) -> None:
    breaks(node, placement, sessions_store)
    for _ in range(5):  # more often than the key may have sessions
        with pytest.raises((SandboxFault, QuotaExceeded, StoreFault)):
            await made(sessions)
    await settle()
    assert (sessions.live_count, sessions.owned_by(A)) == (0, [])
    node.failure, placement.failure, sessions_store.is_broken = None, None, False
    await settle()
    assert await sessions_store.live() == []
    await made(sessions)


async def test_a_session_that_could_not_be_recorded_as_running_is_ended(
    sessions: SessionService, sessions_store: MemorySessions, node: ScriptedNode
) -> None:
    node.gate.clear()
    making = asyncio.ensure_future(made(sessions))
    await settle()
    sessions_store.is_broken = True
    node.gate.set()
    with pytest.raises(StoreFault):
        await making
    await settle()
    assert node.held == set()
    assert sessions.live_count == 0


async def test_a_sandbox_that_ended_while_it_was_made_is_a_fault(
    sessions: SessionService, sessions_store: MemorySessions, node: ScriptedNode
) -> None:
    node.gate.clear()
    making = asyncio.ensure_future(made(sessions))
    await settle()
    sessions.lost(sessions.find(A, "name").id, "init ended")
    node.gate.set()
    with pytest.raises(SandboxFault):
        await making
    await settle()
    assert sessions.live_count == 0
    assert await sessions_store.live() == []


async def test_a_session_that_still_starts_is_destroyed_without_a_wait(
    sessions: SessionService, sessions_store: MemorySessions, node: ScriptedNode
) -> None:
    node.gate.clear()
    making = asyncio.ensure_future(made(sessions))
    await settle()
    await sessions.destroy(A, "name")
    with pytest.raises(SessionNotFound):
        await making
    await settle()
    assert sessions.live_count == 0
    assert await sessions_store.live() == []


async def test_a_caller_that_is_cancelled_takes_its_session_along(
    sessions: SessionService, node: ScriptedNode
) -> None:
    node.gate.clear()
    making = asyncio.ensure_future(made(sessions))
    await settle()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    await settle()
    assert sessions.live_count == 0


@pytest.mark.parametrize(
    "environ", [{"": "x"}, {"a=b": "x"}, {"a": "\0"}, {"a\0": "b"}, {"big": "x" * 8192}]
)
async def test_an_environment_no_program_can_have_is_refused(
    sessions: SessionService, environ: dict[str, str]
) -> None:
    with pytest.raises(InvalidRequest):
        await sessions.create(A, SessionRequest("gcc:12", environ=environ))
    assert sessions.live_count == 0


async def test_an_unknown_image_is_refused_before_anything(sessions: SessionService) -> None:
    with pytest.raises(ImageNotFound):
        await sessions.create(A, SessionRequest("nothing"))


# --- whose ----------------------------------------------------------------------------------------


async def test_anothers_session_is_as_good_as_none(sessions: SessionService) -> None:
    session = await made(sessions)
    calls: list[Callable[[str], Awaitable[object]]] = [
        lambda ref: sessions.running(B, ref),
        lambda ref: sessions.rename(B, ref, "new-name"),
        lambda ref: sessions.restart(B, ref),
        lambda ref: sessions.interrupt(B, ref),
        lambda ref: sessions.destroy(B, ref),
    ]
    for call in calls:
        for ref in ("name", str(session.id), str(uuid.uuid4()), "no uuid"):
            with pytest.raises(SessionNotFound):
                await call(ref)
    assert sessions.matching(B, "na") == []
    assert [one.id for one in sessions.matching(A, "na")] == [session.id]
    assert [one.id for one in sessions.matching(A, str(session.id)[:8])] == [session.id]


# --- changing -------------------------------------------------------------------------------------


async def test_a_name_that_the_store_refuses_is_taken_back(
    sessions: SessionService, sessions_store: MemorySessions
) -> None:
    await made(sessions)
    sessions_store.is_broken = True
    with pytest.raises(StoreFault):
        await sessions.rename(A, "name", "other")
    assert sessions.find(A, "name").name == "name"
    with pytest.raises(SessionNotFound):
        sessions.find(A, "other")


async def test_restarts_at_once_follow_each_other_and_calls_wait(
    sessions: SessionService, node: ScriptedNode
) -> None:
    await made(sessions)
    node.gate.clear()
    restarts = [asyncio.ensure_future(sessions.restart(A, "name")) for _ in range(3)]
    await settle()
    waiting = asyncio.ensure_future(sessions.running(A, "name"))
    await settle()
    assert sessions.find(A, "name").status is SessionStatus.RESTARTING
    assert not waiting.done()
    node.gate.set()
    await asyncio.gather(*restarts)
    assert (await waiting).status is SessionStatus.RUNNING
    assert node.calls.count(("restart",)) == 3


async def test_a_restart_that_fails_leaves_a_session_that_can_be_ended(
    sessions: SessionService, node: ScriptedNode
) -> None:
    await made(sessions)
    node.failure = BROKEN
    with pytest.raises(SandboxFault):
        await sessions.restart(A, "name")
    await sessions.destroy(A, "name")
    assert sessions.live_count == 0


async def test_a_session_lost_while_it_restarts_is_gone(
    sessions: SessionService, node: ScriptedNode
) -> None:
    session = await made(sessions)
    node.gate.clear()
    restarting = asyncio.ensure_future(sessions.restart(A, "name"))
    await settle()
    sessions.lost(session.id, "killed")
    node.gate.set()
    await restarting
    with pytest.raises(SessionNotFound):
        await sessions.running(A, "name")


# --- ending ---------------------------------------------------------------------------------------


async def test_a_destroyed_session_is_recorded_with_what_it_used(
    sessions: SessionService, sessions_store: MemorySessions
) -> None:
    session = await made(sessions)
    assert (await sessions.destroy(A, "name")).user_us == 7
    stored = await sessions_store.get(session.id)
    assert stored is not None
    assert (stored.status, stored.reason) == (SessionStatus.TERMINATED, "user-requested")
    assert stored.usage.user_us == 7
    with pytest.raises(SessionNotFound):
        await sessions.destroy(A, "name")


async def test_a_broken_store_does_not_keep_a_session_alive(
    sessions: SessionService, sessions_store: MemorySessions, node: ScriptedNode
) -> None:
    await made(sessions)
    sessions_store.is_broken = True
    await sessions.destroy(A, "name")
    assert (sessions.live_count, node.held) == (0, set())


async def test_the_server_ends_all_also_those_that_start(
    sessions: SessionService, sessions_store: MemorySessions, node: ScriptedNode
) -> None:
    await made(sessions)
    node.gate.clear()
    starting = asyncio.ensure_future(made(sessions, "other"))
    await settle()
    await sessions.end_all("server-stopped")
    with pytest.raises(SessionNotFound):
        await starting
    assert (sessions.live_count, node.held) == (0, set())
    assert await sessions_store.live() == []


def of_an_earlier_server(at: dt.datetime, status: SessionStatus, name: str = "old-one") -> Session:
    return Session(uuid.uuid4(), name, "AKA", A.user_id, "gcc:12", "gcc", status, at)


async def test_a_running_session_of_an_earlier_server_is_taken_over_with_its_runs(
    sessions: SessionService, sessions_store: MemorySessions, node: ScriptedNode
) -> None:
    old = of_an_earlier_server(START, SessionStatus.RUNNING)
    await sessions_store.add(old)
    await sessions.adopt_all()
    assert sessions.find(A, "old-one").num_queries == 3
    assert node.calls == [("adopt", old.id), ("sweep",)]
    assert [one.id for one in await sessions_store.live()] == [old.id]


async def test_a_session_that_was_not_ready_when_its_server_ended_is_not_taken_over(
    sessions: SessionService, sessions_store: MemorySessions, node: ScriptedNode
) -> None:
    old = of_an_earlier_server(START, SessionStatus.PREPARING)
    await sessions_store.add(old)
    await sessions.adopt_all()
    assert node.calls == [("sweep",)]
    stored = await sessions_store.get(old.id)
    assert stored is not None
    assert stored.reason.startswith("server-ended")


async def test_a_session_that_died_without_a_server_tells_its_callers_why_for_a_while(
    sessions: SessionService, sessions_store: MemorySessions, node: ScriptedNode, clock: FakeClock
) -> None:
    old = of_an_earlier_server(START, SessionStatus.RUNNING)
    await sessions_store.add(old)
    node.failure = SessionLost("the host was restarted")
    await sessions.adopt_all()
    for ref in ("old-one", str(old.id)):
        with pytest.raises(SessionNotFound, match="ended: sandbox-lost: the host was restarted"):
            sessions.find(A, ref)
    with pytest.raises(SessionNotFound) as other:
        sessions.find(B, str(old.id))
    assert other.value.message == SessionNotFound().message
    clock.jump(3601)
    with pytest.raises(SessionNotFound) as later:
        sessions.find(A, "old-one")
    assert later.value.message == SessionNotFound().message


async def test_the_reason_of_an_end_is_still_told_by_the_next_server(
    sessions: SessionService, sessions_store: MemorySessions, clock: FakeClock
) -> None:
    old = of_an_earlier_server(START, SessionStatus.RUNNING)
    ended = old.moved(SessionStatus.TERMINATING, clock.now(), "idle-timeout")
    await sessions_store.add(ended.moved(SessionStatus.TERMINATED, clock.now()))
    await sessions.adopt_all()
    with pytest.raises(SessionNotFound, match="idle-timeout"):
        sessions.find(A, "old-one")


async def test_runs_are_counted_while_the_session_lives(sessions: SessionService) -> None:
    session = await made(sessions)
    sessions.count_run(session)
    sessions.count_run(session)
    assert sessions.find(A, "name").num_queries == 2
    await sessions.destroy(A, "name")
    sessions.count_run(session)
    assert sessions.live_count == 0
