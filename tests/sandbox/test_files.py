"""A session's files through a real sandbox's init, against what its programs do meanwhile."""

# ruff: noqa: ASYNC240, PTH208 - a test may block

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.unit.hostfs.trees import Tree, chunks_of, collect, names_of, store, tree_of

from retort.core.files import FileUpload
from retort.errors import (
    FileNotFound,
    FileTooLarge,
    PathNotFound,
    PathRefused,
    RequestError,
    ScratchFull,
)
from retort.node.files import FileLimits, SessionFiles
from retort.sandbox.host_uids import HostUids
from retort.sandbox.init import InitClient
from retort.sandbox.launcher import Launcher
from retort.sandbox.mounts import mount_folders
from retort.sandbox.rootfs import Base, build
from retort.sandbox.step_values import ExecStep, StepExit
from retort.sandbox.view import Mount, SandboxSpec

from .conftest import BWRAP

INIT = Path(__file__).parents[2] / "src/retort/_bin/retort-init"
ENV = {"PATH": "/usr/bin:/bin", "HOME": "/home/work", "LANG": "C.UTF-8"}


@dataclass
class Session:
    """A sandbox with init, its files, and a way to run scripts in it."""

    client: InitClient
    files: SessionFiles
    host_uid: int | None
    steps: int = 0

    async def start(self, script: str) -> tuple[asyncio.Future[StepExit], int]:
        """Start a bash script at /home/work; give its end and its output's descriptor."""
        self.steps += 1
        ended: asyncio.Future[StepExit] = asyncio.get_running_loop().create_future()
        read, write = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY)
        step = ExecStep(
            number=self.steps,
            argv=["/bin/bash", "-c", script],
            env=ENV,
            cwd=b"/home/work",
            stdio=(null, write, write),
        )
        try:
            await self.client.exec(step, ended.set_result)
        finally:
            os.close(null)
            os.close(write)
        return ended, read

    async def sh(self, script: str) -> str:
        """Run a script to its end, which must be a good one; give its output."""
        ended, read = await self.start(script)
        with os.fdopen(read, "rb") as output:
            text = (await asyncio.to_thread(output.read)).decode()
        result = await ended
        await self.client.release(self.steps)
        assert result.exit_code == 0, text
        return text

    @contextlib.asynccontextmanager
    async def meanwhile(self, script: str) -> AsyncIterator[None]:
        """Run a script that prints a line when it is under way and ends only when killed."""
        ended, read = await self.start(script)
        with os.fdopen(read, "rb") as output:
            assert await asyncio.to_thread(output.readline) == b"ready\n"
            try:
                yield
                assert not ended.done(), "what should have interfered has ended"
            finally:
                await self.client.kill(self.steps, 9)
                await ended
                await self.client.release(self.steps)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that any uid can pass, of these tests alone: they compare it afterwards."""
    if BWRAP is None:
        pytest.skip("bubblewrap is not installed")
    folder = Path(tempfile.mkdtemp(prefix="retort-files-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def init_base(place: Path) -> Base:
    if not INIT.exists():
        pytest.skip("retort-init is not built (scripts/build-init)")
    return build(place / "state-files", INIT)


Open = Callable[..., Awaitable[Session]]


def host_of(place: Path) -> dict[str, object]:
    """Take down what an attack could change outside; names of open files, without numbers."""
    passwd = Path("/etc/passwd").stat()
    opened: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            opened[str(entry.readlink()).partition(":[")[0]] += 1
    return {
        "mounts": [
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(place) in line
        ],
        "passwd": (passwd.st_ino, passwd.st_size, passwd.st_mtime_ns),
        "processes": sorted(
            pid for task in Path("/proc/self/task").iterdir() for pid in _children(task)
        ),
        "descriptors": opened,
    }


def _children(task: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):  # the thread has ended: its children are another's
        return (task / "children").read_text().split()
    return []


@pytest.fixture
async def opened(init_base: Base, host_uids: HostUids | None, place: Path) -> AsyncIterator[Open]:
    assert BWRAP is not None
    before = host_of(place)
    launcher = Launcher(Path(BWRAP), init_base)
    made = []
    sessions = []

    async def one(limits: FileLimits | None = None, **fields: object) -> Session:
        uid = host_uids.acquire() if host_uids else None
        sizes = {"scratch_bytes": 64 << 20, "tmp_bytes": 2 << 20, "shm_bytes": 1 << 20}
        spec = SandboxSpec(**{"hostname": "box", "host_uid": uid, **sizes, **fields})  # type: ignore[arg-type]
        sandbox = await launcher.start(spec, Path(tempfile.mkdtemp(dir=place)))
        fd = os.open(sandbox.socket_path.parent, os.O_PATH)
        try:
            client = await InitClient.connect(
                f"/proc/self/fd/{fd}/{sandbox.socket_path.name}",
                timeout_s=10,
                on_lost=lambda reason: None,
            )
        finally:
            os.close(fd)
        made.append((sandbox, client, uid))
        await mount_folders(launcher, sandbox, spec.mounts)
        sessions.append(Session(client, SessionFiles(client, limits or FileLimits()), uid))
        return sessions[-1]

    yield one
    for session in sessions:
        assert await session.sh("echo fine") == "fine\n"  # whatever was done to it
    for sandbox, client, uid in made:
        client.close()
        await launcher.kill(sandbox)
        if host_uids and uid:
            host_uids.release(uid)
    launcher.close()
    assert host_of(place) == before


@pytest.fixture
async def session(opened: Open) -> Session:
    return await opened()


async def one_archive(session: Session, path: str) -> bytes:
    (download,) = await session.files.download([path])
    return await collect(download)


async def test_what_is_uploaded_belongs_to_the_session_and_runs(session: Session) -> None:
    await store(session.files, ("src/run.sh", b"#!/bin/sh\necho it ran\n"), ("empty", b""))
    told = await session.sh(
        "stat -c '%U %a' src src/run.sh empty; chmod 750 src/run.sh; src/run.sh"
    )
    assert told.split("\n")[:4] == ["work 755", "work 644", "work 644", "it ran"]
    await store(session.files, ("src/run.sh", b"#!/bin/sh\necho again\n"))
    assert await session.sh("stat -c %a src/run.sh; src/run.sh; ls -A . src") == (
        "750\nagain\n.:\nempty\nsrc\n\nsrc:\nrun.sh\n"
    )
    assert await collect(await session.files.download_single("src/run.sh")) == (
        b"#!/bin/sh\necho again\n"
    )
    listing = await session.files.listing("/home/work/src")
    assert [(e.name, e.mode & 0o7777, e.size) for e in listing.entries] == [(b"run.sh", 0o750, 21)]
    assert names_of(await one_archive(session, "src")) == ["src", "src/run.sh"]


PLANTS = {
    "link to a host file": ("ln -s /etc/passwd x", "x"),
    "link to a file of the root": ("ln -s ../../etc/passwd x", "x"),
    "parent link": ("ln -s /etc d", "d/passwd"),
    "parent link to /tmp": ("ln -s /tmp d; echo secret > /tmp/f", "d/f"),
    "chain": ("ln -s y x; ln -s z y; ln -s /etc/passwd z", "x"),
    "chain through a folder": ("mkdir a; ln -s ../.. a/up; ln -s a/up/../etc d", "d/passwd"),
    "/proc/self/root": ("ln -s /proc/self/root d", "d/etc/passwd"),
    "/proc/1/root": ("ln -s /proc/1/root d", "d/etc/passwd"),
    "/proc/self/fd": ("ln -s /proc/self/fd d", "d/0"),
    "/proc/self/cwd": ("ln -s /proc/self/cwd d; echo > f", "d/f"),
    "loop": ("ln -s y x; ln -s x y", "x"),
    "FIFO": ("mkfifo x", "x"),
    "socket": (
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"x\")'",
        "x",
    ),
    "device": ("ln -s /dev/zero x", "x"),
}


@pytest.mark.parametrize("plant", PLANTS)
async def test_what_a_program_planted_is_refused_and_not_waited_for(
    session: Session, plant: str
) -> None:
    script, path = PLANTS[plant]
    await session.sh(script)
    if plant not in ("loop", "FIFO", "socket", "/proc/self/fd", "/proc/1/root"):
        # The control: a plain open follows it (inside, where it does no harm).
        assert await session.sh(f"head -c 1 {path} | wc -c") == "1\n"
    before = await session.sh("find . | sort; cat /etc/passwd")
    async with asyncio.timeout(60):
        for call in (
            store(session.files, ("fine", b"x"), (path, b"planted")),
            session.files.download([path]),
            session.files.download_single(path),
            session.files.listing(path),
        ):
            with pytest.raises((PathRefused, PathNotFound)):
                await call
    assert await session.sh("find . | sort; cat /etc/passwd") == before


async def test_a_memfd_and_a_file_of_proc_are_no_way_in(session: Session) -> None:
    script = (
        "exec 9</etc/passwd; ln -s /proc/$$/fd/9 x; ln -s /proc/$$/environ y; echo ready; read -u 8"
    )
    async with session.meanwhile(f"mkfifo /tmp/f; exec 8<>/tmp/f; {script}"):
        for path in ("x", "y"):
            with pytest.raises(PathRefused):
                await session.files.download([path])
            with pytest.raises(PathRefused):
                await session.files.download_single(path)


async def test_a_dangling_link_is_missing_for_reading_and_refused_for_writing(
    session: Session,
) -> None:
    await session.sh("ln -s nowhere x")
    with pytest.raises(FileNotFound):
        await session.files.download(["x"])
    with pytest.raises(PathRefused):
        await store(session.files, ("x", b"y"))
    assert await session.sh("ls") == "x\n"


async def test_a_mounted_folder_is_read_but_not_uploaded_into(opened: Open, place: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=place))
    folder.chmod(0o777)
    (folder / "there").write_text("content")
    session = await opened(mounts=(Mount(folder, "/home/work/data", read_only=False),))
    await session.sh("echo a program may > data/own; ln -s data link")
    for path in ("data/there", "data/new", "data/deep/new", "data", "link/new"):
        with pytest.raises(PathRefused):
            await store(session.files, ("fine", b"x"), (path, b"y"))
    assert sorted(os.listdir(folder)) == ["own", "there"]
    assert await collect(await session.files.download_single("data/there")) == b"content"
    assert len((await session.files.listing("link")).entries) == 2


async def test_a_full_scratch_leaves_nothing_of_the_upload(opened: Open) -> None:
    session = await opened(FileLimits(max_upload_file_bytes=1 << 30), scratch_bytes=4 << 20)
    await session.sh("echo old > old")
    with pytest.raises(ScratchFull):
        await store(session.files, ("old", b"new"), ("d/big", bytes(8 << 20)))
    assert await session.sh("cat old; ls -A") == "old\nold\n"
    await store(session.files, ("d/fits", bytes(3 << 20)))


async def test_a_sparse_terabyte_is_told_whole_and_never_sent(session: Session) -> None:
    await session.sh("mkdir d; truncate -s 1T d/sparse")
    assert (await session.files.listing("d")).entries[0].size == 1 << 40
    for path in ("d", "d/sparse", "."):
        with pytest.raises(FileTooLarge):
            await session.files.download([path])


async def test_upload_over_a_running_program_works(session: Session) -> None:
    await session.sh("cp /bin/bash program")
    running = "exec ./program -c 'echo ready; while :; do read -t 1 x < /dev/zero; done'"
    async with session.meanwhile(running):
        await store(session.files, ("program", b"#!/bin/sh\necho new\n"))
    assert await session.sh("./program") == "new\n"


async def test_odd_names_made_inside_are_listed_and_sent(session: Session) -> None:
    await session.sh(
        "mkdir d; cd d; touch -- -rf $'new\\nline' $'\\xff\\xfe' '\"quoted\"' \"it's\" "
        "$(printf '\\351%.0s' {1..200})"
    )
    names = {b"-rf", b"new\nline", b"\xff\xfe", b'"quoted"', b"it's", b"\xe9" * 200}
    assert {entry.name for entry in (await session.files.listing("d")).entries} == names
    sent = {os.fsencode(name) for name in names_of(await one_archive(session, "d"))}
    assert sent == {b"d"} | {b"d/" + name for name in names}


DEEP = """python3 -c '
import os
for _ in range(2000):
    os.mkdir("d"); os.chdir("d")
open("x", "w")'"""


async def test_a_tree_of_two_thousand_levels_is_sent(session: Session) -> None:
    await session.sh(DEEP)
    members = names_of(await one_archive(session, "d"))
    assert members[-1] == "/".join(["d"] * 2000 + ["x"])


async def test_an_upload_is_not_seen_before_it_is_whole(session: Session) -> None:
    seen = []

    async def uploads() -> AsyncIterator[FileUpload]:
        yield FileUpload("a/first", chunks_of(b"1"))
        seen.append(await session.sh("find . -mindepth 1"))
        yield FileUpload("second", chunks_of(b"2"))
        seen.append(await session.sh("find . -mindepth 1"))

    await session.files.upload(uploads())
    assert seen == ["", ""]
    assert await session.sh("find . -type f | sort") == "./a/first\n./second\n"


# --- races ----------------------------------------------------------------------------------

SWAP = """python3 - <<'END'
import ctypes, os
os.makedirs('d/sub', exist_ok=True)
open('d/sub/own', 'w').write('own')
open('f', 'w').write('own')
os.symlink('/etc', 'other')
os.symlink('/etc/passwd', 'g')
rename = ctypes.CDLL(None).renameat2
print('ready', flush=True)
while True:
    rename(-100, b'd', -100, b'other', 2)
    rename(-100, b'f', -100, b'g', 2)
END"""


async def race(session: Session, tries: int) -> tuple[int, int]:
    """Use names that are swapped with links out; give how many calls worked, and were refused."""
    files = session.files
    done = refused = 0

    async def archive(path: str) -> bytes:
        (download,) = await files.download([path])
        return await collect(download)

    async def single(path: str) -> bytes:
        return await collect(await files.download_single(path))

    async def names(path: str) -> set[bytes]:
        return {entry.name for entry in (await files.listing(path)).entries}

    async with session.meanwhile(SWAP):
        for number in range(tries):
            call = (
                lambda: store(files, ("d/passwd", b"planted")),
                lambda: names("d"),
                lambda: archive("d"),
                lambda: single("d/passwd"),
                lambda: store(files, ("f", b"planted")),
                lambda: single("f"),
                lambda: archive("."),
            )[number % 7]
            try:
                result = await call()
            except RequestError:
                refused += 1
                continue
            done += 1
            if isinstance(result, bytes):
                assert b"root:" not in result
            elif result is not None:
                assert b"hostname" not in result
    return done, refused


async def check_after_race(session: Session, base: Base, before: Tree) -> None:
    assert tree_of(base.path) == before
    await session.sh("grep -q ^work: /etc/passwd")
    assert await session.sh("find . -name '.retort-*'") == ""


@pytest.mark.slow
async def test_ten_thousand_races_never_lead_out(session: Session, init_base: Base) -> None:
    before = tree_of(init_base.path)
    done, refused = await race(session, 10_000)
    assert done > 100
    assert refused > 100
    await check_after_race(session, init_base, before)


@pytest.mark.slow
@pytest.mark.skipif("RETORT_LONG" not in os.environ, reason="minutes; set RETORT_LONG=1")
async def test_a_hundred_thousand_races_never_lead_out(session: Session, init_base: Base) -> None:
    before = tree_of(init_base.path)
    await race(session, 100_000)
    await check_after_race(session, init_base, before)


CHURN = """python3 - <<'END'
import os
os.makedirs('d/sub', exist_ok=True)
print('ready', flush=True)
while True:
    for n in range(40):
        path = f'd/{n}' if n % 2 else f'd/sub/{n}'
        with open(path, 'wb') as file:
            file.write(bytes(n * 999))
            file.truncate(n * 500)
        if n % 5 == 0:
            os.unlink(path)
            os.mkfifo(path)
            os.unlink(path)
            os.symlink('/etc/passwd', path)
            os.unlink(path)
    os.rename('d/sub', 'moved')
    os.rename('moved', 'd/sub')
END"""


@pytest.mark.slow
async def test_an_archive_of_a_tree_in_uproar_is_valid(session: Session) -> None:
    async with session.meanwhile(CHURN):
        for _ in range(300):
            archive = await one_archive(session, "d")  # of the size it said
            assert set(names_of(archive)) <= {"d", "d/sub"} | {
                f"d/{n}" if n % 2 else f"d/sub/{n}" for n in range(40)
            }
            assert b"root:" not in archive


async def test_modes_that_shut_out_their_owner_are_told_or_refused(session: Session) -> None:
    await session.sh("mkdir shut; touch shut/x; chmod 0 shut; touch secret; chmod 0 secret")
    listing = await session.files.listing(".")
    assert [stat.S_IMODE(entry.mode) for entry in listing.entries] == [0, 0]
    with pytest.raises(PathRefused):
        await session.files.listing("shut")
    for path in ("shut", "secret"):
        with pytest.raises(PathRefused):
            await session.files.download([path])
