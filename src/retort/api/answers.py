"""Making responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

_encode = msgspec.json.Encoder().encode
_JSON = "application/json"
_INLINE_ENTRIES = 1000  # of a listing that is written in the event loop: 1 to 10 ms


def json_answer(document: Any, status: int = 200) -> web.Response:
    """Answer a JSON document; bytes are JSON already."""
    body = document if isinstance(document, bytes) else _encode(document)
    return web.Response(body=body, status=status, content_type=_JSON)


async def answer_listing(write: Callable[[], bytes], entries: int) -> web.Response:
    """Answer a listing, which takes 1 to 10 µs an entry to write; others are served meanwhile.

    Args:
        write: gives the document; is called in a thread when there are many entries.
    """
    body = await asyncio.to_thread(write) if entries > _INLINE_ENTRIES else write()
    return json_answer(body)


def no_content() -> web.Response:
    """Answer that it is done and there is nothing to say."""
    return web.Response(status=204)
