import pytest

from retort.wire.ranges import parse_range


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, None),
        ("", None),
        ("bytes=0-0", range(0, 1)),
        ("bytes=2-", range(2, 10)),
        ("bytes=2-99", range(2, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-99", range(0, 10)),
        ("bytes=-0", range(10, 10)),
        ("bytes=10-", range(0)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("lines=1-2", None),
        ("bytes=a-b", None),
    ],
)
def test_ranges_of_ten_bytes(header: str | None, wanted: range | None) -> None:
    found = parse_range(header, 10)
    assert found == wanted
    assert (found is None) == (wanted is None)
