"""Execute over a WebSocket (spec 9.1), against a real server."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import NewSession, printed, running_server, upload
from tests.e2e.running import (
    Calls,
    begin,
    destroy,
    has_process,
    processes_with,
    runs_of,
    sh,
    wait_for,
    wait_for_file,
)

Socket = aiohttp.ClientWebSocketResponse
LIMIT = 4 * 1024 * 1024


@pytest.fixture
async def name(new_session: NewSession) -> str:
    return await new_session("bash")


def connect(api: Calls, name: str, **more: Any) -> Any:
    return api.ws_connect(f"/stream/session/{name}/execute", max_msg_size=LIMIT, **more)


async def send(ws: Socket, **options: Any) -> None:
    await ws.send_str(json.dumps({"code": "", "mode": "batch", "options": options}))


async def receive(ws: Socket) -> dict[str, Any]:
    message = await ws.receive(30)
    assert message.type is aiohttp.WSMsgType.TEXT, message
    assert len(message.data.encode()) < LIMIT
    result: dict[str, Any] = json.loads(message.data)
    return result


async def receive_until(ws: Socket, *statuses: str, text: str = "\0never") -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    while not answers or (answers[-1]["status"] not in statuses and text not in printed(answers)):
        answers.append(await receive(ws))
    return answers


async def closed_with(ws: Socket) -> int | None:
    message = await ws.receive(10)
    assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED), message
    return ws.close_code


def ends(answers: list[dict[str, Any]]) -> list[tuple[str, int | None]]:
    return [(a["status"], a["exitCode"]) for a in answers if a["status"] != "continued"]


async def test_a_run_tells_its_phases_in_order_and_closes(api: Calls, name: str) -> None:
    async with connect(api, name) as ws:
        await send(ws, clean="echo c; exit 1", build="echo b", exec="echo e >&2; exit 2")
        answers = await receive_until(ws, "finished")
        assert await closed_with(ws) == 1000
    assert ends(answers) == [("clean-finished", 1), ("build-finished", 0), ("finished", 2)]
    assert printed(answers) == "c\nb\n"
    assert printed(answers, "stderr") == "e\n"
    verdict = {"outcome", "signal", "limit", "retrySafe", "usage", "walls"}
    for answer in answers:
        more = set() if answer["status"] == "continued" else verdict
        assert set(answer) == {"status", "console", "exitCode", "options", "files"} | more


@pytest.mark.slow
async def test_output_is_flushed_while_the_program_runs(api: Calls, name: str) -> None:
    async with connect(api, name) as ws:
        await send(ws, exec="echo one; sleep 60")
        await receive_until(ws, "build-finished")
        answer = await receive(ws)
        assert (answer["status"], answer["console"]) == ("continued", [["stdout", "one\n"]])


@pytest.mark.slow
async def test_a_chatty_program_makes_few_messages(api: Calls, name: str) -> None:
    began_at = time.monotonic()
    async with connect(api, name) as ws:
        await send(ws, exec="for i in $(seq 60); do echo $i; sleep 0.01; done")
        answers = await receive_until(ws, "finished")
    took_s = time.monotonic() - began_at
    assert printed(answers) == "".join(f"{n}\n" for n in range(1, 61))
    assert len(answers) < 5 + took_s / 0.2  # `runs.flush_s`


@pytest.mark.slow
async def test_each_wait_for_input_is_told_once(api: Calls, name: str) -> None:
    async with connect(api, name) as ws:
        await send(
            ws, exec="echo a; read x; sleep 0.1; echo $x; read y; echo $y; sleep 0.2; echo z"
        )
        told = await receive_until(ws, "waiting-input")
        with pytest.raises(TimeoutError):
            await ws.receive(0.7)
        await ws.send_str("höß 世")
        told += await receive_until(ws, "waiting-input")
        assert told[-1]["options"] == {"is_password": False}
        await ws.send_str("two\n")
        told += await receive_until(ws, "finished")
    assert [a["status"] for a in told].count("waiting-input") == 2
    assert printed(told) == "a\nhöß 世\ntwo\nz\n"


@pytest.mark.slow
async def test_output_of_a_thread_beside_a_wait_is_no_new_wait(api: Calls, name: str) -> None:
    async with connect(api, name) as ws:
        await send(
            ws, exec="(for i in 1 2 3 4; do sleep 0.2; echo $i; done) & read x; wait; echo $x"
        )
        answers = await receive_until(ws, "waiting-input")
        answers += await receive_until(ws, "finished", text="4\n")
        assert [a["status"] for a in answers].count("waiting-input") == 1
        await ws.send_str("end")
        await receive_until(ws, "finished")


@pytest.mark.slow
async def test_a_wait_that_follows_input_is_told_soon(api: Calls, name: str) -> None:
    async with connect(api, name) as ws:
        await send(ws, exec="while read x; do echo $x; done")
        await receive_until(ws, "waiting-input")
        took = []
        for number in range(5):
            began = time.monotonic()
            await ws.send_str(str(number))
            await receive_until(ws, "waiting-input")
            took.append(time.monotonic() - began)
        assert min(took) < 0.6, took  # one of them at least, however busy the machine is


@pytest.mark.parametrize(
    "message",
    ["", "{", "[]", "{}", '{"mode": "continue"}', '{"mode": "batch", "options": {"exec": 1}}'],
)
async def test_a_bad_first_message_is_answered_and_closed(
    api: Calls, name: str, message: str
) -> None:
    async with connect(api, name) as ws:
        await ws.send_str(message)
        answer = await receive(ws)
        assert (answer["status"], answer["console"]) == ("error", [])
        assert answer["msg"]
        await closed_with(ws)
    assert await sh(api, name, "echo on") == (0, "on\n")


async def test_a_stream_to_no_session_is_404_before_the_upgrade(api: Calls) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await connect(api, "no-such-session")
    assert caught.value.status == 404


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "trap"),
    [("clean", ""), ("build", ""), ("exec", ""), ("exec", "trap '' INT TERM HUP; ")],
    ids=["clean", "build", "exec", "exec-ignores"],
)
async def test_a_client_that_leaves_takes_its_program_along(
    api: Calls, name: str, phase: str, trap: str
) -> None:
    mark = f"21{time.monotonic_ns() % 10**9}"
    async with connect(api, name) as ws:
        await send(ws, **{"exec": "touch next", phase: f"{trap}sleep {mark}; sleep {mark}"})
        await wait_for(lambda: has_process(mark))
    assert await sh(api, name, "ls next 2>&1 | wc -l; [ ! -e next ]") == (0, "1\n")
    assert not processes_with(mark)


async def test_a_waiting_run_whose_client_leaves_never_starts(api: Calls, name: str) -> None:
    first = await begin(api, name, "read x")
    async with connect(api, name) as ws:
        await send(ws, exec="touch never")
        await wait_for(lambda: runs_of(api, name, 2))
    async with api.post(
        f"/session/{name}", json={"mode": "input", "code": "", "runId": first}
    ) as answer:
        assert answer.status == 200
    assert await sh(api, name, "ls never 2>&1 | wc -l; [ ! -e never ]") == (0, "1\n")


@pytest.mark.slow
async def test_pings_are_answered_while_a_program_is_silent(api: Calls, name: str) -> None:
    async with connect(api, name, autoping=False) as ws:
        await send(ws, exec=": > on; until [ -e go ]; do sleep 0.02; done; echo end")
        answers = await receive_until(ws, "build-finished")
        await wait_for_file(api, name, "on")
        for number in range(4):
            await ws.ping(sent := f"{number}".encode())
            message = await ws.receive(30)
            assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, sent)
        await upload(api, name, go="")
        answers += await receive_until(ws, "finished")
    assert printed(answers) == "end\n"


@pytest.mark.slow
async def test_a_huge_output_comes_in_frames_a_client_takes(api: Calls, name: str) -> None:
    async with connect(api, name) as ws:
        half = "head -c 600000 /dev/zero | tr '\\0' '\\1'"
        await send(ws, exec=f"{half}; {half} >&2")
        answers = await receive_until(ws, "finished")
    assert set(printed(answers)) == {"\x01"}
    assert len(printed(answers)) >= 524_288


@pytest.mark.slow
async def test_a_destroyed_session_ends_its_stream(api: Calls, new_session: NewSession) -> None:
    name = await new_session("bash")
    async with connect(api, name) as ws:
        await send(ws, exec="echo ready; sleep 60")
        await receive_until(ws, text="ready")
        await destroy(api, name)
        answer = await receive(ws)
        assert (answer["status"], answer["exitCode"], answer["options"]) == ("finished", 130, {})
        assert await closed_with(ws) == 1000


@pytest.mark.slow
async def test_a_time_limit_closes_the_stream(tmp_path: Path) -> None:
    with running_server(tmp_path / "state", RETORT_RUNS_WALL_S="3") as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        async with aiohttp.ClientSession(server.url, headers=headers) as api:
            async with api.post("/session", json={"image": "bash"}) as answer:
                name = (await answer.json())["sessionName"]
            async with connect(api, name) as ws:
                await send(ws, exec="echo a; sleep 60")
                answers = await receive_until(ws, "exec-timeout")
                assert (answers[-1]["exitCode"], printed(answers)) == (None, "a\n")
                assert await closed_with(ws) == 1000


@pytest.mark.slow
async def test_an_abandoned_program_is_killed_soon_whatever_its_time_limit(tmp_path: Path) -> None:
    with running_server(tmp_path / "state", RETORT_RUNS_WALL_S="1h") as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        async with aiohttp.ClientSession(server.url, headers=headers) as api:
            async with api.post("/session", json={"image": "bash"}) as answer:
                name = (await answer.json())["sessionName"]
            mark = f"22{time.monotonic_ns() % 10**9}"
            async with connect(api, name) as ws:
                await send(ws, exec=f"trap '' INT; sleep {mark}; sleep {mark}")
                await wait_for(lambda: has_process(mark))
            assert await sh(api, name, "echo next") == (0, "next\n")
            assert not processes_with(mark)


@pytest.mark.slow
async def test_a_server_that_stops_says_so(tmp_path: Path) -> None:
    with running_server(tmp_path / "state") as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        async with aiohttp.ClientSession(server.url, headers=headers) as api:
            async with api.post("/session", json={"image": "bash"}) as answer:
                name = (await answer.json())["sessionName"]
            mark = f"23{time.monotonic_ns() % 10**9}"
            async with connect(api, name) as ws:
                await send(ws, exec=f"echo ready; trap '' TERM INT; sleep {mark}")
                await receive_until(ws, text="ready")
                stopping = asyncio.create_task(asyncio.to_thread(server.stop))
                answers = await receive_until(ws, "server-restarting", "finished")
                assert answers[-1]["status"] == "server-restarting"
                assert (answers[-1]["console"], bool(answers[-1]["msg"])) == ([], True)
                assert await closed_with(ws) == 1001
            await stopping
            assert server.process.returncode == 0
            assert not processes_with(mark)
