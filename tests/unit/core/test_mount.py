"""Which mounts a session may have, and where: specification 10.7."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping

import pytest

from retort.core.mount import LONGEST_PLACE, AskedMount, Mount, asked_mounts, granted
from retort.core.vfolder import Permission, SeenVFolder, VFolder
from retort.errors import InvalidRequest

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ME = uuid.uuid4()


def folder(name: str, permission: Permission = Permission.WRITE) -> SeenVFolder:
    made = VFolder(uuid.uuid4(), name, ME, "me@example.org", NOW)
    return SeenVFolder(made, permission, permission, is_owner=True)


DATA, LIBS, RULES, DOT = folder("data"), folder("libs"), folder("rules"), folder(".local")
ALL = [DATA, LIBS, RULES]


def mounts_of(*mounts: str, at: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
    asked = asked_mounts(mounts, at or {})
    found = [next(seen for seen in ALL if seen.folder.name == one.ref) for one in asked]
    return granted(asked, found, ())


def places(*mounts: str, at: Mapping[str, str] | None = None) -> list[str]:
    return [mount.destination for mount in mounts_of(*mounts, at=at)]


def test_a_folder_lies_in_the_home_by_its_name() -> None:
    assert places("data", "libs") == ["/home/work/data", "/home/work/libs"]
    assert places("data/sets/one") == ["/home/work/data"]


def test_a_place_is_given_by_an_alias_or_by_the_map() -> None:
    assert places("data:in") == ["/home/work/in"]
    assert places("data", at={"data": "in"}) == ["/home/work/in"]
    assert places("data:in", at={"data": "in"}) == ["/home/work/in"]
    assert places("data/sets", at={"data/sets": "sets"}) == ["/home/work/sets"]


@pytest.mark.parametrize(
    ("place", "lies"),
    [
        ("a/b/c", "/home/work/a/b/c"), ("./a//b/", "/home/work/a/b"), ("a/../b", "/home/work/b"),
        ("/data", "/data"), ("//data/x/", "/data/x"), ("/home/work/x", "/home/work/x"),
        ("/datasets/../d", "/d"), ("/usrlocal", "/usrlocal"), ("/home/../home/work/y",
        "/home/work/y"), ("../work/z", "/home/work/z"), ("-x", "/home/work/-x"),
    ],
)  # fmt: skip
def test_relative_places_are_below_the_home_and_absolute_ones_as_they_are(
    place: str, lies: str
) -> None:
    assert places("data", at={"data": place}) == [lies]


@pytest.mark.parametrize(
    "place",
    [
        "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc",
        "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/home", "/.retort",
        "/etc/x", "/usr/local/lib", "/home/other", "/home/worker", "../../etc", "/x/../etc",
        "//etc", "..", "/tmp/./x",
    ],
)  # fmt: skip
def test_system_directories_are_refused(place: str) -> None:
    with pytest.raises(InvalidRequest, match="system directory"):
        places("data", at={"data": place})


@pytest.mark.parametrize("place", ["", " ", "/", ".", "/home/work", "a/..", "//"])
def test_an_empty_place_and_the_home_itself_are_refused(place: str) -> None:
    with pytest.raises(InvalidRequest, match=r"empty place|no place for a folder"):
        places("data", at={"data": place})
    with pytest.raises(InvalidRequest):
        places(f"data:{place}")


@pytest.mark.parametrize("place", ["a\0b", "\ud800", "x" * 256, "a/" * (LONGEST_PLACE // 2) + "b"])
def test_what_no_file_system_can_name_is_refused(place: str) -> None:
    with pytest.raises(InvalidRequest, match="path"):
        places("data", at={"data": place})
    with pytest.raises(InvalidRequest):
        places(f"data/{place}")


def test_two_folders_at_one_place_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="two folders at /home/work/x"):
        places("data:x", "libs:./x")
    with pytest.raises(InvalidRequest, match="two folders"):
        places("data", "libs:data")


def test_the_place_of_another_mounted_folders_name_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="is the place of 'libs'"):
        places("data:libs", "libs:elsewhere")
    assert places("data:libs") == ["/home/work/libs"]  # libs is not mounted


def test_two_places_for_one_folder_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="two places"):
        places("data:a", at={"data": "b"})
    with pytest.raises(InvalidRequest, match="mounted twice"):
        places("data:a", "data:b")


@pytest.mark.parametrize(("one", "other"), [("data", "data/x:y"), ("data/x", "data/x/y:z")])
def test_a_folder_and_one_in_it_are_refused_as_sources(one: str, other: str) -> None:
    for pair in ((one, other), (other, one)):
        with pytest.raises(InvalidRequest, match="mounted twice, or with a folder in it"):
            places(*pair)
    assert places("data/x:a", "data/xy:b") == ["/home/work/a", "/home/work/b"]


def test_a_place_in_another_mount_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="in each other"):
        places("data", "libs:data/libs")
    assert places("data", "libs:data2/libs") == ["/home/work/data", "/home/work/data2/libs"]


@pytest.mark.parametrize("source", ["data/..", "data/a/../../b", "data/../libs"])
def test_a_way_out_of_the_folder_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest, match="leads out"):
        places(source)


def test_a_folder_in_the_folder_is_named_by_a_relative_path() -> None:
    assert [m.below for m in mounts_of("data/a//b/./c/")] == ["a/b/c"]
    assert [m.below for m in mounts_of("data/")] == ["."]
    assert [m.below for m in mounts_of("data//etc")] == ["etc"]


@pytest.mark.parametrize("entry", ["", ":x", "/etc", "/"])
def test_a_mount_without_a_name_is_refused(entry: str) -> None:
    with pytest.raises(InvalidRequest, match="without a name"):
        places(entry)


def test_a_map_for_what_is_not_mounted_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"'libs' is not in config\.mounts"):
        places("data", at={"libs": "x"})


def test_ids_are_names_and_the_place_is_by_the_folders_name() -> None:
    for ref in (str(DATA.folder.id), DATA.folder.id.hex):
        asked = asked_mounts([ref], {})
        assert asked == (AskedMount(ref),)
        assert granted(asked, [DATA], ())[0].destination == "/home/work/data"


def test_only_ro_is_read_only() -> None:
    for permission in Permission:
        (mount,) = granted((AskedMount("x"),), [folder("x", permission)], ())
        assert mount.is_read_only is (permission is Permission.READ)


def test_dot_folders_are_mounted_without_being_asked_for() -> None:
    asked = asked_mounts(["data"], {})
    mounts = granted(asked, [DATA], [DOT, LIBS])
    assert [m.destination for m in mounts] == ["/home/work/data", "/home/work/.local"]


def test_a_dot_folder_gives_way_to_what_is_asked_for() -> None:
    asked = asked_mounts(["data:.local/lib"], {})
    assert len(granted(asked, [DATA], [DOT])) == 1
    asked = asked_mounts([".local:/mine"], {})
    assert [m.destination for m in granted(asked, [DOT], [DOT])] == ["/mine"]
    assert len(granted((), (), [DOT, folder(".local")])) == 1  # the first is the caller's own
