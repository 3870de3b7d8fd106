"""One run, as its caller sees it: over a WebSocket, or by polling where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp

from retort.client.errors import ApiError, ServerUnreachable
from retort.client.events import Event, Finished, Output, PhaseEnded, ResultFile, WaitingInput

WAIT_S = 2.0

Connect = Callable[[], Awaitable[aiohttp.ClientWebSocketResponse | None]]
Post = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class Run:
    """A run in a session: enter it, iterate over its events, answer when it waits for input.

    Leaving it before its end interrupts the program.

    Args:
        connect: opens the execute stream; None when the server or a proxy offers none.
        post: one execute call; gives its `result`.
        interrupt: sends SIGINT to the program.
        options: of the batch: clean, build, exec.
    """

    def __init__(
        self,
        connect: Connect,
        post: Post,
        interrupt: Callable[[], Awaitable[None]],
        options: Mapping[str, str | None],
    ) -> None:
        self._connect = connect
        self._post = post
        self._interrupt = interrupt
        self._options = dict(options)
        self._id = uuid.uuid4().hex
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._lines: asyncio.Queue[str] = asyncio.Queue()  # polling: to be sent
        self._is_built = False
        self._is_over = False

    async def __aenter__(self) -> Self:
        self._socket = await self._connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._socket is not None:
            await self._socket.close()  # the server interrupts what still runs (9.1)
        elif not self._is_over:
            with contextlib.suppress(ApiError, ServerUnreachable):  # it is gone already
                await self._interrupt()

    async def send(self, line: str) -> None:
        """Give the program a line; a newline is added when it has none."""
        if self._socket is None:
            self._lines.put_nowait(line)
        else:
            await self._socket.send_str(line)

    async def interrupt(self) -> None:
        """Send SIGINT to the program, as Ctrl-C would; its end comes as an event."""
        await self._interrupt()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Give the events as they come; the last is `Finished`.

        Raises:
            ApiError: the server refused the run.
            ServerUnreachable: the connection broke, or the server stopped.
        """
        answers = self._polled() if self._socket is None else self._streamed(self._socket)
        async for answer in answers:
            for event in self._events(answer):
                yield event
            if self._is_over:
                return
        raise ServerUnreachable("The connection ended before the program did")

    async def _streamed(
        self, socket: aiohttp.ClientWebSocketResponse
    ) -> AsyncIterator[dict[str, Any]]:
        start = {"mode": "batch", "code": "", "options": self._options}
        try:
            await socket.send_json(start)
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    yield json.loads(message.data)
                elif message.type is aiohttp.WSMsgType.ERROR:
                    raise ServerUnreachable(f"The connection broke: {socket.exception()}")
        except (ConnectionError, aiohttp.ClientError, ValueError) as exc:
            raise ServerUnreachable(f"The connection broke: {exc}") from exc

    async def _polled(self) -> AsyncIterator[dict[str, Any]]:
        # The id is ours, so that a start whose answer was lost can be repeated (R2).
        body: dict[str, Any] = {"mode": "batch", "code": "", "options": self._options}
        while True:
            answer = await self._post(body | {"runId": self._id})
            yield answer
            body = {"mode": "continue", "code": "", "options": None}
            # A program that waits is asked about only now and then: each call would answer at once.
            patience_s = WAIT_S if answer["status"] == "waiting-input" else 0.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    body |= {"mode": "input", "code": await self._lines.get()}

    def _events(self, answer: Mapping[str, Any]) -> Iterator[Event]:
        for kind, text in answer.get("console") or ():
            if kind in ("stdout", "stderr"):
                yield Output(kind, text, self._is_built)
        match answer["status"]:
            case "clean-finished":
                yield PhaseEnded("clean", answer["exitCode"])
            case "build-finished":
                self._is_built = True
                yield PhaseEnded("build", answer["exitCode"])
            case "waiting-input":
                yield WaitingInput(bool((answer["options"] or {}).get("is_password")))
            case "finished":
                self._is_over = True
                files = tuple(ResultFile(f["name"], f["url"]) for f in answer["files"])
                yield Finished(answer["exitCode"], files)
            case "exec-timeout":
                self._is_over = True
                yield Finished(None)
            case "error":
                raise ApiError(400, "invalid-api-params", "The run was refused.", answer["msg"])
            case "server-restarting":
                raise ServerUnreachable(answer["msg"])
