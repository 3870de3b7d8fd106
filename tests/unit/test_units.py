import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.units import MAX_BYTES, format_bytes, format_duration, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("268435456", 268435456),
        (1024, 1024),
        (1.5, 1),
        ("64k", 65536),
        ("64K", 65536),
        ("512m", 512 << 20),
        ("1g", 1 << 30),
        ("1gb", 1 << 30),
        ("1GiB", 1 << 30),
        ("2 t", 2 << 40),
        ("1p", 1 << 50),
        ("1e", 1 << 60),
        ("1.5 GiB", 3 << 29),
        (".5k", 512),
        ("10 bytes", 10),
        ("3kbytes", 3072),
        ("1mbyte", 1 << 20),
        ("7b", 7),
    ],
)
def test_parse_bytes_reads_every_suffix(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "value",
    [
        "",
        "m",
        "-1",
        "1x",
        "1mm",
        "1 2",
        "1e9",
        "0x10",
        "1_000",
        "٣",
        "nan",
        "inf",
        "8e",
        "9" * 40,
        -1,
        True,
        None,
        [],
        math.nan,
        math.inf,
        MAX_BYTES + 1,
    ],
)
def test_parse_bytes_refuses_what_is_no_size(value):
    with pytest.raises(ValueError, match=r"bytes|EiB"):
        parse_bytes(value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (256 << 20, "256 MiB"),
        ((1 << 20) - 1, "1 MiB"),
        (MAX_BYTES, "8 EiB"),
    ],
)
def test_format_bytes_is_short(size, text):
    assert format_bytes(size) == text


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 1 << 60))
def test_parsing_what_was_printed_is_near(size):
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        (3, 3),
        ("250ms", 0.25),
        ("20s", 20),
        ("1h30m", 5400),
        ("2d", 172800),
        ("1 h 1 s", 3601),
        ("1.5M", 90),
    ],
)
def test_parse_duration_reads_every_unit(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "s", "-1s", "1x", "1s2", "1h-3m", "nan", "inf", -1, True, None, math.nan, 1e300]
)
def test_parse_duration_refuses_what_is_no_duration(value):
    with pytest.raises(ValueError, match="must be"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.25, "250ms"),
        (0.9999, "1s"),
        (1.5, "1.5s"),
        (20, "20s"),
        (59.9999, "1m"),
        (5400, "1h30m"),
        (90061, "1d1h1m1s"),
        (-20, "-20s"),
    ],
)
def test_format_duration_is_short(seconds, text):
    assert format_duration(seconds) == text


@settings(deadline=None, derandomize=True)
@given(st.floats(0, 1e9))
def test_durations_round_trip(seconds):
    again = parse_duration(format_duration(seconds))
    assert again == pytest.approx(seconds, abs=0.51 if seconds > 59 else 0.00051)
