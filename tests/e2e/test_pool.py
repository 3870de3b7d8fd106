"""Sandboxes made ahead, from outside: whose they become, and that none is left."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Server, running_server
from tests.e2e.running import Calls, all_are_gone, destroy, is_gone, sh, wait_for
from tests.e2e.test_sessions import ask_create, calls_to, drawn

pytestmark = pytest.mark.slow

FIND = "find . /tmp /var/tmp /dev/shm -mindepth 1"


def inits(server: Server) -> dict[str, int]:
    """The pid of every sandbox's init, by its folder's name."""
    found = {}
    for folder in (server.state / "sessions").iterdir():
        try:
            found[folder.name] = json.loads((folder / "sandbox.json").read_text())["pid"]
        except FileNotFoundError:
            continue  # half-made
    return found


def waiting(server: Server) -> set[int]:
    return {pid for name, pid in inits(server).items() if name.startswith("pool-")}


async def enough_wait(server: Server, count: int = 2) -> set[int]:
    async def do_they() -> bool:
        return len(waiting(server)) >= count

    await wait_for(do_they)
    return waiting(server)


async def create_ahead(server: Server, api: Calls) -> tuple[str, int]:
    """Make a session that takes a sandbox from the pool; give its name and its init."""
    for _ in range(50):
        ahead = await enough_wait(server, 1)
        _, made = await ask_create(api, name=(name := drawn()))
        if (pid := inits(server)[made["sessionId"]]) in ahead:
            return name, pid
        # The folder is there before its sandbox has its place, and can be taken.
        await destroy(api, name)
    raise AssertionError("no session ever took what was made ahead")


async def test_a_session_takes_what_was_made_ahead_and_nobody_gets_it_again(
    tmp_path: Path,
) -> None:
    with running_server(tmp_path / "state", RETORT_POOL_READY="1") as server:
        async with calls_to(server) as api:
            seen: set[int] = set()
            for _ in range(5):
                name, pid = await create_ahead(server, api)
                assert pid not in seen
                seen.add(pid)
                assert await sh(api, name, FIND) == (0, "")
                await sh(api, name, "touch mine /tmp/mine /dev/shm/mine")
                await destroy(api, name)
        await asyncio.to_thread(server.stop)
        assert all(is_gone(pid) for pid in seen)
        assert inits(server) == {}


async def test_a_session_with_limits_of_its_own_is_not_made_of_a_usual_one(
    tmp_path: Path,
) -> None:
    with running_server(tmp_path / "state") as server:
        async with calls_to(server) as api:
            ahead = await enough_wait(server)
            config = {"resources": {"mem": "96m"}}
            _, made = await ask_create(api, name=(name := drawn()), config=config)
            assert inits(server)[made["sessionId"]] not in ahead
            _, size = await sh(api, name, "df -B1 --output=size /home/work | tail -1")
            assert int(size) == 48 << 20  # half of its memory


async def test_what_a_killed_server_had_made_ahead_is_ended_by_the_next(tmp_path: Path) -> None:
    with running_server(tmp_path / "state") as server:
        ahead = await enough_wait(server)
        server.process.kill()
        await asyncio.to_thread(server.process.wait)
        assert not any(is_gone(pid) for pid in ahead)
    with running_server(tmp_path / "state", RETORT_POOL_SIZE="0") as server:
        # A start waits for them, though not for ever.
        await wait_for(lambda: all_are_gone(ahead))
        assert inits(server) == {}
