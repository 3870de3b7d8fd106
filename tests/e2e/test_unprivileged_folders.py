"""Virtual folders and mounts once more, whole, by a server and clients of an ordinary user."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.test_unprivileged_limits import SOMEBODY, UID, paths_for_anybody, place

pytestmark = pytest.mark.slow

FILES = (
    "tests/e2e/vfolders",
    "tests/e2e/test_graphql.py",
    "tests/e2e/test_mounts.py",
    "tests/e2e/test_quotas.py",
    "tests/e2e/attacks/test_folders.py",
)
__all__ = ["place"]  # the fixture


@pytest.mark.skipif(os.geteuid() != 0, reason="every test runs unprivileged already")
def test_all_of_it_holds_without_privileges(place: Path) -> None:
    home = place / "home"
    home.mkdir()
    os.chown(home, UID, UID)
    done = subprocess.run(
        [*SOMEBODY, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "--tb=short",
         f"--basetemp={home / 'tmp'}", "-k", "not public_client", *FILES],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=900,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": paths_for_anybody(),
             "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) >= 84, done.stdout[-2000:]
