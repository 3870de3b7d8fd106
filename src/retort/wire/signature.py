"""Signatures of requests: read, check, make (specification 3.1 to 3.3).

The checks of 3.3 come in the order in which the server calls these functions: `read_version`, then
(after routing) `read_signature`, then (after looking the key up) `verify`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from retort.errors import (
    AccessKeyUnknown,
    ClockSkew,
    InvalidAuth,
    NotAuthenticated,
    SignatureMismatch,
)
from retort.wire.percent import to_bytes
from retort.wire.times import parse_time
from retort.wire.versions import BODY_UNSIGNED_SINCE, CURRENT, ApiVersion

CLOCK_TOLERANCE = timedelta(minutes=15)
NO_CONTENT_TYPE = "application/octet-stream"  #: signed by requests without a Content-Type
DEFAULT_ALGORITHMS = frozenset({"sha256"})
KNOWN_ALGORITHMS = frozenset({"sha1", "sha224", "sha256", "sha384", "sha512"})

_VERSION_HEADERS = ("X-BackendAI-Version", "X-Sorna-Version")
_DATE_HEADERS = ("Date", "X-BackendAI-Date", "X-Sorna-Date")
_SCHEMES = frozenset({"backendai", "sorna"})
_LONGEST_CACHED_HOST = 300  #: characters; real ones are shorter, and the cache shall stay small
_EMPTY_HASH = {name: hashlib.new(name, b"").hexdigest() for name in KNOWN_ALGORITHMS}

Headers = Mapping[str, str]  #: must find names in any case, as aiohttp's do


@dataclass(frozen=True, slots=True)
class VersionHeader:
    """The version a request names, and by which header (its name is signed too)."""

    name: str
    text: str
    version: ApiVersion


@dataclass(frozen=True, slots=True)
class Credential:
    """What an Authorization header claims; nothing of it is proven yet."""

    access_key: str
    signature: str
    algorithm: str = "sha256"


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request's signed parts, as received. `credential` is unproven until `verify`."""

    method: str
    target: str
    host: str
    date: str
    day: str
    version: VersionHeader
    content_type: str
    credential: Credential


def read_version(headers: Headers) -> VersionHeader | None:
    """Read the version header, the first check of 3.3.

    Raises:
        UnsupportedVersion: malformed, or not within v2 to v9.
    """
    for name in _VERSION_HEADERS:
        text = headers.get(name)
        if text is not None:
            return VersionHeader(name.lower(), text, ApiVersion.parse(text))
    return None


def read_signature(
    method: str,
    target: str,
    headers: Headers,
    now: datetime,
    *,
    algorithms: frozenset[str] = DEFAULT_ALGORITHMS,
) -> SignedRequest:
    """Read the headers of a signed request and check its date.

    Args:
        method: as sent, not as overridden.
        target: the raw request target as received, with its query.
        headers: of the request.
        now: aware time of the server's clock.
        algorithms: accepted hashes, of `KNOWN_ALGORITHMS`.

    Raises:
        ClockSkew, NotAuthenticated, UnsupportedVersion, InvalidAuth: in the order of 3.3.
    """
    date, when = _read_date(headers, now)
    authorization = headers.get("Authorization")
    if authorization is None:
        raise NotAuthenticated
    credential = parse_authorization(authorization, algorithms=algorithms)
    version = read_version(headers)
    if version is None:
        raise InvalidAuth
    return SignedRequest(
        method.upper(),
        target,
        headers.get("Host", ""),
        date,
        f"{when.year:04}{when.month:02}{when.day:02}",
        version,
        media_type(headers.get("Content-Type")),
        credential,
    )


def _read_date(headers: Headers, now: datetime) -> tuple[str, datetime]:
    text = next((found for name in _DATE_HEADERS if (found := headers.get(name))), None)
    if text is None:
        raise ClockSkew
    try:
        when = parse_time(text)
    except ValueError as exc:
        raise ClockSkew from exc
    if not -CLOCK_TOLERANCE < when - now < CLOCK_TOLERANCE:
        raise ClockSkew
    return text, when


def parse_authorization(
    text: str, *, algorithms: frozenset[str] = DEFAULT_ALGORITHMS
) -> Credential:
    """Read ``BackendAI signMethod=HMAC-SHA256, credential=<key>:<signature>`` (3.1).

    Raises:
        InvalidAuth: another scheme or algorithm, or malformed.
    """
    scheme, _, rest = text.strip().partition(" ")
    if scheme.lower() not in _SCHEMES:
        raise InvalidAuth
    fields = dict(_field(part) for part in rest.split(","))
    family, _, name = fields.get("signMethod", "").lower().partition("-")
    access_key, _, signature = fields.get("credential", "").partition(":")
    if family != "hmac" or name not in algorithms & KNOWN_ALGORITHMS:
        raise InvalidAuth
    if not access_key or not signature:
        raise InvalidAuth
    return Credential(access_key, signature, name)


def _field(part: str) -> tuple[str, str]:
    key, _, value = part.partition("=")
    return key.strip(), value.strip()


def bearer_token(authorization: str | None) -> str | None:
    """Take the token out of ``Bearer <token>``; None when the header is anything else."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def media_type(content_type: str | None) -> str:
    """Give the part of a Content-Type that is signed: lower case, no parameters (3.2, line 5)."""
    if not content_type:
        return NO_CONTENT_TYPE
    return content_type.partition(";")[0].strip().lower()


def needs_body(version: ApiVersion, content_type: str) -> bool:
    """Tell whether the signature may cover the body's bytes (3.2, D3)."""
    return version < BODY_UNSIGNED_SINCE and media_type(content_type) != "multipart/form-data"


@lru_cache(maxsize=1024)
def signing_key(secret: str, day: str, host: str, algorithm: str = "sha256") -> bytes:
    """Derive key2 of 3.2. Cached: it stays the same for a whole day of one key's requests."""
    key = hmac.digest(to_bytes(secret), day.encode(), algorithm)
    return hmac.digest(key, to_bytes(host), algorithm)


def string_to_sign(request: SignedRequest, body_hash: str) -> bytes:
    """Join the seven lines of 3.2."""
    return to_bytes(
        f"{request.method}\n{request.target}\n{request.date}\nhost:{request.host}\n"
        f"content-type:{request.content_type}\n{request.version.name}:{request.version.text}\n"
        f"{body_hash}"
    )


def verify(request: SignedRequest, secret: str | None, body: bytes | None = None) -> None:
    """Prove the signature, in constant time.

    Args:
        request: from `read_signature`.
        secret: of the access key; None when the key is unknown or inactive.
        body: as sent; read only where `needs_body`.

    Raises:
        AccessKeyUnknown: there is no secret.
        SignatureMismatch: the signature is another.
    """
    if secret is None:
        raise AccessKeyUnknown
    algorithm = request.credential.algorithm
    hashes = [_EMPTY_HASH[algorithm]]
    if body and needs_body(request.version.version, request.content_type):
        hashes.append(hashlib.new(algorithm, body).hexdigest())
    given = to_bytes(request.credential.signature)
    for body_hash in hashes:
        expected = _signature(request, secret, body_hash)
        if hmac.compare_digest(expected.encode(), given):
            return
    raise SignatureMismatch


def _signature(request: SignedRequest, secret: str, body_hash: str) -> str:
    algorithm = request.credential.algorithm
    derive = signing_key if len(request.host) <= _LONGEST_CACHED_HOST else signing_key.__wrapped__
    key = derive(secret, request.day, request.host, algorithm)
    return hmac.digest(key, string_to_sign(request, body_hash), algorithm).hex()


def sign(
    method: str,
    target: str,
    *,
    host: str,
    content_type: str | None,
    when: datetime,
    access_key: str,
    secret: str,
    version: ApiVersion = CURRENT,
) -> dict[str, str]:
    """Make the headers of a signed request, as the reference client does (empty body hash).

    Args:
        method: as it will be sent.
        target: path and query exactly as they will be sent.
        host: as in the Host header.
        content_type: as in the Content-Type header; None when there will be none.
        when: aware time of the client's clock.
        access_key: names the key.
        secret: its secret half.
        version: to speak.

    Returns:
        dict: `Date`, `X-BackendAI-Version` and `Authorization`.
    """
    request = SignedRequest(
        method.upper(),
        target,
        host,
        when.isoformat(),
        when.strftime("%Y%m%d"),
        VersionHeader("x-backendai-version", str(version), version),
        media_type(content_type),
        Credential(access_key, ""),
    )
    signature = _signature(request, secret, _EMPTY_HASH["sha256"])
    return {
        "Date": request.date,
        "X-BackendAI-Version": str(version),
        "Authorization": f"BackendAI signMethod=HMAC-SHA256, credential={access_key}:{signature}",
    }
