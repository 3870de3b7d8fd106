"""Where folders lie: nothing is half there, and only what was put away can be lost."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from retort.errors import VFolderNotFound
from retort.hostfs.volume import Volume

ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=2)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    made = Volume(tmp_path / "folders")
    yield made
    made.close()


def is_there(volume: Volume, folder_id: uuid.UUID) -> bool:
    try:
        os.close(volume.open_data(folder_id))
    except VFolderNotFound:
        return False
    return True


def test_a_folder_is_there_once_it_is_published(volume: Volume) -> None:
    volume.make(ONE)
    assert (is_there(volume, ONE), volume.made(), volume.published()) == (False, [ONE], [])

    volume.publish(ONE)
    volume.publish(ONE)

    assert (is_there(volume, ONE), volume.made(), volume.published()) == (True, [], [ONE])
    os.close(volume.open_uploads(ONE))


def test_a_discarded_folder_is_gone_until_it_is_restored(volume: Volume, tmp_path: Path) -> None:
    volume.make(ONE)
    volume.publish(ONE)
    (tmp_path / "folders" / ONE.hex / "data" / "kept").write_text("x")

    volume.discard(ONE)
    volume.discard(ONE)
    assert (is_there(volume, ONE), volume.trash(), volume.published()) == (False, [ONE], [])

    volume.restore(ONE)
    assert (is_there(volume, ONE), volume.trash()) == (True, [])
    assert (tmp_path / "folders" / ONE.hex / "data" / "kept").read_text() == "x"


def test_a_folder_that_was_not_published_can_be_discarded(volume: Volume) -> None:
    volume.make(ONE)
    volume.discard(ONE)
    assert (volume.made(), volume.trash()) == ([], [ONE])


def test_a_folder_that_is_published_while_it_is_discarded_is_gone(volume: Volume) -> None:
    with ThreadPoolExecutor(2) as threads:
        for number in range(300):
            folder_id = uuid.UUID(int=number)
            volume.make(folder_id)
            both = [threads.submit(step, folder_id) for step in (volume.discard, volume.publish)]
            for one in both:
                one.result()

    assert (volume.made(), volume.published(), len(volume.trash())) == ([], [], 300)


def test_another_volume_on_the_same_folder_finds_everything(tmp_path: Path, volume: Volume) -> None:
    for folder_id in (ONE, TWO):
        volume.make(folder_id)
    volume.publish(TWO)

    again = Volume(tmp_path / "folders")

    assert (again.made(), again.published()) == ([ONE], [TWO])
    again.close()


def test_nobody_else_may_look(volume: Volume, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        volume.make(ONE)
        volume.publish(ONE)
    finally:
        os.umask(before)
    folder = tmp_path / "folders"
    modes = [path.stat().st_mode & 0o777 for path in (folder, folder / ONE.hex)]
    assert modes == [0o700, 0o700]
    assert (folder / ONE.hex / "data").stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_as_root_the_data_belongs_to_the_folders_user(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "folders", owner=(1_899_999_999, 1_899_999_999))
    volume.make(ONE)
    volume.publish(ONE)
    volume.close()

    place = tmp_path / "folders" / ONE.hex
    assert (place / "data").stat().st_uid == 1_899_999_999
    assert (place.stat().st_uid, (place / "uploads").stat().st_uid) == (0, 0)


def test_what_a_cut_off_emptying_left_is_removed_with_the_rest(
    volume: Volume, tmp_path: Path
) -> None:
    trash = tmp_path / "folders" / "trash"
    (trash / "gone-0123" / "inner").mkdir(parents=True)  # as `remove_tree` names what it takes out
    (trash / "gone-0123" / "file").write_text("x")
    volume.make(ONE)
    volume.discard(ONE)
    volume.empty_trash(volume.trash())
    assert list(trash.iterdir()) == []
