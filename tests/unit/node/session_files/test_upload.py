"""Uploads into a session: whole or not at all, and never anywhere else."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC240, PTH115, PTH208 - a test may block, and works on raw names

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Callable
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
from tests.unit.node.session_files.home import LIMITS, SECRET, open_files, planted

from retort.core.files import FileUpload
from retort.errors import (
    FileTooLarge,
    PathRefused,
    RequestError,
    SandboxFault,
    ScratchFull,
)
from retort.hostfs.folders import FolderTree
from retort.node.files import SessionFiles


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
