"""What a session's control group is read to say; the real ones are in tests/sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from retort.sandbox.session_group import Mode, SessionGroup


def v1(folder: Path, total_us: int, user_us: int, system_us: int) -> None:
    (folder / "cpuacct.usage").write_text(f"{total_us * 1000}\n")
    (folder / "cpuacct.usage_user").write_text(f"{user_us * 1000}\n")
    (folder / "cpuacct.usage_sys").write_text(f"{system_us * 1000}\n")


def v2(folder: Path, total_us: int, user_us: int, system_us: int) -> None:
    (folder / "cpu.stat").write_text(
        f"usage_usec {total_us}\nuser_usec {user_us}\nsystem_usec {system_us}\n"
    )


def group(folder: Path, mode: Mode) -> SessionGroup:
    return SessionGroup(mode, dict.fromkeys(("memory", "pids", "cpu", "cpuacct"), folder))


def test_cpu_time_on_v1_is_what_was_used_and_not_what_ticks_saw(tmp_path: Path) -> None:
    v1(tmp_path, 100, 100, 0)
    session = group(tmp_path, Mode.V1)
    v1(tmp_path, 600_100, 100, 0)  # a program that sleeps through every tick
    assert session.cpu_us() == 600_000
    measured = session.take()
    assert (measured.user_us, measured.system_us) == (600_000, 0)
    assert session.cpu_us() == 0


@pytest.mark.parametrize(("mode", "write"), [(Mode.V1, v1), (Mode.V2, v2)])
def test_user_and_system_time_are_together_the_exact_total(
    tmp_path: Path, mode: Mode, write: object
) -> None:
    assert callable(write)
    write(tmp_path, 0, 0, 0)
    session = group(tmp_path, mode)
    write(tmp_path, 1000, 300, 100)
    measured = session.take()
    assert (measured.user_us, measured.system_us) == (750, 250)
    write(tmp_path, 1400, 700, 100)
    assert session.cpu_us() == 400
    measured = session.take()
    assert (measured.user_us, measured.system_us) == (400, 0)


def test_without_a_counter_cpu_time_is_not_known(tmp_path: Path) -> None:
    session = SessionGroup(Mode.V1, dict.fromkeys(("memory", "pids"), tmp_path))
    assert session.cpu_us() is None
    measured = session.take()
    assert (measured.user_us, measured.system_us) == (None, None)


@pytest.mark.parametrize(
    ("mode", "now", "limit", "is_beyond"),
    [
        (Mode.V2, "4097", "4096", True),
        (Mode.V2, "4096", "4096", False),  # full is not beyond
        (Mode.V2, "4097", "max", False),
        (Mode.V1, "4097", "4096", False),
    ],
)
def test_a_group_is_beyond_its_limit_when_more_is_charged_than_it_allows(
    tmp_path: Path, mode: Mode, now: str, limit: str, is_beyond: bool
) -> None:
    (tmp_path / "memory.current").write_text(f"{now}\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    assert group(tmp_path, mode).is_beyond_limit is is_beyond
