"""Tokens of transfers: what each allows, until when, and with whose key it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator, Callable

import pytest
from tests.fakes import START, FakeHost, MemoryVFolders

from retort.core.keypair import KeyPair
from retort.core.vfolder import FolderUsage, VFolder
from retort.errors import NotPermitted, VFolderNotFound
from retort.services.vfolder_files import VFolderFiles
from retort.services.vfolder_quota import Quotas
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

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.is_over: Callable[[str], bool] | None = None
        self.writes, self.go_on = asyncio.Event(), asyncio.Event()

    async def usage(self, folder_id: uuid.UUID, max_entries: int = 0) -> FolderUsage:
        return FolderUsage(0, 0)

    async def begin_upload(
        self, folder_id: uuid.UUID, upload_id: str, path: str, size: int
    ) -> None:
        self.begun.append(upload_id)

    async def append(self, *_: object) -> int:
        self.writes.set()
        await self.go_on.wait()
        return 1

    async def sweep(self, is_over: Callable[[str], bool]) -> None:
        self.is_over = is_over

    async def is_directory(self, folder_id: uuid.UUID, path: str) -> bool:
        return False

    async def open_file(self, folder_id: uuid.UUID, path: str) -> str:
        return f"{folder_id.int}:{path}"


@dataclasses.dataclass
class World:
    files: VFolderFiles
    host: FakeHost
    disk: Disk
    keys: Keys
    store: MemoryVFolders


@pytest.fixture
async def world() -> World:
    host, disk, keys, store = FakeHost(), Disk(), Keys(), MemoryVFolders()
    await store.add(FOLDER)
    files = VFolderFiles(
        VFolderLookup(store), disk, keys, host, Quotas(disk, lambda: 0.0, count_s=1.0),  # type: ignore[arg-type]
        secret=b"secret", token_s=HOUR, max_file_bytes=1,
    )  # fmt: skip
    return World(files, host, disk, keys, store)


async def test_a_token_is_good_for_its_time_and_not_a_second_longer(world: World) -> None:
    token = await world.files.request_download(ANN, "data", "file", archive=False)
    world.host.wait(HOUR - 1)
    assert await world.files.open_download(token) == "3:file"
    world.host.wait(1)
    with pytest.raises(NotPermitted, match="has ended"):
        await world.files.open_download(token)


@pytest.mark.parametrize("jump", [100 * HOUR, -100 * HOUR])
async def test_setting_the_clock_neither_ends_a_token_nor_keeps_it(
    world: World, jump: float
) -> None:
    token = await world.files.request_download(ANN, "data", "file", archive=False)
    world.host.set_clock(jump)
    world.host.wait(HOUR - 1)
    assert await world.files.open_download(token) == "3:file"
    world.host.wait(1)
    with pytest.raises(NotPermitted, match="has ended"):
        await world.files.open_download(token)


async def test_a_token_outlives_a_new_start_of_the_host_by_the_clock_that_people_set(
    world: World,
) -> None:
    token = await world.files.request_download(ANN, "data", "file", archive=False)
    world.host.start_anew(HOUR - 1)
    assert await world.files.open_download(token) == "3:file"
    world.host.start_anew(1)
    with pytest.raises(NotPermitted, match="has ended"):
        await world.files.open_download(token)


async def test_an_upload_is_swept_when_its_token_has_ended_and_nobody_writes_to_it(
    world: World,
) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    async def swept() -> set[str]:
        await world.files.sweep()
        assert world.disk.is_over is not None
        return {one for one in world.disk.begun if world.disk.is_over(one)}

    token = await world.files.request_upload(ANN, "data", "file", 1)
    (first,) = world.disk.begun
    world.host.set_clock(100 * HOUR)
    assert await swept() == set()
    world.host.wait(HOUR - 1)
    await world.files.request_upload(ANN, "data", "other", 1)
    writing = asyncio.ensure_future(world.files.append(token, 0, nothing(), 1))
    await world.disk.writes.wait()
    world.host.wait(1)
    assert await swept() == set()
    world.disk.go_on.set()
    await writing
    assert await swept() == {first}


async def test_what_is_no_upload_of_ours_is_swept(world: World) -> None:
    await world.files.sweep()
    assert world.disk.is_over is not None
    assert world.disk.is_over("ab" * 16)
    assert world.disk.is_over("x" * 58)


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
    now = FakeHost()()
    transfer = Transfer("download", "AK", FOLDER.id, "file", now.after(10))
    token = Tokens(b"one").sign(transfer)
    assert Tokens(b"one").read(token, "download", now) == transfer
    with pytest.raises(NotPermitted, match="not valid"):
        Tokens(b"two").read(token, "download", now)
    with pytest.raises(NotPermitted, match="not for this"):
        Tokens(b"one").read(token, "upload", now)
