"""Control groups of this host: limits hold, counters tell, nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.core.limits import MIB, Limits
from retort.errors import SandboxFault
from retort.sandbox import counter_files
from retort.sandbox.cgroup import Groups, find
from retort.sandbox.session_group import Measured, Mode, SessionGroup

from .conftest import Start

LIMITS = Limits(memory_bytes=64 * MIB, processes=20, cpus=0.5)


@pytest.fixture
def groups() -> Iterator[Groups]:
    tag = uuid.uuid4().hex[:8]
    found = find(tag)
    if found.mode is Mode.NONE:
        pytest.skip(f"this host gives no groups: {found.why_none}")
    yield found
    found.close()
    # Not rglob: groups of others vanish while it looks.
    left = [name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names if tag in name]
    assert left == []


@pytest.fixture
def session(groups: Groups) -> Iterator[SessionGroup]:
    made = groups.session("session", LIMITS)
    assert made is not None
    yield made
    assert made.remove()


def run_inside(session: SessionGroup, script: str) -> tuple[int, str, Measured]:
    """Run a shell script that waits to be moved into its group, then starts."""
    session.take()
    process = subprocess.Popen(
        ["/bin/bash", "-c", f"read go; {script}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    session.add(process.pid)
    output, _ = process.communicate("go\n")
    return process.returncode, output, session.take()


ALLOCATE = "/usr/bin/python3 -c 'a = bytearray({mib} << 20); print(len(a))'"


def test_memory_beyond_the_limit_is_an_oom_kill_that_is_counted(session: SessionGroup) -> None:
    control = subprocess.run(
        ["/bin/bash", "-c", ALLOCATE.format(mib=200)], capture_output=True, check=False
    )
    assert control.returncode == 0
    code, output, measured = run_inside(session, ALLOCATE.format(mib=200) + "; exit $?")
    assert (code, output) == (137, "")
    assert measured.oom_kills == 1


def test_memory_within_the_limit_is_no_oom_kill(session: SessionGroup) -> None:
    code, output, measured = run_inside(session, ALLOCATE.format(mib=30))
    assert (code, output) == (0, f"{30 * MIB}\n")
    assert measured.oom_kills == 0


def test_limits_hit_by_an_earlier_step_are_not_told_of_a_later_one(session: SessionGroup) -> None:
    forks = "for i in {1..40}; do sleep 0.5 & done 2>/dev/null; wait"
    _, _, first = run_inside(session, f"{ALLOCATE.format(mib=200)}; {forks}")
    _, _, second = run_inside(session, "true")
    assert (first.oom_kills, first.refused_forks > 0) == (1, True)
    assert (second.oom_kills, second.refused_forks) == (0, 0)


def test_each_step_has_a_peak_of_its_own(session: SessionGroup) -> None:
    peaks = [run_inside(session, ALLOCATE.format(mib=mib))[2].memory_peak_bytes for mib in (40, 1)]
    assert peaks[0] is not None
    assert 40 * MIB < peaks[0] <= 64 * MIB
    assert peaks[1] is None or peaks[1] < 30 * MIB  # None: a host kernel that cannot reset it


def test_forks_beyond_the_limit_are_refused_and_counted(session: SessionGroup) -> None:
    _, _, measured = run_inside(session, "for i in {1..40}; do sleep 0.5 & done 2>/dev/null; wait")
    assert measured.refused_forks > 0
    # Two more than the program's: init and its standby child are in the group as well.
    assert measured.processes_peak is None or measured.processes_peak <= LIMITS.processes + 2


def test_cpu_time_of_every_process_is_counted(session: SessionGroup, groups: Groups) -> None:
    if "cpuacct" not in groups.controllers:
        pytest.skip("this host does not count CPU time by group")
    spin = "for i in {1..60000}; do :; done"
    _, _, measured = run_inside(session, f"({spin}) & ({spin}) & wait")
    assert measured.user_us is not None
    assert measured.system_us is not None
    assert measured.user_us + measured.system_us > 20_000


def test_a_group_with_a_process_in_it_is_not_removed(session: SessionGroup) -> None:
    process = subprocess.Popen(["/bin/sleep", "1000"])
    session.add(process.pid)
    assert not session.remove()
    process.kill()
    process.wait()
    assert session.remove()


async def test_what_a_sandbox_forks_after_the_move_is_inside(
    session: SessionGroup, start: Start
) -> None:
    box = await start()
    hog = "/usr/bin/python3 -c 'a = bytearray(200 << 20); print(len(a))'"
    control = await box.sh(hog)
    assert control.code == 0
    session.add(box.sandbox.pid)
    session.take()
    killed = await box.sh(f"{hog}; exit $?")
    assert killed.code == 137
    assert session.take().oom_kills == 1


def test_another_server_beside_this_one_finds_groups_too(groups: Groups) -> None:
    script = (
        "import sys; from retort.sandbox.cgroup import find; g = find(sys.argv[1]);"
        "print(g.mode.value); g.close()"
    )
    tag = uuid.uuid4().hex[:8]
    done = subprocess.run(
        [sys.executable, "-c", script, tag],
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{groups.mode.value}\n", "")


def test_a_process_that_has_ended_cannot_be_moved(session: SessionGroup) -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    with pytest.raises(SandboxFault, match=r"cgroup\.procs"):
        session.add(process.pid)


def test_leftover_groups_are_swept_and_new_ones_are_not(groups: Groups) -> None:
    earlier = Groups(groups.mode, groups._folders)  # as a killed server left it
    old, new = earlier.session("old", LIMITS), groups.session("new", LIMITS)
    assert old is not None
    assert new is not None
    groups.sweep()
    assert not old._folders["memory"].exists()
    assert all(folder.exists() for folder in new._folders.values())  # its init is on its way
    groups.sweep()
    assert not new._folders["memory"].exists()


@pytest.mark.parametrize("text", ["", "garbage\n", "12:memory:/x\n"])
def test_hosts_without_groups_are_told_apart(tmp_path: Path, text: str) -> None:
    (tmp_path / "mountinfo").write_text("")
    (tmp_path / "cgroup").write_text(text if text != "garbage\n" else "")
    found = find("none", proc=tmp_path)
    assert found.mode is Mode.NONE
    assert found.why_none
    assert found.session("x", LIMITS) is None


def test_a_named_group_that_is_not_there_is_refused_by_name() -> None:
    """And not replaced by another, which would look well until the next restart."""
    tag = uuid.uuid4().hex[:8]
    found = find(tag)
    found.close()
    if found.mode is not Mode.V2:
        pytest.skip("the setting concerns version 2 alone")
    with pytest.raises(SandboxFault, match=r"sandbox\.group: .*nowhere\.service"):
        find(tag, named="../nowhere.service")
    with pytest.raises(SandboxFault, match=r"is not below"):
        find(tag, named="../../../../../../../etc")


def test_a_named_group_means_nothing_without_version_2() -> None:
    tag = uuid.uuid4().hex[:8]
    found = find(tag)
    found.close()
    if found.mode is Mode.V2:
        pytest.skip("this host has version 2")
    named = find(tag, named="../nowhere.service")
    assert named.mode is found.mode
    named.close()


def open_counters(tag: str) -> int:
    """Count this process's descriptors of files of such groups."""
    found = 0
    for entry in os.scandir("/proc/self/fd"):
        try:
            target = str(Path(entry.path).readlink())
        except FileNotFoundError:  # scandir's own
            continue
        found += tag in target and "memory.peak" not in target  # v2 keeps that one anyway
    return found


def test_only_some_groups_keep_their_counters_open_and_all_count_right(groups: Groups) -> None:
    tag = f"counted-{uuid.uuid4().hex[:8]}"
    made = [groups.session(f"{tag}-{n}", LIMITS) for n in range(3 * counter_files.MOST_GROUPS)]
    sessions = [session for session in made if session is not None]
    assert len(sessions) == len(made)
    try:
        assert open_counters(tag) == 0
        sessions[0].take()
        of_one = open_counters(tag)
        assert 0 < of_one <= 12
        for _ in range(2):
            for session in sessions:
                session.take()
                assert open_counters(tag) <= of_one * counter_files.MOST_GROUPS
        for session in (sessions[0], sessions[-1], sessions[0]):  # closed meanwhile, and open
            code, _, measured = run_inside(session, ALLOCATE.format(mib=200) + "; exit $?")
            assert (code, measured.oom_kills) == (137, 1)
    finally:
        for session in sessions:
            assert session.remove()
    assert open_counters(tag) == 0


def test_a_group_that_is_gone_counts_nothing_more(groups: Groups) -> None:
    session = groups.session("gone", LIMITS)
    assert session is not None
    run_inside(session, "true")
    for folder in session._folders.values():
        folder.rmdir() if folder.exists() else None
    assert session.take().memory_peak_bytes in (None, 0)
    session.close()
