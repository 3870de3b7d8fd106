"""The same tests against a build with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
SUBSET = ["test_steps.py", "test_malformed.py", "test_reconnect.py", "test_files.py"]


@pytest.mark.slow
@pytest.mark.skipif(
    "RETORT_INIT_BINARY" in os.environ, reason="another build is under test already"
)
def test_sanitizers_find_nothing() -> None:
    built = subprocess.run([ROOT / "scripts/build-init", "--sanitize"], capture_output=True)
    if built.returncode:
        pytest.skip("no compiler with sanitizers: " + built.stderr.decode()[-200:])
    binary = ROOT / "build/init-asan/retort-init"
    # A sanitizer's complaint ends init, and init's end fails the test that caused it.
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "not slow", *(HERE / name for name in SUBSET)],
        cwd=ROOT,
        env={**os.environ, "RETORT_INIT_BINARY": os.fspath(binary)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
