"""The command line of a sandbox, the host's layout and the host uids."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.errors import SandboxFault
from retort.sandbox.host_uids import HostUids
from retort.sandbox.launcher import Launcher
from retort.sandbox.rootfs import Base
from retort.sandbox.view import Handed, Mount, SandboxSpec, system_mounts

HANDED = Handed(listener=7, ready=8, info=9)


@pytest.fixture
def launcher():
    made = Launcher(Path("/usr/bin/bwrap"), Base(Path("/base"), "0"), system=("--system",))
    yield made
    made.close()


def after(argv: list[str], *words: str) -> list[str]:
    """What follows a sequence of words that must be there."""
    for place in range(len(argv)):
        if argv[place : place + len(words)] == list(words):
            return argv[place + len(words) :]
    raise AssertionError(f"{words} not in {argv}")


def test_every_namespace_and_no_capability(launcher: Launcher) -> None:
    argv = launcher.command(SandboxSpec("box", host_uid=4242), HANDED)
    for flag in ("--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1"):
        assert flag in argv
    assert "--new-session" in argv
    assert "--clearenv" in argv
    assert after(argv, "--cap-drop")[0] == "ALL"
    assert after(argv, "--hostname")[0] == "box"
    assert "--die-with-parent" not in argv  # it survives its server


def test_init_gets_the_number_of_its_socket_and_nothing_else(launcher: Launcher) -> None:
    argv = launcher.command(SandboxSpec("box", host_uid=4242), HANDED)
    assert after(argv, "--", "/.retort/init") == ["7"]
    assert after(argv, "--info-fd")[0] == "9"


def test_every_tmpfs_has_a_size_and_the_root_is_closed_last(launcher: Launcher) -> None:
    spec = SandboxSpec("box", 1000, 2000, 3000, host_uid=4242)
    argv = launcher.command(spec, HANDED)
    sizes = {
        after(argv[place:], "--tmpfs")[0]: argv[place + 1]
        for place, word in enumerate(argv)
        if word == "--size"
    }
    assert sizes == {"/home/work": "1000", "/tmp": "2000", "/var/tmp": "2000", "/dev/shm": "3000"}
    assert argv.count("--tmpfs") == 4
    assert after(argv, "--remount-ro", "/")[0] == "--chdir"
    assert ("--remount-ro", "/dev") in list(pairwise(argv))


def test_places_of_mounts_are_made_after_the_home_and_never_taken_for_options(
    launcher: Launcher,
) -> None:
    mounts = (Mount(Path("/data/a"), "/home/work/a"), Mount(Path("/b"), "/--bind"))
    argv = launcher.command(SandboxSpec("box", mounts=mounts, host_uid=4242), HANDED)
    assert after(argv, "--tmpfs", "/home/work")[:8] == [
        *("--perms", "0755", "--dir", "/home/work/a"),
        *("--perms", "0755", "--dir", "/--bind"),
    ]
    assert "/data/a" not in argv


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the uid")
def test_root_changes_the_uid_before_bubblewrap(launcher: Launcher) -> None:
    argv = launcher.command(SandboxSpec("box", host_uid=4242), HANDED)
    assert argv[:4] == ["/base/retort-init", "--as", "4242", "/usr/bin/bwrap"]


def test_a_merged_host_gives_links_and_an_older_one_folders(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "bin").mkdir()
    argv = system_mounts(tmp_path)
    assert argv == (
        *("--ro-bind", f"{tmp_path}/usr", "/usr"),
        *("--ro-bind", f"{tmp_path}/bin", "/bin"),
        *("--symlink", "usr/lib", "/lib"),
    )
    (tmp_path / "opt").mkdir()
    assert system_mounts(tmp_path)[-3:] == ("--ro-bind", f"{tmp_path}/opt", "/opt")


def test_a_host_uid_in_use_is_never_handed_out() -> None:
    uids = HostUids(500_000, 3)
    taken = [uids.acquire() for _ in range(3)]
    assert sorted(taken) == [500_000, 500_001, 500_002]
    with pytest.raises(SandboxFault, match="all 3"):
        uids.acquire()
    uids.release(taken[1])
    assert uids.acquire() == taken[1]


def test_a_released_uid_rests_and_a_claimed_one_is_skipped() -> None:
    uids = HostUids(10, 4)
    uids.release(uids.acquire())
    uids.claim(12)
    uids.claim(99)  # of another range
    assert [uids.acquire() for _ in range(3)] == [11, 13, 10]


@given(st.lists(st.booleans(), max_size=60))
def test_uids_in_use_are_always_distinct(steps: list[bool]) -> None:
    uids = HostUids(1000, 5)
    held: list[int] = []
    for takes in steps:
        if takes and len(held) < 5:
            held.append(uids.acquire())
        elif held:
            uids.release(held.pop(0))
        assert len(set(held)) == len(held)
        assert all(1000 <= uid < 1005 for uid in held)


@pytest.mark.parametrize(("first", "count"), [(0, 5), (10, 0), (-1, 1), (2**32 - 2, 2)])
def test_a_range_with_root_or_without_uids_is_refused(first: int, count: int) -> None:
    with pytest.raises(ValueError, match="no such range"):
        HostUids(first, count)
