"""Large files and large directories in virtual folders: the server stays as small as it was.

With RETORT_LONG the file has 4 GiB instead of 192 MiB; the rest is the same. `-s` prints figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import Server, running_server
from tests.e2e.plain_http import rss_kib
from tests.e2e.vfolder_user import User, address, calls, new_user

pytestmark = pytest.mark.slow

MIB = 1 << 20
CHUNK = 16 * MIB
SIZE = 4096 * MIB if "RETORT_LONG" in os.environ else 192 * MIB
FLAT_MIB = 48  # as much as two chunks and their copies; a file held whole would be four times that
FILES = 100_000


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Server]:
    """A server whose memory nobody else changes."""
    with running_server(tmp_path / "s") as server:
        yield server


@pytest.fixture
async def ann(alone: Server) -> AsyncIterator[User]:
    email, token = new_user(alone)
    async with calls(alone, token) as api:
        yield User(api, email)


def peak_mib(server: Server) -> float:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def forget_peak(server: Server) -> float:
    """Have the peak begin anew; give the memory of now."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    return rss_kib(server.process.pid) / 1024


def block(number: int) -> bytes:
    """Give a chunk's content: each one is another."""
    return number.to_bytes(8, "little") * (CHUNK // 8)


async def send(user: User, given: dict[str, str], number: int) -> None:
    headers = {"Upload-Offset": str(number * CHUNK), "Authorization": ""}
    async with user.api.patch(
        address(given), data=io.BytesIO(block(number)), headers=headers
    ) as answer:
        assert answer.status == 204, await answer.text()


async def test_a_large_file_goes_in_and_out_with_flat_memory(ann: User, alone: Server) -> None:
    name = await ann.make()
    await ann.put(name, "small", b"x" * MIB)  # what is loaded once is loaded now
    before = forget_peak(alone)
    count = SIZE // CHUNK

    began_at = time.monotonic()
    given = await ann.ok("POST", f"/folders/{name}/request-upload", path="large", size=SIZE)
    for number in range(count):
        await send(ann, given, number)
    up_s, up = time.monotonic() - began_at, peak_mib(alone) - before

    before = forget_peak(alone)
    began_at = time.monotonic()
    given = await ann.ok("POST", f"/folders/{name}/request-download", path="large")
    async with ann.api.get(address(given), headers={"Authorization": ""}) as answer:
        assert answer.headers["Content-Length"] == str(SIZE)
        for number in range(count):
            assert await answer.content.readexactly(CHUNK) == block(number)
        assert await answer.content.read(1) == b""
    down_s, down = time.monotonic() - began_at, peak_mib(alone) - before

    print(f"{SIZE // MIB} MiB up in {up_s:.1f} s, {up:.1f} MiB more memory; "
          f"down in {down_s:.1f} s, {down:.1f} MiB more")  # fmt: skip
    assert up < FLAT_MIB
    assert down < FLAT_MIB
    await ann.ok("DELETE", f"/folders/{name}", 204)


async def test_a_large_directory_is_listed_in_bounded_time_and_memory(
    ann: User, alone: Server
) -> None:
    name = await ann.make()
    folder_id = (await ann.ok("GET", f"/folders/{name}"))["id"]
    data = alone.state / "folders" / folder_id / "data"
    for number in range(FILES + 1):
        os.close(os.open(data / f"file-{number:06}", os.O_CREAT | os.O_WRONLY, 0o644))
    await ann.ok("GET", f"/folders/{name}/files", path=".")  # buffers are as large as they get
    before = forget_peak(alone)

    async with watching(ann.api) as waits:
        began_at = time.monotonic()
        body = json.dumps({"path": "."})
        async with ann.api.get(f"/folders/{name}/files", data=body) as answer:
            assert answer.status == 200
            text = await answer.read()
        took_s = time.monotonic() - began_at

    told = json.loads(text)
    assert (len(told["items"]), told["truncated"]) == (FILES, True)
    assert len(json.loads(told["files"])) == FILES
    grown = peak_mib(alone) - before
    print(f"{FILES} files listed in {took_s:.2f} s, {len(text) / MIB:.0f} MiB of answer, "
          f"{grown:.0f} MiB more memory, others waited at most {max(waits):.2f} s")  # fmt: skip
    assert took_s < 20
    assert grown < 256
    assert max(waits) < 3


@contextlib.asynccontextmanager
async def watching(api: aiohttp.ClientSession) -> AsyncIterator[list[float]]:
    """Call something small again and again; give how long each call took."""
    waits: list[float] = [0.0]

    async def call_forever() -> None:
        while True:
            began_at = time.monotonic()
            async with api.get("/folders/_/hosts") as answer:
                await answer.read()
            waits.append(time.monotonic() - began_at)

    calling = asyncio.create_task(call_forever())
    yield waits
    calling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await calling
