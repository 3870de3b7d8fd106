"""What a session's control group is read to say; the real ones are in tests/sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from retort.core.limits import MIB
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


class Memory:
    """What the host kernel tells of a group's memory, in MiB."""

    def __init__(self, folder: Path, mode: Mode, limit: float | None = 128) -> None:
        self._folder, self._mode = folder, mode
        none = f"{(1 << 63) - 4096}\n" if mode is Mode.V1 else "max\n"
        name = "memory.max" if mode is Mode.V2 else "memory.limit_in_bytes"
        (folder / name).write_text(none if limit is None else f"{int(limit * MIB)}\n")

    def is_now(self, used: float, *, kills: int = 0, files: float = 0) -> None:
        v2 = self._mode is Mode.V2
        usage, events, prefix = (
            ("memory.current", "memory.events", "")
            if v2
            else ("memory.usage_in_bytes", "memory.oom_control", "total_")
        )
        (self._folder / usage).write_text(f"{int(used * MIB)}\n")
        (self._folder / events).write_text(f"oom 9\noom_kill {kills}\n")
        (self._folder / "memory.stat").write_text(
            f"inactive_file 7\n{prefix}inactive_file {int(files * MIB)}\n{prefix}active_file 0\n"
        )


def at_rest(folder: Path, mode: Mode) -> tuple[Memory, SessionGroup]:
    memory = Memory(folder, mode)
    memory.is_now(3)
    return memory, group(folder, mode)


MODES = pytest.mark.parametrize("mode", [Mode.V1, Mode.V2])


@pytest.mark.parametrize(
    ("mode", "used", "limit", "is_short"),
    [
        (Mode.V2, 129, 128, True),
        (Mode.V2, 128, 128, False),  # full is not beyond
        (Mode.V2, 129, None, False),
        (Mode.V1, 129, 128, False),
    ],
)
def test_a_group_is_short_when_more_is_charged_than_it_allows(
    tmp_path: Path, mode: Mode, used: float, limit: float | None, is_short: bool
) -> None:
    Memory(tmp_path, mode, limit).is_now(used)
    assert group(tmp_path, mode).is_short is is_short


@MODES
def test_a_group_is_short_from_a_kill_until_its_memory_is_back(tmp_path: Path, mode: Mode) -> None:
    memory = Memory(tmp_path, mode)
    memory.is_now(127.9)
    session = group(tmp_path, mode)
    assert not session.is_short
    memory.is_now(127.9, kills=1)
    assert session.is_short
    assert session.is_short
    memory.is_now(3, kills=1)
    assert not session.is_short
    memory.is_now(127.9, kills=1)  # nobody was killed again
    assert not session.is_short
    memory.is_now(127.9, kills=2)
    assert session.is_short


@MODES
def test_files_that_the_host_kernel_takes_back_are_room(tmp_path: Path, mode: Mode) -> None:
    memory, session = at_rest(tmp_path, mode)
    memory.is_now(128, kills=1, files=90)
    assert not session.is_short


@MODES
def test_memory_that_never_comes_back_is_given_up(tmp_path: Path, mode: Mode) -> None:
    memory, session = at_rest(tmp_path, mode)
    memory.is_now(128, kills=1)
    assert session.is_short
    session.give_up_room()
    assert not session.is_short
    memory.is_now(128, kills=2)
    assert session.is_short


def test_what_stays_charged_beyond_the_limit_is_given_up_until_it_is_back(tmp_path: Path) -> None:
    memory = Memory(tmp_path, Mode.V2)
    memory.is_now(129)
    session = group(tmp_path, Mode.V2)
    session.give_up_room()
    assert not session.is_short
    memory.is_now(3)
    assert not session.is_short
    memory.is_now(129)
    assert session.is_short


@MODES
def test_a_group_that_was_let_go_is_short_of_nothing(tmp_path: Path, mode: Mode) -> None:
    memory, session = at_rest(tmp_path, mode)
    memory.is_now(128, kills=1)
    assert session.is_short
    session.close()
    assert not session.is_short


@MODES
def test_a_group_is_roomy_while_no_program_can_fill_it_soon(tmp_path: Path, mode: Mode) -> None:
    memory = Memory(tmp_path, mode)
    memory.is_now(100)
    session = group(tmp_path, mode)
    assert session.is_roomy
    memory.is_now(126)
    assert not session.is_roomy
    memory.is_now(126, files=90)
    assert session.is_roomy


@MODES
def test_a_group_is_filling_while_it_comes_near_its_limit(tmp_path: Path, mode: Mode) -> None:
    memory, session = at_rest(tmp_path, mode)
    memory.is_now(100)
    assert not session.look_whether_filling()  # far from it
    memory.is_now(126)
    assert session.look_whether_filling()
    assert not session.look_whether_filling()  # it stays there
    memory.is_now(127)
    assert session.look_whether_filling()
    memory.is_now(128, files=90)
    assert not session.look_whether_filling()
