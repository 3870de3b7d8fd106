"""What every KeyPairStore promises (core/ports.py)."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import uuid

import pytest
from tests.fakes import START

from retort.core.keypair import KeyPair, KeyPolicy
from retort.core.ports import KeyPairStore
from retort.errors import Conflict, NotFound


def pair(number: int = 0, **changes: object) -> KeyPair:
    made = KeyPair(
        access_key=f"AK{number:018}",
        secret_key=f"{number:040}",
        token_sha256=f"{number:064x}",
        user_id=uuid.UUID(int=number),
        email="ünï@example.org",
        created_at=START + dt.timedelta(microseconds=number),
        is_admin=True,
        policy=KeyPolicy(7, 8, 2**40, 1.5, 9, 2**41),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


async def test_what_is_added_is_found_whole_by_key_and_by_token(keypairs: KeyPairStore) -> None:
    await keypairs.add(pair(1))

    assert await keypairs.get(pair(1).access_key) == pair(1)
    assert await keypairs.get_by_token(pair(1).token_sha256) == pair(1)
    assert await keypairs.all() == [pair(1)]


async def test_unknown_is_none(keypairs: KeyPairStore) -> None:
    assert await keypairs.get("AK") is None
    assert await keypairs.get_by_token("0" * 64) is None
    assert await keypairs.all() == []


async def test_access_keys_differ_by_letter_case(keypairs: KeyPairStore) -> None:
    await keypairs.add(pair(1, access_key="AKX"))

    assert await keypairs.get("akx") is None


async def test_a_time_of_another_zone_comes_back_as_the_same_moment(
    keypairs: KeyPairStore,
) -> None:
    east = dt.timezone(dt.timedelta(hours=9))
    await keypairs.add(pair(1, created_at=START.astimezone(east)))

    assert await keypairs.get(pair(1).access_key) == pair(1, created_at=START)


async def test_all_come_oldest_first(keypairs: KeyPairStore) -> None:
    for number in (3, 1, 2):
        await keypairs.add(pair(number))

    assert [found.user_id.int for found in await keypairs.all()] == [1, 2, 3]


async def test_inactive_ones_are_found_too(keypairs: KeyPairStore) -> None:
    await keypairs.add(pair(1, is_active=False))

    assert await keypairs.get(pair(1).access_key) == pair(1, is_active=False)


async def test_adding_an_access_key_twice_is_a_conflict(keypairs: KeyPairStore) -> None:
    await keypairs.add(pair(1))

    with pytest.raises(Conflict):
        await keypairs.add(pair(2, access_key=pair(1).access_key))
    assert await keypairs.all() == [pair(1)]


async def test_adding_a_token_twice_is_a_conflict(keypairs: KeyPairStore) -> None:
    await keypairs.add(pair(1))

    with pytest.raises(Conflict):
        await keypairs.add(pair(2, token_sha256=pair(1).token_sha256))


async def test_update_replaces_every_field(keypairs: KeyPairStore) -> None:
    await keypairs.add(pair(1))
    await keypairs.add(pair(2))
    changed = pair(3, access_key=pair(1).access_key, is_active=False, is_admin=False)

    await keypairs.update(changed)

    assert await keypairs.get(changed.access_key) == changed
    assert await keypairs.get(pair(2).access_key) == pair(2)
    assert await keypairs.get_by_token(pair(1).token_sha256) is None


async def test_update_and_remove_of_an_unknown_key_are_not_found(keypairs: KeyPairStore) -> None:
    with pytest.raises(NotFound):
        await keypairs.update(pair(1))
    with pytest.raises(NotFound):
        await keypairs.remove(pair(1).access_key)


async def test_removed_is_forgotten_and_may_be_added_again(keypairs: KeyPairStore) -> None:
    await keypairs.add(pair(1))

    await keypairs.remove(pair(1).access_key)

    assert await keypairs.all() == []
    await keypairs.add(pair(1))


async def test_of_twenty_equal_adds_at_once_one_wins(keypairs: KeyPairStore) -> None:
    same = (keypairs.add(pair(number, access_key="AKSAME")) for number in range(20))

    outcomes = await asyncio.gather(*same, return_exceptions=True)

    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19
    assert len(await keypairs.all()) == 1
