"""One request on its way through the API: what was asked, by whom, and its body, read with caps."""

from __future__ import annotations

import asyncio
import dataclasses

from aiohttp import web
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge

from retort.core.keypair import KeyPair
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
    """

    json_bytes: int = 1024 * 1024
    grace_s: float = 30.0
    min_rate_bytes_s: int = 4096


class Call:
    """A request that has a route and a caller.

    Attributes:
        keypair: the caller; ANONYMOUS calls have none and must not ask.
        captured: what stood in the route's open places, decoded.
        version: the API version spoken (spec 2.3).
        headers: that every response of this call carries.
    """

    __slots__ = (
        "_body",
        "_keypair",
        "captured",
        "headers",
        "limits",
        "request",
        "target",
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
        self._keypair: KeyPair | None = None
        self._body: bytes | None = None

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
        """Send a response's headers now; for handlers that write by themselves."""
        response.headers.update(self.headers)
        await response.prepare(self.request)

    async def body(self) -> bytes:
        """Read the body whole.

        Raises:
            BadHttp: larger than `json_bytes`, or compressed.
            BodyTooSlow: it did not come within the grace time.
        """
        if self._body is None:
            refuse_encoding(self.request)
            if not self.request.body_exists:
                self._body = b""
                return self._body
            try:
                async with asyncio.timeout(self.limits.grace_s):
                    self._body = await self.request.read()
            except TimeoutError as exc:
                raise BodyTooSlow from exc
            except HTTPRequestEntityTooLarge as exc:
                raise BadHttp(f"The body is larger than {self.limits.json_bytes} bytes") from exc
        return self._body

    async def params(self) -> Params:
        """Read the parameters, from the body first, then from the query (spec 1, D1)."""
        return Params.merge(await self.body(), self.target.query)


def refuse_encoding(request: web.BaseRequest) -> None:
    """Refuse a compressed body: no client sends one, and a small one may unpack to anything."""
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise BadHttp("Content-Encoding of requests is not supported")
