"""Reading pressure stall information, of files that a test writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from retort.sandbox.pressure import CpuPressure


def test_the_total_of_some_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "cpu"
    line = "some avg10=0.82 avg60=16.45 avg300=26.47 total={}\nfull avg10=0.00 total=7\n"
    file.write_text(line.format(240))
    pressure = CpuPressure(file)
    assert pressure.waited_us() == 240
    file.write_text(line.format(1_000_000))
    assert pressure.waited_us() == 1_000_000
    pressure.close()
    assert pressure.waited_us() is None


@pytest.mark.parametrize("text", ["", "full avg10=0.00 total=7\n", "some avg10=0.00\n"])
def test_what_does_not_tell_it_is_not_known(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cpu"
    file.write_text(text)
    assert CpuPressure(file).waited_us() is None


def test_a_host_without_it_is_not_known(tmp_path: Path) -> None:
    assert CpuPressure(tmp_path / "none").waited_us() is None
