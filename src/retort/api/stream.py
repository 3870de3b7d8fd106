"""Execute over a WebSocket: one connection is one run (spec 9.1)."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import WSCloseCode, WSMsgType, web

from retort.api.call import Call
from retort.api.runs import RunRoutes
from retort.core.ports import RunStream
from retort.errors import RequestError
from retort.services.runs import RunService
from retort.services.sessions import SessionService
from retort.wire import runs as wire

FIRST_MESSAGE_S = 30.0
STOPPING_S = 2.0  # for the last message and the closing handshake
MAX_MESSAGE_BYTES = 1024 * 1024  # of the client's: a request or one line of input


class StreamRoutes:
    """Handlers of the execute stream."""

    def __init__(self, sessions: SessionService, runs: RunService, routes: RunRoutes) -> None:
        self._sessions = sessions
        self._runs = runs
        self._routes = routes
        self._open: set[web.WebSocketResponse] = set()

    async def execute(self, call: Call) -> web.StreamResponse:
        """Run what the first message says, and send its output as it comes."""
        session = await self._sessions.running(call.keypair, call.ref)  # 404 before the upgrade
        # A client's close is answered once its run is over: what it asks next comes after that.
        ws = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, autoclose=False)
        await call.prepare(ws)
        self._open.add(ws)
        try:
            request = await _first_message(ws)
            if request is None:
                return ws
            _, run = await self._runs.stream(call.keypair, str(session.id), request)
            await self._serve(ws, run, call)
        except RequestError as exc:
            with contextlib.suppress(ConnectionError):
                await ws.send_str(wire.stream_error(exc.message).decode())
        finally:
            self._open.discard(ws)
            await ws.close()
        return ws

    async def close(self) -> None:
        """Tell every open stream that the server stops."""
        await asyncio.gather(*(_tell_stopping(ws) for ws in self._open))

    async def _serve(self, ws: web.WebSocketResponse, run: RunStream, call: Call) -> None:
        """Send answers and read input side by side; whoever ends first ends the other."""
        writer = asyncio.ensure_future(self._write(ws, run, call))
        reader = asyncio.ensure_future(_read(ws, run))
        try:
            await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_over = writer.done() and not writer.cancelled() and writer.exception() is None
            for task in (writer, reader):
                task.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)
            if not is_over:
                await run.abandon()

    async def _write(self, ws: web.WebSocketResponse, run: RunStream, call: Call) -> None:
        url = self._routes.output_url(call, run.session_id)
        async for answer in run:
            for message in wire.stream_messages(answer, file_url=url):
                await ws.send_str(message.decode())


async def _tell_stopping(ws: web.WebSocketResponse) -> None:
    """Say that the server stops, and close; a client that does not read is not waited for."""
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(STOPPING_S):
            await ws.send_str(wire.stream_stopping().decode())
            await ws.close(code=WSCloseCode.GOING_AWAY)


async def _first_message(ws: web.WebSocketResponse) -> wire.RunRequest | None:
    """Read the message that starts the run; None when the client left."""
    try:
        message = await ws.receive(FIRST_MESSAGE_S)
    except TimeoutError:
        await ws.send_str(wire.stream_error("no message came").decode())
        return None
    if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
        return None
    return wire.parse_stream_start(message.data)


async def _read(ws: web.WebSocketResponse, run: RunStream) -> None:
    """Read the user's lines until the connection ends."""
    async for message in ws:
        if message.type is WSMsgType.TEXT:
            await run.give_input(message.data)
        elif message.type is WSMsgType.ERROR:
            return
