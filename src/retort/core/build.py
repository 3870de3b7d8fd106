"""What the build cache says about one build step; the cache itself is node/'s."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class CacheNote:
    """How a build that asked for the cache was answered.

    Attributes:
        is_hit: the result is that of an earlier, identical build.
        key: the digest of all that the build depends on, hexadecimal; None when it has none.
        refusal: why this build was not taken from the cache nor kept in it; None: it was.
    """

    is_hit: bool
    key: str | None = None
    refusal: str | None = None
