"""From the raw request target to what the router sees (specification 2.4).

A signature is made over the target as received; everything here works on a copy of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import parse_qsl, unquote_to_bytes

from retort.errors import InvalidRequest, RouteNotFound
from retort.wire.percent import printable
from retort.wire.versions import KNOWN

MAX_QUERY_FIELDS = 1000

_VERSION = re.compile(r"v[0-9]+")
_METHOD = re.compile(r"[A-Za-z]{1,16}")


@dataclass(frozen=True)
class Target:
    """A request target without its aliases.

    Args:
        segments: of the path, percent-decoded one by one; text that is not UTF-8 has U+FFFD.
        pairs: the query in order, decoded.
        generation: N of a stripped ``/vN`` prefix; some answers depend on it (6.6).
        is_old_events: came as ``stream/session/_/events``, whose ``sessionId`` is a name (9.3).
    """

    segments: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    generation: int | None = None
    is_old_events: bool = False

    @property
    def path(self) -> str:
        """The canonical path, for messages and logs."""
        return "/" + "/".join(self.segments)

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """The query by key; a repeated key has several values."""
        query: dict[str, list[str]] = {}
        for key, value in self.pairs:
            query.setdefault(key, []).append(value)
        return query


def effective_method(method: str, override: str | None = None) -> str:
    """Choose the method to route by (specification 1, method override).

    `X-Method-Override` counts on POST only. REPORT is another word for GET.
    """
    if method == "POST" and override and _METHOD.fullmatch(override.strip()):
        method = override.strip().upper()
    return "GET" if method == "REPORT" else method


def route_target(raw: str, method: str = "GET", *, base: str = "") -> Target:
    """Undo the aliases of a raw target (specification 2.4).

    Args:
        raw: as in the request line, absolute form allowed.
        method: the effective one; ``/session/create`` is an alias for POST only.
        base: path the API is mounted under, e.g. ``/base``.

    Raises:
        RouteNotFound: outside `base`, or behind an unknown ``/vN``.
        InvalidRequest: the query has too many fields.
    """
    path, _, query = _origin_form(printable(raw)).partition("?")
    segments = _beneath(base, _split(path), path)
    pairs = _pairs(query) if query else ()
    if not segments or not _VERSION.fullmatch(segments[0]):
        generation = None
    else:
        generation = _generation(segments[0], path)
        if len(segments) == 1:  # GET /vN is a call itself
            return Target(segments, pairs, generation)
        segments = segments[1:]
        if _VERSION.fullmatch(segments[0]):  # one prefix is stripped, not two
            raise RouteNotFound(data=path)
    segments, is_old_events = _canonical(segments, method)
    return Target(segments, pairs, generation, is_old_events)


def _origin_form(raw: str) -> str:
    if raw.startswith("/"):
        return raw
    scheme, mark, rest = raw.partition("://")
    if not mark or scheme.lower() not in ("http", "https"):
        raise RouteNotFound(data=raw)
    slash = rest.find("/")
    return rest[slash:] if slash >= 0 else "/"


def _split(path: str) -> tuple[str, ...]:
    parts = path[1:].removesuffix("/").split("/")
    if parts == [""]:
        return ()
    # Split first, decode then: a %2F inside a segment is part of a name.
    return tuple(
        unquote_to_bytes(part).decode("utf-8", "replace") if "%" in part else part for part in parts
    )


def _beneath(base: str, segments: tuple[str, ...], path: str) -> tuple[str, ...]:
    root = tuple(part for part in base.split("/") if part)
    if segments[: len(root)] != root:
        raise RouteNotFound(data=path)
    return segments[len(root) :]


def _generation(prefix: str, path: str) -> int:
    digits = prefix[1:]
    if len(digits) != 1 or int(digits) not in KNOWN:
        raise RouteNotFound(data=path)
    return int(digits)


def _canonical(segments: tuple[str, ...], method: str) -> tuple[tuple[str, ...], bool]:
    if segments[:1] == ("kernel",):
        segments = ("session", *segments[1:])
    elif segments[:2] == ("stream", "kernel"):
        segments = ("stream", "session", *segments[2:])
    if method == "POST" and segments in (("session", "create"), ("session", "_", "create")):
        return ("session",), False
    if segments == ("stream", "session", "_", "events"):
        return ("events", "session"), True
    if segments[:1] == ("etcd",):
        segments = ("config", *segments[1:])
    return segments, False


def _pairs(query: str) -> tuple[tuple[str, str], ...]:
    try:
        return tuple(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS))
    except ValueError as exc:
        raise InvalidRequest("The query has too many fields.") from exc
