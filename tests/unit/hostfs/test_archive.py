"""Tar streams: what unpackers make of them, and what a changing tree does to them."""

# ruff: noqa: PTH208 - a test may block, and works on raw names

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.hostfs.trees import by_filter, members_of, names_of, tree_of, unpack

from retort.errors import FileTooLarge, PathRefused
from retort.hostfs.archive import Archive, ArchiveLimits, SingleFile, Stopped

LIMITS = ArchiveLimits(max_bytes=1 << 24, max_entries=1000, chunk_bytes=1 << 16)


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "d"
    folder.mkdir()
    yield folder
    # Python's own rmtree, which pytest calls later, gives up at a depth that some tests make.
    subprocess.run(["rm", "-rf", "--", folder], check=True)


@pytest.fixture
def top_in_memory() -> Iterator[Path]:
    """A folder where many files cost little, if there is such a place."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        (folder := Path(name, "d")).mkdir()
        yield folder


def planned(path: Path, limits: ArchiveLimits = LIMITS, *, links: bool = True) -> Archive:
    archive = Archive(os.open(path, os.O_RDONLY), os.fsencode(path.name), limits, links=links)
    try:
        archive.plan()
    except BaseException:
        archive.close()
        raise
    return archive


def rest_of(archive: Archive | SingleFile) -> bytes:
    content = b"".join(iter(archive.read, b""))
    archive.close()
    assert len(content) == archive.size
    return content


def pack(path: Path, limits: ArchiveLimits = LIMITS, *, links: bool = True) -> bytes:
    return rest_of(planned(path, limits, links=links))


ODD = [
    b"new\nline",
    b"\"quotes' and `ticks`",
    b"-rf",
    b"--checkpoint-action=exec=sh",
    b"\\back\\slash",
    b" ",
    b"=",
    b"12 path=x",
    b"\xff\xfe",
    b"\xe9" * 255,
    b"x" * 255,
    "é".encode() * 127,
    b"..x",
    b"\x01\x1b[31m",
]


def fill(top: Path) -> None:
    """Make one of everything that an archive keeps."""
    for number, name in enumerate(ODD):
        (top / os.fsdecode(name)).write_bytes(b"%d" % number * number * 300)
    deep = top / ("long" * 30) / ("er" * 60)
    deep.mkdir(parents=True)
    (deep / "leaf").write_bytes(b"leaf")
    (top / "empty folder").mkdir(mode=0o700)
    (top / "program").write_bytes(b"#!")
    (top / "program").chmod(0o755)
    (top / "link").symlink_to("program")
    (top / "to itself").symlink_to(".")
    (deep / "up").symlink_to("../../program")
    (deep / "long").symlink_to("x" * 150)
    (deep / "odd").symlink_to(os.fsdecode(b"\xff\n"))
    os.link(top / "program", top / "second name")


@pytest.mark.parametrize("by", ["python", "gnu"])
def test_an_archive_unpacks_to_the_tree_it_was_made_of(top: Path, tmp_path: Path, by: str) -> None:
    fill(top)
    unpacked = unpack(pack(top), by, tmp_path / "out")
    assert os.listdir(unpacked) == ["d"]
    # Python's filter keeps no mode of folders and links.
    assert _comparable(tree_of(unpacked / "d")) == _comparable(tree_of(top))


def _comparable(tree: dict[bytes, tuple[int, bytes]]) -> dict[bytes, tuple[int, bytes]]:
    return {
        name: (mode if stat.S_ISREG(mode) else stat.S_IFMT(mode), content)
        for name, (mode, content) in tree.items()
    }


def test_members_have_plain_attributes_and_no_host_names(top: Path) -> None:
    (top / "x").write_bytes(b"x")
    (top / "x").chmod(0o6755)
    os.utime(top / "x", (-1e9, -1e9))
    (top / "far").touch()
    os.utime(top / "far", (2**40, 2**40))
    archive = pack(top)
    assert len(archive) % tarfile.RECORDSIZE == 0
    for member in members_of(archive):
        assert (member.uid, member.gid, member.uname, member.gname) == (1000, 1000, "work", "work")
        assert isinstance(member.mtime, int)
        assert member.mode <= 0o777
    mtimes = {member.name: member.mtime for member in members_of(archive)}
    assert mtimes["d/x"] == 0
    assert 0 < mtimes["d/far"] < 2**34


def test_a_single_file_is_the_only_member(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"content")
    archive = pack(tmp_path / "b.txt")
    assert len(archive) == 10240
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert opened.getnames() == ["b.txt"]
        assert opened.extractfile("b.txt").read() == b"content"  # type: ignore[union-attr]


def test_what_is_neither_file_folder_nor_link_is_left_out(top: Path) -> None:
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{(fd := os.open(top, os.O_PATH))}/sock")
        os.close(fd)
    if os.geteuid() == 0:
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (top / "x").touch()
    assert names_of(pack(top)) == ["d", "d/x"]


@pytest.mark.parametrize(
    ("at", "target", "is_kept"),
    [
        ("l", "x", True),
        ("l", ".", True),
        ("l", "./sub//deeper", True),
        ("l", "nowhere", True),
        ("sub/l", "../x", True),
        ("sub/deeper/l", "../../x", True),
        ("sub/deeper/l", "../..", True),
        ("l", "/etc/passwd", False),
        ("l", "..", False),
        ("l", "../x", False),
        ("l", "../d/x", False),
        ("sub/l", "../../x", False),
        ("sub/l", "../../d/x", False),
        ("l", "sub/../x", False),  # where `sub` is a link, this climbs from its target
        ("l", "sub/deeper/../../../x", False),
    ],
)
def test_only_links_that_stay_inside_are_kept(
    top: Path, at: str, target: str, is_kept: bool
) -> None:
    (top / "sub" / "deeper").mkdir(parents=True)
    (top / "x").touch()
    (top / at).symlink_to(target)
    names = names_of(pack(top))
    assert (f"d/{at}" in names) is is_kept
    assert f"d/{at}" not in names_of(pack(top, links=False))
    if is_kept:
        assert names[-1] == f"d/{at}"  # after all that could be written through it


steps = st.sampled_from(["..", ".", "a", "b", "c", "l", "m", ""])
targets = st.lists(steps, min_size=1, max_size=6).map("/".join).filter(bool)
places = st.sampled_from(["l", "m", "a/l", "a/m", "a/b/l", "a/b/m", "c/l"])


def reached_by(path: Path) -> Path | None:
    """Follow a path; None: in circles. Unlike realpath, which follows m -> m//. to the root."""
    reached, ahead, links = Path("/"), list(path.parts[1:]), 0
    while ahead:
        part = ahead.pop(0)
        reached = reached.parent if part == ".." else reached / part
        if part not in ("", ".", "..") and reached.is_symlink():
            links += 1
            if links > 40:  # as the kernel
                return None
            target = os.fspath(reached.readlink())
            ahead = target.split("/") + ahead
            reached = Path("/") if target.startswith("/") else reached.parent
    return reached


@pytest.mark.slow
@given(st.dictionaries(places, targets, max_size=7))
def test_no_chain_of_kept_links_leads_out(tmp_path_factory, links: dict[str, str]) -> None:
    base = tmp_path_factory.mktemp("links")
    top = base / "d"
    (top / "a" / "b").mkdir(parents=True)
    (top / "c").mkdir()
    for place, target in links.items():
        (top / place).symlink_to(target)
    out = base / "out" / "inner"
    out.parent.mkdir()
    with tarfile.open(fileobj=io.BytesIO(pack(top))) as opened:
        opened.extractall(out, **by_filter("fully_trusted"))
    for folder, _, names in os.walk(out):
        for name in names:
            reached = reached_by(Path(folder, name))
            assert reached is None or reached.is_relative_to(out / "d"), reached


def big(top: Path) -> None:
    for name in ("a", "b", "c"):
        (top / name).write_bytes(name.encode() * 300_000)


CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": lambda top: (top / "b").write_bytes(b"b" * 400_000),
    "shrinks": lambda top: os.truncate(top / "b", 1000),
    "is emptied": lambda top: os.truncate(top / "b", 0),
    "vanishes": lambda top: (top / "b").unlink(),
    "is replaced": lambda top: ((top / "n").write_bytes(b"n"), (top / "n").rename(top / "b")),
    "becomes a folder": lambda top: ((top / "b").unlink(), (top / "b").mkdir()),
    "becomes a FIFO": lambda top: ((top / "b").unlink(), os.mkfifo(top / "b")),
    "becomes a link out": lambda top: (
        (top / "b").unlink(),
        (top.parent / "secret").write_bytes(b"SECRET" * 60_000),
        (top / "b").symlink_to("../secret"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("chunks_before", [0, 2])
def test_an_archive_stays_valid_when_a_file(top: Path, change: str, chunks_before: int) -> None:
    big(top)
    archive = planned(top)
    first = b"".join(archive.read() for _ in range(chunks_before))
    CHANGES[change](top)
    content = b"".join(iter(archive.read, b""))
    archive.close()
    whole = first + content
    assert len(whole) == archive.size
    members = {member.name: member.size for member in members_of(whole)}
    assert members == {"d": 0, "d/a": 300_000, "d/b": 300_000, "d/c": 300_000}
    with tarfile.open(fileobj=io.BytesIO(whole)) as opened:
        assert opened.extractfile("d/c").read() == b"c" * 300_000  # type: ignore[union-attr]
        changed = opened.extractfile("d/b").read()  # type: ignore[union-attr]
    assert set(changed) <= set(b"bn\0")


def test_a_file_that_shrinks_while_it_is_read_is_padded(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 200_000)
    for source in (planned(path), SingleFile(os.open(path, os.O_RDONLY), LIMITS)):
        path.write_bytes(b"x" * 200_000)
        source.plan() if isinstance(source, SingleFile) else None
        first = source.read()
        os.truncate(path, 70_000)
        content = first + b"".join(iter(source.read, b""))
        source.close()
        assert len(content) == source.size
        assert content.count(b"x") >= 60_000
        assert content.rstrip(b"\0")[-1:] == b"x"


def test_folders_swapped_for_links_after_planning_are_not_entered(
    top: Path, tmp_path: Path
) -> None:
    (top / "sub").mkdir()
    (top / "sub" / "x").write_bytes(b"mine" * 1000)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"SECRET" * 1000)
    for trick in (
        lambda: (top / "sub").symlink_to(outside),
        lambda: outside.rename(top / "sub"),  # a folder, but not the one that was planned
    ):
        archive = planned(top)
        (top / "sub").rename(tmp_path / "away")
        trick()
        assert (top / "sub" / "x").read_bytes().startswith(b"SECRET")  # the control
        content = rest_of(archive)
        assert b"SECRET" not in content
        assert names_of(content) == ["d", "d/sub", "d/sub/x"]
        if (top / "sub").is_symlink():
            (top / "sub").unlink()
            (tmp_path / "away").rename(top / "sub")


def test_apparent_sizes_are_capped_before_anything_is_read(top: Path) -> None:
    for number in range(4):
        with (top / f"{number}").open("wb") as sparse:
            sparse.truncate(1 << 22)
    assert len(pack(top)) > 1 << 24  # exactly the cap
    with (top / "4").open("wb") as sparse:
        sparse.truncate(1)
    with pytest.raises(FileTooLarge):
        planned(top)
    os.truncate(top / "4", 1 << 40)
    with pytest.raises(FileTooLarge):
        planned(top)


@pytest.mark.slow
def test_entries_are_capped(top: Path) -> None:
    for number in range(999):
        (top / f"{number}").touch()
    assert len(names_of(pack(top))) == 1000
    (top / "one more").touch()
    with pytest.raises(FileTooLarge):
        planned(top)


def deepen(top: Path, levels: int, *, comb: bool = False) -> None:
    """Make a chain of folders; as a comb, with a folder and a file beside each."""
    fd = os.open(top, os.O_PATH)
    for level in range(levels):
        if comb:
            os.mkdir("z", dir_fd=fd)
            leaf = os.open("z", os.O_PATH, dir_fd=fd)
            os.close(os.open("f", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=leaf))
            os.close(leaf)
        os.mkdir("a", dir_fd=fd)
        if level == levels - 1:
            break
        below = os.open("a", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_two_thousand_levels_need_few_descriptors(top: Path) -> None:
    deepen(top, 2000)
    before = len(os.listdir("/proc/self/fd"))
    archive = planned(top, ArchiveLimits(1 << 24, 5000, 1 << 16))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    most = 0
    content = b""
    while chunk := archive.read():
        content += chunk
        most = max(most, len(os.listdir("/proc/self/fd")))
    archive.close()
    assert most < before + 70
    assert len(os.listdir("/proc/self/fd")) == before
    assert names_of(content)[-1] == "/".join(["d"] + ["a"] * 2000)


def test_a_deep_comb_is_walked_back_without_a_descriptor_for_each_level(top: Path) -> None:
    deepen(top, 300, comb=True)
    members = names_of(pack(top))
    assert len(members) == 1 + 300 * 3
    assert members[-1] == "d/z/f"


def test_paths_that_no_unpacker_can_make_are_refused(top: Path) -> None:
    deepen(top, 2100)
    with pytest.raises(PathRefused):
        planned(top, ArchiveLimits(1 << 24, 5000))


@pytest.mark.slow
def test_a_hundred_thousand_entries_are_sent(top_in_memory: Path) -> None:
    top = top_in_memory
    for folder in range(100):
        (top / f"{folder}").mkdir()
        fd = os.open(top / f"{folder}", os.O_PATH)
        for number in range(1000):
            os.close(os.open(f"{number}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        os.close(fd)
    archive = planned(top, ArchiveLimits(1 << 24, 100_101))
    size = 0
    while chunk := archive.read():
        size += len(chunk)
    archive.close()
    assert (archive.entries, size) == (100_101, archive.size)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_refused_and_not_zeros(top: Path) -> None:
    (top / "x").write_bytes(b"x")
    (top / "x").chmod(0)
    with pytest.raises(PathRefused, match="permission"):
        planned(top)


def test_a_stopped_archive_ends_in_plan_and_in_read(top: Path) -> None:
    big(top)
    archive = planned(top)
    archive.read()
    archive.stop()
    with pytest.raises(Stopped):
        archive.read()
    archive.close()
    archive = Archive(os.open(top, os.O_RDONLY), b"d", LIMITS)
    archive.stop()
    with pytest.raises(Stopped):
        archive.plan()
    archive.close()
    archive.close()


names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@pytest.mark.slow
@given(st.dictionaries(names, st.binary(max_size=2000), max_size=6))
def test_any_names_and_contents_come_back(tmp_path_factory, files: dict[bytes, bytes]) -> None:
    top = tmp_path_factory.mktemp("any")
    for name, content in files.items():
        (top / os.fsdecode(name)).write_bytes(content)
    with tarfile.open(fileobj=io.BytesIO(pack(top))) as opened:
        found = {
            os.fsencode(member.name).split(b"/", 1)[1]: opened.extractfile(member).read()  # type: ignore[union-attr]
            for member in opened.getmembers()[1:]
        }
    assert found == files
