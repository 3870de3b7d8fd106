from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.errors import SandboxFault
from retort.node import places
from retort.node.places import Place, when_there_is_room


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield Place(scratch=fd)
    os.close(fd)


def test_a_name_that_nothing_has_is_lacking(place: Place) -> None:
    assert place.lacks(b".output")


@pytest.mark.parametrize("kind", ["file", "folder", "link to nowhere"])
def test_whatever_has_a_name_is_there_and_no_link_is_followed(
    place: Place, tmp_path: Path, kind: str
) -> None:
    thing = tmp_path / ".output"
    if kind == "file":
        thing.touch()
    elif kind == "folder":
        thing.mkdir()
    else:
        thing.symlink_to("/no/such/place")
    assert not place.lacks(b".output")


def test_where_nothing_can_be_seen_nothing_is_said_to_be_lacking(tmp_path: Path) -> None:
    assert not Place().lacks(b".output")
    fd = os.open(tmp_path / "file", os.O_RDONLY | os.O_CREAT)  # no folder at all
    try:
        assert not Place(scratch=fd).lacks(b".output")
    finally:
        os.close(fd)


# --- a session that is short of memory ------------------------------------------------------


class ShortGroup:
    """A group that is short of memory for a number of looks, or for ever."""

    def __init__(self, looks: float) -> None:
        self.looks = looks
        self.given_up = 0

    @property
    def is_short(self) -> bool:
        self.looks -= 1
        return self.looks >= 0

    def give_up_room(self) -> None:
        self.given_up += 1


async def test_init_may_be_asked_when_the_memory_of_the_killed_is_back() -> None:
    group = ShortGroup(3)
    await Place(group).room()  # type: ignore[arg-type]
    assert group.looks < 0


async def test_memory_that_does_not_come_back_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "ROOM_S", 0.02)
    group = ShortGroup(math.inf)
    await Place(group).room()  # type: ignore[arg-type]
    assert group.given_up == 1


# --- a host that is short of something just then --------------------------------------------


class Work:
    """Fails a few times, then is done."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.tries = 0

    async def __call__(self) -> None:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)


def short() -> SandboxFault:
    fault = SandboxFault("cgroup", "Too many open files")
    fault.__cause__ = OSError(errno.EMFILE, "Too many open files")
    return fault


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SHORT_PAUSE_S", 0.0)


async def test_a_shortage_that_passes_is_waited_for() -> None:
    work = Work(short(), OSError(errno.ENOMEM, "Cannot allocate memory"))
    await when_there_is_room(work)
    assert work.tries == 3


async def test_what_will_not_pass_is_told_at_once() -> None:
    work = Work(SandboxFault("inodes", "it has ended"))
    with pytest.raises(SandboxFault, match="it has ended"):
        await when_there_is_room(work)
    assert work.tries == 1


async def test_a_shortage_that_stays_is_told_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SHORT_S", 0.05)
    work = Work(*[short()] * 1_000_000)
    with pytest.raises(SandboxFault, match="Too many open files"):
        await when_there_is_room(work)
    assert work.tries > 1
