"""The store of builds on a real disk: found again, bounded, never believed blindly."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.core.limits import Usage
from retort.hostfs.snapshot import Unfit
from retort.node.build_store import (
    BLOCK_BYTES,
    BuildStore,
    Damaged,
    Manifest,
    PackedFile,
    Stamp,
)

CONTENT = b"what a compiler made" * 10


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture
def store(tmp_path: Path) -> BuildStore:
    return BuildStore(tmp_path / "builds", 1 << 20)


@pytest.fixture
def target() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


def put(store: BuildStore, number: int, content: bytes = CONTENT, *, finish: bool = True) -> None:
    with tempfile.TemporaryFile() as source:
        source.write(content)
        source.flush()
        writer = store.writer()
        digest = writer.keep(source.fileno())
    file = PackedFile(b"main", 0o755, Stamp(rank=0), *writer.places[digest], digest)
    written = writer.finish(
        Manifest(key(number), [("stdout", b"\xff")], 0, Usage(7), [], [], [file])
    )
    if finish:
        store.store(key(number), written)
        writer.discard()


def take(store: BuildStore, number: int, target: int) -> bytes:
    pack = store.open(key(number))
    assert pack is not None
    try:
        pack.copy(pack.manifest.files[0], target)
    finally:
        pack.close()
    return os.pread(target, 1 << 20, 0)


def test_what_was_stored_is_found_again(store: BuildStore, target: int) -> None:
    assert store.open(key(1)) is None
    put(store, 1)
    pack = store.open(key(1))
    assert pack is not None
    pack.close()
    assert pack.manifest.console == [("stdout", b"\xff")]
    assert pack.manifest.usage == Usage(7)
    assert take(store, 1, target) == CONTENT


def test_next_server_finds_what_was_stored_and_removes_what_was_not_finished(
    store: BuildStore, tmp_path: Path, target: int
) -> None:
    put(store, 1)
    put(store, 2, finish=False)  # died between the last byte and the rename
    folder = tmp_path / "builds"
    assert len(list(folder.glob("*.part"))) == 1
    following = BuildStore(folder, 1 << 20)
    assert list(folder.glob("*.part")) == []
    assert len(following) == 1
    assert following.used_bytes == BLOCK_BYTES
    assert take(following, 1, target) == CONTENT
    assert following.open(key(2)) is None


def test_least_recently_used_build_goes_first(tmp_path: Path) -> None:
    store = BuildStore(tmp_path, 3 * BLOCK_BYTES)
    for number in (1, 2, 3):
        put(store, number)
    pack = store.open(key(1))
    assert pack is not None
    pack.close()
    put(store, 4)
    kept = [number for number in (1, 2, 3, 4) if (tmp_path / f"{key(number).hex()}.pack").exists()]
    assert kept == [1, 3, 4]
    assert store.used_bytes == 3 * BLOCK_BYTES


def test_order_of_use_and_bounds_hold_over_a_restart(tmp_path: Path) -> None:
    store = BuildStore(tmp_path, 3 * BLOCK_BYTES)
    for number in (1, 2, 3):
        put(store, number)
        os.utime(tmp_path / f"{key(number).hex()}.pack", (number, number))
    pack = store.open(key(1))
    assert pack is not None
    pack.close()
    smaller = BuildStore(tmp_path, 2 * BLOCK_BYTES)
    assert smaller.open(key(2)) is None
    assert len(smaller) == 2


def test_number_of_builds_is_bounded(tmp_path: Path) -> None:
    store = BuildStore(tmp_path, 1 << 20, max_packs=2)
    for number in range(5):
        put(store, number)
    assert len(store) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_build_larger_than_the_store_is_not_kept(tmp_path: Path) -> None:
    store = BuildStore(tmp_path, 2 * BLOCK_BYTES)
    with pytest.raises(Unfit, match="too large"):
        put(store, 1, bytes(3 * BLOCK_BYTES))
    with pytest.raises(Unfit, match="too large"):
        put(store, 1, bytes(2 * BLOCK_BYTES))  # with its manifest it is
    assert len(store) == 0


def test_evicted_build_stays_readable_for_who_has_it_open(tmp_path: Path, target: int) -> None:
    store = BuildStore(tmp_path, 1 << 20, max_packs=1)
    put(store, 1)
    pack = store.open(key(1))
    assert pack is not None
    put(store, 2)
    assert store.open(key(1)) is None
    pack.copy(pack.manifest.files[0], target)
    pack.close()
    assert os.pread(target, 1000, 0) == CONTENT


def test_every_damaged_byte_is_noticed(store: BuildStore, tmp_path: Path, target: int) -> None:
    put(store, 1)
    [path] = (tmp_path / "builds").iterdir()
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        again = BuildStore(tmp_path / "builds", 1 << 20)
        os.ftruncate(target, 0)
        os.lseek(target, 0, os.SEEK_SET)
        if at < len(CONTENT):
            with pytest.raises(Damaged):
                take(again, 1, target)
        else:
            assert again.open(key(1)) is None
            assert not path.exists()


@pytest.mark.parametrize("left", [0, 10, len(CONTENT), -1])
def test_build_that_was_cut_short_is_forgotten(
    store: BuildStore, tmp_path: Path, left: int
) -> None:
    put(store, 1)
    [path] = (tmp_path / "builds").iterdir()
    path.write_bytes(path.read_bytes()[:left])
    assert store.open(key(1)) is None
    assert list((tmp_path / "builds").iterdir()) == []
    assert store.used_bytes == 0


def test_build_under_another_key_is_not_believed(store: BuildStore, tmp_path: Path) -> None:
    put(store, 1)
    folder = tmp_path / "builds"
    (folder / f"{key(1).hex()}.pack").rename(folder / f"{key(2).hex()}.pack")
    assert BuildStore(folder, 1 << 20).open(key(2)) is None


def test_link_in_the_place_of_a_build_is_not_followed(store: BuildStore, tmp_path: Path) -> None:
    put(store, 1)
    [path] = (tmp_path / "builds").iterdir()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert store.open(key(1)) is None
