"""Who is calling: signatures and bearer tokens, in the order of the checks of spec 3.3."""

from __future__ import annotations

from aiohttp import web

from retort.api.call import Call
from retort.core.keypair import KeyPair
from retort.core.ports import Clock
from retort.errors import AccessKeyUnknown, InvalidAuth, InvalidRequest, NotPermitted
from retort.services.keypairs import KeyRing
from retort.wire import signature

MAX_TOKEN_CHARS = 256
OWNER = "owner_access_key"


class Authenticator:
    """Finds the key pair of a request. Nothing here queries a database for a key that is known."""

    def __init__(self, keys: KeyRing, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock

    async def authenticate(self, call: Call) -> KeyPair:
        """Give the caller.

        Raises:
            ClockSkew, NotAuthenticated, InvalidAuth, AccessKeyUnknown, SignatureMismatch: in the
                order of spec 3.3. A bearer token needs neither date nor version.
        """
        request = call.request
        authorization = request.headers.get("Authorization")
        if (token := signature.bearer_token(authorization)) is not None:
            return await self._by_token(token)
        signed = signature.read_signature(
            request.method, request.raw_path, request.headers, self._clock.now()
        )
        access_key = signed.credential.access_key
        keypair = self._keys.find(access_key) or await self._keys.lookup(access_key)
        body = None
        if keypair is not None and signature.needs_body(
            signed.version.version, signed.content_type
        ):
            body = await call.body()
        signature.verify(signed, None if keypair is None else keypair.secret_key, body)
        if keypair is None:  # verify has raised; this is for the type checker
            raise AccessKeyUnknown
        return keypair

    async def owner(self, call: Call) -> KeyPair:
        """Give the key pair that a call acts for: the caller's, or the named owner's (spec 1).

        Raises:
            NotPermitted: another owner is named, and the caller is no administrator.
            InvalidRequest: there is no such owner.
        """
        asked = await _asked_owner(call)
        if asked is None or asked == call.keypair.access_key:
            return call.keypair
        if not call.keypair.is_admin:
            raise NotPermitted("owner_access_key is for administrators")
        keypair = self._keys.find(asked) or await self._keys.lookup(asked)
        if keypair is None:
            raise InvalidRequest.field(OWNER, "no such access key")
        return keypair

    async def _by_token(self, token: str) -> KeyPair:
        if len(token) > MAX_TOKEN_CHARS:
            raise InvalidAuth
        keypair = self._keys.find_token(token) or await self._keys.lookup_token(token)
        if keypair is None:
            raise AccessKeyUnknown
        return keypair


async def _asked_owner(call: Call) -> str | None:
    if OWNER in call.target.query:
        return call.target.query[OWNER][0] or None
    # Only JSON is read for it, and only JSON that speaks of it is read twice.
    is_json = call.request.content_type == "application/json" and call.request.body_exists
    if is_json and OWNER.encode() in await call.body():
        return (await call.params()).string(OWNER) or None
    return None


def is_closing(request: web.BaseRequest) -> bool:
    """Tell whether nobody would read an answer any more."""
    return request.transport is None or request.transport.is_closing()
