"""A request repeated with its client token is done once and answered as often as it comes."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retort.wire.repeats import CLIENT_TOKEN
from tests.e2e.conftest import NewSession, Server, printed, run_to_end, running_server, upload
from tests.e2e.plain_http import Answer, ask, check_problem, connection, head
from tests.e2e.running import Calls, create, go_on, sh, status_of, wait_for_file


@pytest.fixture
async def name(new_session: NewSession) -> str:
    return await new_session("bash")


def new_token() -> str:
    return uuid.uuid4().hex


def batch(command: str, **more: Any) -> dict[str, Any]:
    return {"mode": "batch", "code": "", "options": {"exec": command}, **more}


async def tokened(api: Calls, method: str, path: str, token: str, **more: Any) -> Answer:
    return await ask(api, method, path, headers={CLIENT_TOKEN: token}, **more)


async def send_and_leave(server: Server, method: str, path: str, token: str, body: Any) -> None:
    """Send a request, and be gone before its answer comes."""
    data = json.dumps(body)
    async with connection(server) as line:
        lines = (f"{CLIENT_TOKEN}: {token}", "Content-Type: application/json")
        await line.send(head(server, method, path, *lines, f"Content-Length: {len(data)}") + data)


def same(one: Answer, other: Answer) -> bool:
    kept = ("Content-Type", "Server", "X-RateLimit-Limit")
    return (one.status, one.body, [one.headers.get(k) for k in kept]) == (
        other.status,
        other.body,
        [other.headers.get(k) for k in kept],
    )


async def test_a_repeated_create_is_one_session(api: Calls) -> None:
    token = new_token()
    body = {"image": "bash"}
    first, second = await asyncio.gather(
        tokened(api, "POST", "/session", token, json=body),
        tokened(api, "POST", "/session", token, json=body),
    )
    third = await tokened(api, "POST", "/session", token, json=body)
    assert first.status == 201
    assert same(first, second)
    assert same(first, third)
    path = f"/session/{first.json['sessionId']}"
    ended = await tokened(api, "DELETE", path, "d" + token)
    assert ended.status == 200
    assert same(ended, await tokened(api, "DELETE", path, "d" + token))
    assert (await tokened(api, "DELETE", path, "e" + token)).status == 404


async def test_output_whose_answer_was_lost_comes_with_the_repeat_and_once(
    api: Calls, server: Server, name: str
) -> None:
    path, token = f"/session/{name}", new_token()
    body = batch("touch begun; for i in 1 2 3; do echo $i; done")
    await send_and_leave(server, "POST", path, token, body)
    await wait_for_file(api, name, "begun")
    first = await tokened(api, "POST", path, token, json=body)
    assert same(first, await tokened(api, "POST", path, token, json=body))
    answers = [first.json["result"]]
    while answers[-1]["status"] != "finished":
        answers.append(await go_on(api, name, answers[0]["runId"]))
    assert printed(answers) == "1\n2\n3\n"
    assert (await sh(api, name, "ls begun"))[0] == 0


async def test_each_answer_of_a_run_may_be_asked_for_twice(api: Calls, name: str) -> None:
    path, run_id = f"/session/{name}", new_token()
    body: dict[str, Any] = batch("seq 5000; read x; echo got $x; seq 5", runId=run_id)
    answers: list[dict[str, Any]] = []
    for _ in range(50):
        token = new_token()
        once, again = (
            await tokened(api, "POST", path, token, json=body),
            await tokened(api, "POST", path, token, json=body),
        )
        assert same(once, again)
        answers.append(once.json["result"])
        if answers[-1]["status"] == "finished":
            break
        mode = "input" if answers[-1]["status"] == "waiting-input" else "continue"
        body = {"mode": mode, "code": "it" if mode == "input" else "", "runId": run_id}
    lines = [*map(str, range(1, 5001)), "got it", *"12345"]
    assert printed(answers).split() == " ".join(lines).split()


async def test_an_answer_taken_with_a_token_is_its_callers_and_nobody_elses(
    api: Calls, server: Server, name: str
) -> None:
    path, token, run_id = f"/session/{name}", new_token(), new_token()
    body = batch("echo mine; touch begun", runId=run_id)
    await send_and_leave(server, "POST", path, token, body)
    await wait_for_file(api, name, "begun")
    answers = [(await tokened(api, "POST", path, token, json=body)).json["result"]]
    while answers[-1]["status"] != "finished":
        answers.append(await go_on(api, name, run_id))
    assert printed(answers) == "mine\n"
    status, _ = await status_of(api, name, mode="continue", code="", runId=run_id)
    assert status == 404


async def test_another_request_with_the_same_token_is_a_conflict(api: Calls, name: str) -> None:
    token = new_token()
    path = f"/session/{name}"
    assert (await tokened(api, "POST", path, token, json=batch("true"))).status == 200
    for method, where, more in (
        ("POST", path, {"json": batch("false")}),
        ("POST", f"{path}/interrupt", {}),
        ("DELETE", path, {}),
        ("PATCH", path, {}),
    ):
        answer = await tokened(api, method, where, token, **more)
        check_problem(answer, 409, "invalid-api-params")
    assert (await ask(api, "GET", path)).status == 200


async def test_a_failure_is_repeated_too(api: Calls) -> None:
    token = new_token()
    answer = await tokened(api, "POST", "/session", token, json={"image": "no-such"})
    check_problem(answer, 404, "object-not-found", thing="environment image")
    assert same(answer, await tokened(api, "POST", "/session", token, json={"image": "no-such"}))


async def test_a_bad_token_is_refused_and_a_get_ignores_it(api: Calls, name: str) -> None:
    path = f"/session/{name}"
    answer = await tokened(api, "POST", path, "x" * 129, json=batch("true"))
    check_problem(answer, 400, "invalid-api-params")
    assert (await tokened(api, "GET", path, "x" * 129)).status == 200


async def test_a_repeated_upload_is_answered_whatever_its_boundary(api: Calls, name: str) -> None:
    token = new_token()
    for boundary in ("one", "another-one"):
        with aiohttp.MultipartWriter("form-data", boundary=boundary) as form:
            part = form.append(b"text")
            part.set_content_disposition("form-data", name="src", filename="a.txt")
        answer = await tokened(api, "POST", f"/session/{name}/upload", token, data=form)
        assert answer.status == 204
        assert answer.body == b""


async def test_a_token_is_its_keys_own(api: Calls, server: Server) -> None:
    token = new_token()
    body = {"image": "bash"}
    key = server.new_key()
    headers = {"Authorization": f"Bearer {key['token']}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as others:
        made = [await tokened(a, "POST", "/session", token, json=body) for a in (api, others)]
        ids = [answer.json["sessionId"] for answer in made]
        for calls, session_id in zip((api, others), ids, strict=True):
            assert (await ask(calls, "DELETE", f"/session/{session_id}")).status == 200
    assert ids[0] != ids[1]


async def test_files_are_downloaded_by_post_whatever_the_token(api: Calls, name: str) -> None:
    await upload(api, name, a__txt="text")
    for _ in range(2):
        answer = await tokened(
            api, "POST", f"/session/{name}/download_single", "t", json={"file": "a.txt"}
        )
        assert answer.body == b"text"


async def test_answers_are_known_to_the_next_server_after_a_kill(tmp_path: Path) -> None:
    token = new_token()
    body = {"image": "bash", "name": "lasting"}
    calls = (
        ("POST", "/session", "a" + token, body),
        ("POST", "/session/lasting", "b" + token, batch("echo once")),
        ("DELETE", "/session/lasting", "c" + token, None),
    )
    kept: list[list[Answer]] = []
    headers: dict[str, str] = {}
    for _ in range(2):
        with running_server(tmp_path / "state") as server:
            headers = headers or {"Authorization": f"Bearer {server.token}"}
            async with aiohttp.ClientSession(server.url, headers=headers) as api:
                kept.append([await tokened(api, m, p, t, json=b) for m, p, t, b in calls])
            server.process.kill()
    with running_server(tmp_path / "state"):
        pass  # ends what the second death left
    assert [answer.status for answer in kept[0]] == [201, 200, 200]
    assert all(map(same, *kept))


async def test_an_answer_is_forgotten_after_its_time_and_beyond_its_room(tmp_path: Path) -> None:
    settings = {"RETORT_REPEATS_KEY_BYTES": "4096", "RETORT_REPEATS_ANSWER_BYTES": "2048"}
    with running_server(tmp_path / "state", **settings) as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        async with aiohttp.ClientSession(server.url, headers=headers) as api:
            path = f"/session/{await create(api)}"
            for n in range(8):
                await tokened(api, "POST", path, f"t{n}", json=batch("true", runId=f"r{n}"))
            await run_to_end(api, path.rpartition("/")[2], exec="true")
            # Forgotten: it is a new request, with whatever body.
            answer = await tokened(api, "POST", path, "t0", json=batch("echo new"))
            assert answer.status == 200
            check_problem(
                await tokened(api, "POST", path, "t7", json=batch("echo new")),
                *(409, "invalid-api-params"),
            )
