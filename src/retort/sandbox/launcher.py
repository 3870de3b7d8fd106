"""Starting and killing sandboxes: the bubblewrap command line and the processes behind it.

One sandbox is three things on the host: bubblewrap's own process (the *monitor*, which only waits),
init (pid 1 of the sandbox) and init's listening socket, which the server made and handed down. None
of them is bound to the server's life. Talking to init is the business of `init.py`.

Source: docs/init-protocol.md; bwrap(1).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from retort.errors import SandboxFault
from retort.sandbox.listeners import SOCKET_NAME, Listeners
from retort.sandbox.rootfs import Base
from retort.sandbox.spawn import Child, spawn
from retort.sandbox.view import Handed, SandboxSpec, masks_of, system_mounts, view

MESSAGE_BYTES = 4096  #: bubblewrap's complaint is cut here
START_S = 10.0  #: a sandbox that is not up by then will never be
KILL_S = 10.0  #: an init that outlives its SIGKILL for so long sits in the kernel


class Identity(NamedTuple):
    """Names one process for ever: what a restarted server keeps to find its sandboxes again."""

    pid: int
    start_ticks: int  #: since boot; a reused pid has another


@dataclass(slots=True, eq=False)
class Sandbox:
    """A started sandbox.

    Args:
        identity: of init; `identity.pid` is its pid on the host.
        pidfd: of init; owned, closed by `Launcher.kill` and `Launcher.reap`.
        socket_path: where init listens (connect by `init.py`).
        folder: the folder of the socket; the caller's to delete.
        host_uid: as in the spec.
        monitor: bubblewrap's process; None for a sandbox of an earlier server.
    """

    identity: Identity
    pidfd: int
    socket_path: Path
    folder: Path
    host_uid: int | None
    monitor: Child | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """Init's pid on the host."""
        return self.identity.pid

    @property
    def is_alive(self) -> bool:
        """Init has not ended (a look, not a promise)."""
        return self.pidfd >= 0 and _state(self.identity) is not None


@dataclass(slots=True, eq=False)
class _Spawned:
    """A sandbox on its way: bubblewrap and our ends of its pipes."""

    monitor: Child
    info: int
    ready: int
    complaint: int
    told: bytearray = field(default_factory=bytearray)  #: read from `info` so far

    def close(self) -> None:
        """Close the pipes."""
        for fd in (self.info, self.ready, self.complaint):
            os.close(fd)

    def undo(self) -> None:
        """End whatever there is by now."""
        # Bubblewrap's child leaves the monitor's process group only after its pid was written.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.monitor.pid, signal.SIGKILL)
        os.set_blocking(self.info, False)
        with contextlib.suppress(BlockingIOError):
            self.told += os.read(self.info, MESSAGE_BYTES)
        with contextlib.suppress(ValueError, KeyError, ProcessLookupError):
            os.kill(int(json.loads(self.told)["child-pid"]), signal.SIGKILL)
        self.monitor.wait()

    def abandon(self) -> None:
        """Undo and close: nobody waits for it any more."""
        self.undo()
        self.close()


class Launcher:
    """Starts sandboxes, kills them and waits for their end.

    All processes are forked by one thread, so that descriptors meant for one sandbox cannot slip
    into another that is forked at the same moment.

    Args:
        bwrap: bubblewrap's program, 0.8 or newer.
        base: the shared files.
        system: mounts of `/usr`, `/bin`, `/lib` ... look on this host; found when left out.
        seccomp: the system call filter of programs (sandbox/seccomp.py); without it they make any.
        helper: our init program, to be run outside; the base's when left out.
        spares: a folder for what is made ahead (sandbox/listeners.py).
    """

    def __init__(
        self,
        bwrap: Path,
        base: Base,
        *,
        system: Sequence[str] | None = None,
        seccomp: bytes | None = None,
        helper: Path | None = None,
        spares: Path | None = None,
    ) -> None:
        self._filter = -1 if seccomp is None else _sealed(seccomp)
        self._bwrap = bwrap
        self._base = base
        self._helper = helper or base.init
        self._system = system_mounts() if system is None else tuple(system)
        self._masks = tuple(masks_of(base))
        self._is_root = os.geteuid() == 0
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="retort-spawner")
        self._listeners = Listeners(spares)

    def close(self) -> None:
        """End the spawner thread; sandboxes live on."""
        self._spawner.shutdown(wait=True)
        self._listeners.close()
        if self._filter >= 0:
            os.close(self._filter)
            self._filter = -1

    def command(self, spec: SandboxSpec, handed: Handed) -> list[str]:
        """Build the whole argv of one sandbox."""
        seen = view(spec, handed, self._base, system=self._system, masks=self._masks)
        return [*self._as_uid(spec.host_uid), str(self._bwrap), *seen]

    async def start(
        self,
        spec: SandboxSpec,
        folder: Path,
        *,
        meanwhile: Callable[[Path], None] | None = None,
        on_spawned: Callable[[], None] | None = None,
    ) -> Sandbox:
        """Start one sandbox and wait until its init runs.

        Args:
            spec: how it looks.
            folder: for the socket; made with mode 0700 if missing.
            meanwhile: makes what else is to be in the folder: called by the spawner thread once
                bubblewrap is at work, or ahead; what it raises is ours.
            on_spawned: called after that; init's socket listens, so that one can connect to it.

        Raises:
            SandboxFault: phase "launch", with bubblewrap's own message; nothing is left running.
        """
        self._check(spec)
        loop = asyncio.get_running_loop()
        spawning = loop.run_in_executor(self._spawner, self._spawn, spec, folder, meanwhile)
        try:
            spawned = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            spawning.add_done_callback(_abandon)
            raise
        except OSError as exc:
            raise SandboxFault("launch", f"{self._bwrap}: {exc}") from exc
        try:
            if on_spawned is not None:
                on_spawned()
            async with asyncio.timeout(START_S):
                return await self._came_up(spec, folder, spawned)
        except TimeoutError as exc:
            spawned.undo()
            raise SandboxFault("launch", f"not up after {START_S:g} s") from exc
        except BaseException:
            spawned.undo()
            raise
        finally:
            spawned.close()

    async def run_helper(self, sandbox: Sandbox, argv: Sequence[str]) -> tuple[int, str]:
        """Run our init program outside, to work on a sandbox, until it ends.

        Args:
            argv: its arguments; "{pidfd}" becomes the number of a descriptor of the sandbox's init.

        Returns:
            Its exit code, and what it said on stderr.

        Raises:
            OSError: it cannot be started, or the sandbox has ended.
        """
        loop = asyncio.get_running_loop()
        pidfd = os.dup(sandbox.pidfd)  # the sandbox may be killed, and its own closed, meanwhile
        spawning = loop.run_in_executor(self._spawner, _spawn_helper, self._helper, pidfd, argv)
        spawning.add_done_callback(lambda _: os.close(pidfd))
        helper = await spawning
        try:
            await _readable(helper.ended)
            return helper.process.wait(), helper.said()
        finally:
            helper.close()

    async def kill(self, sandbox: Sandbox) -> None:
        """End a sandbox: SIGKILL to its init takes every process inside along.

        Returns when no process of it is left. Killing a dead one is no error.

        Raises:
            SandboxFault: phase "kill"; init is still there after `KILL_S` seconds.
        """
        if sandbox.pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(sandbox.pidfd, signal.SIGKILL)
        try:
            async with asyncio.timeout(KILL_S):
                await self.reap(sandbox)
        except TimeoutError as exc:
            raise SandboxFault("kill", f"init {sandbox.pid} ignores SIGKILL") from exc

    async def reap(self, sandbox: Sandbox) -> None:
        """Wait until a sandbox has ended, however long it takes, and let go of it."""
        await wait_ended(sandbox)
        if sandbox.monitor is not None:
            # The monitor ends by itself when init has. No await between the look and the open:
            # only this thread reaps, so the pid is still the monitor's.
            if sandbox.monitor.poll() is None:
                fd = os.pidfd_open(sandbox.monitor.pid)
                try:
                    await _readable(fd)
                finally:
                    os.close(fd)
            sandbox.monitor.poll()
        if sandbox.pidfd >= 0:
            os.close(sandbox.pidfd)
            sandbox.pidfd = -1

    def adopt(
        self, identity: Identity, folder: Path, *, host_uid: int | None = None
    ) -> Sandbox | None:
        """Find a sandbox that an earlier server started; None if it has ended."""
        try:
            pidfd = os.pidfd_open(identity.pid)
        except OSError:
            return None
        if _state(identity) is None:  # looked at after the open: the pid cannot change hands now
            os.close(pidfd)
            return None
        return Sandbox(identity, pidfd, folder / SOCKET_NAME, folder, host_uid)

    def _as_uid(self, uid: int | None) -> tuple[str, ...]:
        # The helper also leaves the server's folder, which no sandbox shall keep busy.
        return (str(self._helper), "--as", str(os.geteuid() if uid is None else uid))

    def _check(self, spec: SandboxSpec) -> None:
        if self._is_root and not spec.host_uid:
            # Inside, a file of root's on the host (the nodes of /dev) would be the program's own.
            raise SandboxFault("launch", "a server that is root needs a host uid per sandbox")
        if not self._is_root and spec.host_uid not in (None, os.geteuid()):
            raise SandboxFault("launch", f"only root can start as uid {spec.host_uid}")

    def _spawn(
        self, spec: SandboxSpec, folder: Path, meanwhile: Callable[[Path], None] | None
    ) -> _Spawned:
        """Run bubblewrap (in the spawner thread)."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:

            def pipe() -> tuple[int, int]:
                ends = os.pipe()
                ours.callback(os.close, ends[0])
                theirs.callback(os.close, ends[1])
                return ends

            listener = self._listeners.take(folder)
            theirs.enter_context(listener.socket)
            info, ready, complaint = pipe(), pipe(), pipe()
            handed = Handed(listener.socket.fileno(), ready[1], info[1], self._filter)
            monitor = spawn(
                self.command(spec, handed),
                stdout=complaint[1],
                stderr=complaint[1],
                env=dict([os.fsdecode(mark_of(folder)).split("=", 1)]),
                keep=handed.fds,
                is_leader=True,
            )
            ours.pop_all()  # the caller's from here
        spawned = _Spawned(monitor, info[0], ready[0], complaint[0])
        try:
            if meanwhile is not None and not listener.is_filled:
                meanwhile(folder)
        except BaseException:
            spawned.abandon()
            raise
        with contextlib.suppress(RuntimeError):  # the server ends
            # In this thread, once this sandbox is handed over.
            self._spawner.submit(self._listeners.prepare, meanwhile)
        return spawned

    async def _came_up(self, spec: SandboxSpec, folder: Path, spawned: _Spawned) -> Sandbox:
        """Learn init's pid, and that bubblewrap has become init."""
        await _read_all(spawned.info, spawned.told)
        try:
            pid = int(json.loads(spawned.told)["child-pid"])
            pidfd = os.pidfd_open(pid)
        except (ValueError, KeyError, OSError):
            raise await self._failure(spawned) from None
        try:
            # Everyone who holds the other end closes it: the monitor at once, init when it runs,
            # a child that fails by exiting. The last two are told apart by the process's name.
            await _read_all(spawned.ready)
            identity = _init_of(pid, spawned.monitor.pid)
            if identity is None:
                raise await self._failure(spawned)
        except BaseException:
            os.close(pidfd)
            raise
        return Sandbox(
            identity, pidfd, folder / SOCKET_NAME, folder, spec.host_uid, spawned.monitor
        )

    async def _failure(self, spawned: _Spawned) -> SandboxFault:
        """Turn what bubblewrap said into a fault."""
        text = (await _read_all(spawned.complaint)).decode("utf-8", "replace").strip()
        return SandboxFault("launch", text or f"{self._bwrap}: ended without a word")


class _Helper(NamedTuple):
    """A process of ours outside of any sandbox."""

    process: Child
    ended: int  #: a pidfd of it
    complaint: int  #: what it writes to stderr

    def said(self) -> str:
        """Give what it wrote to stderr, once it has ended."""
        return os.read(self.complaint, MESSAGE_BYTES).decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End it, if it has not, and let go of it."""
        self.process.kill()
        self.process.wait()
        os.close(self.ended)
        os.close(self.complaint)


def _spawn_helper(program: Path, pidfd: int, argv: Sequence[str]) -> _Helper:
    """Run our init program outside (in the spawner thread)."""
    ours, theirs = os.pipe()
    try:
        process = spawn(
            [str(program), *(word.replace("{pidfd}", str(pidfd)) for word in argv)],
            stdout=-1,
            stderr=theirs,
            env={},
            keep=(pidfd,),
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return _Helper(process, os.pidfd_open(process.pid), ours)


def _sealed(content: bytes) -> int:
    """Make a file in memory that nobody can change any more (memfd_create(2))."""
    fd = os.memfd_create("retort-filter", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


async def wait_ended(sandbox: Sandbox) -> None:
    """Wait until init, and with it every process of the sandbox, has ended."""
    if sandbox.pidfd >= 0:
        fd = os.dup(sandbox.pidfd)  # each waiter its own: one descriptor has one reader in a loop
        try:
            await _readable(fd)
        finally:
            os.close(fd)


def mark_of(folder: Path) -> bytes:
    """Give the variable that marks the processes of a sandbox until its init runs programs.

    By it they are found when the server was killed before it could write down what it started.
    """
    return b"RETORT_SANDBOX=" + os.fsencode(folder.name)


async def _wait_for(fd: int, done: Callable[[], bool]) -> None:
    """Call `done` whenever `fd` is readable, until it says so."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def look() -> None:
        if not ended.done() and done():
            ended.set_result(None)

    loop.add_reader(fd, look)
    try:
        await ended
    finally:
        loop.remove_reader(fd)


async def _readable(fd: int) -> None:
    await _wait_for(fd, lambda: True)


async def _read_all(fd: int, got: bytearray | None = None) -> bytes:
    """Read a pipe to its end, or to `MESSAGE_BYTES`; what came is in `got` even when cancelled."""
    got = bytearray() if got is None else got

    def more() -> bool:
        part = os.read(fd, MESSAGE_BYTES)
        got.extend(part)
        return not part or len(got) >= MESSAGE_BYTES

    await _wait_for(fd, more)
    return bytes(got[:MESSAGE_BYTES])


def _stat_of(pid: int) -> tuple[str, list[str]] | None:
    """Name and later fields of /proc/PID/stat (proc(5)); the name may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    head, _, tail = text.rpartition(")")
    return head.partition("(")[2], tail.split()


def _init_of(pid: int, monitor_pid: int) -> Identity | None:
    """Identify init, if it is the monitor's child and runs our program."""
    found = _stat_of(pid)
    if found is None or int(found[1][1]) != monitor_pid or found[1][0] in "ZX":
        return None
    return Identity(pid, int(found[1][19])) if found[0] != "bwrap" else None


def _state(identity: Identity) -> str | None:
    """The state letter of a process that is still the one meant, and not a zombie."""
    found = _stat_of(identity.pid)
    if found is None or int(found[1][19]) != identity.start_ticks or found[1][0] in "ZX":
        return None
    return found[1][0]


def _abandon(spawning: asyncio.Future[_Spawned]) -> None:
    """Undo a spawn whose caller was cancelled."""
    if not spawning.cancelled() and spawning.exception() is None:
        spawning.result().abandon()
