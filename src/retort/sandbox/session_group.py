"""The control group of one session: its limits, and what each step in it used.

Init itself lives in the group, so every program is born inside and nothing is moved while a caller
waits, or ever again (docs/decisions). A step's figures are differences of the group's counters, and
its memory peak is reset where the host kernel can.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the Linux kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from retort.core.limits import MIB, Limits
from retort.errors import SandboxFault
from retort.sandbox.counter_files import READ_BYTES, CounterFiles, read_once

PERIOD_US = 100_000  # of the CPU quota
SOCKET_BYTES = 64 * MIB  # v1: of all buffers of internet sockets together, beside the memory
OWN_PROCESSES = 2  #: of a session's that are ours, not the program's: init and its standby child
ROOM_BYTES = MIB // 2  # of memory, without which init is asked for nothing; it takes some KiB
UNTOLD_BYTES = (os.cpu_count() or 1) * 64 * mmap.PAGESIZE  # MEMCG_CHARGE_BATCH (memcontrol.h)
NEAR_BYTES = 4 * MIB  # a program this far from its limit may meet it before init has answered


class Mode(enum.Enum):
    """What the host gives us."""

    V2 = "v2"
    V1 = "v1"
    NONE = "none"


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What the group counted during one step; None where this host cannot tell.

    Attributes:
        memory_peak_bytes: of all processes and the session's files together. None when it stayed
            below an earlier step's peak and the host kernel cannot reset it (v2 before Linux 6.12).
        processes_peak: None when it stayed below an earlier step's.
        oom_kills: processes that the host kernel killed for want of memory.
        is_own_limit: the group stood at its memory limit; always known but on v1, where a kill
            counts as its own.
        refused_forks: by the process limit.
    """

    memory_peak_bytes: int | None = None
    processes_peak: int | None = None
    user_us: int | None = None
    system_us: int | None = None
    oom_kills: int = 0
    is_own_limit: bool = True
    refused_forks: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time in microseconds.

    Attributes:
        total_us: measured at every switch of tasks.
        user_us, system_us: on v1 what ticks happened to see. Their sum may be far below the total:
            a program that sleeps through the ticks is never seen at all.
    """

    total_us: int
    user_us: int
    system_us: int

    def since(self, before: Cpu) -> tuple[int, int]:
        """Give user and system time since then; together they are the exact total."""
        total_us = self.total_us - before.total_us
        user_us, system_us = self.user_us - before.user_us, self.system_us - before.system_us
        seen_us = user_us + system_us
        system_us = min(total_us, total_us * system_us // seen_us) if seen_us > 0 else 0
        return total_us - system_us, system_us


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """The group's counters since it was made."""

    memory_peak: int | None
    processes_peak: int | None
    cpu: Cpu | None
    oom_kills: int
    limit_hits: int | None
    refused_forks: int


class SessionGroup:
    """One session's group.

    Everything but `add` is a handful of reads and writes in memory file systems (2 to 10 us each).

    Args:
        folders: by controller; v2 has the same one for all.
    """

    __slots__ = ("_before", "_can_reset", "_files", "_folders", "_is_closed", "_is_given_up",
                 "_left_before", "_limit", "_mode", "_over", "_peak", "_read")  # fmt: skip

    def __init__(self, mode: Mode, folders: Mapping[str, Path]) -> None:
        self._mode = mode
        self._folders = folders
        self._peak = _own_peak(folders["memory"] / "memory.peak") if mode is Mode.V2 else -1
        self._can_reset = mode is Mode.V1 or self._peak >= 0
        self._read: Callable[[str], bytes] = read_once  # in a thread
        self._before = self._count()
        self._over = self._before.oom_kills  # of these the memory is back
        self._limit: int | None = None
        self._left_before = sys.maxsize  # at the last look
        self._is_given_up = self._is_closed = False
        self._files = CounterFiles()
        self._read = self._files.read

    def __repr__(self) -> str:
        return f"<SessionGroup {self._mode.value} {self._folders['memory']}>"

    def add(self, pid: int) -> None:
        """Move a process of the host in; what it forks is born inside.

        May wait up to 30 ms for the host kernel (DESIGN 3): call it from a thread.

        Raises:
            SandboxFault: phase "cgroup"; it has ended, or the host refuses.
        """
        for folder in dict.fromkeys(self._folders.values()):
            write(folder / "cgroup.procs", str(pid))

    @property
    def counted(self) -> Counted:
        """What had been counted at the last `take`: where the next figures start from."""
        return self._before

    def go_on_from(self, counted: Counted) -> None:
        """Start the next figures from where an earlier server's did."""
        self._before = counted

    def holds(self, pid: int) -> bool:
        """Whether a process of the host is in the group, in each of its hierarchies."""
        own = str(pid)
        return all(
            own in _read_all(f"{folder}/cgroup.procs").split()
            for folder in dict.fromkeys(self._folders.values())
        )

    def take(self) -> Measured:
        """Give what was counted since the last `take`, and start anew; nothing may be running."""
        now, before = self._count(), self._before
        self._before, self._left_before = now, sys.maxsize
        if self._can_reset:
            self._reset_peak()
        user_us, system_us = now.cpu.since(before.cpu) if now.cpu and before.cpu else (None, None)
        return Measured(
            memory_peak_bytes=now.memory_peak
            if self._can_reset
            else _grown(now.memory_peak, before.memory_peak),
            processes_peak=_grown(now.processes_peak, before.processes_peak),
            user_us=user_us,
            system_us=system_us,
            oom_kills=now.oom_kills - before.oom_kills,
            is_own_limit=now.limit_hits is None or now.limit_hits > (before.limit_hits or 0),
            refused_forks=now.refused_forks - before.refused_forks,
        )

    def cpu_us(self) -> int | None:
        """Give the CPU time since the last `take` of everything in the group, in microseconds."""
        now, before = self._cpu(), self._before.cpu
        return now.total_us - before.total_us if now and before else None

    @property
    def is_short(self) -> bool:
        """Whether whoever takes memory now may be killed for it, be it init.

        So it is where more is charged than the limit allows (v2: what arrives at sockets is, all
        the same), and from the moment in which the host kernel kills for want of memory until that
        memory is back: the one that dies counts as dead before its pages are free.
        """
        if self._is_closed:
            return False
        if self._mode is Mode.V2 and self._left() < 0:
            return not self._is_given_up
        self._is_given_up = False
        kills = self._kills()
        if kills != self._over:
            if self._is_within(ROOM_BYTES):
                return True
            self._over = kills
        return False

    def give_up_room(self) -> None:
        """Count the memory of those who were killed so far as back: what is charged stays."""
        if not self._is_closed:
            self._over = self._kills()
            self._is_given_up = True

    @property
    def killed(self) -> int:
        """How many the host kernel killed for want of memory and have given theirs back."""
        return self._over

    @property
    def is_roomy(self) -> bool:
        """Whether no program can meet the limit of memory within some milliseconds."""
        return not self._is_within(NEAR_BYTES)

    def look_whether_filling(self) -> bool:
        """Tell whether a program may be killed before init has done what it is asked.

        So it is where memory is nearly full, and fuller than at the last look.
        """
        left, before = self._left(), self._left_before
        self._left_before = left
        return left < NEAR_BYTES and before - left > ROOM_BYTES and self._cached() < NEAR_BYTES

    def _is_within(self, distance: int) -> bool:
        """Whether so many bytes more, or fewer, meet the limit; the cache gives way first."""
        left = self._left()
        return left <= distance and left + self._cached() <= distance

    def _left(self) -> int:
        """Give the bytes that may still be charged, below 0 beyond the limit."""
        memory = self._folders["memory"]
        v2 = self._mode is Mode.V2
        now = self._number(f"{memory}/{'memory.current' if v2 else 'memory.usage_in_bytes'}")
        if self._limit is None:
            self._limit = self._number(
                f"{memory}/{'memory.max' if v2 else 'memory.limit_in_bytes'}"
            )
        return sys.maxsize if now is None or self._limit is None else self._limit - now

    def _cached(self) -> int:
        """Give the bytes of files on disks, which the host kernel takes back when it must.

        At least: each processor may have counted some pages that it has not told of.
        """
        stat = self._fields(f"{self._folders['memory']}/memory.stat")
        prefix = "" if self._mode is Mode.V2 else "total_"
        told = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
        return max(0, told - UNTOLD_BYTES)

    def _kills(self) -> int:
        memory = self._folders["memory"]
        file = "memory.events" if self._mode is Mode.V2 else "memory.oom_control"
        return self._fields(f"{memory}/{file}").get("oom_kill", 0)

    def close(self) -> None:
        """Let go of the group, and leave it as it is."""
        self._is_closed = True
        self._files.close()
        if self._peak >= 0:
            os.close(self._peak)
            self._peak = -1

    def remove(self) -> bool:
        """Remove the group; False while a process is still in it."""
        self.close()
        return remove(self._folders.values())

    def _reset_peak(self) -> None:
        # What the session holds now (its files) is where the next peak starts from.
        if self._peak < 0:
            self._files.write(f"{self._folders['memory']}/memory.max_usage_in_bytes", b"0")
            return
        with contextlib.suppress(OSError):
            os.pwrite(self._peak, b"reset", 0)

    def _count(self) -> Counted:
        memory, pids = self._folders["memory"], self._folders["pids"]
        if self._mode is Mode.V2:
            events = self._fields(f"{memory}/memory.events")
            peak, kills = self._peak_v2(), events.get("oom_kill", 0)
            hits: int | None = events.get("oom", 0)
        else:
            peak = self._number(f"{memory}/memory.max_usage_in_bytes")
            kills = self._kills()
            hits = None
        return Counted(
            memory_peak=peak,
            processes_peak=self._number(f"{pids}/pids.peak"),
            cpu=self._cpu(),
            oom_kills=kills,
            limit_hits=hits,
            refused_forks=self._fields(f"{pids}/pids.events").get("max", 0),
        )

    def _peak_v2(self) -> int | None:
        if self._peak < 0:
            return self._number(f"{self._folders['memory']}/memory.peak")
        text = os.pread(self._peak, READ_BYTES, 0).strip()
        return int(text) if text.isdigit() else None

    def _cpu(self) -> Cpu | None:
        folder = self._folders.get("cpuacct")
        if folder is None:
            return None
        if self._mode is Mode.V2:
            used = self._fields(f"{folder}/cpu.stat")
            names = ("usage_usec", "user_usec", "system_usec")
            return Cpu(*(used[name] for name in names)) if used.keys() >= set(names) else None
        total_ns = self._number(f"{folder}/cpuacct.usage")
        if total_ns is None:
            return None
        user_ns = self._number(f"{folder}/cpuacct.usage_user") or 0
        system_ns = self._number(f"{folder}/cpuacct.usage_sys") or 0
        return Cpu(total_ns // 1000, user_ns // 1000, system_ns // 1000)

    def _number(self, file: str) -> int | None:
        text = self._read(file).strip()
        return int(text) if text.isdigit() else None

    def _fields(self, file: str) -> dict[str, int]:
        pairs = (line.split() for line in self._read(file).splitlines())
        return {pair[0].decode(): int(pair[1]) for pair in pairs if len(pair) == 2}


def make_session_group(mode: Mode, folders: Mapping[str, Path], limits: Limits) -> SessionGroup:
    """Make a group with a session's limits.

    Raises:
        SandboxFault: phase "cgroup"; nothing is left of it.
    """
    make(folders.values())
    try:
        (_limit_v2 if mode is Mode.V2 else _limit_v1)(folders, limits)
        return SessionGroup(mode, folders)
    except SandboxFault:
        remove(folders.values())
        raise


def make(folders: Iterable[Path]) -> None:
    """Make groups. Raises SandboxFault."""
    for folder in dict.fromkeys(folders):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as exc:
            raise SandboxFault("cgroup", f"{folder}: {exc.strerror}") from exc


def remove(folders: Iterable[Path]) -> bool:
    """Remove groups; False if one is not empty."""
    is_empty = True
    for folder in dict.fromkeys(folders):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            is_empty = False
    return is_empty


def write(file: Path | str, text: str) -> None:
    """Write one setting. Raises SandboxFault, which names the file."""
    try:
        # Not Path.write_text: between two steps that costs more than the host kernel's part.
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)
    except OSError as exc:
        raise SandboxFault("cgroup", f"{file}: {exc.strerror}") from exc


def _limit_v2(folders: Mapping[str, Path], limits: Limits) -> None:
    memory = folders["memory"]
    write(memory / "memory.max", str(limits.memory_bytes))
    with contextlib.suppress(SandboxFault):  # a host kernel without swap has no such file
        write(memory / "memory.swap.max", "0")
    write(folders["pids"] / "pids.max", str(_processes(limits)))
    if "cpu" in folders:
        write(folders["cpu"] / "cpu.max", f"{_quota(limits)} {PERIOD_US}")


def _limit_v1(folders: Mapping[str, Path], limits: Limits) -> None:
    memory = folders["memory"]
    write(memory / "memory.limit_in_bytes", str(limits.memory_bytes))
    with contextlib.suppress(SandboxFault):  # swap is not counted on every host
        write(memory / "memory.memsw.limit_in_bytes", str(limits.memory_bytes))
    with contextlib.suppress(SandboxFault):
        write(memory / "memory.swappiness", "0")
    # Unlike on v2, buffers of internet sockets count only where they have a limit of their own.
    with contextlib.suppress(SandboxFault):
        write(memory / "memory.kmem.tcp.limit_in_bytes", str(_socket_bytes(limits)))
    write(folders["pids"] / "pids.max", str(_processes(limits)))
    if "cpu" in folders:
        write(folders["cpu"] / "cpu.cfs_period_us", str(PERIOD_US))
        write(folders["cpu"] / "cpu.cfs_quota_us", str(_quota(limits)))


def _processes(limits: Limits) -> int:
    return limits.processes + OWN_PROCESSES


def _socket_bytes(limits: Limits) -> int:
    return min(limits.memory_bytes // 4, SOCKET_BYTES)


def _quota(limits: Limits) -> int:
    return max(1000, int(limits.cpus * PERIOD_US))


def _grown(now: int | None, before: int | None) -> int | None:
    return now if now is not None and now > (before or 0) else None


def _own_peak(file: Path) -> int:
    """Open a peak that can be reset, for this descriptor alone; -1 before Linux 6.12."""
    try:
        fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        os.pwrite(fd, b"reset", 0)
    except OSError:
        os.close(fd)
        return -1
    return fd


def _read_all(file: str) -> str:
    try:
        return Path(file).read_text("ascii")
    except OSError:
        return ""
