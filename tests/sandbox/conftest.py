"""Real sandboxes for tests, with a stand-in for init that runs argv lists and tells the result."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.sandbox.init.box import BINARY

from retort.sandbox.host_uids import HostUids
from retort.sandbox.launcher import Launcher, Sandbox
from retort.sandbox.rootfs import Base, build
from retort.sandbox.view import SandboxSpec

BWRAP = shutil.which("bwrap")

STAND_IN = r"""#!/usr/bin/python3 -IS
import json, os, signal, socket, subprocess, sys
listener = socket.socket(fileno=int(sys.argv[1]))
os.dup2(os.open("/dev/null", os.O_RDWR), 1); os.dup2(1, 2)
listener = socket.socket(fileno=os.dup2(listener.detach(), 3, inheritable=False))
os.closerange(4, 65536)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
while True:
    peer = listener.accept()[0]
    while (wanted := peer.recv(65536)):
        done = subprocess.run(json.loads(wanted), stdin=subprocess.DEVNULL, capture_output=True,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/home/work", "LANG": "C.UTF-8"})
        text = [done.returncode, done.stdout.decode("latin-1")[:20000],
                done.stderr.decode("latin-1")[:2000]]
        peer.send(json.dumps(text).encode())
    peer.close()
"""


@dataclass(frozen=True)
class Ran:
    """How one command inside ended."""

    code: int
    out: str
    err: str


def run_inside(socket_path: Path, *argv: str) -> Ran:
    """Run a command through the stand-in."""
    fd = os.open(socket_path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(30)
            peer.connect(f"/proc/self/fd/{fd}/{socket_path.name}")
            peer.send(json.dumps(argv).encode())
            return Ran(*json.loads(peer.recv(65536)))
    finally:
        os.close(fd)


@dataclass
class Box:
    """A running sandbox and a way to ask it."""

    sandbox: Sandbox

    async def run(self, *argv: str) -> Ran:
        return await asyncio.to_thread(run_inside, self.sandbox.socket_path, *argv)

    async def sh(self, script: str) -> Ran:
        return await self.run("/bin/bash", "-c", script)


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder that any uid can pass, unlike pytest's own."""
    if BWRAP is None:
        pytest.skip("bubblewrap is not installed")
    folder = Path(tempfile.mkdtemp(prefix="retort-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def base(place: Path) -> Base:
    stand_in = place / "stand-in"
    stand_in.write_text(STAND_IN)
    return build(place / "state", stand_in)


@pytest.fixture(scope="session")
def host_uids() -> HostUids | None:
    """For root: a range far from accounts and from other servers of this machine."""
    return HostUids(1_900_000_000, 64) if os.geteuid() == 0 else None


@pytest.fixture
async def launcher(base: Base) -> AsyncIterator[Launcher]:
    assert BWRAP is not None
    made = Launcher(Path(BWRAP), base, helper=BINARY)
    yield made
    made.close()


Start = Callable[..., Awaitable[Box]]


@pytest.fixture
async def start(
    launcher: Launcher, host_uids: HostUids | None, place: Path
) -> AsyncIterator[Start]:
    """Start sandboxes with small sizes; all are ended when the test is."""
    boxes: list[Box] = []
    numbers = itertools.count()

    async def one(**fields: object) -> Box:
        uid = host_uids.acquire() if host_uids else None
        small = {"scratch_bytes": 8 << 20, "tmp_bytes": 2 << 20, "shm_bytes": 1 << 20}
        spec = SandboxSpec(**{"hostname": "box", "host_uid": uid, **small, **fields})  # type: ignore[arg-type]
        folder = Path(tempfile.mkdtemp(prefix=f"box-{next(numbers)}-", dir=place))
        boxes.append(Box(await launcher.start(spec, folder)))
        return boxes[-1]

    yield one
    for box in boxes:
        await launcher.kill(box.sandbox)
        if host_uids and box.sandbox.host_uid:
            host_uids.release(box.sandbox.host_uid)
