"""Listings of a session's folders."""

# ruff: noqa: PTH208 - a test may block, and works on raw names

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from retort.errors import (
    PathNotFound,
    PathRefused,
)
from retort.node.files import SessionFiles


async def test_listing_tells_each_entry_and_follows_none(files: SessionFiles, root: Path) -> None:
    (root / "sub" / ".hidden").mkdir(parents=True)
    (root / "sub" / "b").write_bytes(b"12345")
    (root / "sub" / "a").symlink_to("/etc/passwd")
    os.mkfifo(root / "sub" / "fifo")
    for path in ("sub", "/home/work/sub/", "./x/../sub"):
        listing = await files.listing(path)
        assert listing.path == "/home/work/sub"
        assert [entry.name for entry in listing.entries] == [b".hidden", b"a", b"b", b"fifo"]
    _, link, plain, fifo = listing.entries
    assert stat.S_ISLNK(link.mode)
    assert stat.S_ISFIFO(fifo.mode)
    status = (root / "sub" / "b").stat()
    assert (plain.mode, plain.size) == (status.st_mode, 5)
    assert (plain.ctime, plain.mtime, plain.atime) == (
        status.st_ctime,
        status.st_mtime,
        status.st_atime,
    )


async def test_home_is_listed_by_any_of_its_names(files: SessionFiles, root: Path) -> None:
    (root / "x").touch()
    for path in (".", "/home/work", "/home/work/", "a/.."):
        listing = await files.listing(path)
        assert (listing.path, [entry.name for entry in listing.entries]) == ("/home/work", [b"x"])


async def test_listing_follows_links_that_stay_inside(files: SessionFiles, root: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / "x").touch()
    (root / "link").symlink_to("real")
    assert [entry.name for entry in (await files.listing("link")).entries] == [b"x"]


@pytest.mark.parametrize("target", ["/", "..", "/proc/self/root", "/etc"])
async def test_listing_a_link_out_is_refused(files: SessionFiles, root: Path, target: str) -> None:
    (root / "link").symlink_to(target)
    assert os.listdir(root / "link")  # the control
    for path in ("link", "link/etc"):
        with pytest.raises(PathRefused):
            await files.listing(path)


async def test_listing_says_what_is_wrong(files: SessionFiles, root: Path) -> None:
    (root / "file").touch()
    os.mkfifo(root / "fifo")
    (root / "loop").symlink_to("loop")
    for path in ("nothing", "nothing/below"):
        with pytest.raises(PathNotFound):
            await files.listing(path)
    for path in ("file", "fifo", "file/below"):
        with pytest.raises(PathRefused, match="not a directory"):
            await files.listing(path)
    for path in ("loop", "..", "/etc"):
        with pytest.raises(PathRefused):
            await files.listing(path)


async def test_a_large_folder_is_listed_in_part_and_says_so(
    files: SessionFiles, root: Path
) -> None:
    for number in range(500):
        (root / f"{number:04}").touch()
    assert not (await files.listing(".")).truncated
    (root / "one more").touch()
    listing = await files.listing(".")
    assert listing.truncated
    assert len(listing.entries) == 500
    assert list(listing.entries) == sorted(listing.entries, key=lambda entry: entry.name)


async def test_entries_that_vanish_meanwhile_are_left_out(files: SessionFiles, root: Path) -> None:
    for number in range(300):
        (root / f"{number:04}").touch()
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            for number in range(0, 300, 3):
                (root / f"{number:04}").unlink()
            for number in range(0, 300, 3):
                (root / f"{number:04}").touch()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(50):
            assert 200 <= len({e.name for e in (await files.listing(".")).entries}) <= 300
    finally:
        ended.set()
        thread.join()
