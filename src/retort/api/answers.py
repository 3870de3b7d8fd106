"""Making responses."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

_encode = msgspec.json.Encoder().encode
_JSON = "application/json"


def json_answer(document: Any, status: int = 200) -> web.Response:
    """Answer a JSON document; bytes are JSON already."""
    body = document if isinstance(document, bytes) else _encode(document)
    return web.Response(body=body, status=status, content_type=_JSON)


def no_content() -> web.Response:
    """Answer that it is done and there is nothing to say."""
    return web.Response(status=204)
