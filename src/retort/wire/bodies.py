"""JSON bodies: decoded with limits before anything looks at them (specification 1)."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from retort.errors import MalformedBody

MAX_DEPTH = 32  #: of nested objects and lists; real bodies have four
MAX_INTEGER = 2**63 - 1

_decoder = msgspec.json.Decoder()


def decode_object(body: bytes | str | None) -> dict[str, Any]:
    """Decode a JSON object; an empty body is an empty object.

    Raises:
        MalformedBody: not JSON, not an object, nested too deeply, a number out of range, or a
            key given twice (two readers might disagree on which counts).
    """
    raw = body.encode("utf-8", "replace") if isinstance(body, str) else body
    if not raw or raw.isspace():
        return {}
    try:
        document = _decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise MalformedBody from exc
    if not isinstance(document, dict):
        raise MalformedBody
    keys = _count_keys(document, MAX_DEPTH)
    # Every key has its colon. As many colons as keys were decoded mean that no key came twice;
    # only bodies with colons in their strings pay for a second reading.
    if raw.count(b":") != keys:
        _repeats.decode(raw.decode())
    return document


def _count_keys(value: Any, depth: int) -> int:
    """Count the keys of a decoded value; refuse depth and integers that nothing here needs."""
    if isinstance(value, dict):
        keys, items = len(value), list(value.values())
    elif isinstance(value, list):
        keys, items = 0, value
    else:
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise MalformedBody
        return 0
    if depth == 0:
        raise MalformedBody
    return keys + sum(_count_keys(item, depth - 1) for item in items)


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise MalformedBody


_repeats = json.JSONDecoder(object_pairs_hook=_refuse_repeats)
