"""The place of a session on this host: its control group, and which walls stand around it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import structlog

from retort.core.limits import Limits
from retort.core.shortage import shortage
from retort.errors import SandboxFault
from retort.sandbox.cgroup import Groups
from retort.sandbox.init import InitClient
from retort.sandbox.pressure import CpuPressure
from retort.sandbox.session_group import Mode, SessionGroup

log = structlog.get_logger()

GroupOfSession = asyncio.Future[SessionGroup | None]

SHORT_S = 10.0  # a host that is short of descriptors or memory for longer is in trouble
SHORT_PAUSE_S = 0.1
ROOM_S = 5.0  # for memory to come back: that of dead processes and sockets takes milliseconds
ROOM_LOOK_S = 0.010
THREADS = 4  # moves into groups wait for the host kernel, up to 30 ms each (DESIGN 3)


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a session's programs run, and what is known of it.

    Attributes:
        group: the session's control group; None where the host has none.
        placed: done when init is in the group: no program starts before. None: nothing to wait for.
        scratch: a descriptor of /home/work, or -1; it stays the owner's.
        walls: what this host enforces, by name (docs/wire.md).
        pressure: counts how long work on this host waited for a processor.
    """

    group: SessionGroup | None = None
    placed: asyncio.Future[None] | None = None
    scratch: int = -1
    walls: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pressure: CpuPressure | None = None

    @property
    def is_scratch_full(self) -> bool:
        """Whether the session's files fill their space, or are as many as they may be."""
        if self.scratch < 0:
            return False
        try:
            left = os.fstatvfs(self.scratch)
            return left.f_bavail == 0 or left.f_favail == 0
        except OSError:
            return False

    @property
    def is_short(self) -> bool:
        """Whether init may not be asked for anything, for the host kernel might kill it for that.

        Whatever it is asked for takes some memory, of which its session has none.
        """
        return self.group is not None and self.group.is_short

    async def room(self) -> None:
        """Wait until init may be asked again, or for `ROOM_S`."""
        if self.group is None or not self.group.is_short:
            return
        now = asyncio.get_running_loop().time
        ends_at = now() + ROOM_S
        while self.group.is_short and now() < ends_at:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(ROOM_LOOK_S)
        self.group.give_up_room()

    def lacks(self, name: bytes) -> bool:
        """Whether /home/work has nothing of a name: a look without init's help.

        One name, never followed, and nothing is opened: no path is resolved (DESIGN 5).
        """
        if self.scratch < 0:
            return False
        try:
            os.stat(name, dir_fd=self.scratch, follow_symlinks=False)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return False


class Places:
    """Makes and clears places.

    Args:
        groups: this server's subtree of control groups.
        walls: what stands around every session that this server makes, besides its group.
        caps_inodes: this host can cap the files of a sandbox by number (sandbox/inodes.py).
    """

    def __init__(
        self, groups: Groups, walls: Mapping[str, str], *, caps_inodes: bool = False
    ) -> None:
        self._groups = groups
        self.walls = dict(walls)
        self._walls = {**walls, **walls_of(groups, caps_inodes=caps_inodes)}
        self._caps_inodes = caps_inodes
        self._pressure = CpuPressure()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="retort-cgroup")

    def close(self) -> None:
        """Remove what is empty."""
        self._threads.shutdown(wait=True)
        self._pressure.close()
        self._groups.close()

    def group(self, name: str, limits: Limits) -> GroupOfSession:
        """Begin to make the group of a session, while its sandbox is started.

        Whoever does not give it to `make` must give it to `drop`.
        """
        return asyncio.get_running_loop().run_in_executor(
            self._threads, self._groups.session, name, limits
        )

    async def drop(self, begun: GroupOfSession) -> None:
        """Remove a group that nothing was put into."""
        with contextlib.suppress(SandboxFault, OSError):
            if (group := await begun) is not None:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._threads, group.remove)

    async def make(
        self,
        begun: GroupOfSession,
        init_pid: int,
        client: InitClient,
        cap_inodes: Callable[[], Awaitable[None]],
    ) -> Place:
        """Make the place of a session whose init runs.

        In the background init is moved into its group, and its files are capped by number;
        `Place.placed` tells when that is done and its first standby child stands ready.

        Args:
            begun: from `group`; still the caller's to drop when this raises.
            cap_inodes: called where this host can.

        Raises:
            SandboxFault: the group cannot be made.
        """
        group = await asyncio.shield(begun)
        try:
            scratch = await client.open(b".", os.O_PATH | os.O_DIRECTORY)
        except OSError as exc:
            raise SandboxFault("scratch", str(exc)) from exc
        placed = asyncio.ensure_future(self._put(group, init_pid, client, cap_inodes))
        placed.add_done_callback(_retrieve)
        return Place(group, placed, scratch, self._walls, self._pressure)

    async def adopt(
        self,
        name: str,
        limits: Limits,
        init_pid: int,
        client: InitClient,
        cap_inodes: Callable[[], Awaitable[None]],
        *,
        inodes: int,
    ) -> Place:
        """Find the place of a session that an earlier server made; finish what it had not.

        Args:
            cap_inodes: as for `make`.
            inodes: that /home/work has once its files are capped.

        Raises:
            SandboxFault: as for `make`.
        """
        loop = asyncio.get_running_loop()
        begun = self.group(name, limits)
        group = await begun
        if group is not None and not await loop.run_in_executor(
            self._threads, group.holds, init_pid
        ):
            return await self.make(begun, init_pid, client, cap_inodes)
        try:
            scratch = await client.open(b".", os.O_PATH | os.O_DIRECTORY)
        except OSError as exc:
            raise SandboxFault("scratch", str(exc)) from exc
        placed: asyncio.Future[None] | None = None
        if self._caps_inodes and os.fstatvfs(scratch).f_files != inodes:
            placed = asyncio.ensure_future(when_there_is_room(cap_inodes))
            placed.add_done_callback(_retrieve)
        return Place(group, placed, scratch, self._walls, self._pressure)

    def told_of(self, name: str) -> str:
        """Say what the group of a dead session tells of its end; "" when it tells nothing."""
        kills = self._groups.oom_kills(name)
        if not kills:
            return ""
        return f"; the host kernel had ended {kills} of its processes for want of memory"

    def sweep(self) -> None:
        """Remove the groups of sessions that have ended."""
        self._groups.sweep()

    async def let_go(self, place: Place) -> None:
        """Let go of the place of a sandbox that lives on."""
        if place.placed is not None:
            await asyncio.wait((place.placed,))
        if place.scratch >= 0:
            os.close(place.scratch)
        if place.group is not None:
            place.group.close()

    async def clear(self, place: Place) -> None:
        """Let go of a place whose sandbox has ended."""
        if place.placed is not None:
            await asyncio.wait((place.placed,))
        if place.scratch >= 0:
            os.close(place.scratch)
        if place.group is not None:
            place.group.close()
            loop = asyncio.get_running_loop()
            if not await loop.run_in_executor(self._threads, place.group.remove):
                log.warning("cgroup.left", group=repr(place.group))

    async def _put(
        self,
        group: SessionGroup | None,
        pid: int,
        client: InitClient,
        cap_inodes: Callable[[], Awaitable[None]],
    ) -> None:
        moving: asyncio.Future[None] | None = None
        if group is not None:
            loop = asyncio.get_running_loop()
            add = functools.partial(loop.run_in_executor, self._threads, group.add, pid)
            moving = asyncio.ensure_future(when_there_is_room(add))
        try:
            if self._caps_inodes:
                await when_there_is_room(cap_inodes)
        finally:
            if moving is not None:
                await moving
        if group is not None:
            group.take()
        # A standby is an optimisation: without one, init makes it when it is needed.
        with contextlib.suppress(OSError):
            os.close((await client.prepare()).pidfd)


async def when_there_is_room(work: Callable[[], Awaitable[None]]) -> None:
    """Do something, and again while the host is short of what it takes, for at most `SHORT_S`.

    The session was told to be ready. Were it given up now, none of its programs would ever run.

    Raises:
        SandboxFault, OSError: as the work; of a shortage, when that did not pass.
    """
    now = asyncio.get_running_loop().time
    until = now() + SHORT_S
    while True:
        try:
            return await work()
        except (SandboxFault, OSError) as exc:
            if shortage(exc) is None or now() >= until:
                raise
        await asyncio.sleep(SHORT_PAUSE_S)


def counts_by_namespace() -> bool:
    """Tell whether RLIMIT_NPROC counts the processes of one sandbox, also when uids are shared.

    Since Linux 5.14 they are counted by user namespace and uid; before, by uid alone, and a limit
    on one sandbox would count everything of the server's user (kernel/ucount.c).
    """
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (5, 14)


def walls_of(groups: Groups, *, caps_inodes: bool) -> dict[str, str]:
    """Say which resources a host caps for a session as a whole, and by what."""
    by = f"cgroup-{groups.mode.value}" if groups.mode is not Mode.NONE else "none"
    rlimit = "rlimit" if os.geteuid() == 0 or counts_by_namespace() else "none"
    return {
        "memory": by,
        # Without a number of their own, files still count as memory where that is counted.
        "inodes": "tmpfs" if caps_inodes else "memory" if by != "none" else "none",
        "processes": by if by != "none" else rlimit,
        "cpu": by if "cpu" in groups.controllers else "none",
        "cpuTime": by if "cpuacct" in groups.controllers else "rlimit",
    }


def _retrieve(placed: asyncio.Future[None]) -> None:
    """Mark a failure as seen; the next step to start finds it."""
    if not placed.cancelled():
        placed.exception()
