from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.node.places import Place


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
