"""Sandboxes with all that a session needs of them: init's client, control group, host uid.

Made and cleared here. Whose they are is agent.py's and pool.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import resource
import shutil
import signal
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import structlog

from retort.core import faults
from retort.core.limits import Limits
from retort.core.mount import Mount
from retort.core.session import Session
from retort.errors import NotSupported, SandboxFault, SessionLost
from retort.node.adopt import (
    IDENTITY,
    boot_id,
    end_stray,
    find,
    recollect,
    remember,
    uids_of_stray,
)
from retort.node.folders import Folders
from retort.node.places import Place, Places, counts_by_namespace
from retort.node.run_book import journal_path
from retort.node.step import RLimits
from retort.sandbox import view
from retort.sandbox.host_uids import HostUids
from retort.sandbox.init import InitClient
from retort.sandbox.inodes import cap_inodes
from retort.sandbox.launcher import START_S, Launcher, Sandbox
from retort.sandbox.listeners import SOCKET_NAME
from retort.sandbox.mounts import mount_folders
from retort.sandbox.session_group import OWN_PROCESSES
from retort.sandbox.view import SandboxSpec

log = structlog.get_logger()

CONNECT_S = 10.0
SWEEP_S = 1.0  # for what an earlier server left; what takes longer must not hold up a start
INODE_SHARE_BYTES = 16 * 1024  # of the memory for each file: an empty one costs 1 KiB and more

Tell = Callable[[Exception | None], None]


class Loss:
    """Remembers that a sandbox's init went away, and tells who owns it at that time."""

    __slots__ = ("_tell", "has_happened")

    def __init__(self) -> None:
        self.has_happened = False
        self._tell: Tell | None = None

    def __call__(self, exc: Exception | None) -> None:
        """Take note; `exc` is None when init simply ended."""
        self.has_happened = True
        if self._tell is not None:
            self._tell(exc)

    def tell(self, owner: Tell) -> None:
        """Name who wants to know from now on."""
        self._tell = owner


@dataclasses.dataclass(slots=True, eq=False)
class Box:
    """A sandbox that runs, in which no program has run yet.

    Attributes:
        limits: it was made with.
        loss: whether its init is gone.
    """

    limits: Limits
    sandbox: Sandbox
    client: InitClient
    place: Place
    host_uid: int | None
    loss: Loss

    @property
    def rlimits(self) -> RLimits:
        """Every program's limits: (resource, soft, hard), as setrlimit(2) takes them."""
        return _rlimits(
            self.limits,
            counts_processes=self.host_uid is not None or counts_by_namespace(),
            has_group=self.place.group is not None,
        )

    def kill(self) -> None:
        """Send every process in it its end, without waiting for it."""
        self.client.close()
        if self.sandbox.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.sandbox.pidfd, signal.SIGKILL)

    def move(self, folder: Path) -> None:
        """Have its files in another folder from now on, which must not exist."""
        self.sandbox.folder.rename(folder)
        self.sandbox.folder, self.sandbox.socket_path = folder, folder / SOCKET_NAME


class Boxes:
    """Makes and clears boxes.

    Args:
        host_uids: None when the server is not root.
        places: makes the control groups.
        shares_network: sandboxes have the host's network.
        folders: how virtual folders are mounted; None: there are none.
    """

    def __init__(
        self,
        launcher: Launcher,
        places: Places,
        *,
        host_uids: HostUids | None,
        shares_network: bool,
        folders: Folders | None = None,
    ) -> None:
        self._folders = folders
        self._launcher = launcher
        self._places = places
        self._host_uids = host_uids
        self._shares_network = shares_network
        self._sweeping: asyncio.Future[None] | None = None
        self._strays: dict[str, asyncio.Task[bool]] = {}  # by folder, until they have ended

    async def make(self, limits: Limits, folder: Path, mounts: Sequence[Mount] = ()) -> Box:
        """Make a sandbox; its group is ready when its place says so.

        Args:
            folder: for its socket and what a later server needs to find it; made.
            mounts: virtual folders in it.

        Raises:
            SandboxFault, NotSupported: nothing is left of it.
        """
        if (stray := self._strays.get(folder.name)) is not None:
            # A request repeated with its token makes the session that a killed server had begun.
            await asyncio.wait((stray,))
        mounted = self._mounted(mounts)
        host_uid = self._acquire_uid(has_mounts=bool(mounted))
        sandbox: Sandbox | None = None
        connecting: asyncio.Future[InitClient] | None = None
        loss = Loss()

        def connect() -> None:  # init answers as soon as it runs
            nonlocal connecting
            target = os.fsencode(folder / SOCKET_NAME)
            connecting = asyncio.ensure_future(
                InitClient.connect(target, timeout_s=START_S + CONNECT_S, on_lost=loss)
            )

        group = self._places.group(folder.name, limits)
        try:
            spec = spec_of(limits, host_uid, mounted, shares_network=self._shares_network)
            sandbox = await self._launcher.start(
                spec, folder, meanwhile=_make_files, on_spawned=connect
            )
            faults.reached(faults.Point.LAUNCHED)
            remember(sandbox, folder.name, self._places.walls)
            if self._folders is not None:
                await mount_folders(self._launcher, sandbox, mounted, self._folders.owner)
            assert connecting is not None
            client = await connecting
            place = await self._places.make(
                group,
                sandbox.pid,
                client,
                functools.partial(cap_inodes, self._launcher, sandbox, spec),
            )
        except BaseException:
            if connecting is not None:
                connecting.add_done_callback(_close_client)
                connecting.cancel()
            await self._clear(sandbox, folder, host_uid, None)
            await self._places.drop(group)
            raise
        if mounted and self._folders is not None:
            place = dataclasses.replace(place, walls={**place.walls, **self._folders.walls})
        return Box(limits, sandbox, client, place, host_uid, loss)

    async def adopt(self, session: Session, folder: Path, on_lost: Tell) -> Box:
        """Take over a sandbox that an earlier server made, with whatever runs in it.

        Args:
            on_lost: told when its init goes away.

        Raises:
            SessionLost: it has ended, and why; its folder and its group are still there.
        """
        limits, record = session.limits, recollect(folder)
        if record is None:
            raise SessionLost("the server was killed while it started")
        if record.boot_id != boot_id():
            raise SessionLost("the host was restarted")
        sandbox = find(self._launcher, folder, record)
        if sandbox is None:
            told = await asyncio.to_thread(self._places.told_of, record.group)
            raise SessionLost(f"init was killed while no server ran{told}")
        if self._host_uids is not None and sandbox.host_uid is not None:
            self._host_uids.claim(sandbox.host_uid)
        loss = Loss()
        loss.tell(on_lost)
        client: InitClient | None = None
        try:
            client = await InitClient.connect(
                os.fsencode(sandbox.socket_path), timeout_s=CONNECT_S, on_lost=loss
            )
            spec = spec_of(limits, sandbox.host_uid, shares_network=self._shares_network)
            place = await self._places.adopt(
                record.group,
                limits,
                sandbox.pid,
                client,
                functools.partial(cap_inodes, self._launcher, sandbox, spec),
                inodes=spec.scratch_inodes,
            )
        except SandboxFault as exc:
            if client is not None:
                client.close()
            await self._clear(sandbox, folder, sandbox.host_uid, None)
            raise SessionLost(str(exc)) from exc
        # Its filter and its network are those of the server that made it.
        place = dataclasses.replace(place, walls={**place.walls, **record.walls})
        if session.mounts and self._folders is not None:
            place = dataclasses.replace(place, walls={**place.walls, **self._folders.walls})
        return Box(limits, sandbox, client, place, sandbox.host_uid, loss)

    async def sweep(self, folder: Path, known: Collection[str]) -> None:
        """End what an earlier server left below a folder, except what is known by name.

        What does not end within `SWEEP_S`, such as a sandbox that never came up and is given time
        to answer, ends behind the caller's back; until then no new sandbox gets its uid.
        """
        folders = await asyncio.to_thread(lambda: sorted(folder.iterdir()))
        ending = {
            entry: asyncio.ensure_future(end_stray(self._launcher, entry))
            for entry in folders
            if entry.name not in known
        }
        self._strays = {entry.name: task for entry, task in ending.items()}
        if ending:
            await asyncio.wait(ending.values(), timeout=SWEEP_S)
        slow = {entry: task for entry, task in ending.items() if not task.done()}
        uids = set[int]()
        if slow and self._host_uids is not None:
            for entry in slow:
                uids |= await asyncio.to_thread(uids_of_stray, entry)
            uids = {uid for uid in uids if self._host_uids.claim(uid)}
        self._sweeping = asyncio.ensure_future(self._swept(list(ending.values()), uids))
        if not slow:
            await self._sweeping

    async def _swept(self, ending: Sequence[asyncio.Task[bool]], uids: Collection[int]) -> None:
        for result in await asyncio.gather(*ending, return_exceptions=True):
            if isinstance(result, BaseException):
                log.error("node.stray", reason=str(result))
        self._strays.clear()
        for uid in uids:
            if self._host_uids is not None:
                self._host_uids.release(uid)
        await asyncio.to_thread(self._places.sweep)

    async def end_sweep(self, *, at_once: bool) -> None:
        """Let a sweep come to its end; at once: leave to the next start what is not ended yet."""
        if self._sweeping is not None:
            if at_once:
                self._sweeping.cancel()
            await asyncio.wait((self._sweeping,))

    async def let_go(self, box: Box) -> None:
        """Leave a box as it is, for the next server."""
        box.client.close()
        await self._places.let_go(box.place)

    async def clear(self, box: Box) -> None:
        """Kill everything in a box and delete its files.

        Raises:
            SandboxFault: it does not die.
        """
        box.client.close()
        await self._clear(box.sandbox, box.sandbox.folder, box.host_uid, box.place)

    def close(self) -> None:
        """Let go of what making them needs; every box must have been cleared or let go."""
        self._launcher.close()
        self._places.close()

    def _mounted(self, mounts: Sequence[Mount]) -> tuple[view.Mount, ...]:
        if not mounts:
            return ()
        if self._folders is None:
            raise NotSupported("This server has no virtual folders")
        return self._folders.mounts(mounts)

    def _acquire_uid(self, *, has_mounts: bool) -> int | None:
        if has_mounts and self._folders is not None and self._folders.shared_uid is not None:
            return self._folders.shared_uid
        return self._host_uids.acquire() if self._host_uids is not None else None

    async def _clear(
        self, sandbox: Sandbox | None, folder: Path, host_uid: int | None, place: Place | None
    ) -> None:
        if sandbox is not None:
            await self._launcher.kill(sandbox)
        if place is not None:
            await self._places.clear(place)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if self._host_uids is not None and host_uid is not None:
            self._host_uids.release(host_uid)


def _make_files(folder: Path) -> None:
    """Make those files of a sandbox that are written later: up to 1 ms each on a busy disk."""
    for file in (folder / f"{IDENTITY}.new", journal_path(folder)):
        file.touch(0o600)


def _close_client(connecting: asyncio.Future[InitClient]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()


def spec_of(
    limits: Limits,
    host_uid: int | None,
    mounts: tuple[view.Mount, ...] = (),
    *,
    shares_network: bool,
) -> SandboxSpec:
    """Say how a sandbox of these limits looks."""
    # Files on a tmpfs are memory: all of them together must leave some for programs and init.
    half, part = limits.memory_bytes // 2, limits.memory_bytes // 8
    return SandboxSpec(
        hostname="main1",
        scratch_bytes=min(limits.scratch_bytes, half),
        tmp_bytes=min(limits.tmp_bytes, part),
        shm_bytes=min(limits.shm_bytes, part),
        scratch_inodes=min(limits.scratch_inodes, limits.memory_bytes // INODE_SHARE_BYTES),
        tmp_inodes=min(limits.tmp_inodes, limits.memory_bytes // (8 * INODE_SHARE_BYTES)),
        mounts=mounts,
        host_uid=host_uid,
        shares_network=shares_network,
    )


def _rlimits(limits: Limits, *, counts_processes: bool, has_group: bool) -> RLimits:
    """Give each program's limits for setrlimit(2): soft and hard alike.

    None is above the server's own, which no program could be given.
    """
    wanted = {
        resource.RLIMIT_CORE: _core_limit(),
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_STACK: limits.stack_bytes,
        resource.RLIMIT_MEMLOCK: 64 * 1024,
    }
    if counts_processes:
        # A group's limit comes first, for it also counts what it refuses. RLIMIT_NPROC counts a
        # process before the group does, and every task that lives may be in the middle of a fork.
        living = limits.processes + OWN_PROCESSES
        wanted[resource.RLIMIT_NPROC] = 2 * living if has_group else limits.processes
    possible = ((number, _at_most_own(number, value)) for number, value in wanted.items())
    return tuple((number, value, value) for number, value in possible)


def _at_most_own(number: int, value: int) -> int:
    hard = resource.getrlimit(number)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _core_limit() -> int:
    """Give the limit under which no core is ever written, nor piped to a handler of the host.

    A piped `core_pattern` is run whatever the limit, unless that is exactly 1 byte, which is also
    too little for any file (core(5), fs/coredump.c). Where it cannot be raised to that, 0.
    """
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    return 1 if hard == resource.RLIM_INFINITY or hard >= 1 else 0
