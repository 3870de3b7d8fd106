from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.wire.times import format_time, parse_time

WHEN = datetime(2024, 3, 5, 1, 2, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2024-03-05T01:02:03+00:00",
        "2024-03-05T01:02:03Z",
        "2024-03-05 01:02:03",
        "2024-03-05T03:02:03.000000+02:00",
        "20240305T010203Z",
        "Tue, 05 Mar 2024 01:02:03 GMT",
        "Tuesday, 05-Mar-24 01:02:03 GMT",
        "Tue Mar  5 01:02:03 2024",
    ],
)
def test_every_accepted_form_is_the_same_instant(text):
    assert parse_time(text) == WHEN
    assert parse_time(text).tzinfo is not None


def test_the_zone_stays_as_written():
    assert parse_time("2024-03-05T00:30:00+02:00").day == 5


@pytest.mark.parametrize(
    "text", ["", "now", "2024-13-05T01:02:03", "1709600523", "٢٠٢٤-03-05T01:02:03", "9" * 1000]
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="not a date"):
        parse_time(text)


@given(st.text(max_size=80))
def test_any_text_is_a_date_or_a_value_error(text):
    try:
        when = parse_time(text)
    except ValueError:
        return
    assert abs(when - WHEN) < timedelta.max


def test_times_are_printed_in_utc_with_microseconds():
    when = datetime(2024, 3, 5, 2, 2, 3, tzinfo=timezone(timedelta(hours=1)))
    assert format_time(when) == "2024-03-05T01:02:03.000000+00:00"
