"""The identity of a host's programs, over a made-up host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retort.sandbox.toolchain import MAX_WATCHED, Toolchain, _watched


@pytest.fixture
def host(tmp_path: Path) -> Path:
    for folder in ("usr/bin", "usr/lib/gcc/x86/12", "usr/include/sys", "opt/tool/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("usr/bin/gcc-12", "usr/lib/gcc/x86/12/cc1", "usr/include/sys/types.h"):
        (tmp_path / file).write_text("old")
    (tmp_path / "usr/bin/gcc").symlink_to("gcc-12")
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text("gcc 12")
    return tmp_path


def test_identity_stays_while_nothing_changes(host: Path) -> None:
    made = Toolchain("base", host)
    assert made.identity() == made.identity() == Toolchain("base", host).identity()
    assert len(made.identity()) == 32


@pytest.mark.parametrize(
    "file", ["usr/bin/gcc-12", "usr/lib/gcc/x86/12/cc1", "var/lib/dpkg/status"]
)
def test_program_that_is_edited_changes_the_identity(host: Path, file: str) -> None:
    made = Toolchain("base", host)
    before = made.identity()
    (host / file).write_text("new!")
    assert made.identity() != before


@pytest.mark.parametrize("folder", ["usr/bin", "usr/include", "usr/lib/gcc/x86/12", "opt/tool"])
def test_file_that_is_added_changes_the_identity(host: Path, folder: str) -> None:
    made = Toolchain("base", host)
    before = made.identity()
    (host / folder / "new").touch()
    assert made.identity() != before


def test_replaced_program_of_the_same_size_and_time_changes_the_identity(host: Path) -> None:
    made = Toolchain("base", host)
    before = made.identity()
    old = (host / "usr/bin/gcc-12").stat()
    (host / "usr/bin/new").write_text("new")
    os.utime(host / "usr/bin/new", ns=(old.st_mtime_ns, old.st_mtime_ns))
    (host / "usr/bin/new").rename(host / "usr/bin/gcc-12")
    assert made.identity() != before


def test_header_edited_in_place_is_noticed_by_the_next_server(host: Path) -> None:
    before = Toolchain("base", host).identity()
    (host / "usr/include/sys/types.h").write_text("new!")
    assert Toolchain("base", host).identity() != before


def test_what_else_a_sandbox_sees_is_part_of_it(host: Path) -> None:
    assert Toolchain("one", host).identity() != Toolchain("two", host).identity()


def test_no_more_is_looked_at_than_the_cap(host: Path) -> None:
    for number in range(MAX_WATCHED + 10):
        (host / "usr/lib/gcc/x86/12" / str(number)).touch()
    assert len(list(_watched(host))) == MAX_WATCHED
