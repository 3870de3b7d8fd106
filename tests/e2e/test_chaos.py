"""A short `make chaos`, and its control: deaths at every named point lose nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from retort.core.faults import OF_FOLDERS, Point
from tests.e2e.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("points", "clients"),
    [(set(Point) - OF_FOLDERS, ("--clients=4", "--folders=0")),
     (OF_FOLDERS, ("--clients=1", "--folders=4"))],
    ids=["sessions", "folders"],
)  # fmt: skip
def test_nothing_is_lost_when_the_server_dies_at_each_point(
    points: set[Point], clients: tuple[str, ...]
) -> None:
    places = sorted(point.value for point in points)
    done = subprocess.run(
        [sys.executable, "-m", "bench.chaos", f"--kills={len(places)}", *clients, "--seed=1",
         *(f"--at={place}" for place in places)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 promises broken, left: nothing" in done.stdout
