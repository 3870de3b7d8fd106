"""What a session may use: its request, its image, its key, the server, the strictest of them."""

from __future__ import annotations

import dataclasses

import pytest
from tests.unit.services.conftest import key

from retort.core.keypair import KeyPair, KeyPolicy
from retort.core.limits import MIB, Limits
from retort.core.session import SessionRequest
from retort.errors import QuotaExceeded
from retort.services.sessions import SessionService


def owner(memory_bytes: int | None = None, cpus: float | None = None) -> KeyPair:
    policy = KeyPolicy(max_memory_bytes=memory_bytes, max_cpus=cpus)
    return dataclasses.replace(key(), policy=policy)


async def limits(
    sessions: SessionService, who: KeyPair, image: str = "gcc:12", **asked: float
) -> Limits:
    session, _ = await sessions.create(who, SessionRequest(image, **asked))  # type: ignore[arg-type]
    return session.limits


async def test_what_is_asked_for_is_given(sessions: SessionService) -> None:
    given = await limits(sessions, owner(), cpus=0.5, memory_bytes=64 * MIB)
    assert (given.cpus, given.memory_bytes) == (0.5, 64 * MIB)


async def test_the_servers_default_stands_in_for_what_is_not(sessions: SessionService) -> None:
    given = await limits(sessions, owner())
    assert (given.cpus, given.memory_bytes) == (Limits().cpus, Limits().memory_bytes)


async def test_a_default_above_the_keys_policy_is_cut(sessions: SessionService) -> None:
    given = await limits(sessions, owner(100 * MIB, 0.25))
    assert (given.cpus, given.memory_bytes) == (0.25, 100 * MIB)


@pytest.mark.parametrize("asked", [{"memory_bytes": 101 * MIB}, {"cpus": 0.3}])
async def test_asking_for_more_than_the_policy_is_refused(
    sessions: SessionService, asked: dict[str, float]
) -> None:
    with pytest.raises(QuotaExceeded, match="for this key"):
        await limits(sessions, owner(100 * MIB, 0.25), **asked)
    assert not sessions.live_count


async def test_exactly_the_policy_may_be_asked_for(sessions: SessionService) -> None:
    given = await limits(sessions, owner(100 * MIB, 0.25), memory_bytes=100 * MIB, cpus=0.25)
    assert (given.cpus, given.memory_bytes) == (0.25, 100 * MIB)


async def test_an_image_says_what_its_sessions_get_unasked(sessions: SessionService) -> None:
    given = await limits(sessions, owner(), "bash:5")
    assert (given.cpus, given.memory_bytes) == (0.5, 128 * MIB)


async def test_what_an_image_gets_is_cut_by_the_keys_policy(sessions: SessionService) -> None:
    given = await limits(sessions, owner(100 * MIB, 0.25), "bash:5")
    assert (given.cpus, given.memory_bytes) == (0.25, 100 * MIB)


async def test_less_than_the_image_may_be_asked_for_and_more_may_not(
    sessions: SessionService,
) -> None:
    given = await limits(sessions, owner(), "bash:5", memory_bytes=64 * MIB, cpus=0.5)
    assert (given.cpus, given.memory_bytes) == (0.5, 64 * MIB)
    for asked in ({"memory_bytes": 129 * MIB}, {"cpus": 0.6}):
        with pytest.raises(QuotaExceeded, match="for this image"):
            await limits(sessions, owner(), "bash:5", **asked)
