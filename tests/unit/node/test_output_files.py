from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from retort.errors import SandboxFault
from retort.node import output_files
from retort.node.output_files import changed_since


class Home:
    """As much of `InitClient` as opens a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failure: Exception | None = None

    async def open(self, path: bytes, flags: int) -> int:
        if self.failure is not None:
            raise self.failure
        return os.open(self.folder / os.fsdecode(path), flags)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / ".output").mkdir()
    return Home(tmp_path)


async def names(home: Home, since: float = 0.0) -> list[str]:
    before = len(list(Path("/proc/self/fd").iterdir()))  # noqa: ASYNC240 - procfs does not block
    found = await changed_since(home, since)  # type: ignore[arg-type]
    assert len(list(Path("/proc/self/fd").iterdir())) == before  # noqa: ASYNC240
    return [file.name for file in found]


def make(home: Home, *files: str) -> Path:
    for file in files:
        path = home.folder / ".output" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return home.folder / ".output"


async def test_regular_files_are_found_in_every_folder_in_order(home: Home) -> None:
    make(home, "b", "a/z", "a/b/c", "ü #%")
    assert await names(home) == ["a/b/c", "a/z", "b", "ü #%"]


async def test_what_is_older_is_left_out(home: Home) -> None:
    make(home, "a")
    assert await names(home, time.time() + 10) == []
    assert await names(home, time.time() - 10) == ["a"]


async def test_links_and_special_files_are_left_out(home: Home) -> None:
    folder = make(home, "real")
    (folder / "link").symlink_to("real")
    (folder / "up").symlink_to("..")
    os.mkfifo(folder / "fifo")
    assert await names(home) == ["real"]


async def test_names_that_are_not_utf8_are_left_out(home: Home) -> None:
    folder = make(home, "a")
    os.mkfifo(bytes(folder) + b"/\xfe")
    os.close(os.open(bytes(folder) + b"/\xff", os.O_CREAT))
    assert await names(home) == ["a"]


async def test_what_one_walk_looks_at_has_an_end(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_files, "MAX_LOOKED_AT", 5)
    make(home, *(f"d{n}/f" for n in range(9)))
    assert len(await names(home)) <= 5


async def test_so_many_files_and_no_more_are_told(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_files, "MAX_FILES", 3)
    make(home, "a", "b/c", "d", "e")
    assert await names(home) == ["a", "b/c", "d"]


async def test_so_deep_and_no_deeper(home: Home) -> None:
    deep = "/".join("d" * 16)
    make(home, f"{deep}/in", f"{deep}/d/out")
    assert await names(home) == [f"{deep}/in"]


@pytest.mark.parametrize(
    "failure", [FileNotFoundError(), NotADirectoryError(), SandboxFault("init", "gone")]
)
async def test_without_a_folder_there_are_none(home: Home, failure: Exception) -> None:
    home.failure = failure
    assert await names(home) == []
