"""A host that is short of something: 503 and when to come back, and no restart when it passes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e import conftest
from tests.e2e.conftest import Server
from tests.e2e.plain_http import Answer, ask, check_problem, connection, head, key_of_policy
from tests.e2e.running import Calls, sh, wait_for
from tests.e2e.test_pool import enough_wait, waiting
from tests.e2e.test_unprivileged_limits import SOMEBODY, UID, paths_for_anybody
from tests.postgresql import running_cluster

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytestmark = pytest.mark.slow
TOKEN = "X-BackendAI-Client-Token"


#: Without sandboxes made ahead: a create has to make its own, just when the host is short.
running_server = functools.partial(conftest.running_server, RETORT_POOL_SIZE="0")


@contextlib.asynccontextmanager
async def calls(server: Server) -> AsyncIterator[Calls]:
    headers = {"Authorization": f"Bearer {server.token}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as api:
        yield api


async def create(api: Calls, name: str) -> Answer:
    return await ask(api, "POST", "/session", json={"name": name, "image": "bash"})


def check_passing(answer: Answer) -> None:
    check_problem(answer, 503, "service-unavailable")
    assert int(answer.headers["Retry-After"]) > 0


async def check_healthy(api: Calls, server: Server, *, beside: int = 0) -> None:
    """Everything works again, and nothing half-made is left."""
    assert (await create(api, "healthy")).status == 201
    assert await sh(api, "healthy", "echo well") == (0, "well\n")
    assert len(list((server.state / "sessions").iterdir())) == 1 + beside
    assert (await ask(api, "DELETE", "/session/healthy")).status == 200

    async def is_cleared() -> bool:
        return len(list((server.state / "sessions").iterdir())) == beside

    await wait_for(is_cleared)
    assert server.process.poll() is None


@contextlib.contextmanager
def limited(server: Server, number: int, soft: int) -> Iterator[None]:
    """Lower a limit of the living server for a while."""
    before = resource.prlimit(server.process.pid, number)
    resource.prlimit(server.process.pid, number, (soft, before[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, number, before)


def open_files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


# --- descriptors --------------------------------------------------------------------------------


async def test_without_descriptors_sessions_and_runs_are_refused_and_calls_answered(
    tmp_path: Path,
) -> None:
    with running_server(tmp_path / "state") as server:
        async with calls(server) as api:
            assert (await create(api, "elder")).status == 201
            # Until its first program runs, its place is made: with descriptors that come and go.
            assert await sh(api, "elder", "echo in its place") == (0, "in its place\n")
            # A few of those that are open now may be a walk's, in the background.
            with limited(server, resource.RLIMIT_NOFILE, open_files(server) - 2):
                check_passing(await create(api, "newer"))
                start = {"mode": "batch", "code": "", "options": {"exec": "true"}}
                check_passing(await ask(api, "POST", "/session/elder", json=start))
                assert (await ask(api, "GET", "/session/elder")).status == 200
                assert (await ask(api, "GET", "/session/newer")).status == 404
            assert await sh(api, "elder", "echo lives") == (0, "lives\n")
            await check_healthy(api, server, beside=1)


async def test_without_descriptors_what_waits_is_given_up_and_made_again_when_it_passes(
    tmp_path: Path,
) -> None:
    with conftest.running_server(tmp_path / "state", RETORT_POOL_READY="2") as server:

        async def are_gone() -> bool:
            return not waiting(server)

        async with calls(server) as api:
            assert (await create(api, "elder")).status == 201
            assert await sh(api, "elder", "echo in its place") == (0, "in its place\n")
            await enough_wait(server)
            with limited(server, resource.RLIMIT_NOFILE, open_files(server) - 2):
                await wait_for(are_gone)
            await enough_wait(server)
            assert await sh(api, "elder", "echo lives") == (0, "lives\n")
        await asyncio.to_thread(server.stop)
        assert server.process.returncode == 0
        assert "pool.unended" not in server.log.read_text()


async def test_a_flood_of_connections_is_told_off_while_others_are_served(tmp_path: Path) -> None:
    with running_server(tmp_path / "state") as server:
        async with calls(server) as api:
            assert (await create(api, "elder")).status == 201
            assert await sh(api, "elder", "echo in its place") == (0, "in its place\n")
            limit = 240
            with limited(server, resource.RLIMIT_NOFILE, limit):
                async with contextlib.AsyncExitStack() as flood:
                    lines = []
                    for _ in range(limit - 10 - open_files(server)):
                        lines.append(await flood.enter_async_context(connection(server)))
                    newest = lines[-1]
                    await newest.send(head(server, "GET", "/session/elder"))
                    answer = await newest.answer()
                    check_passing(answer)
                    assert await newest.is_closed()
                    # Who is connected already is served, and may end what takes descriptors.
                    assert (await ask(api, "GET", "/session/elder")).status == 200
                    assert (await ask(api, "DELETE", "/session/elder")).status == 200

                async def is_over() -> bool:
                    return open_files(server) < limit // 2

                await wait_for(is_over)
                await check_healthy(api, server)


# --- disk ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte free."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


@needs_root
async def test_a_full_disk_is_503_loses_no_output_and_heals(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, running_server(disk / "state") as server:
        async with calls(server) as api:
            assert (await create(api, "elder")).status == 201
            filler = fill(disk)
            check_passing(await create(api, "newer"))
            assert (await ask(api, "GET", "/session/newer")).status == 404
            # An answer that must be kept cannot be given; what it took is the run's again.
            start = {"mode": "batch", "code": "", "runId": "r", "options": {"exec": "echo once"}}
            headers = {TOKEN: "one"}
            answer = await ask(api, "POST", "/session/elder", json=start, headers=headers)
            check_passing(answer)
            filler.unlink()
            printed = ""
            while True:
                answer = await ask(api, "POST", "/session/elder", json=start, headers=headers)
                result = answer.json["result"]
                printed += "".join(text for _, text in result["console"])
                if result["status"] == "finished":
                    break
                start = {"mode": "continue", "code": "", "runId": "r"}
                headers = {TOKEN: f"{headers[TOKEN]}+"}
            assert printed == "once\n"
            await check_healthy(api, server, beside=1)


# --- processes ----------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that another user may enter; pytest's own are closed to it."""
    folder = Path("/var/tmp") / f"retort-trouble-{os.getpid()}"
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


def limit_as_somebody(server: Server, value: str) -> str:
    """Set, or with "" tell, the soft limit of processes of a server with another uid than ours."""
    command = ("prlimit", f"--pid={server.process.pid}", f"--nproc{value}")
    how = ("--output=SOFT", "--noheadings") if not value else ()
    done = subprocess.run(
        [*SOMEBODY[:-1], *command, *how], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@needs_root
async def test_a_full_process_table_is_503_and_heals(place: Path) -> None:
    paths = paths_for_anybody()
    state = place / "state"
    state.mkdir()
    os.chown(state, UID, UID)
    settings = {"HOME": str(place), "PYTHONPATH": paths}
    with running_server(state, command=SOMEBODY, **settings) as server:
        async with calls(server) as api:
            assert (await create(api, "elder")).status == 201
            before = limit_as_somebody(server, "")
            limit_as_somebody(server, "=1:")
            check_passing(await create(api, "newer"))
            assert (await ask(api, "GET", "/session/newer")).status == 404
            limit_as_somebody(server, f"={before}:")
            await check_healthy(api, server, beside=1)


# --- memory -------------------------------------------------------------------------------------


async def test_a_server_that_gets_no_memory_lives_and_recovers(tmp_path: Path) -> None:
    """Where not even a request can be read, its connection breaks; that passes as well."""
    with running_server(tmp_path / "state") as server:
        async with calls(server) as api:
            assert (await create(api, "elder")).status == 201
            body = {"files": ["x" * 900_000]}  # more than is free in its heap
            refused = 0
            with limited(server, resource.RLIMIT_AS, 1):
                for _ in range(3):
                    try:
                        answer = await ask(api, "GET", "/session/elder", json=body)
                    except aiohttp.ClientError:
                        refused += 1
                        continue
                    if answer.status != 200:
                        check_passing(answer)
                        refused += 1
            assert refused
            await check_healthy(api, server, beside=1)


# --- the database -------------------------------------------------------------------------------


async def test_a_locked_database_is_503_and_heals(tmp_path: Path) -> None:
    with running_server(tmp_path / "state", RETORT_DATABASE_BUSY_S="0.05") as server:
        async with calls(server) as api:
            assert (await create(api, "elder")).status == 201
            path = server.state / "retort.db"
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                check_passing(await create(api, "newer"))
                rename = await ask(api, "POST", "/session/elder/rename", json={"name": "other"})
                check_passing(rename)
                assert await sh(api, "elder", "echo runs") == (0, "runs\n")
                other.execute("ROLLBACK")
            assert (await ask(api, "GET", "/session/other")).status == 404
            assert (await ask(api, "GET", "/session/newer")).status == 404
            await check_healthy(api, server, beside=1)


async def test_a_database_that_is_gone_is_503_and_heals(tmp_path: Path) -> None:
    with running_cluster() as cluster:
        settings = {"RETORT_DATABASE_URL": cluster.url, "RETORT_DATABASE_BUSY_S": "0.5"}
        with running_server(tmp_path / "state", **settings) as server:
            server.token = key_of_policy(server, **settings)["token"]
            async with calls(server) as api:
                assert (await create(api, "elder")).status == 201
                cluster.stop()
                try:
                    check_passing(await create(api, "newer"))
                    assert await sh(api, "elder", "echo runs") == (0, "runs\n")
                    assert (await ask(api, "GET", "/session/newer")).status == 404
                finally:
                    cluster.start()
                await check_healthy(api, server, beside=1)
