"""init's own unit tests, in C: compiled with sanitizers where there are any, and run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

INIT = Path(__file__).parents[3] / "init"
NAMES = ("tests/test_unit", "util", "step", "beneath", "inodes", "mounts", "outside")
SOURCES = tuple(f"{name}.c" for name in NAMES)


@pytest.mark.slow
def test_every_claim_of_the_c_unit_tests_holds(tmp_path: Path) -> None:
    program = tmp_path / "test_unit"
    compile_it = [
        os.environ.get("CC", "cc"), "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-o", program,
        *(INIT / name for name in SOURCES),
    ]  # fmt: skip
    sanitized = [*compile_it, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    if subprocess.run(sanitized, capture_output=True).returncode:
        subprocess.run(compile_it, check=True)
    ran = subprocess.run([program], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
