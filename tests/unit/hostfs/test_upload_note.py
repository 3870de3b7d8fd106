"""An upload whose server is killed at any instant is there whole or not at all afterwards."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.unit.hostfs.trees import Tree, store, tree_of

from retort.hostfs.folders import FolderTree
from retort.hostfs.upload_note import PREFIX, Notebook
from retort.node.files import FileLimits, SessionFiles

FILES = [("a", b"new a"), ("b", b"new b"), ("d/c", b"new c"), ("e/f/g", b"new g")]


class MortalTree:
    """A tree at whose change number `last` this process is killed, before or after it."""

    def __init__(self, tree: FolderTree, last: int, *, after: bool) -> None:
        self._tree = tree
        self._left = last
        self._after = after

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._tree, name)

        async def call(*args: Any, **more: Any) -> Any:
            self._left -= 1
            if not self._left and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return await real(*args, **more)
            finally:
                if not self._left:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call


def upload(home: Path, notes: Path, last: int, *, after: bool) -> bool:
    """Upload in a process that is killed at one call of the tree; False: it came to its end."""
    if not (pid := os.fork()):
        try:
            root = os.open(home, os.O_PATH | os.O_DIRECTORY)
            tree = MortalTree(FolderTree(root), last, after=after)
            asyncio.run(store(SessionFiles(tree, FileLimits(), notes), *FILES))
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def fill(home: Path) -> Tree:
    """Make what the upload meets: two of its files and one of its folders are there."""
    shutil.rmtree(home, ignore_errors=True)
    (home / "d").mkdir(parents=True)
    for name in ("a", "d/c", "other"):
        (home / name).write_bytes(f"old {name}".encode())
    return tree_of(home)


def recover(home: Path, notes: Path) -> None:
    root = os.open(home, os.O_PATH | os.O_DIRECTORY)
    asyncio.run(SessionFiles(FolderTree(root), FileLimits(), notes).take_back_uploads())
    os.close(root)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_all_files_or_none_are_there_wherever_the_server_was_killed(
    tmp_path: Path, after: bool
) -> None:
    home, notes = tmp_path / "home", tmp_path / "notes"
    notes.mkdir()
    fill(home)
    assert not upload(home, notes, -1, after=after)
    whole = tree_of(home)
    assert {name: whole[name.encode()][1] for name, _ in FILES} == dict(FILES)
    came_out, last = set(), 0
    while True:
        before = fill(home)
        last += 1
        if not upload(home, notes, last, after=after):
            break
        recover(home, notes)
        files = {name: found for name, found in tree_of(home).items() if found[1]}
        old = {name: found for name, found in before.items() if found[1]}
        new = {name: found for name, found in whole.items() if found[1]}
        assert files in (old, new), (last, tree_of(home))
        came_out.add(files == new)
        assert not list(notes.iterdir())
    assert last > 12
    assert came_out == {False, True}


def test_a_note_that_was_not_written_whole_is_dropped(tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = fill(home)
    (tmp_path / f"{PREFIX}1").write_bytes(b"\x92\x91")
    assert Notebook(tmp_path).left() == [(tmp_path / f"{PREFIX}1", None)]
    recover(home, tmp_path)
    assert tree_of(home) == before
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_what_a_program_put_in_its_place_since_is_left_alone(tmp_path: Path) -> None:
    home, notes = tmp_path / "home", tmp_path / "notes"
    notes.mkdir()
    fill(home)
    for last in range(1, 100):
        if not upload(home, notes, last, after=True):
            break
        if list(notes.iterdir()) and (home / "b").exists():
            with (home / "b").open("rb"):  # its inode's number is not used again, as on a tmpfs
                (home / "b").unlink()
                (home / "b").write_bytes(b"a program's own")
                recover(home, notes)
            assert (home / "b").read_bytes() == b"a program's own"
            return
        fill(home)
        for note in notes.iterdir():
            note.unlink()
    pytest.fail("no upload was killed between its first file and its last")
