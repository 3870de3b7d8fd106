"""Names that a program swaps while the server works on them."""

# ruff: noqa: PTH104, PTH208 - a test may block, and works on raw names

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest
from tests.unit.hostfs.trees import (
    collect,
    store,
)
from tests.unit.node.session_files.home import SECRET

from retort.errors import (
    PathRefused,
    RequestError,
)
from retort.hostfs.beneath import RENAME_EXCHANGE
from retort.hostfs.folders import renameat2
from retort.node.files import SessionFiles


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
