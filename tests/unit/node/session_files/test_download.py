"""Downloads out of a session."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.unit.hostfs.trees import (
    collect,
    names_of,
    store,
)
from tests.unit.node.session_files.home import LIMITS, open_files, planted

from retort.errors import (
    FileNotFound,
    FileTooLarge,
    PathRefused,
)
from retort.hostfs.folders import FolderTree
from retort.node.files import FileLimits, SessionFiles


async def test_downloads_come_in_the_order_asked_under_their_base_names(
    files: SessionFiles, root: Path
) -> None:
    await store(files, ("sub/b.txt", b"b"), ("d/x", b"x"), ("d/y/z", b"z"))
    downloads = await files.download(["sub/b.txt", "/home/work/d/", "."])
    assert [names_of(await collect(download)) for download in downloads] == [
        ["b.txt"],
        ["d", "d/x", "d/y", "d/y/z"],
        ["work", "work/d", "work/sub", "work/d/x", "work/d/y", "work/d/y/z", "work/sub/b.txt"],
    ]
    assert [download.name for download in downloads] == ["b.txt", "d", "work"]


async def test_a_single_file_comes_as_it_is(files: SessionFiles, root: Path) -> None:
    content = os.urandom(700_000)
    await store(files, ("x", content), ("empty", b""))
    assert await collect(await files.download_single("x")) == content
    assert await collect(await files.download_single("empty")) == b""
    with pytest.raises(PathRefused, match="directory"):
        await files.download_single(".")


@pytest.mark.parametrize("path", ["nothing", "nothing/x", "file/x"])
async def test_a_missing_file_fails_the_whole_download(
    files: SessionFiles, root: Path, path: str
) -> None:
    await store(files, ("file", b"x"))
    opened = open_files()
    with pytest.raises(FileNotFound):
        await files.download(["file", path])
    with pytest.raises(FileNotFound):
        await files.download_single(path)
    assert open_files() == opened


@pytest.mark.parametrize("plant", ["FIFO", "socket", "loop", "link to a host file",
                                   "link to a relative host file", "parent link", "chain",
                                   "/proc/self/root"])  # fmt: skip
async def test_what_is_no_file_of_the_session_is_refused_and_not_waited_for(
    files: SessionFiles, root: Path, plant: str
) -> None:
    path = planted(root)[plant]()
    async with asyncio.timeout(60):
        for call in (files.download([path]), files.download_single(path)):
            with pytest.raises(PathRefused):
                await call


@pytest.mark.parametrize("path", ["..", "/etc/passwd", "../secret", ""])
async def test_a_path_outside_is_refused(files: SessionFiles, root: Path, path: str) -> None:
    for call in (files.download([path]), files.download_single(path), files.listing(path)):
        with pytest.raises(PathRefused):
            await call


async def test_a_sparse_terabyte_is_listed_whole_and_refused_at_once(
    files: SessionFiles, root: Path
) -> None:
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    ((entry,),) = ((await files.listing(".")).entries,)
    assert entry.size == 1 << 40
    for call in (
        files.download(["sparse"]),
        files.download(["."]),
        files.download_single("sparse"),
    ):
        with pytest.raises(FileTooLarge):
            await call


async def test_many_sparse_files_are_counted_together(files: SessionFiles, root: Path) -> None:
    for number in range(5):
        with (root / f"{number}").open("wb") as sparse:
            sparse.truncate(1 << 18)
    with pytest.raises(FileTooLarge):
        await files.download(["."])
    (root / "4").unlink()
    (download,) = await files.download(["."])
    await download.close()


async def test_closing_early_releases_every_descriptor(files: SessionFiles, root: Path) -> None:
    await store(files, *((f"d/{number}", bytes(100_000)) for number in range(9)))
    opened = open_files()
    for chunks_read in range(4):
        (download,) = await files.download(["d"])
        stream = download.chunks()
        for _ in range(chunks_read):
            await anext(stream)
        await download.close()
        await download.close()
        assert open_files() == opened


async def test_cancelled_while_it_reads_a_download_can_still_be_closed(
    tree: FolderTree, root: Path
) -> None:
    files = SessionFiles(tree, FileLimits(inline_entries=0))
    await store(files, ("x", bytes(1 << 20)))
    opened = open_files()
    for turns in range(12):
        (download,) = await files.download(["x"])
        task = asyncio.create_task(anext(download.chunks()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await download.close()
        assert open_files() == opened


async def test_planning_that_is_cancelled_leaves_no_descriptor(
    tree: FolderTree, root: Path
) -> None:
    for number in range(400):
        (root / f"{number}").mkdir()
    opened = open_files()
    for turns in range(8):
        task = asyncio.create_task(SessionFiles(tree, LIMITS).download(["."]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert open_files() == opened
