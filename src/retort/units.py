"""Parse and print bytes, durations and addresses; nothing here knows where the text came from.

Bytes are binary (``1k`` is 1024), as in the specification 5.9; durations are seconds.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_BYTES = 2**63 - 1  #: what a file system, a cgroup and a database column can all hold

_PREFIXES = "kmgtpe"
_BYTES = re.compile(
    r"(\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})\s*(?:([kmgtpe])(?:i?b|bytes?)?|b|bytes?)?",
    re.IGNORECASE | re.ASCII,
)
_DURATION = re.compile(r"(?:(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d))", re.ASCII)
_BARE_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_bytes(value: str | int | float) -> int:
    """Read a number of bytes, such as ``64m``, ``1.5 GiB``, ``"1024"`` or ``1024``.

    A fraction of a byte is cut off.

    Raises:
        ValueError: not a size, negative, or beyond `MAX_BYTES`.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a number of bytes")
    size = _scaled(value.strip()) if isinstance(value, str) else _whole(value)
    if not 0 <= size <= MAX_BYTES:
        raise ValueError("is not between 0 and 8 EiB")
    return size


def _scaled(text: str) -> int:
    match = _BYTES.fullmatch(text)
    if match is None:
        raise ValueError("must be a number of bytes, such as 512m")
    number, prefix = match.groups()
    power = _PREFIXES.index(prefix.lower()) + 1 if prefix else 0
    return int(Fraction(number) * 1024**power)


def _whole(number: int | float) -> int:
    try:
        return int(number)
    except (ValueError, OverflowError):  # NaN and the infinities
        raise ValueError("must be a finite number of bytes") from None


def format_bytes(size: int) -> str:
    """Print a size for people: ``"512 B"``, ``"1.5 KiB"``, ``"256 MiB"``."""
    if abs(size) < 1024:
        return f"{size} B"
    amount = float(size)
    for prefix in _PREFIXES.upper():
        amount /= 1024
        # 1023.95 would print as "1024.0 KiB": it belongs to the next unit
        if abs(amount) < 1023.95 or prefix == "E":
            break
    return f"{amount:.1f}".removesuffix(".0") + f" {prefix}iB"


def parse_duration(value: str | int | float) -> float:
    """Read seconds from a number, or from text such as ``90``, ``250ms``, ``1h30m``, ``2d``.

    Raises:
        ValueError: not a duration, negative or endless.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a duration")
    if not isinstance(value, str):
        if not 0 <= value < 1e12:
            raise ValueError("must be a positive number of seconds")
        return float(value)
    text = value.strip().lower().replace(" ", "")
    if _BARE_SECONDS.fullmatch(text):
        return float(text)
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("must be a duration, such as 20s or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """Print a duration as `parse_duration` reads it: ``"250ms"``, ``"1.5s"``, ``"1h30m"``.

    Rounded to milliseconds below a minute, to seconds above.
    """
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 0.9995:
        return f"{round(seconds * 1000)}ms"
    if seconds < 59.9995:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    rest = round(seconds)
    text = ""
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, int(_SECONDS[unit]))
        text += f"{count}{unit}" if count else ""
    return text


def parse_listen(text: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 address stands in brackets, as in [::1]:8090.

    Raises:
        ValueError: it is not of that form, or the port is beyond 65535.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address stands in brackets, as in [::1]:8090")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:8090")
    return host, int(port)
