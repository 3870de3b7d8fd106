"""Trees as values: what is told, and what makes a tree unfit."""

from __future__ import annotations

import hashlib
import mmap
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retort.hostfs import snapshot
from retort.hostfs.snapshot import Entry, TreeLimits, Unfit, read_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def root(tree: Path) -> Iterator[int]:
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_files_folders_and_links_are_told_whole(tree: Path, root: int) -> None:
    (tree / "d").mkdir(mode=0o750)
    (tree / "d" / "f").write_bytes(b"content")
    (tree / "d" / "f").chmod(0o640)
    (tree / "l").symlink_to("/etc/passwd")
    os.utime(tree / "d" / "f", ns=(1, 1_234_567_890))
    found = read_tree(root, TreeLimits())
    assert set(found) == {b"", b"d", b"d/f", b"l"}
    digest = hashlib.sha256(b"content").digest()
    assert found[b"d/f"] == Entry(stat.S_IFREG, 0o640, 1_234_567_890, 7, digest)
    assert found[b"d"].mode == 0o750
    assert found[b"l"].content == b"/etc/passwd"


def test_file_changed_through_a_mapping_is_noticed_whatever_its_times_say(
    tree: Path, root: int
) -> None:
    (tree / "f").write_bytes(b"x" * 5000)
    before = read_tree(root, TreeLimits())
    times = (tree / "f").stat()
    with (tree / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[100] = ord("y")
    os.utime(tree / "f", ns=(times.st_atime_ns, times.st_mtime_ns))
    kept = []

    def keep(fd: int) -> bytes:
        kept.append(fd)
        return snapshot.digest_of(fd)

    after = read_tree(root, TreeLimits(), before, keep)
    assert len(kept) == 1
    assert after[b"f"] != before[b"f"]


def test_only_what_is_new_or_changed_is_kept(tree: Path, root: int) -> None:
    (tree / "same").write_text("same")
    (tree / "changed").write_text("old")
    before = read_tree(root, TreeLimits())
    (tree / "changed").write_text("new")
    (tree / "new").write_text("news")
    kept = []

    def keep(fd: int) -> bytes:
        kept.append(os.pread(fd, 100, 0))
        return snapshot.digest_of(fd)

    read_tree(root, TreeLimits(), before, keep)
    assert sorted(kept) == [b"new", b"news"]


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def deep(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY)
    for _ in range(snapshot.MAX_DEPTH + 2):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def mark(path: Path) -> None:
    path.touch()
    try:
        os.setxattr(path, "user.mark", b"x")
    except OSError:
        pytest.skip("no extended attributes here")


UNFIT: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: os.mkfifo(path), "a FIFO"),
    (bind, "a socket"),
    (lambda path: (path.touch(), os.link(path, f"{path}2")), "hard link"),
    (lambda path: (path.touch(), path.chmod(0o4755)), "set-id"),
    (deep, "nested"),
    (mark, "extended attribute"),
]


@pytest.mark.parametrize(("make", "reason"), UNFIT, ids=[reason for _, reason in UNFIT])
def test_what_cannot_be_told_exactly_is_unfit(
    tree: Path, root: int, make: Callable[[Path], object], reason: str
) -> None:
    make(tree / "x")
    with pytest.raises(Unfit, match=reason):
        read_tree(root, TreeLimits())


def test_tree_at_its_caps_is_read_and_one_above_is_unfit(tree: Path, root: int) -> None:
    (tree / "a").write_bytes(b"12345")
    (tree / "b").write_bytes(b"678")
    assert len(read_tree(root, TreeLimits(max_entries=3, max_bytes=8))) == 3
    with pytest.raises(Unfit, match="more than 2 files"):
        read_tree(root, TreeLimits(max_entries=2, max_bytes=8))
    with pytest.raises(Unfit, match="more than 7 bytes"):
        read_tree(root, TreeLimits(max_entries=3, max_bytes=7))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_unfit(tree: Path, root: int) -> None:
    (tree / "x").touch(mode=0)
    with pytest.raises(Unfit, match="cannot be read"):
        read_tree(root, TreeLimits())


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_file_of_another_file_system_is_unfit(tree: Path, root: int) -> None:
    (tree / "x").touch()
    before = os.fstat(root).st_dev
    reader = snapshot._Reader(TreeLimits(), {}, None)
    reader._device = before + 1
    with pytest.raises(Unfit, match="mounted"):
        reader._add(b"x", (tree / "x").stat(), b"")
