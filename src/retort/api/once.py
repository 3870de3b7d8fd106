"""Requests that carry a client token: done once, answered as often as they come."""

from __future__ import annotations

import functools

from aiohttp import web

from retort.api.call import Call
from retort.api.routes import Route
from retort.core.reply import Reply, ReplyKey
from retort.errors import RequestError
from retort.services.replies import Done, Replies
from retort.wire.errors import problem
from retort.wire.repeats import client_token, request_digest
from retort.wire.targets import effective_method

_TIME_MAY_HEAL = frozenset({408, 429})


class Once:
    """Calls handlers, those of tokened requests only when there is no answer yet."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies

    async def respond(self, call: Call, route: Route, signer: str) -> web.StreamResponse:
        """Give a handler's answer, or the kept one. Raises what the handler raises.

        Args:
            signer: the access key of who sent it, whoever it acts for.
        """
        request = call.request
        method = effective_method(request.method, request.headers.get("X-Method-Override"))
        token = client_token(method, request.headers)
        if token is None or route.is_streamed:
            return await route.handler(call)
        is_multipart = request.content_type.startswith("multipart/")
        body = None if is_multipart else await call.body()
        digest = request_digest(method, request.raw_path, body)
        key = call.reply_key = ReplyKey(signer, token)
        reply = await self._replies.once(key, digest, functools.partial(_do, call, route, digest))
        headers = {"Content-Type": reply.content_type} if reply.content_type else None
        return web.Response(status=reply.status, body=reply.body or None, headers=headers)


async def _do(call: Call, route: Route, digest: bytes) -> Done:
    try:
        response = await route.handler(call)
    except RequestError as exc:
        found = problem(exc, operation=route.operation)
        if found.status >= 500 or found.status in _TIME_MAY_HEAL:
            raise
        return Done(Reply(digest, found.status, found.headers["Content-Type"], found.body))
    assert isinstance(response, web.Response)
    content_type = response.headers.get("Content-Type", "") if response.body else ""
    body = response.body if isinstance(response.body, bytes) else b""
    reply = Reply(digest, response.status, content_type, body)
    return Done(reply, undo=call.undo, confirm=call.confirm)
