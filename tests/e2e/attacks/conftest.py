"""A server under attack; around every test its host is compared, and after it a run must work.

Sessions get sandboxes made ahead, as they do by default. What waits for a session is no leftover,
so the host is compared when the same number of them waits, and without them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import NewSession, Server, running_server

from .box import FILE, MEMORY, PROCESSES, SCRATCH, SECRET, SMALL_TMP, Box

SETTLE_S = 15.0
AHEAD = 2  # sandboxes that wait for a session


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own, with small limits and a secret in its environment."""
    settings = {
        "RETORT_SANDBOX_PROCESSES": str(PROCESSES),
        "RETORT_SANDBOX_SCRATCH_BYTES": str(SCRATCH),
        "RETORT_SANDBOX_FILE_BYTES": str(FILE),
        "RETORT_SANDBOX_TMP_BYTES": str(SMALL_TMP),
        "RETORT_SANDBOX_SHM_BYTES": str(SMALL_TMP),
        "RETORT_RUNS_WALL_S": "60",
        "RETORT_SANDBOX_MEMORY_BYTES": str(MEMORY),  # most sessions take one that was made ahead
        "RETORT_POOL_SIZE": str(AHEAD),
        "RETORT_POOL_READY": str(AHEAD),
        "SECRET": SECRET,
    }
    if "RETORT_LONG" in os.environ:
        settings["RETORT_SANDBOX_SCRATCH_INODES"] = "2000000"
    with running_server(tmp_path_factory.mktemp("attacked") / "state", **settings) as running:
        asyncio.run(_warm_up(running))
        yield running


async def _warm_up(server: Server) -> None:
    """Run something once, so that what is opened for good is open before anything is compared."""
    headers = {"Authorization": f"Bearer {server.token}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as api:
        for name in ("warm-up-1", "warm-up-2"):
            async with api.post("/session", json={"name": name, "image": "gcc"}) as answer:
                assert answer.status == 201
            await Box(api, name).works()
            async with api.delete(f"/session/{name}") as answer:
                assert answer.status == 200


def ahead(server: Server) -> dict[str, int]:
    """Give the sandboxes that wait for a session: name and init's pid, by what is written down."""
    found = {}
    for folder in (server.state / "sessions").glob("pool-*"):
        try:
            found[folder.name] = json.loads((folder / "sandbox.json").read_text())["pid"]
        except FileNotFoundError:
            found[folder.name] = 0  # half made
    return found


def host_of(server: Server) -> dict[str, Any]:
    """Take down what a session could leave on the host."""
    sessions = server.state / "sessions"
    waiting = ahead(server)
    theirs = processes_of(waiting.values())
    return {
        # The standby child is what is made last of each.
        "ahead": sum(bool(descendants([pid])) for pid in waiting.values() if pid),
        # Not rglob: what is being removed vanishes while it looks.
        "files": sorted(
            str(Path(root, name).relative_to(server.state))
            for root, folders, files in os.walk(sessions)
            for name in (*folders, *files)
            if not waiting.keys() & {name, Path(root).name}
        ),
        "mounts": [  # others of this host come and go
            line
            for line in Path(f"/proc/{server.process.pid}/mountinfo").read_text().splitlines()
            if str(server.state) in line
        ],
        "groups": sorted(
            str(path)
            for path in groups_of(group_tag(server))
            if not waiting.keys() & set(path.parts)
        ),
        "processes": [named(pid) for pid in descendants([server.process.pid]) if pid not in theirs],
        "descriptors": descriptors(server.process.pid),
        "hostname": os.uname().nodename,
        "null": Path("/dev/null").stat().st_mode,
    }


def group_tag(server: Server) -> str:
    """Give the name of the server's subtree of control groups (wiring/server.py)."""
    return f"retort-{hashlib.sha256(os.fsencode(server.state.resolve())).hexdigest()[:12]}"


def groups_of(tag: str) -> Iterator[Path]:
    for root, folders, _ in os.walk("/sys/fs/cgroup"):
        if tag in Path(root).parts:
            yield from (Path(root, name) for name in folders)


def descendants(pids: Iterable[int]) -> list[int]:
    """Give every process below some, by the parents that the kernel tells."""
    parents = parents_of_all()
    found, wave = [], set(pids)
    while wave:
        wave = {child for child, parent in parents.items() if parent in wave}
        found += wave
    return sorted(found)


def named(pid: int) -> str:
    """Give a process with its name, state and parent, to find out what was left."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").partition(" 0 ")[0]
    except OSError:
        return str(pid)


def processes_of(inits: Collection[int]) -> set[int]:
    """Give all processes of sandboxes: init, what is below it, and bubblewrap above it."""
    parents = parents_of_all()
    return {parents.get(pid, 0) for pid in inits} | set(inits) | set(descendants(inits))


def parents_of_all() -> dict[int, int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text("utf-8", "replace")
            except OSError:
                continue
            parents[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    return parents


def descriptors(pid: int) -> dict[str, int]:
    """Count open descriptors by kind; sockets and files by what they are, without numbers."""
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = entry.readlink()
        except OSError:
            continue
        # Groups of sessions have names that were drawn.
        kinds[re.sub(r"/pool-\w+", "/pool", str(target).partition(":[")[0])] += 1
    return dict(kinds)


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Give what is new on the host.

    Fewer descriptors than before are no leak, nor are those for what waits in the pool: a burst of
    other groups may have closed them before (sandbox/counter_files.py).
    """
    changed: dict[str, Any] = {}
    for key, was in before.items():
        now = after[key]
        if key == "descriptors":
            of_pool = Counter({kind: AHEAD for kind in now if "/pool" in kind})
            more = Counter(now) - (Counter(was) | of_pool)
            if more.total():
                changed[key] = dict(more)
        elif now != was:
            changed[key] = (was, now)
    return changed


@pytest.fixture(autouse=True)
def host_is_unchanged(server: Server) -> Iterator[None]:
    """Compare the host before a test and after its sessions have ended."""
    ends_at = time.monotonic() + SETTLE_S
    while (before := host_of(server))["ahead"] != AHEAD or before["processes"]:
        assert time.monotonic() < ends_at, before
        time.sleep(0.02)
    yield
    assert server.process.poll() is None, "the server ended"
    ends_at = time.monotonic() + SETTLE_S
    while (left := difference(before, host_of(server))) and time.monotonic() < ends_at:
        time.sleep(0.05)
    assert left == {}
    log = server.log.read_text("utf-8", "replace")
    assert "Traceback" not in log, log[-4000:]


NewBox = Callable[..., Awaitable[Box]]


async def sandbox_of(server: Server, box: Box) -> dict[str, Any]:
    """Give what is written down of a session's sandbox: `pid` of its init, `group`."""
    async with box.api.get(f"/session/_/match?id={box.name}") as answer:
        (found,) = (await answer.json())["matches"]
    written = (server.state / "sessions" / found["id"] / "sandbox.json").read_text()
    return dict(json.loads(written))


@pytest.fixture
async def new_box(
    host_is_unchanged: None, server: Server, api: aiohttp.ClientSession, new_session: NewSession
) -> NewBox:
    """Make sessions to attack; `mem` is the memory of one, in bytes."""

    async def make(mem: int = MEMORY, image: str = "gcc") -> Box:
        resources = {"cpu": 1, "mem": str(mem)}
        box = Box(api, await new_session(image, config={"resources": resources}))
        # Its group keeps the name that it had while it waited.
        box.was_ahead = (await sandbox_of(server, box))["group"].startswith("pool-")
        box.walls = (await box.sh("true")).answer["walls"]
        return box

    return make


@pytest.fixture
async def box(new_box: NewBox) -> AsyncIterator[Box]:
    """A session to attack; after the test it must still work, and so must a new one."""
    made = await new_box()
    assert made.was_ahead
    yield made
    if not made.may_die:
        await made.works()
    await (await new_box()).works()
