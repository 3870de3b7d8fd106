"""The routes: canonical paths (spec 15) to handlers; aliases are undone in wire/targets.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web

from retort.api.call import Call
from retort.errors import MethodNotAllowed, RouteNotFound
from retort.wire.errors import Operation

Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """What answers one method on one path.

    Attributes:
        is_open: needs no authentication (spec 3.3).
        is_streamed: changes nothing, and writes its answer by itself; a repeat is done again.
        operation: names what failed when the sandbox breaks (spec 4.2).
    """

    handler: Handler
    is_open: bool = False
    operation: Operation | None = None
    is_streamed: bool = False


class RouteTable:
    """Patterns in the order they were added; the first that fits counts, so exact ones come first.

    A pattern is a path whose segments are either text or "*", which fits any one segment; the first
    is always text.
    """

    def __init__(self) -> None:
        self._by_start: dict[tuple[int, str], list[tuple[tuple[str, ...], dict[str, Route]]]] = {}

    def add(self, methods: str, pattern: str, route: Route) -> None:
        """Add a route for methods separated by blanks."""
        segments = tuple(part for part in pattern.split("/") if part)
        alike = self._by_start.setdefault(_start(segments), [])
        of_path = next((table for known, table in alike if known == segments), None)
        if of_path is None:
            of_path = {}
            alike.append((segments, of_path))
        for method in methods.split():
            of_path[method] = route

    def __iter__(self) -> Iterator[tuple[str, str, Route]]:
        """Give every route as method, pattern and Route."""
        for patterns in self._by_start.values():
            for segments, methods in patterns:
                for method, route in methods.items():
                    yield method, "/" + "/".join(segments), route

    def find(self, method: str, segments: tuple[str, ...]) -> tuple[Route, tuple[str, ...]]:
        """Find the route of a request and what its open places hold.

        HEAD is answered like GET, without a body.

        Raises:
            RouteNotFound: no pattern fits.
            MethodNotAllowed: one fits, but not with this method.
        """
        for pattern, methods in self._by_start.get(_start(segments), ()):
            if all(part in ("*", given) for part, given in zip(pattern, segments, strict=True)):
                route = methods.get(method)
                if route is None and method == "HEAD":
                    route = methods.get("GET")
                if route is None:
                    raise MethodNotAllowed(method, tuple(sorted(methods)))
                captured = tuple(
                    given for part, given in zip(pattern, segments, strict=True) if part == "*"
                )
                return route, captured
        raise RouteNotFound(data="/" + "/".join(segments))


def _start(segments: tuple[str, ...]) -> tuple[int, str]:
    """Give what paths of one pattern have in common: their length and their first segment."""
    return len(segments), segments[0] if segments else ""
