"""A download's archive comes from a stranger: nothing of it lands where it was not asked for."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from retort.client.errors import UnsafeArchive
from retort.client.extract import extract


def _archive(*members: tuple[str, bytes | None], **types: bytes) -> io.BytesIO:
    """Make a tar of files (bytes) and folders (None); `types` overrides a member's type."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type = types.get(name, tarfile.REGTYPE if content is not None else tarfile.DIRTYPE)
            info.mode = 0o6755
            info.linkname = "/etc/passwd"
            info.size = len(content or b"") if info.type == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content or b""))
    buffer.seek(0)
    return buffer


def test_a_folder_comes_with_all_its_files(tmp_path: Path) -> None:
    archive = _archive(("d/", None), ("d/a", b"1"), ("d/e/b", b"\x00\xff"))

    made, left_out = extract(archive, "d", tmp_path)

    assert made == [tmp_path / "d/a", tmp_path / "d/e/b"]
    assert left_out == []
    assert (tmp_path / "d/e/b").read_bytes() == b"\x00\xff"


def test_a_file_replaces_the_one_that_was_here(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    extract(_archive(("a", b"new")), "a", tmp_path)

    assert (tmp_path / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_programs_stay_executable_but_never_setuid(tmp_path: Path) -> None:
    extract(_archive(("a", b"")), "a", tmp_path)

    assert (tmp_path / "a").stat().st_mode & 0o7100 == 0o100


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/../../b", "b", "a/./b", "", "a//b", "..", "a/..", "sub/a"]
)
def test_a_member_that_was_not_asked_for_is_refused(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()

    with pytest.raises(UnsafeArchive):
        extract(_archive((name, b"x")), "a", inner)

    assert list(inner.iterdir()) == []
    assert list(tmp_path.iterdir()) == [inner]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"3"])
def test_links_and_devices_are_left_out_and_named(tmp_path: Path, kind: bytes) -> None:
    made, left_out = extract(_archive(("a/", None), ("a/x", b""), **{"a/x": kind}), "a", tmp_path)

    assert (made, left_out) == ([], ["a/x"])
    assert list((tmp_path / "a").iterdir()) == []


def test_a_link_that_lies_here_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "into").mkdir()
    (tmp_path / "into/a").symlink_to(tmp_path / "secret")

    extract(_archive(("a", b"theirs")), "a", tmp_path / "into")

    assert (tmp_path / "secret").read_text() == "mine"
    assert (tmp_path / "into/a").read_text() == "theirs"


def test_nothing_is_written_through_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "into").mkdir()
    (tmp_path / "into/d").symlink_to(tmp_path / "home")

    with pytest.raises(UnsafeArchive, match="not a folder here"):
        extract(_archive(("d/", None), ("d/x", b"theirs")), "d", tmp_path / "into")

    assert list((tmp_path / "home").iterdir()) == []


def test_a_folder_in_a_files_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()

    with pytest.raises(UnsafeArchive, match="a folder here"):
        extract(_archive(("a", b"x")), "a", tmp_path)

    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_bytes_that_are_no_archive_are_told(tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive, match="cannot be read"):
        extract(io.BytesIO(b"x" * 1000), "a", tmp_path)
