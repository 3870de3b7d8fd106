"""`X-BackendAI-Client-Token`: the protocol's idempotency header, which its original never obeyed.

Any POST, PATCH or DELETE may carry it. Decisions: docs/decisions/0013-answers-kept-by-token.md.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping

from retort.errors import InvalidRequest

CLIENT_TOKEN = "X-BackendAI-Client-Token"  # noqa: S105 a header's name
MAX_CHARS = 128  #: of a token
METHODS = frozenset({"POST", "PATCH", "DELETE"})

_TOKEN = re.compile(rf"[\x21-\x7e]{{1,{MAX_CHARS}}}")
_IDS = uuid.UUID("a6a3f1ba-6b6e-4f0e-8f6e-0f1d6c1f6a52")  # namespace of what tokens name


def client_token(method: str, headers: Mapping[str, str]) -> str | None:
    """Read the token of a request; None when it has none, or changes nothing anyway.

    Raises:
        InvalidRequest: it is empty, too long, or not visible ASCII.
    """
    token = headers.get(CLIENT_TOKEN)
    if token is None or method not in METHODS:
        return None
    if not _TOKEN.fullmatch(token):
        raise InvalidRequest.field(
            CLIENT_TOKEN, f"must be 1 to {MAX_CHARS} visible ASCII characters"
        )
    return token


def request_digest(method: str, target: str, body: bytes | None) -> bytes:
    """Digest what a request asks.

    Args:
        target: as in the request line.
        body: None for a multipart one, which every client words anew for each sending.
    """
    digest = hashlib.sha256()
    for part in (method.encode(), target.encode("utf-8", "surrogateescape"), body):
        digest.update(b"-" if part is None else b"%d:" % len(part))
        digest.update(part or b"")
    return digest.digest()


def derived_id(owner: str, token: str, what: str) -> uuid.UUID:
    """Give the UUID of what a tokened request makes, so that a repeat finds it and makes no other.

    It matters when the server was killed after it made the thing, before it kept the answer.

    Args:
        what: kind of the thing, such as "run".
    """
    return uuid.uuid5(_IDS, f"{what}:{owner}:{token}")
