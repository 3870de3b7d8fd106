"""What the outermost frame does with handlers that fail, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from retort.api.app import Api, ApiServer
from retort.api.call import BodyLimits, Call


@contextlib.asynccontextmanager
async def serving(handler: Any) -> AsyncIterator[int]:
    """Serve a handler in the place of GET /; give the port."""
    routes = mock.MagicMock()
    routes.about.root = routes.files.output_file = handler
    api = Api(routes, mock.MagicMock(), mock.MagicMock(), limits=BodyLimits())
    runner = web.ServerRunner(ApiServer(api.handle, access_log=None, header_s=30.0))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def told(port: int, target: str = "/") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65_536):
            data += chunk
    writer.close()
    return data


async def test_an_answer_that_fails_half_way_is_cut_off() -> None:
    async def handler(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 1_000_000
        await call.prepare(response)
        await response.write(b"half")
        raise OSError("the disk is gone")

    async with serving(handler) as port:
        data = await told(port)
    assert data.count(b"HTTP/1.1") <= 1  # the end of a broken connection may get lost
    assert b"probs" not in data


async def test_a_bug_is_a_problem_with_an_id_and_without_its_text() -> None:
    async def handler(call: Call) -> web.StreamResponse:
        raise ZeroDivisionError("a secret")

    async with serving(handler) as port:
        data = await told(port)
    assert data.startswith(b"HTTP/1.1 500 ")
    assert b"internal-server-error" in data
    assert b"error id" in data
    assert b"secret" not in data


@pytest.mark.parametrize("target", ["/output/6f1c/hush/file.png", "/?a=b&token=hush&c=d"])
async def test_a_token_in_a_target_is_not_logged(target: str) -> None:
    async def handler(call: Call) -> web.StreamResponse:
        raise ZeroDivisionError

    with capture_logs() as logs:
        async with serving(handler) as port:
            assert (await told(port, target)).startswith(b"HTTP/1.1 500 ")
    assert logs[-1]["event"] == "request.failed"
    assert logs[-1]["target"] == target.replace("hush", "...")
