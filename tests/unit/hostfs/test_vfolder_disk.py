"""Files of virtual folders by descriptor: what is done, what is refused, and what users planted."""

# ruff: noqa: PTH102 - raw names, and a race that wants the shortest way

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
import uuid
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from retort.errors import (
    FileTooLarge,
    OffsetMismatch,
    PathNotFound,
    PathRefused,
    VFolderFull,
    VFolderNotFound,
    VFolderOperation,
)
from retort.hostfs import zip as zip_module
from retort.hostfs.beneath import RENAME_EXCHANGE
from retort.hostfs.folders import renameat2
from retort.hostfs.vfolder_disk import DiskLimits, HostVFolders
from retort.hostfs.volume import Volume

ID, OTHER = uuid.UUID(int=7), uuid.UUID(int=8)
SECRET = b"a secret of the host"
UPLOAD = "ab" * 16


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[HostVFolders]:
    volume = Volume(tmp_path / "folders")
    volume.make(ID)
    volume.publish(ID)
    made = HostVFolders(volume, DiskLimits(listing_entries=50))
    yield made
    made.close()


@pytest.fixture
def data(disk: HostVFolders, tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    return tmp_path / "folders" / ID.hex / "data"


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def put(disk: HostVFolders, path: str, *parts: bytes, upload: str = UPLOAD) -> None:
    size = sum(map(len, parts))
    await disk.begin_upload(ID, upload, path, size)
    if size:
        assert await disk.append(ID, upload, path, size, 0, chunks(*parts)) == size


# --- what is asked for happens ------------------------------------------------------------------


async def test_a_listing_shows_everything_links_as_links(disk: HostVFolders, data: Path) -> None:
    (data / "file").write_bytes(b"123")
    (data / "sub").mkdir()
    (data / "link").symlink_to("/etc/passwd")

    found = await disk.listing(ID, ".")

    kinds = {os.fsdecode(e.name): (stat.S_IFMT(e.mode), e.size) for e in found.entries}
    assert kinds["file"] == (stat.S_IFREG, 3)
    assert kinds["sub"][0] == stat.S_IFDIR
    assert kinds["link"][0] == stat.S_IFLNK
    assert not found.truncated


async def test_a_listing_is_cut_at_its_limit(disk: HostVFolders, data: Path) -> None:
    for number in range(60):
        (data / str(number)).touch()

    found = await disk.listing(ID, ".")

    assert (len(found.entries), found.truncated) == (50, True)


async def test_mkdir_makes_parents_when_asked(disk: HostVFolders, data: Path) -> None:
    with pytest.raises(VFolderOperation):
        await disk.mkdir(ID, "a/b/c", parents=False, exist_ok=False)
    await disk.mkdir(ID, "a/b/c", parents=True, exist_ok=False)
    with pytest.raises(VFolderOperation, match="there already"):
        await disk.mkdir(ID, "a/b", parents=True, exist_ok=False)
    await disk.mkdir(ID, "a/b", parents=True, exist_ok=True)
    await disk.mkdir(ID, "a/d", parents=False, exist_ok=False)
    assert below(data) == ["a", "a/b", "a/b/c", "a/d"]


async def test_rename_stays_in_its_place(disk: HostVFolders, data: Path) -> None:
    (data / "sub").mkdir()
    (data / "sub" / "old").write_bytes(b"x")
    (data / "sub" / "taken").write_bytes(b"y")

    await disk.rename(ID, "sub/old", "new")

    assert below(data) == ["sub", "sub/new", "sub/taken"]
    for path, name, error in (
        ("sub/new", "taken", VFolderOperation),
        ("sub/new", "a/b", VFolderOperation),
        ("sub/new", "..", PathRefused),
        ("sub/none", "other", PathNotFound),
    ):
        with pytest.raises(error):
            await disk.rename(ID, path, name)
    assert (data / "sub" / "taken").read_bytes() == b"y"


async def test_move_goes_into_a_directory_or_to_a_new_name(disk: HostVFolders, data: Path) -> None:
    (data / "sub").mkdir()
    (data / "one").write_bytes(b"1")
    (data / "two").write_bytes(b"2")

    await disk.move(ID, "one", "sub")
    await disk.move(ID, "two", "sub/three")
    await disk.move(ID, "sub/one", ".")

    assert below(data) == ["one", "sub", "sub/three"]
    for source, target, error in (
        ("none", "sub", PathNotFound),
        ("one", "sub/three", VFolderOperation),
        ("sub", "sub/inner", VFolderOperation),
        ("one", "nowhere/one", PathNotFound),
        ("one", "../one", PathRefused),
    ):
        with pytest.raises(error):
            await disk.move(ID, source, target)
    assert (data / "one").read_bytes() == b"1"


async def test_delete_takes_nothing_if_one_name_is_not_fit(disk: HostVFolders, data: Path) -> None:
    (data / "sub").mkdir()
    (data / "sub" / "inner").touch()
    (data / "file").touch()

    with pytest.raises(VFolderOperation):
        await disk.delete(ID, ["file", "sub"], recursive=False)
    with pytest.raises(PathNotFound):
        await disk.delete(ID, ["file", "none"], recursive=True)
    with pytest.raises(PathRefused):
        await disk.delete(ID, ["file", "."], recursive=True)
    assert below(data) == ["file", "sub", "sub/inner"]

    await disk.delete(ID, ["sub/inner", "sub", "file"], recursive=True)

    assert below(data) == []
    assert below(data.parent / "uploads") == []


async def test_an_upload_appears_whole_and_makes_its_parents(
    disk: HostVFolders, data: Path
) -> None:
    await disk.begin_upload(ID, UPLOAD, "a/b/file", 6)
    assert await disk.append(ID, UPLOAD, "a/b/file", 6, 0, chunks(b"ab", b"c")) == 3
    assert below(data) == []
    assert await disk.upload_offset(ID, UPLOAD, "a/b/file", 6) == 3
    assert await disk.append(ID, UPLOAD, "a/b/file", 6, 3, chunks(b"def")) == 6

    assert (data / "a/b/file").read_bytes() == b"abcdef"
    assert await disk.upload_offset(ID, UPLOAD, "a/b/file", 6) == 6
    assert await disk.append(ID, UPLOAD, "a/b/file", 6, 6, chunks()) == 6
    assert (data / "a/b/file").stat().st_mode & 0o777 == 0o644


async def test_an_empty_file_is_there_at_once(disk: HostVFolders, data: Path) -> None:
    await disk.begin_upload(ID, UPLOAD, "empty", 0)
    assert (data / "empty").read_bytes() == b""


async def test_an_upload_replaces_a_file_at_its_end_only(disk: HostVFolders, data: Path) -> None:
    (data / "file").write_bytes(b"old")
    await disk.begin_upload(ID, UPLOAD, "file", 3)
    await disk.append(ID, UPLOAD, "file", 3, 0, chunks(b"ne"))
    assert (data / "file").read_bytes() == b"old"
    await disk.append(ID, UPLOAD, "file", 3, 2, chunks(b"w"))
    assert (data / "file").read_bytes() == b"new"


async def test_what_came_before_a_broken_connection_stays(disk: HostVFolders, data: Path) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"abc"
        raise ConnectionResetError

    await disk.begin_upload(ID, UPLOAD, "file", 5)
    with pytest.raises(ConnectionResetError):
        await disk.append(ID, UPLOAD, "file", 5, 0, breaking())
    assert await disk.upload_offset(ID, UPLOAD, "file", 5) == 3


async def test_a_wrong_offset_changes_nothing(disk: HostVFolders) -> None:
    await disk.begin_upload(ID, UPLOAD, "file", 5)
    await disk.append(ID, UPLOAD, "file", 5, 0, chunks(b"ab"))
    for offset in (0, 1, 3, 5):
        with pytest.raises(OffsetMismatch):
            await disk.append(ID, UPLOAD, "file", 5, offset, chunks(b"xyz"))
    assert await disk.upload_offset(ID, UPLOAD, "file", 5) == 2


async def test_more_than_the_size_is_cut_off_again(disk: HostVFolders, data: Path) -> None:
    await disk.begin_upload(ID, UPLOAD, "file", 5)
    await disk.append(ID, UPLOAD, "file", 5, 0, chunks(b"ab"))
    with pytest.raises(FileTooLarge):
        await disk.append(ID, UPLOAD, "file", 5, 2, chunks(b"c", b"def"))
    assert await disk.upload_offset(ID, UPLOAD, "file", 5) == 2
    assert below(data) == []


async def test_a_complete_upload_that_was_not_put_in_place_is_when_asked_for(
    disk: HostVFolders, data: Path
) -> None:
    """A server killed between the last byte and the rename leaves this."""
    await disk.begin_upload(ID, UPLOAD, "sub/file", 3)
    (data.parent / "uploads" / UPLOAD).write_bytes(b"abc")
    (data.parent / "uploads" / f"{UPLOAD}.done").touch()

    assert await disk.upload_offset(ID, UPLOAD, "sub/file", 3) == 3
    assert (data / "sub/file").read_bytes() == b"abc"


async def test_an_unknown_upload_is_not_found(disk: HostVFolders) -> None:
    with pytest.raises(PathNotFound):
        await disk.upload_offset(ID, UPLOAD, "file", 3)
    with pytest.raises(PathNotFound):
        await disk.append(ID, UPLOAD, "file", 3, 0, chunks(b"abc"))


async def test_a_directory_is_not_replaced_by_an_upload(disk: HostVFolders, data: Path) -> None:
    (data / "sub").mkdir()
    with pytest.raises(VFolderOperation):
        await disk.begin_upload(ID, UPLOAD, "sub", 3)
    await disk.begin_upload(ID, UPLOAD, "late", 3)
    (data / "late").mkdir()
    with pytest.raises(VFolderOperation):
        await disk.append(ID, UPLOAD, "late", 3, 0, chunks(b"abc"))
    with pytest.raises(VFolderOperation):
        await put(disk, "late/../sub/../late", b"abc", upload="cd" * 16)


async def test_uploads_that_are_over_and_leftovers_are_swept(
    disk: HostVFolders, data: Path
) -> None:
    uploads = data.parent / "uploads"
    await disk.begin_upload(ID, UPLOAD, "file", 3)
    await disk.begin_upload(ID, "cd" * 16, "file", 3)
    for name in (UPLOAD, "cd" * 16):
        (data.parent / f"{name}.done").touch()
    (uploads / "gone-x" / "deep").mkdir(parents=True)

    await disk.sweep(lambda upload_id: upload_id == UPLOAD)

    assert below(uploads) == ["cd" * 16]
    assert sorted(p.name for p in data.parent.iterdir()) == [f"{'cd' * 16}.done", "data", "uploads"]


async def test_a_zip_has_everything_but_links_and_its_promised_length(
    disk: HostVFolders, data: Path
) -> None:
    (data / "sub" / "empty").mkdir(parents=True)
    (data / "sub" / "a").write_bytes(b"x" * 700_000)
    (data / "sub" / "ünï").write_bytes(b"")
    (data / "sub" / "link").symlink_to("a")
    (data / "sub" / "back\\slash").write_bytes(b"b")
    (data / "sub" / "run").write_bytes(b"#!")
    (data / "sub" / "run").chmod(0o755)
    os.mkfifo(data / "sub" / "fifo")

    download = await disk.open_zip(ID, "sub", "unused")
    body = b"".join([chunk async for chunk in download.chunks()])
    await download.close()

    assert (download.name, len(body)) == ("sub.zip", download.size)
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [
            "sub/",
            "sub/a",
            "sub/back_slash",
            "sub/empty/",
            "sub/run",
            "sub/ünï",
        ]
        assert archive.read("sub/a") == b"x" * 700_000
        assert archive.getinfo("sub/run").external_attr >> 16 == 0o100755


async def test_a_zip_of_the_root_is_named_after_the_folder(disk: HostVFolders, data: Path) -> None:
    (data / "file").touch()
    download = await disk.open_zip(ID, ".", "mine")
    body = b"".join([chunk async for chunk in download.chunks()])
    await download.close()
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert sorted(archive.namelist()) == ["mine/", "mine/file"]


@pytest.mark.parametrize("limit", [0, 100, 990, 1000, 1050, 3000, 4000])
async def test_lengths_of_large_zips_are_right_too(
    disk: HostVFolders, data: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """As if sizes and offsets took eight bytes from so few on."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    monkeypatch.setattr(zip_module, "_LIMIT", limit)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", limit // 1000)
    monkeypatch.setattr(zip_module, "_MANY", limit // 1000)
    for number, size in enumerate((0, 1, 99, 950, 999, 1000, 1001, 1049)):
        (data / str(number)).write_bytes(b"x" * size)
    (data / "sub").mkdir()
    download = await disk.open_zip(ID, ".", "mine")
    length = 0
    async for chunk in download.chunks():
        length += len(chunk)
    await download.close()
    assert length == download.size


async def test_usage_counts_without_following(disk: HostVFolders, data: Path) -> None:
    (data / "sub").mkdir()
    (data / "sub" / "file").write_bytes(b"x" * 5000)
    (data / "sub" / "up").symlink_to("..")

    usage = await disk.usage(ID)

    assert (usage.entries, usage.is_whole) == (3, True)
    assert usage.bytes >= 5000


async def test_a_copy_has_files_folders_and_links(disk: HostVFolders, data: Path) -> None:
    (data / "sub").mkdir(mode=0o750)
    (data / "sub" / "file").write_bytes(b"content")
    (data / "sub" / "file").chmod(0o4755)
    (data / "sub" / "link").symlink_to("/etc/passwd")
    os.mkfifo(data / "fifo")
    with (data / "hole").open("wb") as file:
        file.truncate(1 << 40)
    await disk.make(OTHER)
    told: list[tuple[int, int]] = []

    await disk.copy(
        ID, OTHER, max_bytes=None, max_inodes=None, on_progress=lambda *at: told.append(at)
    )
    await disk.publish(OTHER)

    copy = data.parent.parent / OTHER.hex / "data"
    assert below(copy) == ["hole", "sub", "sub/file", "sub/link"]
    assert (copy / "sub/file").read_bytes() == b"content"
    assert stat.S_IMODE((copy / "sub/file").stat().st_mode) == 0o755
    assert stat.S_IMODE((copy / "sub").stat().st_mode) == 0o750
    assert (copy / "sub/link").readlink() == Path("/etc/passwd")
    assert (copy / "hole").stat().st_size == 1 << 40
    assert (copy / "hole").stat().st_blocks < 1000
    assert told


async def test_a_copy_that_does_not_fit_is_refused(disk: HostVFolders, data: Path) -> None:
    (data / "file").write_bytes(b"x" * 5000)
    await disk.make(OTHER)
    for limits in ({"max_bytes": 4999, "max_inodes": None}, {"max_bytes": None, "max_inodes": 0}):
        with pytest.raises(VFolderFull):
            await disk.copy(ID, OTHER, **limits, on_progress=lambda *_: None)
        await disk.discard(OTHER)
        assert await disk.empty_trash([OTHER]) == []
        await disk.make(OTHER)


# --- what users plant does not help them --------------------------------------------------------


@pytest.fixture(params=["file", "parent"])
def planted(request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> str:
    """A path that leads to the host's secret by a symbolic link; a plain open follows it."""
    if request.param == "file":
        (data / "way").symlink_to(tmp_path / "secret")
        path = "way"
    else:
        (data / "way").symlink_to(tmp_path)
        path = "way/secret"
    assert (data / path).read_bytes() == SECRET  # the control
    return path


async def test_links_out_are_neither_read_nor_changed(
    disk: HostVFolders, data: Path, tmp_path: Path, planted: str
) -> None:
    refusals = (VFolderOperation, PathNotFound)
    with pytest.raises(refusals):
        await disk.open_file(ID, planted)
    with pytest.raises(refusals):
        await disk.open_zip(ID, planted, "x")
    with pytest.raises(refusals):
        await disk.listing(ID, planted)
    if "/" in planted:
        for call in (
            lambda: disk.rename(ID, planted, "taken"),
            lambda: disk.move(ID, planted, "taken"),
            lambda: disk.delete(ID, [planted], recursive=True),
            lambda: disk.mkdir(ID, "way/new", parents=True, exist_ok=True),
            lambda: put(disk, planted, b"evil"),
        ):
            with pytest.raises(refusals):
                await call()
    assert (tmp_path / "secret").read_bytes() == SECRET
    assert not (tmp_path / "new").exists()


async def test_a_link_as_the_target_is_replaced_not_followed(
    disk: HostVFolders, data: Path, tmp_path: Path
) -> None:
    (data / "way").symlink_to(tmp_path / "secret")
    await put(disk, "way", b"mine")
    assert (tmp_path / "secret").read_bytes() == SECRET
    assert not (data / "way").is_symlink()
    assert (data / "way").read_bytes() == b"mine"


async def test_deleting_a_link_leaves_what_it_names(
    disk: HostVFolders, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").touch()
    (data / "link").symlink_to(tmp_path / "outside")
    (data / "sub").mkdir()
    (data / "sub" / "inner").symlink_to(tmp_path / "outside")

    await disk.delete(ID, ["link", "sub"], recursive=True)

    assert below(data) == []
    assert (tmp_path / "outside" / "kept").exists()


async def test_a_fifo_blocks_nobody(disk: HostVFolders, data: Path) -> None:
    os.mkfifo(data / "fifo")
    with pytest.raises(VFolderOperation):
        await disk.open_file(ID, "fifo")
    await put(disk, "fifo", b"file now")
    assert (data / "fifo").read_bytes() == b"file now"


@pytest.mark.parametrize("path", ["/etc/passwd", "/", "..", "a/../..", "", "a\0b", "x" * 256])
async def test_paths_that_are_none_are_refused(disk: HostVFolders, path: str) -> None:
    with pytest.raises(PathRefused):
        await disk.listing(ID, path)
    with pytest.raises(PathRefused):
        await put(disk, path, b"x")


async def test_a_folder_is_emptied_whatever_is_in_it(disk: HostVFolders, data: Path) -> None:
    deep = os.open(data, os.O_RDONLY)
    for _ in range(60):  # a path of 12 KiB, far beyond PATH_MAX
        os.mkdir("d" * 200, dir_fd=deep)
        below_it = os.open("d" * 200, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below_it
    os.close(deep)
    for name in (b"-rf", b"new\nline", b"\xff\xfe", b"x" * 255, b"gone-1"):
        os.mkdir(os.fsencode(data) + b"/" + name)
    (data / "shut" / "inner").mkdir(parents=True)
    (data / "shut" / "inner").chmod(0)
    (data / "shut").chmod(0)
    os.mkfifo(data / "fifo")

    await disk.discard(ID)
    with pytest.raises(VFolderNotFound):
        await disk.listing(ID, ".")
    assert await disk.empty_trash([ID]) == []

    assert await disk.leftovers() == ([], [])


@pytest.mark.slow
async def test_swapping_a_folder_for_a_link_never_leads_out(
    disk: HostVFolders, data: Path, tmp_path: Path
) -> None:
    """D3: a parent alternates between a folder and a link to the host while files go in."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (data / "way").mkdir()
    (data / "evil").symlink_to(outside)
    at = os.open(data, os.O_RDONLY)
    stop, done = threading.Event(), 0

    def swap() -> None:
        while not stop.is_set():
            renameat2(at, b"way", at, b"evil", RENAME_EXCHANGE)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for number in range(1000):
            upload = f"{number:032x}"
            for call in (
                lambda upload=upload: put(disk, "way/file", b"x", upload=upload),
                lambda: disk.mkdir(ID, "way/sub", parents=False, exist_ok=True),
                lambda: disk.delete(ID, ["way/kept"], recursive=True),
            ):
                with contextlib.suppress(VFolderOperation, PathNotFound):
                    await call()
                    done += 1
    finally:
        stop.set()
        swapper.join()
        os.close(at)
    assert below(outside) == []
    assert done  # the race was lost often enough for some to get through
