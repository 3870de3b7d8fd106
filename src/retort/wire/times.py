"""Dates as requests and answers write them (specification 1 and 3.3)."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_LONGEST = 64  #: characters; no date needs more


def parse_time(text: str) -> datetime:
    """Read ISO 8601, an RFC 7231 date or ``YYYYMMDDTHHMMSSZ``; without a zone it is UTC.

    The zone stays as written: the day that signs a request is the day in that zone (3.2).

    Raises:
        ValueError: none of these.
    """
    if len(text) > _LONGEST or not text.isascii():
        raise ValueError("is not a date")
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = _http_date(text)
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def _http_date(text: str) -> datetime:
    try:
        return parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError, AttributeError) as exc:
        raise ValueError("is not a date") from exc


def format_time(when: datetime) -> str:
    """Print ISO 8601 with microseconds and offset, in UTC."""
    return when.astimezone(UTC).isoformat(timespec="microseconds")
