"""The HTTP server: from a request to its handler, and from an exception to a problem.

The outermost frame: whatever a handler raises ends here, is logged if it is ours, and becomes the
problem object of wire/errors.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, cast

import structlog
from aiohttp import EMPTY_PAYLOAD, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError, _ErrInfo

from retort.api.about import AboutRoutes
from retort.api.auth import Authenticator
from retort.api.call import BodyLimits, Call
from retort.api.files import FileRoutes
from retort.api.graphql import GraphqlRoutes
from retort.api.once import Once
from retort.api.routes import Route, RouteTable
from retort.api.runs import RunRoutes
from retort.api.sessions import SessionRoutes
from retort.api.sharing import SharingRoutes
from retort.api.storage import StorageRoutes
from retort.api.stream import StreamRoutes
from retort.api.tasks import TaskRoutes
from retort.api.vfolders import VFolderRoutes
from retort.core.ratelimit import WINDOW_S, RateLimiter, RateVerdict
from retort.core.shortage import shortage
from retort.errors import BadHttp, Fault, HostShort, MethodNotAllowed, RateLimited, RequestError
from retort.wire.errors import Operation, Problem, problem
from retort.wire.repeats import CLIENT_TOKEN
from retort.wire.signature import read_version
from retort.wire.targets import Target, effective_method, route_target
from retort.wire.versions import effective

log = structlog.get_logger()

REQUEST_TIMEOUT = 408
_TOKEN = re.compile(r"([?&]token=|/output/[^/]*/)[^&/?]*")  # a secret, as long as it lasts
ANONYMOUS_LIMIT = 1000  # requests in a window for all callers without a key (spec 4.3)


@dataclasses.dataclass(frozen=True, slots=True)
class Routes:
    """The rooms that handlers live in."""

    about: AboutRoutes
    sessions: SessionRoutes
    runs: RunRoutes
    stream: StreamRoutes
    files: FileRoutes
    vfolders: VFolderRoutes
    sharing: SharingRoutes
    storage: StorageRoutes
    tasks: TaskRoutes
    graphql: GraphqlRoutes


def table_of(routes: Routes) -> RouteTable:
    """Put every route into a table (spec 15); a more exact path comes before a wider one."""
    table = RouteTable()
    about, sessions, runs, files = routes.about, routes.sessions, routes.runs, routes.files
    table.add("GET", "/", Route(about.root, is_open=True))
    table.add("GET POST", "/auth", Route(about.whoami))
    table.add("GET POST", "/auth/test", Route(about.whoami))
    table.add("GET", "/auth/role", Route(about.role))
    table.add("GET", "/manager/announcement", Route(about.announcement, is_open=True))
    table.add("GET", "/manager/status", Route(about.status, is_open=True))
    table.add("GET", "/config/resource-slots", Route(about.resource_slots, is_open=True))
    table.add("GET", "/config/vfolder-types", Route(about.vfolder_types, is_open=True))
    table.add("POST", "/session", Route(sessions.create, operation=Operation.CREATION))
    table.add("GET", "/session/_/match", Route(sessions.match))
    execution = Operation.EXECUTION
    table.add("POST", "/session/*", Route(runs.execute, operation=execution))
    table.add("GET", "/session/*", Route(sessions.info))
    table.add("PATCH", "/session/*", Route(sessions.restart, operation=Operation.RESTART))
    table.add("DELETE", "/session/*", Route(sessions.destroy, operation=Operation.DESTRUCTION))
    table.add("POST", "/session/*/rename", Route(sessions.rename))
    table.add("POST", "/session/*/interrupt", Route(sessions.interrupt, operation=execution))
    table.add("POST", "/session/*/complete", Route(runs.complete))
    table.add("POST", "/session/*/upload", Route(files.upload, operation=execution))
    table.add("GET", "/session/*/files", Route(files.listing, operation=execution))
    table.add("GET", "/session/*/download", Route(files.download, operation=execution))
    table.add(
        "GET POST", "/session/*/download_single", Route(files.download_single, is_streamed=True)
    )
    table.add("GET", "/stream/session/*/execute", Route(routes.stream.execute))
    table.add("GET", "/output/*/*/*", Route(files.output_file, is_open=True))
    _add_vfolders(table, routes)
    return table


def _add_vfolders(table: RouteTable, routes: Routes) -> None:
    """Add the routes of virtual folders (spec 10, 9.3); other spellings are aliases."""
    folders, sharing, storage = routes.vfolders, routes.sharing, routes.storage
    table.add("POST", "/folders", Route(folders.create))
    table.add("GET", "/folders", Route(folders.listing))
    table.add("DELETE", "/folders", Route(folders.delete_by_id))
    table.add("GET", "/folders/_/hosts", Route(folders.hosts))
    table.add("GET", "/folders/_/all_hosts", Route(folders.hosts))
    table.add("GET", "/folders/_/all-hosts", Route(folders.hosts))
    table.add("GET", "/folders/_/allowed_types", Route(folders.allowed_types))
    table.add("GET", "/folders/_/allowed-types", Route(folders.allowed_types))
    table.add("GET", "/folders/_/shared", Route(sharing.shared))
    table.add("POST", "/folders/_/shared", Route(sharing.set_share))
    table.add("GET", "/folders/invitations/list", Route(sharing.received))
    table.add("GET", "/folders/invitations/list-sent", Route(sharing.sent))
    table.add("GET", "/folders/invitations/list_sent", Route(sharing.sent))
    table.add("POST", "/folders/invitations/accept", Route(sharing.accept))
    table.add("DELETE", "/folders/invitations/delete", Route(sharing.withdraw))
    table.add("POST", "/folders/invitations/update/*", Route(sharing.change))
    table.add("GET", "/folders/*", Route(folders.info))
    table.add("DELETE", "/folders/*", Route(folders.delete))
    table.add("POST", "/folders/*/rename", Route(folders.rename))
    table.add("POST", "/folders/*/update-options", Route(folders.update_options))
    table.add("POST", "/folders/*/clone", Route(folders.clone))
    table.add("POST", "/folders/*/leave", Route(sharing.leave))
    table.add("POST", "/folders/*/invite", Route(sharing.invite))
    table.add("POST", "/folders/*/share", Route(sharing.share))
    table.add("DELETE", "/folders/*/unshare", Route(sharing.unshare))
    table.add("GET", "/folders/*/files", Route(folders.files))
    table.add("POST", "/folders/*/mkdir", Route(folders.mkdir))
    table.add("POST", "/folders/*/rename-file", Route(folders.rename_file))
    table.add("POST", "/folders/*/rename_file", Route(folders.rename_file))
    table.add("POST", "/folders/*/move-file", Route(folders.move_file))
    table.add("DELETE", "/folders/*/delete-files", Route(folders.delete_files))
    table.add("DELETE", "/folders/*/delete_files", Route(folders.delete_files))
    table.add("POST", "/folders/*/request-upload", Route(folders.request_upload))
    table.add("POST", "/folders/*/request-download", Route(folders.request_download))
    table.add("PATCH", "/storage/upload", Route(storage.append, is_open=True))
    table.add("HEAD", "/storage/upload", Route(storage.offset, is_open=True))
    table.add("OPTIONS", "/storage/upload", Route(storage.abilities, is_open=True))
    table.add("GET", "/storage/download", Route(storage.download, is_open=True))
    table.add("POST", "/admin/gql", Route(routes.graphql.query))
    table.add("POST", "/admin/graphql", Route(routes.graphql.bare_query))
    table.add("GET", "/events/background-task", Route(routes.tasks.events))


class Api:
    """The handler of every request.

    Args:
        base_path: path the API is mounted under, "" or "/base" (spec 1).
        is_crowded: whether a new connection is one too many to be served.
    """

    def __init__(
        self,
        routes: Routes,
        authenticator: Authenticator,
        once: Once,
        *,
        limits: BodyLimits,
        base_path: str = "",
        is_crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_crowded = is_crowded
        self._table = table_of(routes)
        self._version_route = Route(routes.about.version, is_open=True)
        self._authenticator = authenticator
        self._once = once
        self._limits = limits
        self._base_path = base_path
        self._limiter = RateLimiter()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; never raises but for cancellation."""
        response = await self._answer(request)
        if _is_first(request) and self._is_crowded():
            response.force_close()  # its descriptor may serve somebody else
        if not request.content.is_eof():
            await self._drain(request, response)
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        operation: Operation | None = None
        headers = dict(COMMON_HEADERS)
        try:
            if request.method == "OPTIONS":
                headers.update(self._anonymous_rate())
                return await self._options(request, headers | PREFLIGHT_HEADERS)
            if _is_first(request) and self._is_crowded():
                raise HostShort("file descriptors: too few are free for one more connection")
            call, route = self._route(request)
            operation = route.operation
            if not route.is_open:
                call.keypair = await self._authenticator.authenticate(call)
            self._count(call, headers, is_open=route.is_open)
            signer = ""
            if not route.is_open:
                signer = call.keypair.access_key
                call.keypair = await self._authenticator.owner(call)
            call.headers = headers
            if CLIENT_TOKEN in request.headers and not route.is_open:
                response = await self._once.respond(call, route, signer)
            else:
                response = await route.handler(call)
        except Exception as exc:
            if "X-RateLimit-Limit" not in headers:  # refused before anyone was known
                headers.update(self._anonymous_rate())
            return _failed(request, exc, operation, headers)
        if not response.prepared:
            response.headers.update(headers)
        return response

    async def _options(
        self, request: web.BaseRequest, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Answer a browser's question before a request; uploads have more to tell."""
        try:
            call, route = self._route(request)
        except RequestError:
            return web.Response(status=204, headers=headers)
        response = await route.handler(call)
        response.headers.update(headers)
        return response

    async def _drain(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Send an answer that came before its request's end, and read on for a while.

        Who sends everything before reading anything would find a broken connection in place of
        the answer (spec 1). What comes after that while is not read. The connection is closed in
        any case: others, such as the reference client, stop sending once they have the answer and
        go on with the connection, and their next request would be read as the rest of this body.
        """
        is_late = response.status == REQUEST_TIMEOUT  # such a body has had its time
        response.force_close()
        with contextlib.suppress(
            ConnectionError, TimeoutError, RequestPayloadError, HttpProcessingError
        ):
            await response.prepare(request)
            await response.write_eof()
            left = 0 if is_late else self._limits.drain_bytes
            async with asyncio.timeout(self._limits.grace_s):
                while left > 0 and (chunk := await request.content.readany()):
                    left -= len(chunk)

    def _anonymous_rate(self) -> dict[str, str]:
        return _rate_headers(self._limiter.count("", ANONYMOUS_LIMIT, time.monotonic()))

    def _route(self, request: web.BaseRequest) -> tuple[Call, Route]:
        stated = read_version(request.headers)
        method = effective_method(request.method, request.headers.get("X-Method-Override"))
        target = route_target(request.raw_path, method, base=self._base_path)
        route, captured = self._find(method, target)
        version = effective(stated.version if stated else None, target.generation)
        return Call(request, target, version, captured, self._limits), route

    def _find(self, method: str, target: Target) -> tuple[Route, tuple[str, ...]]:
        is_version = len(target.segments) == 1 and target.generation is not None
        if is_version and target.segments[0] == f"v{target.generation}":
            if method not in ("GET", "HEAD"):
                raise MethodNotAllowed(method, ("GET",))
            return self._version_route, ()
        return self._table.find(method, target.segments)

    def _count(self, call: Call, headers: dict[str, str], *, is_open: bool) -> None:
        key = "" if is_open else call.keypair.access_key
        limit = ANONYMOUS_LIMIT if is_open else call.keypair.policy.rate_limit
        verdict = self._limiter.count(key, limit, time.monotonic())
        headers.update(_rate_headers(verdict))
        if not verdict.is_allowed and not is_open:  # open calls are cheap, and shared by all
            raise RateLimited


COMMON_HEADERS = {
    "Server": "BackendAI",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "*",
}
PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Max-Age": "86400",
}


def _rate_headers(verdict: RateVerdict) -> dict[str, str]:
    return {
        "X-RateLimit-Limit": str(verdict.limit),
        "X-RateLimit-Remaining": str(verdict.remaining),
        "X-RateLimit-Window": str(WINDOW_S),
    }


def _failed(
    request: web.BaseRequest,
    exc: Exception,
    operation: Operation | None,
    headers: dict[str, str],
) -> web.StreamResponse:
    """Turn an exception into a problem; what is our own fault is logged whole, with an id."""
    fault_id = ""
    if isinstance(exc, web.HTTPException) and exc.status < 500:  # of a WebSocket's handshake
        exc = BadHttp(exc.reason)
    exc = shortage(exc) or exc
    if isinstance(exc, ConnectionError):
        log.debug("request.broken", method=request.method, reason=str(exc))
    elif not isinstance(exc, RequestError):
        fault_id = secrets.token_hex(8)
        log.error(
            "request.failed",
            fault=fault_id,
            method=request.method,
            target=_TOKEN.sub(r"\1...", request.raw_path[:512]),
            exc_info=None if isinstance(exc, Fault) else exc,
            reason=str(exc),
        )
    if request.writer.output_size > 0:
        # Half an answer is out. A second one would be read as the rest of it.
        _abort(request)
    if request.transport is None:
        return web.Response(status=499)
    return problem_response(problem(exc, fault_id=fault_id, operation=operation), headers)


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        # uvloop's transports are asyncio's by what they do, not by their class.
        cast(asyncio.WriteTransport, request.transport).abort()


def problem_response(found: Problem, headers: dict[str, str]) -> web.Response:
    """Make the response of a problem."""
    return web.Response(status=found.status, body=found.body, headers=headers | found.headers)


def _is_first(request: web.BaseRequest) -> bool:
    """Whether a request is the first on its connection."""
    protocol = request.protocol
    return isinstance(protocol, ProblemHandler) and protocol.is_new


class ProblemHandler(web.RequestHandler):
    """aiohttp's connection, but what it refuses by itself is a problem object too (spec 4.1).

    Args:
        header_s: seconds until the first request's headers must be there; before every later one
            it is the keep-alive time that ends a connection.
    """

    def __init__(self, *args: Any, header_s: float, **kwargs: Any) -> None:
        # Bodies that nobody reads are read by `Api`, so there is no lingering here.
        super().__init__(*args, lingering_time=0.0, **kwargs)
        self._header_s = header_s
        self._header_timer: asyncio.TimerHandle | None = None
        self._newest_body: StreamReader = EMPTY_PAYLOAD

    @property
    def is_new(self) -> bool:
        """Whether it got no more than one request so far."""
        return self._request_count <= 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._header_timer = loop.call_later(self._header_s, self._expect_request)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        if self._header_timer is not None:
            self._header_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; and tell who reads a body that no more of it will make sense.

        aiohttp queues a broken chunk as the next request, and lets the reader of this one wait.
        """
        super().data_received(data)
        if not self._messages:
            return
        message, body = self._messages[-1]
        if not isinstance(message, _ErrInfo):
            self._newest_body = body
        elif not self._newest_body.is_eof():
            self.close()  # after the answer that the reader will give
            self._newest_body.set_exception(RequestPayloadError("the body breaks off"))
            # Reading a line, aiohttp looks for an exception before it waits, for the end after.
            self._newest_body.feed_eof()

    def _expect_request(self) -> None:
        if self._request_count == 0:  # aiohttp's count of requests whose headers were whole
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not even be parsed, and close."""
        if request.writer.output_size > 0:
            raise ConnectionError("half an answer is out")
        cause: Exception = BadHttp("The request is not valid HTTP") if status < 500 else Fault()
        fault_id = ""
        if status >= 500:
            fault_id = secrets.token_hex(8)
            log.error("connection.failed", fault=fault_id, exc_info=exc)
        response = problem_response(problem(cause, fault_id=fault_id), dict(COMMON_HEADERS))
        response.force_close()
        return response


class ApiServer(web.Server):
    """aiohttp's server with `ProblemHandler` connections, to which all arguments go."""

    def __call__(self) -> web.RequestHandler:
        """Make the protocol of a new connection."""
        return ProblemHandler(self, loop=asyncio.get_running_loop(), **self._kwargs)
