"""One request on its way through the API: what was asked, by whom, and its body, read with caps."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from retort.core.keypair import KeyPair
from retort.core.reply import ReplyKey
from retort.errors import BadHttp, BodyTooSlow
from retort.wire.params import Params
from retort.wire.targets import Target
from retort.wire.versions import ApiVersion


@dataclasses.dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large and how slow a body may be.

    Attributes:
        json_bytes: largest body that is read whole.
        grace_s: seconds in which nothing is asked of the sender's speed.
        min_rate_bytes_s: bytes a second a body must come with after that, over its whole time.
        drain_bytes: of a body that nobody wanted, read so that its sender gets to see the answer.
    """

    json_bytes: int = 1024 * 1024
    grace_s: float = 30.0
    min_rate_bytes_s: int = 4096
    drain_bytes: int = 64 * 1024 * 1024

    def allowed_s(self, received_bytes: int) -> float:
        """Give the seconds that a body may have taken when so much of it is there."""
        return self.grace_s + received_bytes / self.min_rate_bytes_s


class Call:
    """A request that has a route and a caller.

    Attributes:
        keypair: the caller; ANONYMOUS calls have none and must not ask.
        captured: what stood in the route's open places, decoded.
        version: the API version spoken (spec 2.3).
        headers: that every response of this call carries.
        reply_key: under which its answer is kept, when it carries a client token.
        undo: set by the handler of such a call: takes back what its answer took away.
        confirm: set with it: lets go of that for good, once the answer is kept.
        is_awaiting_continue: its sender holds the body back until it is asked for (RFC 9110,
            10.1.1).
    """

    __slots__ = (
        "_body",
        "_keypair",
        "captured",
        "confirm",
        "headers",
        "is_awaiting_continue",
        "limits",
        "reply_key",
        "request",
        "target",
        "undo",
        "version",
    )

    def __init__(
        self,
        request: web.BaseRequest,
        target: Target,
        version: ApiVersion,
        captured: tuple[str, ...],
        limits: BodyLimits,
    ) -> None:
        self.request = request
        self.target = target
        self.version = version
        self.captured = captured
        self.limits = limits
        self.headers: dict[str, str] = {}
        self.reply_key: ReplyKey | None = None
        self.undo: Callable[[], Awaitable[None]] | None = None
        self.confirm: Callable[[], Awaitable[None]] | None = None
        self._keypair: KeyPair | None = None
        self._body: bytes | None = None
        expected = request.headers.get("Expect", "").strip().lower()
        self.is_awaiting_continue = expected == "100-continue" and request.version >= HttpVersion11

    @property
    def keypair(self) -> KeyPair:
        """The authenticated caller."""
        assert self._keypair is not None, "an anonymous route asked for its caller"
        return self._keypair

    @keypair.setter
    def keypair(self, keypair: KeyPair) -> None:
        self._keypair = keypair

    @property
    def ref(self) -> str:
        """The session reference in the path."""
        return self.captured[0]

    async def prepare(self, response: web.StreamResponse) -> None:
        """Send a response's headers now; for handlers that write by themselves.

        Raises:
            BadHttp: a WebSocket's handshake has a header that no text can repeat.
        """
        response.headers.update(self.headers)
        try:
            await response.prepare(self.request)
        except ValueError as exc:  # aiohttp, while it words or decodes what is wrong
            raise BadHttp("The WebSocket handshake cannot be read") from exc

    async def body(self) -> bytes:
        """Read the body whole.

        Raises:
            BadHttp: larger than `json_bytes`, compressed, or broken on its way.
            BodyTooSlow: as `BodyLimits` says.
        """
        if self._body is None:
            await self.begin_body()
            self._body = await self._read() if self.request.body_exists else b""
        return self._body

    async def begin_body(self) -> None:
        """Get ready to read the body; to be awaited before anything of it is read.

        Raises:
            BadHttp: it is compressed: no client does that, and little may unpack to anything.
        """
        request = self.request
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise BadHttp("Content-Encoding of requests is not supported")
        if self.is_awaiting_continue:
            self.is_awaiting_continue = False
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer itself has not begun

    async def _read(self) -> bytes:
        content, limits = self.request.content, self.limits
        body = bytearray()
        try:
            if content.is_eof():  # it came with its headers: nothing to wait for
                return _capped(content.read_nowait(), limits)
            began_at = asyncio.get_running_loop().time()
            async with asyncio.timeout_at(began_at + limits.allowed_s(0)) as timeout:
                while chunk := await content.readany():
                    body += _capped(chunk, limits, len(body))
                    timeout.reschedule(began_at + limits.allowed_s(len(body)))
        except TimeoutError as exc:
            raise BodyTooSlow from exc
        except (RequestPayloadError, HttpProcessingError) as exc:
            raise BadHttp("The body is not valid HTTP") from exc
        return bytes(body)

    async def params(self) -> Params:
        """Read the parameters, from the body first, then from the query (spec 1, D1)."""
        return Params.merge(await self.body(), self.target.query)


def _capped(chunk: bytes, limits: BodyLimits, before: int = 0) -> bytes:
    """Give a piece of a body that is no larger with it than it may be."""
    if before + len(chunk) > limits.json_bytes:
        raise BadHttp(f"The body is larger than {limits.json_bytes} bytes")
    return chunk
