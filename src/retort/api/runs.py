"""Execute by polling: POST /session/:id (spec 6.2)."""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections.abc import Callable
from urllib.parse import quote

from aiohttp import web

from retort.api.answers import json_answer
from retort.api.auth import is_closing
from retort.api.call import Call
from retort.core import faults
from retort.core.reply import ReplyKey
from retort.core.run import RunRequest
from retort.services.files import FileService
from retort.services.runs import RunService
from retort.wire import runs as wire
from retort.wire.repeats import derived_id


class RunRoutes:
    """Handlers of execute.

    Args:
        base_url: the configured public URL, or None to use the request's Host.
        base_path: path the API is mounted under.
    """

    def __init__(
        self, runs: RunService, files: FileService, *, base_url: str | None, base_path: str
    ) -> None:
        self._runs = runs
        self._files = files
        self._base_url = base_url
        self._base_path = base_path

    async def execute(self, call: Call) -> web.StreamResponse:
        """Start, continue or feed a run; its answer goes back if nobody is there to read it."""
        request = wire.parse_execute(await call.params())
        if request is None:  # mode: complete
            return await self._completed(call)
        key = call.reply_key
        if key is not None:
            request = _repeatable(key, request)
        session, answer = await self._runs.execute(call.keypair, call.ref, request)
        faults.reached(faults.Point.ANSWER_TAKEN)
        response = json_answer(
            wire.execute_answer(answer, file_url=self.output_url(call, session.id))
        )
        if key is not None:  # its caller will come back for it, if this is not read now
            call.undo = functools.partial(self._runs.undeliver, session, answer)
            call.confirm = functools.partial(self._runs.delivered, session, answer)
        elif is_closing(call.request) or not await _written(call, response):
            await self._runs.undeliver(session, answer)
        else:
            await self._runs.delivered(session, answer)
        return response

    def output_url(self, call: Call, session_id: uuid.UUID) -> Callable[[str], str]:
        """Give the maker of result files' addresses (spec 5.4): absolute, with a token in them."""
        base = self._base_url
        if base is None:
            host = call.request.headers.get("Host", "localhost")
            base = f"{call.request.scheme}://{host}{self._base_path}"

        def url(name: str) -> str:
            token = self._files.output_token(session_id, name)
            return f"{base}/output/{session_id}/{token}/{quote(name, safe='')}"

        return url

    async def complete(self, call: Call) -> web.StreamResponse:
        """Answer that no image completes code (spec 7.9)."""
        wire.parse_complete(await call.params())
        return await self._completed(call)

    async def _completed(self, call: Call) -> web.StreamResponse:
        found = await self._runs.complete(call.keypair, call.ref)
        return json_answer(wire.complete_answer(found))


def _repeatable(key: ReplyKey, request: RunRequest) -> RunRequest:
    """Name a request for ever, and the run that it starts."""
    request = dataclasses.replace(request, token=str(key))
    if request.mode.starts and request.run_id is None:
        run_id = derived_id(key.owner, key.token, "run").hex  # a repeat attaches to it (R2)
        return dataclasses.replace(request, run_id=run_id)
    return request


async def _written(call: Call, response: web.Response) -> bool:
    """Write a response here and now; False when its connection broke before it was out."""
    try:
        await call.prepare(response)
        await response.write_eof()
        faults.reached(faults.Point.ANSWER_WRITTEN)
    except ConnectionError:
        return False
    return not is_closing(call.request)
