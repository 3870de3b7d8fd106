"""A short `make chaos`: deaths at every named point lose nothing; and its control."""

from __future__ import annotations

import subprocess
import sys

import pytest

from retort.core.faults import OF_FOLDERS, Point
from tests.e2e.conftest import ROOT


def chaos(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.chaos", "--seed=1", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


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
    done = chaos(f"--kills={len(places)}", *clients, *(f"--at={place}" for place in places))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 promises broken, left: nothing" in done.stdout


@pytest.mark.slow
def test_a_server_that_empties_folders_before_their_records_are_gone_is_found_out() -> None:
    """A control by a fault that once was real: at some of these deaths a promise is broken."""
    done = chaos("--kills=60", "--clients=0", "--folders=4", "--at=emptied", "--sabotage=trash")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "half deleted" in done.stdout
