"""Tokens of transfers: what each allows, until when, and with whose key it ends."""

from __future__ import annotations

import dataclasses
import uuid

import pytest
from tests.fakes import START, FakeClock, MemoryVFolders

from retort.core.keypair import KeyPair
from retort.core.vfolder import VFolder
from retort.errors import NotPermitted, VFolderNotFound
from retort.services.vfolder_files import VFolderFiles
from retort.services.vfolder_tokens import Tokens, Transfer
from retort.services.vfolders import VFolderLookup

ANN = KeyPair("AKANN", "", "", uuid.UUID(int=1), "ann@example.org", START)
FOLDER = VFolder(uuid.UUID(int=3), "data", ANN.user_id, ANN.email, START)
HOUR = 3600.0


class Keys:
    """One key, which may be disabled or removed."""

    pair: KeyPair | None = ANN

    def find(self, access_key: str) -> KeyPair | None:
        return self.pair if access_key == ANN.access_key else None

    async def lookup(self, access_key: str) -> KeyPair | None:
        return self.find(access_key)


class Disk:
    """A disk on which every path is a file."""

    async def is_directory(self, folder_id: uuid.UUID, path: str) -> bool:
        return False

    async def open_file(self, folder_id: uuid.UUID, path: str) -> str:
        return f"{folder_id.int}:{path}"


@dataclasses.dataclass
class World:
    files: VFolderFiles
    clock: FakeClock
    keys: Keys
    store: MemoryVFolders


@pytest.fixture
async def world() -> World:
    clock, keys, store = FakeClock(), Keys(), MemoryVFolders()
    await store.add(FOLDER)
    files = VFolderFiles(
        VFolderLookup(store), Disk(), keys, clock, None,  # type: ignore[arg-type]
        secret=b"secret", token_s=HOUR, max_file_bytes=1,
    )  # fmt: skip
    return World(files, clock, keys, store)


async def test_a_token_is_good_for_its_time_and_not_a_second_longer(world: World) -> None:
    token = await world.files.request_download(ANN, "data", "file", archive=False)
    world.clock.jump(HOUR - 1)
    assert await world.files.open_download(token) == "3:file"
    world.clock.jump(1)
    with pytest.raises(NotPermitted, match="has ended"):
        await world.files.open_download(token)


async def test_a_token_ends_with_its_key(world: World) -> None:
    token = await world.files.request_download(ANN, "data", "file", archive=False)
    world.keys.pair = None  # disabled or removed: the ring finds active keys only
    with pytest.raises(NotPermitted, match="key is not valid"):
        await world.files.open_download(token)
    world.keys.pair = ANN
    assert await world.files.open_download(token) == "3:file"


async def test_a_token_ends_with_its_folder(world: World) -> None:
    token = await world.files.request_download(ANN, "data", "file", archive=False)
    await world.store.remove(FOLDER.id)
    with pytest.raises(VFolderNotFound):
        await world.files.open_download(token)


async def test_a_token_follows_its_folder_to_another_name(world: World) -> None:
    token = await world.files.request_download(ANN, "data", "file", archive=False)
    await world.store.update(dataclasses.replace(FOLDER, name="other"))
    assert await world.files.open_download(token) == "3:file"


def test_another_servers_token_is_none() -> None:
    transfer = Transfer("download", "AK", FOLDER.id, "file", 10)
    token = Tokens(b"one").sign(transfer)
    assert Tokens(b"one").read(token, "download", 9.0) == transfer
    with pytest.raises(NotPermitted, match="not valid"):
        Tokens(b"two").read(token, "download", 9.0)
    with pytest.raises(NotPermitted, match="not for this"):
        Tokens(b"one").read(token, "upload", 9.0)
