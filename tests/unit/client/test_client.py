"""The client against small servers that say exactly what a test needs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from retort.client.client import Client, SessionHandle
from retort.client.errors import ApiError, ConnectionBroke, ServerUnreachable
from retort.client.events import Event, Finished, Output, PhaseEnded, ResultFile, WaitingInput

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def _serving(handler: Handler, path: str = "") -> AsyncIterator[Client]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    async with (
        TestServer(app) as server,
        Client(f"{server.make_url(path or '/')}".rstrip("/"), token="rt_x") as client,
    ):
        yield client


def _answer(status: str, console: Iterable[tuple[str, str]] = (), **more: Any) -> dict[str, Any]:
    fields = {"exitCode": None, "options": None, "files": [], "console": list(console)}
    return {"status": status} | fields | more


async def _events(session: SessionHandle, lines: Iterable[str] = ()) -> list[Event]:
    left, events = list(lines), []
    async with session.run() as run:
        async for event in run:
            events.append(event)
            if isinstance(event, WaitingInput) and left:
                await run.send(left.pop(0))
    return events


SCRIPT = [
    _answer("clean-finished", [("stdout", "c")], exitCode=2),
    _answer("continued", [("stderr", "warn")]),
    _answer("build-finished", exitCode=0),
    _answer("waiting-input", [("stdout", "name? ")], options={"is_password": False}),
    _answer("finished", [("stdout", "hi")], exitCode=3, files=[{"name": "f", "url": "http://u"}]),
]
EVENTS = [
    Output("stdout", "c", False),
    PhaseEnded("clean", 2),
    Output("stderr", "warn", False),
    PhaseEnded("build", 0),
    Output("stdout", "name? ", True),
    WaitingInput(False),
    Output("stdout", "hi", True),
    Finished(3, (ResultFile("f", "http://u"),)),
]


async def test_a_run_over_a_websocket_gives_its_events() -> None:
    received: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        received.append(await ws.receive_str())
        for answer in SCRIPT:
            await ws.send_json(answer)
            if answer["status"] == "waiting-input":
                received.append(await ws.receive_str())
        await ws.close()
        return ws

    async with _serving(handler) as client:
        events = await _events(SessionHandle(client, "s", "s"), ["bob"])

    assert events == EVENTS
    start = {"mode": "batch", "code": "", "options": {"build": "*", "exec": "*"}}
    assert json.loads(received[0]) == start
    assert received[1] == "bob"


async def test_without_websockets_a_run_is_polled_and_gives_the_same_events() -> None:
    bodies: list[dict[str, Any]] = []
    answers = iter(SCRIPT)

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/stream"):
            return web.json_response({}, status=502)
        bodies.append(await request.json())
        return web.json_response({"result": next(answers)})

    async with _serving(handler) as client:
        events = await _events(SessionHandle(client, "s", "s"), ["bob"])

    assert events == EVENTS
    assert [body["mode"] for body in bodies] == ["batch", *["continue"] * 3, "input"]
    assert bodies[-1]["code"] == "bob"
    assert len({body["runId"] for body in bodies}) == 1


@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        ({"status": "error", "msg": "bad mode", "console": []}, ApiError, "bad mode"),
        ({"status": "server-restarting", "msg": "bye", "console": []}, ServerUnreachable, "bye"),
        (None, ServerUnreachable, "ended before the program"),
    ],
)
async def test_a_stream_that_ends_early_is_an_error(
    message: dict[str, Any] | None, error: type[Exception], text: str
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.receive_str()
        if message:
            await ws.send_json(message)
        await ws.close()
        return ws

    async with _serving(handler) as client:
        with pytest.raises(error, match=text):
            await _events(SessionHandle(client, "s", "s"))


async def test_a_run_that_timed_out_says_so() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.receive_str()
        await ws.send_json(_answer("exec-timeout"))
        await ws.close()
        return ws

    async with _serving(handler) as client:
        (event,) = await _events(SessionHandle(client, "s", "s"))

    assert isinstance(event, Finished)
    assert event.is_timed_out


async def test_a_problem_object_becomes_an_error_with_its_fields() -> None:
    problem = {"type": "https://api.backend.ai/probs/quota-exceeded", "title": "T", "msg": "M"}

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response(problem | {"data": {"a": 1}}, status=412,
                                 content_type="application/problem+json")  # fmt: skip

    async with _serving(handler) as client:
        with pytest.raises(ApiError) as caught:
            await client.create_session("gcc")

    exc = caught.value
    assert (exc.status, exc.kind, exc.title, exc.msg) == (412, "quota-exceeded", "T", "M")
    assert exc.data == {"a": 1}
    assert str(exc) == "M"


async def test_an_error_that_is_no_problem_object_keeps_its_status() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503, text="<html>proxy</html>", content_type="text/html")

    async with _serving(handler) as client:
        with pytest.raises(ApiError, match="HTTP status 503"):
            await client.call("GET", "/x")


async def test_a_redirect_is_not_followed_with_the_key() -> None:
    paths: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        raise web.HTTPFound("/elsewhere")

    async with _serving(handler) as client:
        with pytest.raises(ApiError):
            await client.call("GET", "/x")
    assert paths == ["/x"]


async def test_no_server_is_told_by_its_address(unused_tcp_port_url: str) -> None:
    async with Client(unused_tcp_port_url, token="rt_x") as client:
        with pytest.raises(ServerUnreachable, match=unused_tcp_port_url):
            await client.create_session("gcc")


@pytest.fixture
async def unused_tcp_port_url() -> str:
    """An address where a server was, and is no more."""
    async with TestServer(web.Application()) as server:
        return str(server.make_url("")).rstrip("/")


def test_a_client_without_a_key_is_not_made() -> None:
    with pytest.raises(ValueError, match="token"):
        Client("http://127.0.0.1:1", access_key="AK")


async def test_an_upload_goes_in_requests_of_twenty_with_quoted_names(tmp_path: Path) -> None:
    uploads: list[list[tuple[str | None, bytes]]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        reader = await request.multipart()
        parts = [part async for part in _parts(reader)]
        uploads.append(parts)
        return web.Response(status=204)

    async def _parts(reader: Any) -> AsyncIterator[tuple[str | None, bytes]]:
        while (part := await reader.next()) is not None:
            yield part.headers["Content-Disposition"], bytes(await part.read())

    (tmp_path / "x").write_bytes(b"from a file\x00")
    files: dict[str, Path | bytes] = {f"f{i:02}": b"%d" % i for i in range(20)}
    async with _serving(handler) as client:
        await SessionHandle(client, "s", "s").upload(files | {"d/ü %2F.c": tmp_path / "x"})

    assert [len(upload) for upload in uploads] == [20, 1]
    name, content = uploads[1][0]
    assert name is not None
    assert 'filename="d%2F%C3%BC%20%252F.c"' in name
    assert content == b"from a file\x00"


async def test_the_endpoint_may_have_a_path() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request.raw_path)
        return web.json_response({})

    async with _serving(handler, "/retort") as client:
        await client.call("GET", "/x?a=%2F")
    assert seen == ["/retort/x?a=%2F"]


async def test_a_call_whose_connection_broke_is_repeated_with_its_token() -> None:
    tokens: list[str | None] = []
    bodies: list[bytes] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        tokens.append(request.headers.get("X-BackendAI-Client-Token"))
        bodies.append(await request.read())
        if len(tokens) in (1, 2):
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"stats": {}})

    async with _serving(handler) as client:
        await client.call("POST", "/session/x", json={"a": 1})
        await client.call("POST", "/session/x", json={"a": 1})
    assert tokens[0] is not None
    assert tokens[0] == tokens[1] == tokens[2] != tokens[3]
    assert set(bodies) == {b'{"a": 1}'}


async def test_an_upload_whose_connection_broke_is_sent_again_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"content of a file")
    got: list[bytes] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        got.append(await request.read())
        if len(got) == 1:
            assert request.transport is not None
            request.transport.close()
        return web.Response(status=204)

    async with _serving(handler) as client:
        await SessionHandle(client, "s", "s").upload({"a.txt": file})
    assert [b"content of a file" in body for body in got] == [True, True]


async def test_a_server_that_is_short_of_something_is_asked_again_when_it_says() -> None:
    asked = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["X-BackendAI-Client-Token"])
        if len(asked) == 1:
            return web.json_response({"title": "t"}, status=503, headers={"Retry-After": "0"})
        return web.json_response({})

    async with _serving(handler) as client:
        await client.call("PATCH", "/session/s")
    assert len(asked) == 2
    assert len(set(asked)) == 1


@pytest.mark.parametrize("status", [500, 503])
async def test_a_failure_that_names_no_time_is_not_repeated(status: int) -> None:
    asked = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(1)
        return web.json_response({"title": "t"}, status=status)

    async with _serving(handler) as client:
        with pytest.raises(ApiError):
            await client.call("DELETE", "/session/s")
    assert len(asked) == 1


async def test_patience_ends() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    async with (
        TestServer(app) as server,
        Client(f"{server.make_url('/')}".rstrip("/"), token="rt_x", patience_s=0.2) as client,
    ):
        with pytest.raises(ConnectionBroke):
            await client.call("POST", "/session/s")
