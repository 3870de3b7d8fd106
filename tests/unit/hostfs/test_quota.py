"""Project quotas: where the host kernel has them it counts and bounds each folder by itself."""

from __future__ import annotations

import errno
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.prjquota import MAKERS, kinds, mounted, why_not

from retort.core.vfolder import EnforcedBy, Quota
from retort.hostfs.quota import held_by, project_of, set_project
from retort.hostfs.vfolder_disk import HostVFolders
from retort.hostfs.volume import FIRST_PROJECT, Volume

ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=2)
MIB = 1 << 20
NOBODY = 65_534

FULL = {"ext4": "Disk quota exceeded", "xfs": "No space left on device"}


@pytest.fixture(params=kinds())
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(tmp_path: Path, kind: str) -> Iterator[Path]:
    with mounted(tmp_path, kind) as folder:
        yield folder


def project(folder: Path) -> int:
    fd = os.open(folder, os.O_RDONLY)
    try:
        return project_of(fd)
    finally:
        os.close(fd)


def as_nobody(folder: Path, script: str) -> str:
    """Do something in a folder as somebody whom quotas bound: ext4 lets root's processes pass."""
    done = subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c", script],
        capture_output=True, text=True, check=False, cwd=folder,
        env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
    )  # fmt: skip
    return f"{done.returncode} {done.stderr}"


def test_without_them_the_volume_says_why_and_counts_nothing(tmp_path: Path) -> None:
    if not all(map(why_not, MAKERS)) and "prjquota" in Path("/proc/mounts").read_text():
        pytest.skip("this file system may have them")
    volume = Volume(tmp_path / "folders")
    volume.make(ONE, Quota(MIB, 10))
    volume.publish(ONE)
    assert volume.uncounted
    assert volume.held(ONE) is None
    assert sorted(p.name for p in (tmp_path / "folders").iterdir()) == [
        ONE.hex, "making", "trash",
    ]  # fmt: skip
    volume.close()


def test_the_kernel_stops_whoever_writes_into_a_full_folder(place: Path, kind: str) -> None:
    volume = Volume(place / "folders", owner=(NOBODY, NOBODY))
    assert volume.uncounted == ""
    volume.make(ONE, Quota(MIB, 5))
    volume.publish(ONE)
    data = place / "folders" / ONE.hex / "data"

    # XFS makes no names either where no byte is left, so this one is there before.
    assert as_nobody(data, "touch more; head -c 1M /dev/zero >fits").startswith("0 ")
    told = as_nobody(data, "head -c 64K /dev/zero >>more")
    assert told.startswith("1 ")
    assert FULL[kind] in told
    assert (data / "fits").stat().st_size == MIB
    held = volume.held(ONE)
    assert held is not None
    assert (held.bytes, held.inodes) == (MIB, 2)

    (data / "fits").unlink()
    assert FULL[kind] in as_nobody(data, "touch a b c d && touch e")
    assert sorted(p.name for p in data.iterdir()) == ["a", "b", "c", "d", "more"]
    volume.close()


async def test_what_is_renamed_uploaded_and_nested_counts_once(place: Path) -> None:
    volume = Volume(place / "folders")
    volume.make(ONE, Quota(64 * MIB))
    volume.publish(ONE)
    disk = HostVFolders(volume)

    async def chunk() -> object:
        yield b"x" * MIB

    await disk.mkdir(ONE, "a/b", parents=True, exist_ok=False)
    await disk.begin_upload(ONE, "ab" * 16, "a/b/file", MIB)
    assert await disk.append(ONE, "ab" * 16, "a/b/file", MIB, 0, chunk()) == MIB  # type: ignore[arg-type]
    await disk.move(ONE, "a/b/file", ".")

    usage = await disk.usage(ONE)
    assert usage.enforced_by is EnforcedBy.PROJECT
    assert usage.entries == 3  # the mark of the finished upload is not among them
    assert MIB <= usage.bytes <= MIB + 3 * 4096
    await disk.delete(ONE, ["a"], recursive=True)
    await disk.settle(ONE)
    assert (await disk.usage(ONE)).entries == 1
    disk.close()


def test_ids_are_found_again_after_a_crash_and_freed_with_the_folder(place: Path) -> None:
    volume = Volume(place / "folders")
    for folder_id in (ONE, TWO):
        volume.make(folder_id, Quota(MIB, 10))
    volume.publish(ONE)
    ids = {project(p) for p in (place / "folders").glob("**/data")}
    assert len(ids) == 2
    assert all(FIRST_PROJECT <= found < FIRST_PROJECT + (1 << 20) for found in ids)
    volume.close()

    volume = Volume(place / "folders")  # as after a kill: nothing was written down elsewhere
    assert volume.clashes == []
    one = project(place / "folders" / ONE.hex / "data")
    assert volume.held(ONE) is not None
    volume.discard(ONE)
    volume.empty_trash(volume.trash())
    assert not volume._projects.is_of(one, ONE.hex)  # type: ignore[union-attr]
    assert held_by(volume._root, one).inodes == 0
    volume.close()


def test_an_id_is_not_given_away_while_a_deleted_file_is_held_open(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume(place / "folders")
    monkeypatch.setattr("retort.hostfs.quota.secrets.randbelow", lambda _: 5)
    volume.make(ONE)
    volume.publish(ONE)
    with (place / "folders" / ONE.hex / "data" / "open").open("wb") as held:
        held.write(b"x")
        volume.discard(ONE)
        volume.empty_trash(volume.trash())
        with pytest.raises(OSError, match="no free project id") as caught:
            volume.make(TWO)
        assert caught.value.errno == errno.EAGAIN
        volume.discard(TWO)
    volume.empty_trash(volume.trash())
    volume.make(TWO)
    volume.publish(TWO)
    assert volume.held(TWO) is not None
    volume.close()


def test_two_folders_with_one_id_are_told_of_and_the_second_is_counted(place: Path) -> None:
    volume = Volume(place / "folders")
    for folder_id in (ONE, TWO):
        volume.make(folder_id)
        volume.publish(folder_id)
    data = [place / "folders" / folder_id.hex / "data" for folder_id in (ONE, TWO)]
    fd = os.open(data[1], os.O_RDONLY)
    set_project(fd, project(data[0]))
    os.close(fd)
    volume.close()

    volume = Volume(place / "folders")
    assert len(volume.clashes) == 1
    counted = [volume.held(folder_id) is None for folder_id in (ONE, TWO)]
    assert sorted(counted) == [False, True]
    volume.close()


def test_limits_can_be_set_anew(place: Path) -> None:
    volume = Volume(place / "folders", owner=(NOBODY, NOBODY))
    volume.make(ONE, Quota(MIB))
    volume.publish(ONE)
    data = place / "folders" / ONE.hex / "data"
    assert as_nobody(data, "head -c 2M /dev/zero >file").startswith("1 ")
    volume.bound(ONE, Quota())
    assert as_nobody(data, "head -c 2M /dev/zero >file").startswith("0 ")
    volume.close()
