"""What a caller may ask of a new session: its slots and its variables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from retort.errors import InvalidRequest, QuotaExceeded

N = TypeVar("N", int, float)

MAX_ENVIRON_BYTES = 8 * 1024  # with a command it fits one message to init (64 KiB)


def slot_of(name: str, asked: N | None, default: N, *, image: N | None, key: N | None) -> N:
    """Give a slot's value: what is asked for, within the image's and the key's limits (spec 5.9).

    Args:
        default: the server's, for images that say nothing.

    Raises:
        QuotaExceeded: more is asked for than the image or the key allows; a default is cut instead.
    """
    if asked is None:
        unasked = default if image is None else image
        return unasked if key is None else min(unasked, key)
    for most, whose in ((image, "image"), (key, "key")):
        if most is not None and asked > most:
            raise QuotaExceeded(f"{name}: at most {most:.12g} for this {whose}")
    return asked


def check_environ(items: Iterable[tuple[str, str]]) -> None:
    """Refuse variables that no program can be given. Raises InvalidRequest."""
    total = 0
    for name, value in items:
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidRequest.field("environ", f"{name!r} cannot be a variable")
        total += len(name.encode()) + len(value.encode()) + 2
    if total > MAX_ENVIRON_BYTES:
        raise InvalidRequest.field("environ", f"is larger than {MAX_ENVIRON_BYTES} bytes")
