"""From a name to a folder, and to nothing where the caller has no right."""

from __future__ import annotations

import dataclasses
import uuid

import pytest
from tests.fakes import START, MemoryVFolders

from retort.core.keypair import KeyPair
from retort.core.vfolder import DEFAULT_GROUP, Permission, Share, VFolder, VFolderStatus
from retort.errors import VFolderNotFound, VFolderOperation
from retort.services.vfolders import VFolderLookup


def key(number: int) -> KeyPair:
    return KeyPair(f"AK{number}", "", "", uuid.UUID(int=number), f"{number}@example.org", START)


ANN, BOB = key(1), key(2)


def folder(number: int, name: str, owner: KeyPair = ANN) -> VFolder:
    return VFolder(uuid.UUID(int=number), name, owner.user_id, owner.email, START)


@pytest.fixture
def store() -> MemoryVFolders:
    return MemoryVFolders()


@pytest.fixture
def lookup(store: MemoryVFolders) -> VFolderLookup:
    return VFolderLookup(store)


async def test_a_folder_is_found_by_name_and_by_both_ways_to_write_its_id(
    store: MemoryVFolders, lookup: VFolderLookup
) -> None:
    made = folder(7, "data")
    await store.add(made)

    for ref in ("data", str(made.id), made.id.hex):
        assert (await lookup.find(ANN, ref, Permission.DELETE)).folder == made


async def test_anothers_folder_is_missing(store: MemoryVFolders, lookup: VFolderLookup) -> None:
    await store.add(folder(7, "data"))

    for ref in ("data", folder(7, "data").id.hex, "", "nothing"):
        with pytest.raises(VFolderNotFound):
            await lookup.find(BOB, ref)


async def test_what_a_share_does_not_allow_looks_like_a_missing_folder(
    store: MemoryVFolders, lookup: VFolderLookup
) -> None:
    made = folder(7, "data")
    await store.add(made)
    await store.put_share(Share(made.id, BOB.user_id, BOB.email, Permission.READ))

    assert (await lookup.find(BOB, "data")).permission is Permission.READ
    with pytest.raises(VFolderNotFound):
        await lookup.find(BOB, "data", Permission.WRITE)


async def test_of_one_name_the_own_comes_before_the_shared_before_the_groups(
    store: MemoryVFolders, lookup: VFolderLookup
) -> None:
    of_group = dataclasses.replace(folder(1, "data"), user_id=None, group_id=DEFAULT_GROUP)
    shared, own = folder(2, "data"), folder(3, "data", BOB)
    await store.add(of_group)
    assert (await lookup.find(BOB, "data")).folder == of_group
    await store.add(shared)
    await store.put_share(Share(shared.id, BOB.user_id, BOB.email, Permission.READ))
    assert (await lookup.find(BOB, "data")).folder == shared
    await store.add(own)
    assert (await lookup.find(BOB, "data")).folder == own


async def test_a_folder_that_is_being_copied_cannot_be_used_yet(
    store: MemoryVFolders, lookup: VFolderLookup
) -> None:
    await store.add(dataclasses.replace(folder(7, "data"), status=VFolderStatus.CLONING))

    with pytest.raises(VFolderOperation):
        await lookup.find(ANN, "data")
    assert (await lookup.find_any(ANN, "data")).folder.name == "data"
