"""Percent escapes, and text that may hold bytes which are not UTF-8.

Headers and request targets reach us as `str` with stray bytes kept as surrogate escapes (PEP 383).
Such text cannot go into JSON, so what is shown to a caller passes through `printable`.
"""

from __future__ import annotations

import re

_RUN = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


def to_bytes(text: str) -> bytes:
    """Give back the bytes a header or target had on the network."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that no decoder made: not from a network
        return text.encode("utf-8", "replace")


def printable(text: str) -> str:
    """Put U+FFFD in place of bytes that are not UTF-8; the result is fit for JSON."""
    return text if text.isascii() else to_bytes(text).decode("utf-8", "replace")


def decode_valid(text: str) -> str:
    """Undo percent escapes once, but only those that form UTF-8 (specification 6.1).

    ``%41%FF`` becomes ``A%FF``, and a stray ``%`` stays as it is.
    """
    return _RUN.sub(_decode_run, text) if "%" in text else text


def _decode_run(match: re.Match[str]) -> str:
    escapes = match.group()
    decoded = bytes.fromhex(escapes.replace("%", "")).decode("utf-8", "surrogateescape")
    out, at = [], 0
    for char in decoded:
        is_stray = "\udc80" <= char <= "\udcff"
        out.append(escapes[at : at + 3] if is_stray else char)
        at += 3 if is_stray else 3 * len(char.encode())
    return "".join(out)
