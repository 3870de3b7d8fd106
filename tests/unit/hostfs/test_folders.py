"""FolderTree, by openat2 and by walking: nothing leads out of its root."""

# ruff: noqa: ASYNC240, PTH118, PTH120, PTH208 - a test may block, and works on raw names

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.hostfs.beneath import RENAME_EXCHANGE, RENAME_NOREPLACE, RESOLVE_NO_XDEV
from retort.hostfs.folders import FolderTree

SECRET = b"a secret of the host"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture(params=["openat2", "walk"])
def tree(root: Path, request: pytest.FixtureRequest) -> Iterator[FolderTree]:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield FolderTree(fd, walk=request.param == "walk")
    os.close(fd)


async def read(tree: FolderTree, path: bytes) -> bytes:
    fd = await tree.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1000)
    finally:
        os.close(fd)


def plant(root: Path, kind: str) -> bytes:
    """Make a way out; give its path below the root."""
    outside = root.parent
    match kind:
        case "absolute link":
            (root / "x").symlink_to(outside / "secret")
        case "climbing link":
            (root / "x").symlink_to("../secret")
        case "link as parent":
            (root / "d").symlink_to(outside)
            return b"d/secret"
        case "climbing parent":
            (root / "d").symlink_to("..")
            return b"d/secret"
        case "chain":
            (root / "d").mkdir()
            (root / "d" / "up").symlink_to("../..")
            (root / "x").symlink_to("y")
            (root / "y").symlink_to("d/up/secret")
        case "by /proc/self/root":
            (root / "x").symlink_to("/proc/self/root" + str(outside / "secret"))
        case "by /proc/self/cwd":
            (root / "d").symlink_to("/proc/self/cwd")
            return b"d/" + os.path.relpath(outside / "secret").encode()
        case "dots":
            return b"../secret"
        case "dots after a folder":
            (root / "d").mkdir()
            return b"d/../../secret"
        case "absolute":
            return bytes(outside / "secret")
    return b"x"


WAYS_OUT = [
    "absolute link",
    "climbing link",
    "link as parent",
    "climbing parent",
    "chain",
    "by /proc/self/root",
    "by /proc/self/cwd",
    "dots",
    "dots after a folder",
    "absolute",
]


@pytest.mark.parametrize("way", WAYS_OUT)
async def test_a_way_out_is_refused_that_a_plain_open_takes(
    tree: FolderTree, root: Path, way: str
) -> None:
    path = plant(root, way)
    assert Path(os.fsdecode(os.path.join(bytes(root), path))).read_bytes() == SECRET  # the control
    for flags in (os.O_RDONLY, os.O_PATH, os.O_WRONLY, os.O_RDWR | os.O_CREAT):
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the errno says it
            os.close(await tree.open(path, flags, 0o600 if flags & os.O_CREAT else 0))
        assert refused.value.errno in (errno.EXDEV, errno.ELOOP)
    if path != b"x":
        for change in (
            tree.unlink(path),
            tree.rename(path, b"mine"),
            tree.mkdirs(os.path.dirname(path) + b"/made", 0o755),
        ):
            with pytest.raises(OSError):  # noqa: PT011 - EINVAL for dots, EXDEV, ELOOP
                await change
    assert (root.parent / "secret").read_bytes() == SECRET
    assert sorted(os.listdir(root.parent)) == ["root", "secret"]


async def test_links_that_stay_beneath_are_followed_for_reading(
    tree: FolderTree, root: Path
) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "file").write_bytes(b"here")
    (root / "a" / "b" / "up").symlink_to("../file")
    (root / "to").symlink_to("a/b/../b/up")
    assert await read(tree, b"to") == b"here"
    assert await read(tree, b"a/b/up") == b"here"
    fd = await tree.open(b"to", os.O_PATH | os.O_NOFOLLOW)
    assert stat.S_ISLNK(os.fstat(fd).st_mode)
    os.close(fd)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        await tree.open(b"to", os.O_WRONLY)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        await tree.open(b"to", os.O_RDONLY | os.O_NOFOLLOW)


async def test_a_loop_of_links_ends(tree: FolderTree, root: Path) -> None:
    (root / "x").symlink_to("y")
    (root / "y").symlink_to("x")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        await tree.open(b"x", os.O_RDONLY)


async def test_a_fifo_does_not_make_open_wait(tree: FolderTree, root: Path) -> None:
    os.mkfifo(root / "fifo")
    os.close(await tree.open(b"fifo", os.O_RDONLY))
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        await tree.open(b"fifo", os.O_WRONLY)


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="needs a mount below a folder")
async def test_another_mount_is_refused_on_demand() -> None:
    fd = os.open("/", os.O_PATH)
    try:
        for tree in (FolderTree(fd), FolderTree(fd, walk=True)):
            os.close(await tree.open(b"proc/version", os.O_RDONLY))
            with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
                await tree.open(b"proc/version", os.O_RDONLY, 0, RESOLVE_NO_XDEV)
    finally:
        os.close(fd)


async def test_mkdirs_counts_what_it_made(tree: FolderTree, root: Path) -> None:
    assert await tree.mkdirs(b"a/b/c", 0o755) == 3
    assert await tree.mkdirs(b"a/b/c", 0o755) == 0
    assert await tree.mkdirs(b"a/b/d/e", 0o755) == 2
    (root / "file").touch()
    with pytest.raises(NotADirectoryError):
        await tree.mkdirs(b"file/x", 0o755)


async def test_failed_mkdirs_leaves_nothing(tree: FolderTree, root: Path) -> None:
    (root / "there").mkdir()
    with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
        await tree.mkdirs(b"there/a/b/" + b"x" * 256, 0o755)
    assert list((root / "there").iterdir()) == []


async def test_an_unnamed_file_gets_a_free_name_only(tree: FolderTree, root: Path) -> None:
    fd = await tree.open(b".", os.O_WRONLY | os.O_TMPFILE, 0o600)
    os.write(fd, b"content")
    (root / "taken").touch()
    with pytest.raises(FileExistsError):
        await tree.link(fd, b"taken")
    await tree.link(fd, b"free")
    os.close(fd)
    assert (root / "free").read_bytes() == b"content"


async def test_rename_replaces_exchanges_or_refuses(tree: FolderTree, root: Path) -> None:
    for name in ("a", "b"):
        (root / name).write_text(name)
    with pytest.raises(FileExistsError):
        await tree.rename(b"a", b"b", RENAME_NOREPLACE)
    await tree.rename(b"a", b"b", RENAME_EXCHANGE)
    assert (root / "a").read_text() == "b"
    await tree.rename(b"a", b"b")
    assert [path.name for path in root.iterdir()] == ["b"]


@pytest.mark.parametrize("path", [b".", b"..", b"", b"a/.", b"a/..", b"/a", b"a//b"])
async def test_changes_want_plain_names(tree: FolderTree, root: Path, path: bytes) -> None:
    (root / "a").mkdir()
    for change in (tree.unlink(path), tree.unlink(path, directory=True), tree.mkdirs(path, 0o755)):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            await change


async def test_no_descriptor_is_left_open(tree: FolderTree, root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for way in WAYS_OUT[:1] + WAYS_OUT[2:3]:
        path = plant(root, way)
        for _ in range(3):
            with pytest.raises(OSError):  # noqa: PT011
                await tree.open(path, os.O_RDONLY)
    await tree.mkdirs(b"p/q", 0o755)
    await tree.unlink(b"p/q", directory=True)
    assert len(os.listdir("/proc/self/fd")) == before
