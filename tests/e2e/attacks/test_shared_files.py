"""Signals between sessions through files that all of them can only read (attacks.md, E6)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import running_server
from tests.e2e.running import wait_for_file
from tests.e2e.test_sessions import calls_to, drawn

from .box import Box
from .conftest import NewBox

pytestmark = pytest.mark.slow

#: Each way to leave something at a shared file: locks of three kinds, a lease, two watches.
WAYS = """
import fcntl, struct
def shared(number):
    return os.open("/usr/bin/" + ("awk", "env", "id", "cat")[number], os.O_RDONLY)
def region(kind):
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 1, 0)
def tell(name, act):
    try:
        print(name + ":", act(), flush=True)
    except OSError as error:
        print(name + ":", errno.errorcode[error.errno], flush=True)
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
"""
LEAVE = (
    WAYS
    + """
files = [shared(number) for number in range(4)]
watching = []
def watch():
    watching.append(checked(libc.inotify_init1(os.O_NONBLOCK)))
    checked(libc.inotify_add_watch(watching[0], b"/usr/bin/cat", 0x20))
    return "left"
def left(result):
    return "left"
signals = []
signal.signal(signal.SIGIO, lambda number, frame: signals.append(number))
tell("flock", lambda: left(fcntl.flock(files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)))
tell("posix", lambda: left(fcntl.fcntl(files[1], fcntl.F_SETLK, region(fcntl.F_RDLCK))))
tell("ofd", lambda: left(fcntl.fcntl(files[2], 37, region(fcntl.F_RDLCK))))
tell("inotify", watch)
tell("dnotify", lambda: left(fcntl.fcntl(os.open("/usr/bin", 0), fcntl.F_NOTIFY, 1)))
open("ready", "w").close()
while not os.path.exists("go"):
    time.sleep(0.01)
if watching:
    print("inotify:", "seen" if os.read(watching[0], 4096) else "")
if signals:
    print("dnotify: seen")
"""
)
LOOK = (
    WAYS
    + """
def kind_at(number, command):
    answer = fcntl.fcntl(shared(number), command, region(fcntl.F_WRLCK))
    return "free" if struct.unpack_from("h", answer)[0] == fcntl.F_UNLCK else "taken"
tell("flock", lambda: fcntl.flock(shared(0), fcntl.LOCK_EX | fcntl.LOCK_NB))
tell("posix", lambda: kind_at(1, fcntl.F_GETLK))
tell("ofd", lambda: kind_at(2, 36))
os.read(shared(3), 1)
"""
)


def told(output: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in output.splitlines())


async def meet(one: Box, two: Box) -> tuple[dict[str, str], dict[str, str]]:
    """Leave something in one session and look for it in another; give what each tells."""
    leaving = asyncio.ensure_future(one.python(LEAVE))
    await wait_for_file(one.api, one.name, "ready")
    looked = await two.python(LOOK)
    await one.put(go="")
    ended = await leaving
    assert (looked.told, ended.told) == (("exited", 0, None),) * 2, (looked, ended)
    return told(ended.out), told(looked.out)


async def test_locks_and_watches_of_shared_files_are_seen_where_they_are_allowed(
    new_box: NewBox,
) -> None:
    # Open by default, as docs/threat-model.md says; the control of the test below.
    left, looked = await meet(await new_box(), await new_box())
    assert left == {
        "flock": "left", "posix": "left", "ofd": "left", "inotify": "seen", "dnotify": "seen",
    }  # fmt: skip
    assert looked == {"flock": "EAGAIN", "posix": "taken", "ofd": "taken"}


@pytest.fixture
async def shut(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Calls to a server where files cannot be locked or watched."""
    with running_server(tmp_path / "state", RETORT_SANDBOX_FILE_LOCKS="refused") as server:
        async with calls_to(server) as api:
            yield api


async def new(api: aiohttp.ClientSession, image: str = "gcc") -> Box:
    async with api.post("/session", json={"name": (name := drawn()), "image": image}) as answer:
        assert answer.status == 201
    return Box(api, name)


async def test_no_lock_or_watch_is_seen_where_they_are_refused(
    shut: aiohttp.ClientSession,
) -> None:
    one, two = await new(shut), await new(shut)
    left, looked = await meet(one, two)
    assert set(left.values()) == {"ENOSYS"}
    assert set(looked.values()) == {"ENOSYS"}
    assert (await one.sh("true")).answer["walls"]["seccomp"] == "deny-list, no locks"


async def test_tools_that_need_no_locks_work_where_they_are_refused(
    shut: aiohttp.ClientSession,
) -> None:
    box = await new(shut)
    await box.put(
        Makefile="all: a b\n\techo made\n%: %.c\n\tgcc -o $@ $<\n",
        a__c="int main(void) { return 0; }",
        b__c="int main(void) { return 0; }",
    )
    made = await box.sh("./a && ./b", build="make -j2 -Otarget")
    assert made.told == ("exited", 0, None), made
    ran = await box.python(
        "import subprocess, tempfile, threading, multiprocessing\n"
        "multiprocessing.Lock().acquire()\n"
        "print(subprocess.run(['echo', 'child'], capture_output=True).stdout)\n"
        "import sqlite3\n"
        "try: sqlite3.connect('a.db').execute('create table t (x)')\n"
        "except sqlite3.OperationalError as error: print(error)\n"
        "sqlite3.connect('file:b.db?nolock=1', uri=True).execute('create table t (x)')\n"
        "print('no locks, no error')\n"
    )
    assert ran.told == ("exited", 0, None), ran
    # What breaks, and how it is mended: docs/operations.md.
    assert ran.out == "b'child\\n'\ndisk I/O error\nno locks, no error\n"
    if shutil.which("git", path="/usr/bin"):
        git = "git -c user.name=x -c user.email=x@example.org"
        ended = await box.sh(f"git init -q . && git add a.c && {git} commit -qm x && git log")
        assert ended.told == ("exited", 0, None), ended


async def test_times_of_the_hosts_devices_cannot_be_set(box: Box) -> None:
    box.needs_inodes()  # the same helper does both: tests/sandbox/test_inodes.py has the control
    ended = await box.python(
        "for name in ('null', 'zero', 'full', 'random', 'urandom', 'tty'):\n"
        "    try: os.utime('/dev/' + name); print(name)\n"
        "    except OSError as error: print(errno.errorcode[error.errno])\n"
    )
    assert ended.out.split() == ["EROFS"] * 6
