"""A sandbox small enough to test init in: a socket, a home, and the real binary.

Two kinds: ``bare`` is a plain subprocess (a subreaper), ``pid1`` runs under bubblewrap as the first
process of its namespaces. ``RETORT_INIT_BINARY`` names another build, for instance with sanitizers.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import retort
from retort.sandbox.init import InitClient
from retort.sandbox.step_values import ExecStep, Started, StepExit

BUILT = Path(retort.__file__).parent / "_bin" / "retort-init"
BINARY = Path(os.environ.get("RETORT_INIT_BINARY", BUILT))
GUEST_UID = 20001  # as root, sandboxes run as somebody else, as the launcher has it
DEADLINE_S = 60.0  # far more than anything takes on a busy machine
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/home/work"}

BWRAP = [
    "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1", "--new-session",
    "--die-with-parent", "--uid", "1000", "--gid", "1000", "--ro-bind", "/usr", "/usr",
    "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib",
    "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
    "--size", "67108864", "--tmpfs", "/home/work", "--tmpfs", "/home/work/vfolder",
]  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """What became of one program."""

    started: Started
    exit: StepExit
    output: bytes

    @property
    def text(self) -> str:
        """Standard output and error together."""
        return self.output.decode()


class Box:
    """One running init; use as a context manager."""

    def __init__(self, kind: str, folder: Path, *arguments: str) -> None:
        self.kind = kind
        self.socket_path = folder / "init.sock"
        self.home = Path("/home/work")
        self._numbers = iter(range(1, 2**32))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(os.fspath(self.socket_path))
        listener.listen(4)
        as_guest: dict[str, Any] = {}
        if kind == "bare":
            self.home = folder / "home"
            self.home.mkdir()
            command = [os.fspath(BINARY), str(listener.fileno()), "--home", os.fspath(self.home)]
        else:
            if os.geteuid() == 0:
                as_guest = {"user": GUEST_UID, "group": GUEST_UID, "extra_groups": []}
            binary = shutil.copy(BINARY, folder / "retort-init")  # where the guest may read it
            folder.chmod(0o755)  # the fixture's own, not those above, which are the host's
            command = [*BWRAP, "--ro-bind", binary, "/init", "/init", str(listener.fileno())]
        with listener:
            self.process = subprocess.Popen(
                [*command, *arguments],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                env={"ASAN_OPTIONS": "detect_leaks=0", "PATH": "/usr/bin:/bin"},
                **as_guest,
            )

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *_: object) -> None:
        # A sanitizer's complaint or an early death of init must fail the test that caused it.
        early = self.process.poll()
        self.process.kill()
        self.process.wait()
        assert early is None, f"init ended by itself: {early}"

    def raw(self) -> socket.socket:
        """Connect without saying HELLO."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(DEADLINE_S)
        sock.connect(os.fspath(self.socket_path))
        return sock

    async def connect(self) -> InitClient:
        """Connect as the server does; the loss of the connection fails what waits."""
        return await InitClient.connect(
            os.fspath(self.socket_path), timeout_s=DEADLINE_S, on_lost=lambda cause: None
        )

    def number(self) -> int:
        """Return a step number not used before."""
        return next(self._numbers)

    def pid(self, client: InitClient) -> int:
        """Return init's pid on the host."""
        with Path(f"/proc/self/fdinfo/{client.pidfd}").open() as info:
            return int(next(line for line in info if line.startswith("Pid:")).split()[1])

    async def start(
        self, client: InitClient, *argv: str, stdin: int | None = None, **more: Any
    ) -> Running:
        """Start a program with its output in a pipe."""
        read_end, write_end = os.pipe()
        null = os.open("/dev/null", os.O_RDWR)
        done: asyncio.Future[StepExit] = asyncio.get_running_loop().create_future()
        step = ExecStep(
            number=more.pop("number", None) or self.number(),
            argv=argv,
            env=more.pop("env", ENVIRONMENT),
            cwd=more.pop("cwd", os.fsencode(self.home)),
            stdio=(null if stdin is None else stdin, write_end, write_end),
            **more,
        )
        try:
            future = client.exec(step, done.set_result)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
            os.close(null)
        running = Running(step.number, read_end, done)
        try:
            running.started = await asyncio.wait_for(future, DEADLINE_S)
        except BaseException:
            running.close()
            raise
        return running

    async def run(self, client: InitClient, *argv: str, **more: Any) -> Ran:
        """Run a program to its end and release its step."""
        running = await self.start(client, *argv, **more)
        with running:
            exited = await running.ended()
            output = await running.read_all()
        await client.release(running.number)
        return Ran(running.started, exited, output)

    async def sh(self, client: InitClient, script: str, **more: Any) -> Ran:
        """Run a shell script in home."""
        return await self.run(client, "/bin/bash", "-c", script, **more)

    async def py(self, client: InitClient, script: str, **more: Any) -> Ran:
        """Run a Python script in home."""
        return await self.run(client, "/usr/bin/python3", "-c", script, **more)


class Running:
    """A started program; close it to close its output."""

    started: Started

    def __init__(self, number: int, output: int, done: asyncio.Future[StepExit]) -> None:
        self.number = number
        self.output = output
        self._done = done

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close our end of the output."""
        os.close(self.output)

    async def ended(self) -> StepExit:
        """Wait for EXITED."""
        return await asyncio.wait_for(asyncio.shield(self._done), DEADLINE_S)

    @property
    def has_ended(self) -> bool:
        """Whether EXITED has arrived."""
        return self._done.done()

    async def line(self) -> str:
        """Wait for one line of output."""
        text = b""
        while not text.endswith(b"\n"):
            byte = await asyncio.wait_for(asyncio.to_thread(os.read, self.output, 1), DEADLINE_S)
            if not byte:
                break
            text += byte
        return text.decode().rstrip("\n")

    async def read_all(self) -> bytes:
        """Read until every writer closed the output."""
        parts = []
        while part := await asyncio.wait_for(
            asyncio.to_thread(os.read, self.output, 65536), DEADLINE_S
        ):
            parts.append(part)
        return b"".join(parts)


def open_descriptors(pid: int | str = "self") -> int:
    """Count the open descriptors of a process; skip the test of one who may not look."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  iterdir opens more
    except PermissionError:
        pytest.skip("init cannot be looked into, but by root")


def signal_number(name: str) -> int:
    """Return the number of SIG<name>."""
    return int(getattr(signal, f"SIG{name}"))
