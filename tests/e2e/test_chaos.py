"""A short `make chaos`, and its control: deaths at every named point lose nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from retort.core.faults import Point
from tests.e2e.conftest import ROOT


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_dies_at_each_point() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.chaos", f"--kills={len(Point)}", "--clients=4", "--seed=1",
         *(f"--at={point.value}" for point in Point)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 promises broken, left: nothing" in done.stdout
