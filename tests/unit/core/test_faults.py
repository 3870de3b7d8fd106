"""The points where a server may die in a test: each is somewhere, and none does anything."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import pytest

import retort
from retort.core import faults

SOURCES = Path(retort.__file__).parent.rglob("*.py")
REACHED = re.compile(r"faults\.reached\(faults\.Point\.([A-Z_]+)\)")


def test_every_point_is_at_one_place() -> None:
    found = collections.Counter(
        name for path in SOURCES for name in REACHED.findall(path.read_text("utf-8"))
    )
    assert found == dict.fromkeys(faults.Point.__members__, 1)


@pytest.mark.parametrize("point", faults.Point)
def test_nothing_happens_at_a_point(point: faults.Point) -> None:
    faults.reached(point)
