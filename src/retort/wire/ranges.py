"""The Range header of a download (RFC 9110, 14.2): one range of bytes, or none at all."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})", re.ASCII | re.IGNORECASE)


def parse_range(header: str | None, size: int) -> range | None:
    """Give the bytes that are asked for.

    Returns:
        range: of offsets; empty when none of them exists (416). None: all bytes, also for a header
            that makes no sense or asks for several ranges, as the RFC allows.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:  # the last so many
        count = min(int(match[2]), size)
        return range(size - count, size)
    first = int(match[1])
    last = int(match[2]) if match[2] else size - 1
    if match[2] and last < first:
        return None
    return range(first, min(last + 1, size)) if first < size else range(0)
