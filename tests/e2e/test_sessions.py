"""Sessions over HTTP (spec 7.1 to 7.6), and what becomes of them when things die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import NewSession, Server, environment, run_to_end, running_server, upload
from tests.e2e.running import (
    Calls,
    begin,
    create,
    destroy,
    has_process,
    is_gone,
    is_over,
    processes_with,
    restart,
    sh,
    start,
    status_of,
    wait_for,
)

Answer = tuple[int, dict[str, Any]]


async def call(api: Calls, method: str, path: str, **more: Any) -> Answer:
    async with api.request(method, path, **more) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if text else {}


async def ask_create(api: Calls, image: str = "bash", **body: Any) -> Answer:
    return await call(api, "POST", "/session", json={"image": image, **body})


def kind(problem: dict[str, Any]) -> str:
    return str(problem["type"]).rpartition("/")[2]


@contextlib.asynccontextmanager
async def calls_to(server: Server) -> AsyncIterator[Calls]:
    headers = {"Authorization": f"Bearer {server.token}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as session:
        yield session


@pytest.fixture
async def name(new_session: NewSession) -> str:
    return await new_session("bash")


@pytest.fixture(scope="module")
def other_key(server: Server) -> dict[str, str]:
    """Somebody else's key."""
    return server.new_key()


def drawn() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


# --- create -------------------------------------------------------------------------------------


async def test_a_new_session_is_answered_with_all_that_clients_read(api: Calls) -> None:
    name = drawn()
    status, body = await ask_create(api, name=name)
    assert status == 201
    uuid.UUID(body.pop("sessionId"))
    assert body == {
        "sessionName": name, "sessId": name, "kernelId": name, "status": "RUNNING",
        "servicePorts": [], "created": True,
    }  # fmt: skip
    await destroy(api, name)


async def test_a_session_of_the_same_name_and_image_is_reused(api: Calls, name: str) -> None:
    status, first = await ask_create(api, name=name)
    assert (status, first["created"]) == (200, False)
    status, again = await ask_create(api, name=name, config={"environ": {"NEW": "1"}})
    assert (status, again["sessionId"]) == (200, first["sessionId"])
    assert await sh(api, name, "echo $NEW") == (0, "\n")


@pytest.mark.parametrize("more", [{"reuseIfExists": False}, {"image": "python"}])
async def test_a_name_that_is_taken_is_refused_with_its_session(
    api: Calls, name: str, more: dict[str, Any]
) -> None:
    _, existing = await ask_create(api, name=name)
    status, problem = await ask_create(api, **({"name": name, "image": "bash"} | more))
    assert (status, kind(problem)) == (400, "session-already-exists")
    assert problem["data"] == {"existingSessionId": existing["sessionId"]}


async def test_a_name_is_free_again_when_its_session_has_ended(api: Calls) -> None:
    name = drawn()
    ids = set()
    for _ in range(3):
        status, body = await ask_create(api, name=name, reuseIfExists=False)
        assert status == 201
        ids.add(body["sessionId"])
        await destroy(api, name)
    assert len(ids) == 3


async def test_a_missing_name_is_drawn(api: Calls) -> None:
    names = {await create(api) for _ in range(3)}
    assert len(names) == 3
    for one in names:
        assert re.fullmatch(r"\w[\w.-]{2,62}\w", one)
        await destroy(api, one)


@pytest.mark.parametrize(
    "name", ["abc", "a" * 65, "-abcd", "abcd-", "ab cd", "ab/cd", "abcü", "", "create", "abcd\n"]
)
async def test_a_name_that_cannot_be_is_refused(api: Calls, name: str) -> None:
    status, problem = await ask_create(api, name=name)
    assert (status, kind(problem)) == (400, "invalid-api-params")


async def test_an_unknown_image_is_404(api: Calls) -> None:
    status, problem = await ask_create(api, image="no-such-image")
    assert (status, kind(problem)) == (404, "object-not-found")
    assert problem["title"] == "No such environment image."


async def test_slots_are_taken_and_told(api: Calls) -> None:
    name = await create(api, config={"resources": {"cpu": "1", "mem": "256m"}})
    _, info = await call(api, "GET", f"/session/{name}")
    assert json.loads(info["requestedSlots"]) == {"cpu": "1", "mem": "268435456"}
    assert info["memoryLimit"] == 262144
    await destroy(api, name)


@pytest.mark.parametrize("resources", [{"cpu": 10_000}, {"mem": "500t"}])
async def test_more_than_the_server_has_is_412_and_leaves_the_name_free(
    api: Calls, resources: dict[str, Any]
) -> None:
    name = drawn()
    status, problem = await ask_create(api, name=name, config={"resources": resources})
    assert (status, kind(problem)) == (412, "quota-exceeded")
    assert (await call(api, "GET", f"/session/{name}"))[0] == 404
    assert (await ask_create(api, name=name))[0] == 201
    await destroy(api, name)


async def test_two_creates_of_one_name_at_once_make_one_session(api: Calls) -> None:
    name = drawn()
    answers = await asyncio.gather(*(ask_create(api, name=name) for _ in range(6)))
    assert sorted(status for status, _ in answers) == [200] * 5 + [201]
    assert len({body["sessionId"] for _, body in answers}) == 1
    await destroy(api, name)


async def test_a_bootstrap_script_has_run_before_the_session_is_ready(api: Calls) -> None:
    name = await create(api, bootstrap_script="sleep 0.1; echo $MINE > made; exit 3",
                        config={"environ": {"MINE": "x"}})  # fmt: skip
    assert await sh(api, name, "cat made") == (0, "x\n")
    await destroy(api, name)


async def test_a_session_that_still_starts_can_be_destroyed(api: Calls) -> None:
    name, mark = drawn(), f"31{time.monotonic_ns() % 10**9}"
    creating = asyncio.create_task(ask_create(api, name=name, bootstrap_script=f"sleep {mark}"))
    await wait_for(lambda: has_process(mark))
    async with asyncio.timeout(60):
        await destroy(api, name)
        assert (await creating)[0] == 404
    await wait_for(lambda: is_over(mark))  # killed when that is answered, and dying
    assert (await ask_create(api, name=name))[0] == 201
    await destroy(api, name)


def token_of_a_key_for_two(server: Server) -> str:
    argv = (sys.executable, "-m", "retort.cli.main", "keys", "create", "--json")
    made = subprocess.check_output(
        [*argv, "--state", str(server.state)], env=environment(RETORT_KEYS_MAX_SESSIONS="2")
    )
    return str(json.loads(made)["token"])


@pytest.mark.slow
async def test_a_key_has_its_number_of_sessions_and_no_more(tmp_path: Path) -> None:
    with running_server(tmp_path / "state") as server:
        server.token = token_of_a_key_for_two(server)
        async with calls_to(server) as api:
            names = [await create(api), await create(api)]
            status, problem = await ask_create(api)
            assert (status, kind(problem)) == (412, "quota-exceeded")
            assert (await ask_create(api, name=names[0]))[0] == 200
            assert (await ask_create(api, image="none"))[0] == 404
            await destroy(api, names[0])
            answers = await asyncio.gather(*(ask_create(api) for _ in range(4)))
            assert sorted(status for status, _ in answers) == [201, 412, 412, 412]


# --- info, destroy, rename, restart -------------------------------------------------------------

INFO_KEYS = {
    "age",
    "architecture",
    "containerId",
    "cpuCreditUsed",
    "creationTime",
    "domainName",
    "environ",
    "groupId",
    "idleChecks",
    "image",
    "lang",
    "lastStat",
    "memoryLimit",
    "numQueriesExecuted",
    "occupiedShares",
    "occupiedSlots",
    "occupyingSlots",
    "registry",
    "requestedSlots",
    "resourceOpts",
    "status",
    "statusData",
    "statusInfo",
    "tag",
    "terminationTime",
    "userId",
}


async def test_info_tells_everything(api: Calls) -> None:
    name = await create(api, tag="mine", config={"environ": {"A": "b"}})
    await run_to_end(api, name, exec="true")
    status, info = await call(api, "GET", f"/session/{name}")
    assert status == 200
    assert set(info) == INFO_KEYS
    assert (info["status"], info["tag"], info["numQueriesExecuted"]) == ("RUNNING", "mine", 1)
    assert json.loads(info["environ"]) == {"A": "b"}
    assert isinstance(info["age"], int)
    assert 0 <= info["age"] < 60_000
    assert info["terminationTime"] is None
    await destroy(api, name)


@pytest.mark.parametrize(
    ("version", "has_status"),
    [("v2.20170315", False), ("v4.20190615", True), ("v7.20230615", True)],
)
async def test_statistics_of_destroy_follow_the_version(
    api: Calls, version: str, has_status: bool
) -> None:
    name = await create(api)
    await run_to_end(api, name, exec="i=0; while ((i < 30000)); do ((i++)); done")
    headers = {"X-BackendAI-Version": version}
    status, body = await call(api, "DELETE", f"/session/{name}", headers=headers)
    stats = body["stats"]
    assert status == 200
    assert (stats.pop("status", None) == "terminated") is has_status
    assert ("version" in stats) is has_status
    assert all(type(value) is int for value in stats.values())
    assert stats["cpu_used"] > 0
    assert stats["mem_max_bytes"] > 1_000_000


ROUTES = [
    ("GET", ""), ("POST", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rename?name=abcdef"),
    ("POST", "/interrupt"), ("GET", "/files"), ("GET", "/download_single?file=x"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_session_that_has_ended_is_404(api: Calls, method: str, path: str) -> None:
    name = await create(api)
    await destroy(api, name)
    body = {"mode": "batch", "options": {}} if (method, path) == ("POST", "") else None
    status, problem = await call(api, method, f"/session/{name}{path}", json=body)
    assert (status, problem["title"]) == (404, "No such session.")


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_another_keys_session_is_404(
    api: Calls, name: str, server: Server, other_key: dict[str, str], method: str, path: str
) -> None:
    _, mine = await ask_create(api, name=name)
    headers = {"Authorization": f"Bearer {other_key['token']}"}
    body = {"mode": "batch", "options": {}} if (method, path) == ("POST", "") else None
    async with aiohttp.ClientSession(server.url, headers=headers) as other:
        for ref in (name, mine["sessionId"]):
            status, _ = await call(other, method, f"/session/{ref}{path}", json=body)
            assert status == 404
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await other.ws_connect(f"/stream/session/{name}/execute")
    assert await sh(api, name, "echo mine") == (0, "mine\n")


async def test_keys_may_have_sessions_of_the_same_name(
    api: Calls, name: str, server: Server, other_key: dict[str, str]
) -> None:
    headers = {"Authorization": f"Bearer {other_key['token']}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as other:
        assert (await ask_create(other, name=name))[0] == 201
        await destroy(other, name)
    assert await sh(api, name, "echo mine") == (0, "mine\n")


async def test_a_renamed_session_has_its_new_name_only(api: Calls, name: str) -> None:
    _, made = await ask_create(api, name=name)
    new = drawn()
    assert (await call(api, "POST", f"/session/{name}/rename?name={new}"))[0] == 204
    assert (await call(api, "GET", f"/session/{name}"))[0] == 404
    assert await sh(api, new, "echo hi") == (0, "hi\n")
    assert await sh(api, made["sessionId"], "echo hi") == (0, "hi\n")
    assert (await call(api, "POST", f"/session/{new}/rename?name={name}"))[0] == 204


async def test_a_name_that_is_taken_or_bad_is_no_new_name(
    api: Calls, name: str, new_session: NewSession
) -> None:
    taken = await new_session("bash")
    for new in (taken, "x", "create"):
        status, problem = await call(api, "POST", f"/session/{name}/rename?name={new}")
        assert (status, kind(problem)) == (400, "invalid-api-params")
    assert (await call(api, "POST", f"/session/{name}/rename?name={name}"))[0] == 204
    assert await sh(api, name, "echo hi") == (0, "hi\n")


async def test_restart_keeps_files_and_environment_and_kills_the_rest(api: Calls) -> None:
    name = await create(api, config={"environ": {"A": "b"}})
    await upload(api, name, kept__txt="kept")
    mark = f"32{time.monotonic_ns() % 10**9}"
    await begin(api, name, f"trap '' TERM INT HUP; setsid sleep {mark} & sleep {mark}")
    await restart(api, name)
    assert not processes_with(mark)
    assert await sh(api, name, "cat kept.txt; echo $A") == (0, "keptb\n")
    await destroy(api, name)


async def test_calls_that_meet_a_restart_wait_for_it(api: Calls, name: str) -> None:
    await begin(api, name, "sleep 60")
    answers = await asyncio.gather(
        *(call(api, "PATCH", f"/session/{name}") for _ in range(4)),
        *(status_of(api, name, mode="batch", options={"exec": "true"}) for _ in range(4)),
    )
    assert {status for status, _ in answers} <= {200, 204}
    assert await sh(api, name, "echo on") == (0, "on\n")


async def test_destroying_at_once_and_twice_ends_it_once(api: Calls) -> None:
    name = await create(api)
    await start(api, name, "r", exec="sleep 60")
    answers = await asyncio.gather(*(call(api, "DELETE", f"/session/{name}") for _ in range(4)))
    assert sorted(status for status, _ in answers) == [200, 404, 404, 404]


# --- when things die ----------------------------------------------------------------------------


def init_of(server: Server, session_id: str) -> int:
    """The pid of a session's init on this host."""
    record = json.loads((server.state / "sessions" / session_id / "sandbox.json").read_text())
    return int(record["pid"])


def folders(server: Server) -> set[str]:
    return {path.name for path in (server.state / "sessions").iterdir()}


def statuses(server: Server) -> dict[str, str]:
    """Every session's state in the database, by its id."""
    with contextlib.closing(sqlite3.connect(server.state / "retort.db")) as database:
        rows = database.execute("select id, status from sessions").fetchall()
    return {str(uuid.UUID(str(row[0]))): row[1] for row in rows}


@pytest.mark.slow
async def test_a_killed_init_ends_its_run_as_our_failure_and_touches_no_other(
    api: Calls, name: str, server: Server
) -> None:
    victim, mark = drawn(), f"33{time.monotonic_ns() % 10**9}"
    _, made = await ask_create(api, name=victim)
    options = {"build": f"sleep {mark}"}
    polling = asyncio.create_task(status_of(api, victim, mode="batch", options=options))
    await wait_for(lambda: has_process(mark))
    pid = init_of(server, made["sessionId"])
    os.kill(pid, signal.SIGKILL)
    status, body = await polling
    assert status == 200
    assert body["result"]["status"] == "finished"
    assert body["result"]["exitCode"] < 0

    async def is_forgotten() -> bool:
        return made["sessionId"] not in folders(server)

    assert (await call(api, "GET", f"/session/{victim}"))[0] == 404
    await wait_for(is_forgotten)
    assert not processes_with(mark)
    assert await sh(api, name, "echo on") == (0, "on\n")
    assert (await ask_create(api, name=victim))[0] == 201
    await destroy(api, victim)


@pytest.mark.slow
async def test_a_server_that_stops_leaves_neither_process_nor_folder(tmp_path: Path) -> None:
    mark = f"34{time.monotonic_ns() % 10**9}"
    with running_server(tmp_path / "state") as server:
        async with calls_to(server) as api:
            made = [(await ask_create(api))[1] for _ in range(3)]
            pids = [init_of(server, one["sessionId"]) for one in made]
            for one in made:
                await begin(api, one["sessionName"], f"trap '' TERM; setsid sleep {mark} & wait")
            await asyncio.to_thread(server.stop)
        assert server.process.returncode == 0
        assert not processes_with(mark)
        assert all(is_gone(pid) for pid in pids)
        assert folders(server) == set()
        assert set(statuses(server).values()) == {"TERMINATED"}


@pytest.mark.slow
async def test_a_folder_without_a_record_is_removed_at_the_start(tmp_path: Path) -> None:
    record = {"pid": 1, "start_ticks": 1, "host_uid": None, "boot_id": "x", "group": "x"}
    huge = json.dumps(record | {"pid": 10**30})
    for folder, text in (
        ("half", None), ("bad", "x y"), ("huge", huge), ("old", json.dumps(record))
    ):  # fmt: skip
        (tmp_path / "state" / "sessions" / folder).mkdir(parents=True)
        if text is not None:
            (tmp_path / "state" / "sessions" / folder / "sandbox.json").write_text(text)
    with running_server(tmp_path / "state", RETORT_POOL_SIZE="0") as server:

        async def is_swept() -> bool:  # a start waits for it, though not for ever
            return folders(server) == set()

        await wait_for(is_swept)


@pytest.mark.slow
async def test_an_idle_session_ends_and_one_that_runs_a_program_does_not(tmp_path: Path) -> None:
    with running_server(tmp_path / "state", RETORT_SESSIONS_IDLE_S="1.5") as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        async with aiohttp.ClientSession(server.url, headers=headers) as api:
            idle, busy = await create(api), await create(api)
            await begin(api, busy, "read line")

            async def is_gone() -> bool:
                async with api.get(f"/session/_/match?id={idle}") as answer:
                    return (await answer.json())["matches"] == []

            await wait_for(is_gone)
            async with api.get(f"/session/{busy}") as answer:
                assert answer.status == 200
    database = sqlite3.connect(server.state / "retort.db")
    with contextlib.closing(database):
        told = database.execute("SELECT reason FROM sessions WHERE name = ?", (idle,)).fetchone()
    assert told == ("idle-timeout",)
