from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re

import pytest
from tests.fakes import FakeClock, MemoryKeyPairs

from retort.core.keypair import KeyPair, KeyPolicy
from retort.errors import InvalidRequest, NotFound, StoreFault
from retort.services.keypairs import KeyRing


@pytest.fixture
def store() -> MemoryKeyPairs:
    return MemoryKeyPairs()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ring(store: MemoryKeyPairs, clock: FakeClock) -> KeyRing:
    return KeyRing(store, clock)


@pytest.fixture
def elsewhere(store: MemoryKeyPairs, clock: FakeClock) -> KeyRing:
    """The ring of another process on the same store."""
    return KeyRing(store, clock)


# --- making -------------------------------------------------------------------------------------


async def test_a_new_key_has_the_shape_that_clients_expect(ring: KeyRing, clock: FakeClock) -> None:
    new = await ring.create("a@example.org")

    assert re.fullmatch(r"AK[A-Z0-9]{18}", new.keypair.access_key)
    assert re.fullmatch(r"[A-Za-z0-9_-]{40}", new.keypair.secret_key)
    assert re.fullmatch(r"rt_[A-Za-z0-9_-]{40}", new.token)
    assert new.keypair.created_at == clock.now()
    assert (new.keypair.is_active, new.keypair.is_admin) == (True, False)


async def test_no_two_keys_share_a_secret(ring: KeyRing) -> None:
    made = [await ring.create() for _ in range(50)]

    assert len({new.keypair.access_key for new in made}) == 50
    assert len({new.keypair.secret_key for new in made}) == 50
    assert len({new.token for new in made}) == 50


async def test_of_a_token_only_its_digest_is_kept(ring: KeyRing, store: MemoryKeyPairs) -> None:
    new = await ring.create()

    kept = (await store.all())[0]
    assert kept.token_sha256 == hashlib.sha256(new.token.encode()).hexdigest()
    assert new.token not in repr(kept)


async def test_keys_of_one_address_share_their_user(ring: KeyRing, elsewhere: KeyRing) -> None:
    first = await ring.create("Ann@example.org")
    second = await elsewhere.create("ann@example.org")
    other = await ring.create("bob@example.org")

    assert first.keypair.user_id == second.keypair.user_id != other.keypair.user_id


async def test_keys_without_an_address_have_each_their_own_user(ring: KeyRing) -> None:
    first, second = await ring.create(), await ring.create()

    assert first.keypair.user_id != second.keypair.user_id
    assert first.keypair.email == f"{first.keypair.access_key.lower()}@localhost"


@pytest.mark.parametrize("email", ["", "ann", "a b@c", "a@b\n", "a@" + "b" * 300, "a@b@c"])
async def test_what_is_no_address_is_refused(ring: KeyRing, email: str) -> None:
    with pytest.raises(InvalidRequest, match="email"):
        await ring.create(email)


async def test_new_keys_get_the_configured_policy(store: MemoryKeyPairs, clock: FakeClock) -> None:
    policy = KeyPolicy(max_sessions=2, rate_limit=3)

    assert (await KeyRing(store, clock, policy=policy).create()).keypair.policy == policy


# --- finding ------------------------------------------------------------------------------------


async def test_loaded_keys_are_found_without_asking_the_store(
    ring: KeyRing, elsewhere: KeyRing, store: MemoryKeyPairs
) -> None:
    new = await elsewhere.create()
    await ring.load()
    store.is_broken = True

    assert ring.find(new.keypair.access_key) == new.keypair
    assert ring.find_token(new.token) == new.keypair
    assert await ring.lookup(new.keypair.access_key) == new.keypair
    assert await ring.lookup_token(new.token) == new.keypair


async def test_a_key_made_by_another_process_works_at_once(
    ring: KeyRing, elsewhere: KeyRing
) -> None:
    await ring.load()
    new = await elsewhere.create()

    assert ring.find(new.keypair.access_key) is None
    assert await ring.lookup(new.keypair.access_key) == new.keypair
    assert ring.find(new.keypair.access_key) == new.keypair
    assert ring.find_token(new.token) == new.keypair


async def test_a_token_made_by_another_process_works_at_once(
    ring: KeyRing, elsewhere: KeyRing
) -> None:
    new = await elsewhere.create()

    assert await ring.lookup_token(new.token) == new.keypair
    assert ring.find_token(new.token) == new.keypair


@pytest.mark.parametrize("key", ["", "AK", "AK\x00", "x" * 10_000, "é", "\ud800"])
async def test_unknown_keys_and_tokens_are_none(ring: KeyRing, key: str) -> None:
    await ring.create()

    assert ring.find(key) is None
    assert ring.find_token(key) is None
    assert await ring.lookup(key) is None
    assert await ring.lookup_token(key) is None


async def test_neither_digest_nor_access_key_passes_for_a_token(ring: KeyRing) -> None:
    new = await ring.create()

    assert await ring.lookup_token(new.keypair.token_sha256) is None
    assert await ring.lookup_token(new.keypair.access_key) is None


async def test_an_unknown_key_while_the_store_is_down_is_a_fault(
    ring: KeyRing, store: MemoryKeyPairs
) -> None:
    store.is_broken = True

    with pytest.raises(StoreFault):
        await ring.lookup("AKUNKNOWN")


# --- unknown keys do not hammer the store -------------------------------------------------------


async def test_an_unknown_key_is_asked_for_once_a_second(
    ring: KeyRing, store: MemoryKeyPairs, clock: FakeClock
) -> None:
    for _ in range(100):
        await ring.lookup("AKUNKNOWN")
    assert store.calls == ["get"]

    clock.jump(1.0)
    await ring.lookup("AKUNKNOWN")
    assert store.calls == ["get"] * 2


async def test_random_keys_reach_the_store_some_fifty_times_a_second(
    ring: KeyRing, store: MemoryKeyPairs, clock: FakeClock
) -> None:
    for number in range(10_000):
        await ring.lookup(f"AK{number}")
        await ring.lookup_token(f"rt_{number:040}")
    assert len(store.calls) == 50

    clock.jump(1.0)
    for number in range(10_000):
        await ring.lookup(f"AKX{number}")
    assert len(store.calls) == 100


async def test_in_a_flood_a_new_key_is_found_by_the_next_refresh(
    ring: KeyRing, elsewhere: KeyRing
) -> None:
    for number in range(100):
        await ring.lookup(f"AK{number}")
    new = await elsewhere.create()

    await ring.refresh()

    assert await ring.lookup(new.keypair.access_key) == new.keypair


async def test_a_flood_does_not_fill_the_memory(
    ring: KeyRing, clock: FakeClock, store: MemoryKeyPairs
) -> None:
    for number in range(10_000):
        clock.jump(0.1)
        await ring.lookup(f"AK{number}")

    assert len(store.calls) == 10_000
    assert len(ring._misses._until) == 4096


async def test_a_clock_that_is_set_back_does_not_lock_keys_out(
    ring: KeyRing, elsewhere: KeyRing, clock: FakeClock, store: MemoryKeyPairs
) -> None:
    new = await elsewhere.create()
    await store.remove(new.keypair.access_key)
    assert await ring.lookup(new.keypair.access_key) is None
    await store.add(new.keypair)

    clock.jump(-3600)

    assert await ring.lookup(new.keypair.access_key) == new.keypair


# --- revoking -----------------------------------------------------------------------------------


async def test_a_deactivated_key_is_refused_at_once_and_can_come_back(ring: KeyRing) -> None:
    new = await ring.create()
    access_key = new.keypair.access_key

    await ring.deactivate(access_key)
    assert ring.find(access_key) is None
    assert ring.find_token(new.token) is None
    assert await ring.lookup(access_key) is None
    assert await ring.lookup_token(new.token) is None

    await ring.activate(access_key)
    assert ring.find(access_key) == new.keypair


async def test_an_inactive_key_costs_no_query(ring: KeyRing, store: MemoryKeyPairs) -> None:
    new = await ring.create()
    await ring.deactivate(new.keypair.access_key)
    store.calls.clear()

    await ring.lookup(new.keypair.access_key)

    assert store.calls == []


async def test_a_removed_key_is_unknown_at_once(ring: KeyRing) -> None:
    new = await ring.create()

    await ring.remove(new.keypair.access_key)

    assert await ring.lookup(new.keypair.access_key) is None
    assert await ring.lookup_token(new.token) is None
    assert await ring.list() == []


@pytest.mark.parametrize("verb", ["deactivate", "remove"])
async def test_what_another_process_revokes_is_refused_after_a_refresh(
    ring: KeyRing, elsewhere: KeyRing, verb: str
) -> None:
    new = await ring.create()
    await getattr(elsewhere, verb)(new.keypair.access_key)

    await ring.refresh()

    assert ring.find(new.keypair.access_key) is None
    assert ring.find_token(new.token) is None


async def test_a_refresh_that_fails_keeps_what_is_known(
    ring: KeyRing, store: MemoryKeyPairs
) -> None:
    new = await ring.create()
    store.is_broken = True

    with pytest.raises(StoreFault):
        await ring.refresh()

    assert ring.find(new.keypair.access_key) == new.keypair


async def test_a_change_that_fails_in_the_store_changes_nothing_in_memory(
    ring: KeyRing, store: MemoryKeyPairs
) -> None:
    new = await ring.create()
    store.is_broken = True

    for change in (ring.deactivate, ring.remove):
        with pytest.raises(StoreFault):
            await change(new.keypair.access_key)

    assert ring.find(new.keypair.access_key) == new.keypair


@pytest.mark.parametrize("verb", ["deactivate", "activate", "remove"])
async def test_changing_an_unknown_key_is_not_found(ring: KeyRing, verb: str) -> None:
    with pytest.raises(NotFound):
        await getattr(ring, verb)("AKUNKNOWN")


async def test_list_gives_inactive_ones_and_those_of_other_processes(
    ring: KeyRing, elsewhere: KeyRing
) -> None:
    mine, theirs = await ring.create(), await elsewhere.create()
    await elsewhere.deactivate(theirs.keypair.access_key)

    assert {pair.access_key: pair.is_active for pair in await ring.list()} == {
        mine.keypair.access_key: True,
        theirs.keypair.access_key: False,
    }


# --- races --------------------------------------------------------------------------------------


class SlowAnswers(MemoryKeyPairs):
    """A store whose answers to `get` and `all` are true when read, and arrive when let go."""

    def __init__(self) -> None:
        super().__init__()
        self.read = asyncio.Event()
        self.let_go = asyncio.Event()
        self.let_go.set()

    async def get(self, access_key: str) -> KeyPair | None:
        found = await super().get(access_key)
        await self._wait()
        return found

    async def all(self) -> list[KeyPair]:
        found = list(await super().all())
        await self._wait()
        return found

    async def _wait(self) -> None:
        self.read.set()
        await self.let_go.wait()


async def test_a_key_removed_while_it_is_looked_up_does_not_come_back(clock: FakeClock) -> None:
    store = SlowAnswers()
    ring, elsewhere = KeyRing(store, clock), KeyRing(store, clock)
    access_key = (await elsewhere.create()).keypair.access_key
    store.let_go.clear()
    lookup = asyncio.create_task(ring.lookup(access_key))
    await store.read.wait()

    await ring.remove(access_key)
    store.let_go.set()
    await lookup

    assert ring.find(access_key) is None


async def test_a_key_made_during_a_refresh_is_not_lost(clock: FakeClock) -> None:
    store = SlowAnswers()
    ring = KeyRing(store, clock)
    store.let_go.clear()
    refresh = asyncio.create_task(ring.refresh())
    await store.read.wait()
    create = asyncio.create_task(ring.create())

    store.let_go.set()
    await refresh
    new = await create

    assert ring.find(new.keypair.access_key) == new.keypair


async def test_a_key_whose_token_changed_elsewhere_loses_the_old_one(
    ring: KeyRing, store: MemoryKeyPairs
) -> None:
    old = await ring.create()
    other = hashlib.sha256(b"other").hexdigest()
    await store.update(dataclasses.replace(old.keypair, token_sha256=other, is_active=False))

    await ring.activate(old.keypair.access_key)

    assert ring.find_token(old.token) is None
