"""Folders of the host mounted into real sandboxes: who reads, writes and owns what."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.sandbox.conftest import BWRAP, Box
from tests.sandbox.init.box import BINARY

from retort.errors import SandboxFault, VFolderOperation
from retort.sandbox.host_uids import HostUids
from retort.sandbox.launcher import Launcher
from retort.sandbox.mounts import mount_folders, why_unmountable
from retort.sandbox.rootfs import Base
from retort.sandbox.view import Mount, SandboxSpec

OWNER = 1_899_000_000 if os.geteuid() == 0 else None

Mounted = Callable[..., Awaitable[Box]]


@pytest.fixture
async def launcher(base: Base) -> AsyncIterator[Launcher]:
    assert BWRAP is not None
    made = Launcher(Path(BWRAP), base, helper=BINARY)
    yield made
    made.close()


@pytest.fixture
def folder(place: Path) -> Path:
    """A folder that only the server can reach, and whose files belong to nobody's session."""
    above = Path(tempfile.mkdtemp(prefix="folders-", dir=place))
    made = above / "data"
    made.mkdir(mode=0o755)
    if OWNER is not None:
        os.chown(made, OWNER, OWNER)
    return made


@pytest.fixture
async def mounted(
    launcher: Launcher, host_uids: HostUids | None, place: Path
) -> AsyncIterator[Mounted]:
    """Start sandboxes with mounts, each of another uid where root starts them."""
    boxes: list[Box] = []

    async def one(*mounts: Mount, shared: bool = False) -> Box:
        uid = OWNER if shared else host_uids.acquire() if host_uids else None
        spec = SandboxSpec("box", 8 << 20, 2 << 20, 1 << 20, mounts=mounts, host_uid=uid)
        at = Path(tempfile.mkdtemp(prefix="mounted-", dir=place))
        boxes.append(Box(await launcher.start(spec, at)))
        await mount_folders(launcher, boxes[-1].sandbox, mounts, OWNER)
        return boxes[-1]

    yield one
    for box in boxes:
        await launcher.kill(box.sandbox)
        if host_uids and box.sandbox.host_uid:
            host_uids.release(box.sandbox.host_uid)


def writable(folder: Path, place: str = "/home/work/data", below: str = ".") -> Mount:
    return Mount(folder, place, below, read_only=False)


async def test_what_one_session_makes_another_reads_changes_and_removes(
    mounted: Mounted, folder: Path
) -> None:
    one, other = await mounted(writable(folder)), await mounted(writable(folder))
    done = await one.sh("umask 077; cd data; mkdir d; echo 1 >d/f; : >gone; stat -c %U-%a d d/f .")
    assert (done.out, done.err) == ("work-700\nwork-600\nwork-755\n", "")
    done = await other.sh("cd data; stat -c %U d/f; echo 2 >>d/f; cat d/f; rm gone; mv d/f g; ls")
    assert (done.out, done.err) == ("work\n1\n2\nd\ng\n", "")
    if os.geteuid() == 0:
        assert one.sandbox.host_uid != other.sandbox.host_uid


async def test_files_belong_to_the_folders_owner_on_the_disk(
    mounted: Mounted, folder: Path
) -> None:
    await (await mounted(writable(folder))).sh("mkdir data/d; echo x >data/d/f; ln -s f data/d/l")
    for name in ("d", "d/f", "d/l"):
        status = (folder / name).lstat()
        wanted = os.geteuid() if OWNER is None else OWNER
        assert (status.st_uid, status.st_gid) == (wanted, wanted if OWNER else os.getegid())


async def test_a_shared_uid_serves_where_ids_cannot_be_mapped(
    mounted: Mounted, folder: Path
) -> None:
    one = await mounted(writable(folder), shared=True)
    other = await mounted(writable(folder), shared=True)
    assert (await one.sh("umask 077; echo x >data/f")).code == 0
    assert (await other.sh("cat data/f; rm data/f; stat -c %U data")).out == "x\nwork\n"


async def test_a_folder_is_read_only_when_it_is_mounted_so(mounted: Mounted, folder: Path) -> None:
    (folder / "f").write_text("content\n")
    box = await mounted(Mount(folder, "/home/work/data"), writable(folder, "/home/work/rw"))
    done = await box.sh("cat data/f; echo x >data/f; chmod 777 data; rm data/f; echo y >rw/g")
    assert done.out == "content\n"
    assert done.err.count("Read-only file system") == 3
    assert (folder / "g").read_text() == "y\n"


async def test_places_outside_home_and_their_parents_are_made(
    mounted: Mounted, folder: Path
) -> None:
    (folder / "f").touch()
    box = await mounted(Mount(folder, "/data/sets/one"), writable(folder, "/home/work/a/b"))
    assert (await box.sh("ls /data/sets/one a/b")).out == "/data/sets/one:\nf\n\na/b:\nf\n"
    assert (await box.sh("touch a/own; touch /data/x")).err.count("Read-only") == 1


async def test_only_a_folder_in_the_folder_is_seen_when_that_is_mounted(
    mounted: Mounted, folder: Path
) -> None:
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/f").touch()
    (folder / "secret").touch()
    box = await mounted(Mount(folder, "/home/work/data", "a/b"))
    assert (await box.sh("ls -A data; ls data/..")).out == "f\ndata\n"


@pytest.mark.parametrize("below", ["link", "a/link", "link/etc", "../other", "a/../a", "f", "no"])
async def test_a_way_through_a_link_or_out_of_the_folder_is_refused(
    mounted: Mounted, folder: Path, below: str
) -> None:
    (folder / "a").mkdir()
    (folder / "f").touch()
    (folder.parent / "other").mkdir()
    (folder / "link").symlink_to("/")
    (folder / "a/link").symlink_to("../..")
    if below == "a/../a":  # stays inside: the kernel allows it, the API's rules do not
        await mounted(Mount(folder, "/home/work/data", below))
        return
    with pytest.raises(VFolderOperation, match="taken away"):
        await mounted(Mount(folder, "/home/work/data", below))


async def test_setuid_files_and_devices_in_a_folder_have_no_effect(
    mounted: Mounted, folder: Path
) -> None:
    (folder / "id").write_bytes(Path("/usr/bin/id").read_bytes())  # noqa: ASYNC240
    (folder / "id").chmod(0o6755)
    if os.geteuid() == 0:
        os.mknod(folder / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (folder / "null").chmod(0o666)
    box = await mounted(writable(folder))
    done = await box.sh("./data/id -u; mknod data/n c 1 3; cat </dev/null data/null; grep data "
                        "/proc/self/mounts")  # fmt: skip
    assert done.out.startswith("1000\n")
    assert "nosuid,nodev" in done.out
    if os.geteuid() == 0:
        assert "data/null: Permission denied" in done.err
    assert not (folder / "n").exists()


async def test_what_is_mounted_below_a_folder_is_no_part_of_it(
    mounted: Mounted, folder: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount something there")
    (folder / "m").mkdir()
    assert os.system(f"mount -t tmpfs none {folder}/m && touch {folder}/m/hidden") == 0  # noqa: ASYNC221
    try:
        assert (await (await mounted(writable(folder))).sh("ls -A data/m")).out == ""
        with pytest.raises(VFolderOperation, match="taken away"):
            await mounted(Mount(folder, "/home/work/data", "m"))
    finally:
        os.system(f"umount {folder}/m")  # noqa: ASYNC221


async def test_the_host_never_has_the_mount_and_nothing_is_left(
    mounted: Mounted, launcher: Launcher, folder: Path
) -> None:
    box = await mounted(writable(folder))
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()  # noqa: ASYNC240
    os.kill(box.sandbox.pid, 9)
    await launcher.kill(box.sandbox)
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()  # noqa: ASYNC240
    folder.rename(folder.parent / "moved")  # nothing holds it  # noqa: ASYNC240


async def test_a_missing_folder_is_the_callers_and_an_ended_sandbox_a_fault(
    mounted: Mounted, launcher: Launcher, folder: Path
) -> None:
    with pytest.raises(VFolderOperation, match="taken away"):
        await mounted(Mount(folder / "gone", "/home/work/data"))
    box = await mounted(writable(folder))
    await launcher.kill(box.sandbox)
    with pytest.raises(SandboxFault, match="mounts"):
        await mount_folders(launcher, box.sandbox, (writable(folder),), OWNER)


async def test_whether_a_host_can_is_found_by_trying(
    launcher: Launcher, place: Path, folder: Path, host_uids: HostUids | None
) -> None:
    uid = host_uids.acquire() if host_uids else None
    assert await why_unmountable(launcher, folder, place / "try", uid, OWNER) is None
    assert list(folder.iterdir()) == []  # noqa: ASYNC240
    if host_uids and uid:
        host_uids.release(uid)
