"""A session's files over a folder of the host, by openat2 and by walking."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC240, PTH104, PTH115, PTH208 - a test may block, and works on raw names

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.hostfs.trees import (
    FailingTree,
    chunks_of,
    collect,
    names_of,
    store,
    tree_of,
)

from retort.core.files import FileUpload
from retort.errors import (
    FileNotFound,
    FileTooLarge,
    PathNotFound,
    PathRefused,
    RequestError,
    SandboxFault,
    ScratchFull,
)
from retort.hostfs.beneath import RENAME_EXCHANGE
from retort.hostfs.folders import FolderTree, renameat2
from retort.node.files import FileLimits, SessionFiles

LIMITS = FileLimits(
    max_upload_file_bytes=1 << 20,
    max_listed_entries=500,
    max_archive_entries=500,
    max_part_bytes=1 << 20,
)
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


@pytest.fixture
def files(tree: FolderTree) -> SessionFiles:
    return SessionFiles(tree, LIMITS)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    after = set(os.listdir("/proc/self/fd"))
    # The event loop's and the root's own come and go with their fixtures.
    assert len(after) <= len(before) + 8


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- upload ---------------------------------------------------------------------------------


async def test_upload_stores_files_and_makes_their_folders(files: SessionFiles, root: Path) -> None:
    await store(files, ("a/b/c.txt", b"one"), ("/home/work/top", b"two" * 1000), ("a/x", b""))
    assert tree_of(root) == {
        b"a": (stat.S_IFDIR | 0o755, b""),
        b"a/b": (stat.S_IFDIR | 0o755, b""),
        b"a/b/c.txt": (stat.S_IFREG | 0o644, b"one"),
        b"a/x": (stat.S_IFREG | 0o644, b""),
        b"top": (stat.S_IFREG | 0o644, b"two" * 1000),
    }


async def test_upload_replaces_content_and_keeps_the_mode(files: SessionFiles, root: Path) -> None:
    (root / "run.sh").write_text("old and longer")
    (root / "run.sh").chmod(0o4750)
    await store(files, ("run.sh", b"new"))
    assert tree_of(root) == {b"run.sh": (stat.S_IFREG | 0o750, b"new")}


async def test_the_last_of_a_path_given_twice_wins(files: SessionFiles, root: Path) -> None:
    await store(files, ("x", b"first"), ("a/../x", b"second"))
    assert tree_of(root) == {b"x": (stat.S_IFREG | 0o644, b"second")}


async def test_an_empty_upload_changes_nothing(files: SessionFiles, root: Path) -> None:
    await store(files)
    assert tree_of(root) == {}


async def test_a_file_of_exactly_the_cap_is_stored_and_one_byte_more_refused(
    files: SessionFiles, root: Path
) -> None:
    await store(files, ("x", bytes(1 << 20)))
    before = tree_of(root)
    with pytest.raises(FileTooLarge):
        await store(files, ("y", b"fine"), ("x", bytes((1 << 20) + 1)))
    assert tree_of(root) == before


ODD_NAMES = [
    "new\nline",
    "quote'\"`$(id)",
    "-rf",
    "--",
    "~",
    "\\..\\x",
    "%2e%2e",
    " ",
    "é" * 127,
    "\udcff" * 255,
    ".retort-",
    "\x01\x7f",
]


async def test_odd_names_are_stored_as_they_are(files: SessionFiles, root: Path) -> None:
    await store(files, *((name, b"x") for name in ODD_NAMES))
    assert sorted(tree_of(root)) == sorted(os.fsencode(name) for name in ODD_NAMES)
    listed = await files.listing(".")
    assert [entry.name for entry in listed.entries] == sorted(map(os.fsencode, ODD_NAMES))
    for name in ODD_NAMES:
        (download,) = await files.download([name])
        assert names_of(await collect(download)) == [name]


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "../x", "/etc/passwd", "/home/work", "a\0b", "x" * 256, "a/" * 300 + "b"],
)
async def test_a_refused_name_stores_nothing_of_the_request(
    files: SessionFiles, root: Path, path: str
) -> None:
    with pytest.raises(PathRefused):
        await store(files, ("fine", b"x"), (path, b"y"))
    assert tree_of(root) == {}
    assert sorted(os.listdir(root.parent)) == ["root", "secret"]


@pytest.mark.parametrize("order", [1, -1])
async def test_a_file_that_is_another_ones_folder_is_refused(
    files: SessionFiles, root: Path, order: int
) -> None:
    with pytest.raises(PathRefused):
        await store(files, *[("a/b", b"file"), ("a/b/c", b"below")][::order])
    assert tree_of(root) == {}


def planted(root: Path) -> dict[str, Callable[[], str]]:
    """Ways to make an upload leave the root or hit what is no file; each gives the path to use."""
    out = root.parent

    def link(name: str, target: str | Path, path: str) -> str:
        (root / name).symlink_to(target)
        return path

    def chain() -> str:
        link("y", out / "secret", "")
        return link("x", "y", "x")

    def loop() -> str:
        link("y", "x", "")
        return link("x", "y", "x")

    def fifo() -> str:
        os.mkfifo(root / "x")
        return "x"

    def folder() -> str:
        (root / "x").mkdir()
        return "x"

    def file_as_folder() -> str:
        (root / "x").write_text("a file")
        return "x/y"

    def sock() -> str:
        with socket.socket(socket.AF_UNIX) as bound:
            fd = os.open(root, os.O_PATH)
            bound.bind(f"/proc/self/fd/{fd}/x")
            os.close(fd)
        return "x"

    return {
        "link to a host file": lambda: link("x", out / "secret", "x"),
        "link to a relative host file": lambda: link("x", "../secret", "x"),
        "link to a new host file": lambda: link("x", out / "new", "x"),
        "parent link": lambda: link("d", out, "d/secret"),
        "parent link, new file": lambda: link("d", out, "d/new"),
        "parent link, new folder": lambda: link("d", out, "d/new/file"),
        "parent link inside": lambda: (root / "real").mkdir() or link("d", "real", "d/file"),
        "chain": chain,
        "loop": loop,
        "dangling": lambda: link("x", "nowhere", "x"),
        "/proc/self/root": lambda: link("d", f"/proc/self/root{out}", "d/secret"),
        "/proc/self/cwd": lambda: link("d", "/proc/self/cwd", "d/new"),
        "FIFO": fifo,
        "folder": folder,
        "file as folder": file_as_folder,
        "socket": sock,
    }


PLANTS = list(planted(Path()))


@pytest.mark.parametrize("plant", PLANTS)
async def test_upload_onto_a_planted_thing_is_refused_whole(
    files: SessionFiles, root: Path, plant: str
) -> None:
    path = planted(root)[plant]()
    before, outside = tree_of(root), sorted(os.listdir(root.parent))
    with pytest.raises(PathRefused):
        await store(files, ("new/fine", b"x"), (path, b"overwritten"), ("zz", b"x"))
    assert tree_of(root) == before
    assert sorted(os.listdir(root.parent)) == outside
    assert (root.parent / "secret").read_bytes() == SECRET


@pytest.mark.parametrize(
    "plant", [name for name in PLANTS if "host file" in name or "parent" in name]
)
def test_a_plain_write_would_follow_what_is_planted(root: Path, plant: str) -> None:
    path = planted(root)[plant]()
    target = root / path
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(b"overwritten")  # the control: this is what upload must not do
    assert os.path.realpath(target) != str(target)
    assert Path(os.path.realpath(target)).read_bytes() == b"overwritten"


async def attempt_failing_uploads(
    make: Callable[[FailingTree | FolderTree], SessionFiles],
    tree: FolderTree,
    root: Path,
    error: Exception,
    when: str,
) -> tuple[int, set[str]]:
    """Fail at every call in turn; give their number and what came of it."""
    (root / "old").write_text("old content")
    (root / "old").chmod(0o700)
    (root / "keep").mkdir()
    upload = [("old", b"new"), ("n/e/w", b"1"), ("n/x", b"2"), ("keep/y", b"3"), ("old", b"newer")]
    pristine = tree_of(root)
    seen = set()
    for call in range(1, 200):
        failing = FailingTree(tree, call, error, when)
        opened = open_files()
        try:
            await store(make(failing), *upload)
        except (RequestError, SandboxFault):
            seen.add("refused")
            assert tree_of(root) == pristine, f"call {call}"
        else:
            seen.add("stored")
            after = tree_of(root)
            assert {name: content for name, (_, content) in after.items() if content} == {
                b"old": b"newer", b"n/e/w": b"1", b"n/x": b"2", b"keep/y": b"3",
            }  # fmt: skip
            assert after[b"old"][0] == stat.S_IFREG | 0o700
            if failing.calls < call:
                return call - 1, seen
            subprocess.run(["rm", "-rf", str(root / "n"), str(root / "keep/y")], check=True)
            (root / "old").write_text("old content")
        assert open_files() == opened
    raise AssertionError("an upload never ends")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no space"),
        OSError(errno.EXDEV, "cross device"),
        OSError(errno.ENOENT, "gone"),
        OSError(errno.EIO, "broken"),
        SandboxFault("files", "init is gone"),
    ],
    ids=["ENOSPC", "EXDEV", "ENOENT", "EIO", "fault"],
)
async def test_a_failure_at_any_call_leaves_all_or_nothing(
    tree: FolderTree, root: Path, error: Exception
) -> None:
    calls, seen = await attempt_failing_uploads(
        lambda failing: SessionFiles(failing, LIMITS), tree, root, error, "before"
    )
    assert calls > 15
    assert seen == {"refused", "stored"}


async def test_a_lost_answer_leaves_all_or_nothing(tree: FolderTree, root: Path) -> None:
    """Link, rename and unlink were carried out, but the caller heard of a failure."""

    class Losing(FailingTree):
        async def open(self, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
            return await self._inner.open(path, flags, mode, resolve)

        async def mkdirs(self, path: bytes, mode: int, resolve: int = 0) -> int:
            return await self._inner.mkdirs(path, mode, resolve)

    (root / "old").write_text("old content")
    pristine = tree_of(root)
    for call in range(1, 9):
        files = SessionFiles(Losing(tree, call, SandboxFault("files", "lost"), "after"), LIMITS)
        try:
            await store(files, ("old", b"new"), ("a/x", b"1"))
        except SandboxFault:
            assert tree_of(root) == pristine
        else:
            assert sorted(tree_of(root)) == [b"a", b"a/x", b"old"]
            (root / "a/x").unlink()
            (root / "a").rmdir()
            (root / "old").write_text("old content")


class NamesOnly:
    """A tree on a file system that has no unnamed files."""

    def __init__(self, inner: FailingTree | FolderTree) -> None:
        self._inner = inner
        self.mkdirs, self.link = inner.mkdirs, inner.link
        self.rename, self.unlink = inner.rename, inner.unlink

    async def open(self, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE")
        return await self._inner.open(path, flags, mode, resolve)


async def test_a_failure_at_any_call_leaves_all_or_nothing_without_unnamed_files(
    tree: FolderTree, root: Path
) -> None:
    calls, seen = await attempt_failing_uploads(
        lambda failing: SessionFiles(NamesOnly(failing), LIMITS),
        tree,
        root,
        OSError(errno.ENOSPC, "no space"),
        "before",
    )
    assert calls > 15
    assert seen == {"refused", "stored"}


async def test_an_iterator_that_fails_stores_nothing(files: SessionFiles, root: Path) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"half"
        raise FileTooLarge

    async def uploads() -> AsyncIterator[FileUpload]:
        yield FileUpload("a/fine", chunks_of(b"x"))
        yield FileUpload("b", breaking())

    for tree in (files._tree, NamesOnly(files._tree)):
        with pytest.raises(FileTooLarge):
            await SessionFiles(tree, LIMITS).upload(uploads())
        assert tree_of(root) == {}


@pytest.mark.parametrize("has_unnamed", [True, False])
async def test_a_client_that_leaves_in_the_middle_leaves_nothing(
    tree: FolderTree, root: Path, has_unnamed: bool
) -> None:
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"half"
        reached.set()
        await asyncio.Event().wait()

    async def uploads() -> AsyncIterator[FileUpload]:
        yield FileUpload("a/fine", chunks_of(b"x"))
        yield FileUpload("b", endless())

    opened = open_files()
    files = SessionFiles(tree if has_unnamed else NamesOnly(tree), LIMITS)
    task = asyncio.create_task(files.upload(uploads()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tree_of(root) == {}
    assert open_files() == opened


async def test_cancelled_at_any_point_an_upload_is_whole_or_nothing(
    tree: FolderTree, root: Path
) -> None:
    class Slow(FailingTree):
        async def _do(self, work):  # type: ignore[no-untyped-def]
            await asyncio.sleep(0)
            return await super()._do(work)

    for turns in range(60):
        files = SessionFiles(Slow(tree, 0, OSError(), "before"), LIMITS)
        task = asyncio.create_task(store(files, ("a/x", b"1"), ("b", b"2")))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert sorted(tree_of(root)) in ([], [b"a", b"a/x", b"b"])
        subprocess.run(["rm", "-rf", str(root / "a"), str(root / "b")], check=True)


async def test_bytes_are_written_as_they_come(files: SessionFiles, root: Path) -> None:
    """No chunk is held back: each is in the file before the next is asked for."""
    sizes = []

    async def watched() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(1000)
            newest = max(int(fd) for fd in os.listdir("/proc/self/fd") if is_unnamed(fd))
            sizes.append(os.fstat(newest).st_size)

    def is_unnamed(fd: str) -> bool:
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/self/fd/{fd}")
            return link.startswith(f"{root}/") and "(deleted)" in link
        return False

    async def uploads() -> AsyncIterator[FileUpload]:
        yield FileUpload("x", watched())

    await files.upload(uploads())
    assert sizes == [1000, 2000, 3000, 4000]


async def test_a_full_disk_half_way_leaves_nothing(
    files: SessionFiles, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = os.write, 0

    def until_full(fd: int, data: bytes) -> int:
        nonlocal written
        if written >= 2500:
            raise OSError(errno.ENOSPC, "no space")
        written += (count := write(fd, bytes(data[:700])))  # short writes on the way
        return count

    monkeypatch.setattr(os, "write", until_full)
    with pytest.raises(ScratchFull):
        await store(files, ("a/x", bytes(1500)), ("y", bytes(5000)))
    monkeypatch.undo()
    assert tree_of(root) == {}


async def test_short_writes_lose_nothing(
    files: SessionFiles, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:7])))
    content = os.urandom(3000)
    await store(files, ("x", content))
    monkeypatch.undo()
    assert (root / "x").read_bytes() == content


async def test_upload_over_a_running_program_works(files: SessionFiles, root: Path) -> None:
    program = root / "program"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    running = subprocess.Popen([str(program), "60"])
    try:
        with pytest.raises(OSError, match=os.strerror(errno.ETXTBSY)):
            program.open("r+b")  # the control
        await store(files, ("program", b"#!/bin/sh\nexit 7\n"))
        assert running.poll() is None
        assert subprocess.run([str(program)], check=False).returncode == 7
    finally:
        running.kill()
        running.wait()


async def test_two_uploads_at_once_leave_one_of_them_whole(tree: FolderTree, root: Path) -> None:
    files = SessionFiles(tree, LIMITS)
    await asyncio.gather(*(store(files, ("d/x", b"%d" % n), ("d/y", b"%d" % n)) for n in range(10)))
    assert sorted(tree_of(root)) == [b"d", b"d/x", b"d/y"]


# --- listing --------------------------------------------------------------------------------


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


# --- download -------------------------------------------------------------------------------


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


# --- races ----------------------------------------------------------------------------------


def swapping(root: Path, name: str, target: Path, ended: threading.Event) -> threading.Thread:
    """Let a name be now a folder, now a link out; as fast as it goes."""
    (root / name).mkdir()
    (root / "other").symlink_to(target)
    fd = os.open(root, os.O_PATH)

    def swap() -> None:
        while not ended.is_set():
            renameat2(fd, os.fsencode(name), fd, b"other", RENAME_EXCHANGE)
        os.close(fd)

    return threading.Thread(target=swap)


async def race(files: SessionFiles, root: Path, tries: int) -> dict[str, int]:
    """Upload, list and download through a swapped name; count what came of it."""
    outcomes: dict[str, int] = {}
    ended = threading.Event()
    thread = swapping(root, "d", root.parent, ended)
    thread.start()
    try:
        for number in range(tries):
            what, call = _pick(files, number)
            try:
                result = await call
            except RequestError:
                result = None
            outcomes[what] = outcomes.get(what, 0) + 1
            if what == "listing" and result is not None:
                assert b"secret" not in {entry.name for entry in result.entries}
            if what == "download" and result is not None:
                assert SECRET not in await collect(result[0])
            assert what != "single" or result is None
    finally:
        ended.set()
        thread.join()
    assert sorted(os.listdir(root.parent)) == ["root", "secret"]
    return outcomes


def _pick(files: SessionFiles, number: int):  # type: ignore[no-untyped-def]
    match number % 4:
        case 0:
            return "upload", store(files, ("d/planted", b"x"))
        case 1:
            return "listing", files.listing("d")
        case 2:
            return "download", files.download(["d"])
        case _:
            return "single", files.download_single("d/secret")


@pytest.mark.slow
async def test_a_name_swapped_in_a_loop_never_leads_out(files: SessionFiles, root: Path) -> None:
    outcomes = await race(files, root, 2_000)
    assert sum(outcomes.values()) == 2_000


@pytest.mark.slow
async def test_a_target_swapped_in_a_loop_is_never_followed(
    files: SessionFiles, root: Path
) -> None:
    (root / "file").write_text("mine")
    (root / "link").symlink_to(root.parent / "secret")
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            for form in ("file", "link"):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(root / form, root / "x")
                    os.rename(root / "x", root / form)

    thread = threading.Thread(target=swap)
    thread.start()
    stored = 0
    try:
        for _ in range(1_000):
            with contextlib.suppress(PathRefused):
                await store(files, ("x", b"ours"))
                stored += 1
    finally:
        ended.set()
        thread.join()
    assert stored
    assert (root.parent / "secret").read_bytes() == SECRET
    leftovers = [name for name in os.listdir(root) if name.startswith(".retort-")]
    assert leftovers == []
