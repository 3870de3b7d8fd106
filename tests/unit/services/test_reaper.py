from __future__ import annotations

import asyncio

import pytest
from tests.fakes import FakeClock, MemorySessions
from tests.unit.services.conftest import key
from tests.unit.services.scripted import OneNode, ScriptedNode

from retort.core.session import SessionRequest
from retort.services.reaper import Reaper
from retort.services.sessions import SessionService

OWNER = key()
IDLE_S, LIFE_S = 60.0, 600.0


class Monotonic:
    """A clock that only tests move."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def monotonic() -> Monotonic:
    return Monotonic()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def reaper(
    sessions: SessionService, placement: OneNode, clock: FakeClock, monotonic: Monotonic
) -> Reaper:
    return Reaper(sessions, placement, clock, monotonic, idle_s=IDLE_S, life_s=LIFE_S)


async def make(sessions: SessionService, name: str = "idle") -> None:
    await sessions.create(OWNER, SessionRequest("gcc:12", name))


async def after(reaper: Reaper, monotonic: Monotonic, seconds: float) -> None:
    """Let time pass in steps, with a look after each, as the timer does."""
    for _ in range(int(seconds // 10)):
        monotonic.now += 10
        await reaper.look()


def reasons(store: MemorySessions) -> list[str]:
    return [session.reason for session in store._sessions.values()]


async def test_a_session_without_calls_and_programs_ends_and_its_record_says_why(
    sessions: SessionService, sessions_store: MemorySessions, reaper: Reaper, monotonic: Monotonic
) -> None:
    await make(sessions)
    await reaper.look()
    await after(reaper, monotonic, IDLE_S - 10)
    assert sessions.live_count == 1
    await after(reaper, monotonic, 10)
    assert sessions.live_count == 0
    assert reasons(sessions_store) == ["idle-timeout"]


async def test_a_call_begins_the_time_anew(
    sessions: SessionService, reaper: Reaper, monotonic: Monotonic
) -> None:
    await make(sessions)
    for _ in range(5):
        await after(reaper, monotonic, IDLE_S - 20)
        await sessions.running(OWNER, "idle")
    assert sessions.live_count == 1
    await after(reaper, monotonic, IDLE_S + 10)
    assert sessions.live_count == 0


async def test_a_running_program_keeps_its_session(
    sessions: SessionService, node: ScriptedNode, reaper: Reaper, monotonic: Monotonic
) -> None:
    await make(sessions)
    node.busy = set(node.held)
    await after(reaper, monotonic, 3 * IDLE_S)
    assert sessions.live_count == 1
    node.busy.clear()
    await after(reaper, monotonic, IDLE_S)
    assert sessions.live_count == 0


async def test_a_session_that_is_too_old_ends_whatever_it_does(
    sessions: SessionService,
    sessions_store: MemorySessions,
    node: ScriptedNode,
    reaper: Reaper,
    monotonic: Monotonic,
) -> None:
    await make(sessions)
    await reaper.look()
    node.busy = set(node.held)
    await after(reaper, monotonic, LIFE_S)
    assert sessions.live_count == 0
    assert reasons(sessions_store) == ["max-lifetime"]


async def test_an_adopted_sessions_age_is_what_its_record_says(
    sessions: SessionService, reaper: Reaper, clock: FakeClock
) -> None:
    await make(sessions)
    clock.jump(LIFE_S + 1)  # an earlier server made it so long ago
    await reaper.look()
    assert sessions.live_count == 0


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
async def test_a_clock_that_jumps_ends_nothing(
    jump: float, sessions: SessionService, reaper: Reaper, clock: FakeClock, monotonic: Monotonic
) -> None:
    await make(sessions)
    await reaper.look()
    clock.jump(jump)
    await after(reaper, monotonic, IDLE_S - 10)
    assert sessions.live_count == 1


async def test_nobody_is_ended_by_default(
    sessions: SessionService, placement: OneNode, clock: FakeClock, monotonic: Monotonic
) -> None:
    await make(sessions)
    reaper = Reaper(sessions, placement, clock, monotonic, idle_s=None, life_s=None)
    await reaper.look()
    await after(reaper, monotonic, 10 * LIFE_S)
    assert sessions.live_count == 1
    async with asyncio.timeout(5):
        await reaper.look_forever()
