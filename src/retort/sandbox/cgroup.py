"""Control groups: what a session may use, counted and capped by the host kernel.

One group per session, one child per step. Found by trying, never by names alone: a v2 subtree that
we may write (systemd's Delegate=yes, or root), the v1 controllers, or none. Every call here writes
to /sys/fs/cgroup and may wait for the host kernel (moving a process: up to 30 ms, DESIGN 3), so the
node calls it from a thread, never while a caller waits.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the Linux kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from retort.core.limits import Limits
from retort.errors import SandboxFault

PERIOD_US = 100_000  # of the CPU quota
CLEARING_ROUNDS = 10  # of moving processes that were forked while others were moved
REQUIRED = ("memory", "pids")  # without these a hierarchy is of no use to us
WANTED = ("memory", "pids", "cpu", "cpuacct")


class Mode(enum.Enum):
    """What the host gives us."""

    V2 = "v2"
    V1 = "v1"
    NONE = "none"


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What a step's group counted; None where this host does not count it.

    Attributes:
        oom_kills: processes that the host kernel killed for want of memory.
        memory_limit_hits: how often the group or its session stood at its memory limit.
        process_limit_hits: forks refused by the process limit.
    """

    memory_peak_bytes: int | None = None
    processes_peak: int | None = None
    user_us: int | None = None
    system_us: int | None = None
    oom_kills: int = 0
    memory_limit_hits: int = 0
    process_limit_hits: int = 0


class StepGroup:
    """The group of one step: its own peak, its own counters.

    Args:
        folders: by controller; v2 has the same one for all.
    """

    __slots__ = ("_earlier_hits", "_folders", "_mode")

    def __init__(self, mode: Mode, folders: Mapping[str, Path]) -> None:
        self._mode = mode
        self._folders = folders
        # The session's counters hold what earlier steps did, too.
        self._earlier_hits = _limit_hits(mode, folders)

    def add(self, pid: int) -> None:
        """Move a process of the host in; what it forks is born inside.

        Raises:
            SandboxFault: phase "cgroup"; it has ended, or the host refuses.
        """
        for folder in dict.fromkeys(self._folders.values()):
            _write(folder / "cgroup.procs", str(pid))

    def measure(self) -> Measured:
        """Read what was counted so far."""
        measured = (_measure_v2 if self._mode is Mode.V2 else _measure_v1)(self._folders)
        memory, processes = _limit_hits(self._mode, self._folders)
        return dataclasses.replace(
            measured,
            memory_limit_hits=memory - self._earlier_hits[0],
            process_limit_hits=processes - self._earlier_hits[1],
        )

    def cpu_us(self) -> int | None:
        """Give the CPU time used so far by everything in it, in microseconds."""
        measured = self.measure()
        if measured.user_us is None or measured.system_us is None:
            return None
        return measured.user_us + measured.system_us

    def kill(self) -> bool:
        """Kill everything in it at one stroke, where the host has `cgroup.kill` (Linux 5.14)."""
        if self._mode is not Mode.V2:
            return False
        try:
            (self._folders["memory"] / "cgroup.kill").write_text("1", "ascii")
        except OSError:
            return False
        return True

    def remove(self) -> bool:
        """Remove it; False while a process is still in it."""
        return _remove(self._folders.values())


class SessionGroup:
    """The group of one session: its limits hold for all of its steps and files together."""

    __slots__ = ("_folders", "_limits", "_mode")

    def __init__(self, mode: Mode, folders: Mapping[str, Path], limits: Limits) -> None:
        self._mode = mode
        self._folders = folders
        self._limits = limits

    def step(self, name: str) -> StepGroup:
        """Make the group of one step, with the session's memory and process limits.

        Raises:
            SandboxFault: phase "cgroup".
        """
        folders = {key: folder / name for key, folder in self._folders.items()}
        _make(folders.values())
        # The session's group has the same limits; the step's own make its counters tell.
        _limit(self._mode, folders, self._limits, with_cpu=False)
        return StepGroup(self._mode, folders)

    def remove(self) -> bool:
        """Remove it with what is left of its steps; False while a process is still in it."""
        inner = [
            child
            for folder in dict.fromkeys(self._folders.values())
            if folder.is_dir()
            for child in folder.iterdir()
            if child.is_dir()
        ]
        return _remove(inner) and _remove(self._folders.values())


class Groups:
    """The subtree of this server.

    Attributes:
        mode: what was found.
        controllers: what is counted and capped here, of `WANTED`.
        why_none: why there are none, in words for `retort doctor`.
    """

    def __init__(self, mode: Mode, folders: Mapping[str, Path], why_none: str = "") -> None:
        self.mode = mode
        self.controllers = frozenset(folders)
        self.why_none = why_none
        self._folders = folders

    def __repr__(self) -> str:
        return f"<Groups {self.mode.value} {sorted(self.controllers)}>"

    def session(self, name: str, limits: Limits) -> SessionGroup | None:
        """Make the group of a session; None where the host has no groups.

        Raises:
            SandboxFault: phase "cgroup".
        """
        if self.mode is Mode.NONE:
            return None
        folders = {key: folder / name for key, folder in self._folders.items()}
        _make(folders.values())
        if self.mode is Mode.V2:
            _enable(folders["memory"], self.controllers - {"cpuacct"})
        _limit(self.mode, folders, limits, with_cpu=True)
        return SessionGroup(self.mode, folders, limits)

    def sweep(self) -> None:
        """Remove the groups of sessions that an earlier server left and that are empty."""
        for folder in dict.fromkeys(self._folders.values()):
            for session in folder.iterdir():
                if session.is_dir():
                    _remove([child for child in session.iterdir() if child.is_dir()])
                    _remove([session])

    def close(self) -> None:
        """Remove the subtree, as far as it is empty."""
        self.sweep()
        _remove(self._folders.values())


_SERVER = "server"  # the server's own leaf in v2: a group with children may have no processes
_MARK = "user.retort"  # an extended attribute of a group that we divide


def find(tag: str, *, proc: Path = Path("/proc/self")) -> Groups:
    """Find where this server may have groups, by making them.

    Args:
        tag: names our subtree; the same for the same state folder, so that leftovers are found.
        proc: of this process.
    """
    try:
        mounts = _mounts((proc / "mountinfo").read_text("utf-8", "surrogateescape"))
        own = _own_groups((proc / "cgroup").read_text("utf-8", "surrogateescape"))
    except OSError as exc:
        return Groups(Mode.NONE, {}, f"cgroups cannot be read: {exc.strerror}")
    reasons = []
    for attempt in (_find_v2, _find_v1):
        try:
            return attempt(tag, mounts, own)
        except (OSError, SandboxFault) as exc:
            reasons.append(f"{attempt.__name__.removeprefix('_find_')}: {exc}")
    return Groups(Mode.NONE, {}, "; ".join(reasons))


def _mounts(mountinfo: str) -> dict[str, Path]:
    """Give where each controller is mounted; "" stands for v2 (proc_pid_mountinfo(5))."""
    found: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        kind, options = tail.split(" ")[0], tail.split(" ")[-1]
        place = Path(head.split(" ")[4])
        if kind == "cgroup2":
            found.setdefault("", place)
        elif kind == "cgroup":
            for option in options.split(","):
                if option in WANTED:
                    found.setdefault(option, place)
    return found


def _own_groups(text: str) -> dict[str, str]:
    """Give this process's group by controller; "" stands for v2 (cgroups(7))."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path.lstrip("/")
    return found


def _find_v2(tag: str, mounts: Mapping[str, Path], own: Mapping[str, str]) -> Groups:
    if "" not in mounts:
        raise SandboxFault("cgroup", "no v2 hierarchy is mounted")
    mount = mounts[""]
    tried = []
    for base in _bases_v2(mount, mount / own.get("", "")):
        try:
            return _take_v2(base, tag)
        except OSError as exc:
            tried.append(f"{base}: {exc.strerror}")
        except SandboxFault as exc:
            tried.append(exc.reason if str(base) in exc.reason else f"{base}: {exc.reason}")
    raise SandboxFault("cgroup", "; ".join(tried))


def _bases_v2(mount: Path, own: Path) -> list[Path]:
    """Give the groups that may be ours to divide, the likeliest first.

    Beside our own: the one above, when that is what we were given and an earlier server, or
    systemd's DelegateSubgroup=, put us into a leaf of it; and for root the host's root group,
    where no process has to move.
    """
    bases = [own]
    if own != mount and _is_delegated(own.parent):
        bases.insert(0, own.parent)
    if os.geteuid() == 0 and not (mount / "cgroup.type").exists():
        bases.append(mount)
    return bases


def _is_delegated(group: Path) -> bool:
    """Say whether systemd gave this group away (Delegate=; systemd's docs/CGROUP_DELEGATION).

    A user's own systemd does not say so; then a server that had the group to itself did.
    """
    for name in ("user.delegate", "trusted.delegate", _MARK):
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _take_v2(base: Path, tag: str) -> Groups:
    available = (base / "cgroup.controllers").read_text("ascii").split()
    if missing := set(REQUIRED) - set(available):
        raise SandboxFault("cgroup", f"has no {' and no '.join(sorted(missing))} controller")
    controllers = [name for name in ("memory", "pids", "cpu") if name in available]
    enabled = (base / "cgroup.subtree_control").read_text("ascii").split()
    ours = base / f"retort-{tag}"
    _make([ours])  # the first try to write: nothing has been changed if it may not be
    try:
        if to_enable := [name for name in controllers if name not in enabled]:
            _enable_beside_processes(base, to_enable)
        _enable(ours, controllers)
    except (OSError, SandboxFault):
        _remove([ours])
        raise
    # CPU time is counted by every v2 group, with or without the controller.
    return Groups(Mode.V2, dict.fromkeys([*controllers, "cpuacct"], ours))


def _enable_beside_processes(base: Path, controllers: Iterable[str]) -> None:
    """Let the children of our group have controllers: its processes must be in a leaf for that."""
    for _ in range(CLEARING_ROUNDS):
        if base.joinpath("cgroup.type").exists():  # not the host's root group, the one exception
            _clear(base)
        try:
            _enable(base, controllers)
        except SandboxFault as exc:
            if not isinstance(exc.__cause__, OSError) or exc.__cause__.errno != errno.EBUSY:
                raise
        else:
            return
    raise SandboxFault("cgroup", f"{base}: processes keep starting in it")


def _clear(base: Path) -> None:
    """Move the processes of a group that is ours into a leaf of it."""
    inside = (base / "cgroup.procs").read_text("ascii").split()
    # Those of others are moved if systemd, or a container, gave the group to us all.
    is_ours = _is_delegated(base) or _is_namespace_root(base)
    if not is_ours and set(inside) - {str(os.getpid())}:
        raise SandboxFault("cgroup", "other processes are in it (no group of our own)")
    with contextlib.suppress(OSError):
        os.setxattr(base, _MARK, b"1")
    leaf = base / _SERVER
    _make([leaf])
    for pid in inside:
        if pid == "0":
            raise SandboxFault("cgroup", "processes of another pid namespace are in it")
        try:
            (leaf / "cgroup.procs").write_text(pid, "ascii")
        except ProcessLookupError:
            continue  # it has ended
        except OSError as exc:
            raise SandboxFault("cgroup", f"{leaf}: process {pid}: {exc.strerror}") from exc


def _is_namespace_root(base: Path) -> bool:
    """Say whether this is all of /sys/fs/cgroup that a container sees."""
    return not (base.parent / "cgroup.procs").exists()


def _find_v1(tag: str, mounts: Mapping[str, Path], own: Mapping[str, str]) -> Groups:
    folders: dict[str, Path] = {}
    for controller in WANTED:
        if controller not in mounts:
            if controller in REQUIRED:
                raise SandboxFault("cgroup", f"the {controller} controller is not mounted")
            continue
        folder = mounts[controller] / own.get(controller, "") / f"retort-{tag}"
        try:
            _make([folder])
        except SandboxFault:
            if controller in REQUIRED:
                raise
            continue
        folders[controller] = folder
    with contextlib.suppress(OSError):  # the default, and all there is, since Linux 5.11
        (folders["memory"] / "memory.use_hierarchy").write_text("1", "ascii")
    return Groups(Mode.V1, folders)


def _make(folders: Iterable[Path]) -> None:
    for folder in dict.fromkeys(folders):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as exc:
            raise SandboxFault("cgroup", f"{folder}: {exc.strerror}") from exc


def _remove(folders: Iterable[Path]) -> bool:
    is_empty = True
    for folder in dict.fromkeys(folders):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            is_empty = False
    return is_empty


def _enable(folder: Path, controllers: Iterable[str]) -> None:
    _write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(controllers)))


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, "ascii")
    except OSError as exc:
        raise SandboxFault("cgroup", f"{file}: {exc.strerror}") from exc


def _limit(mode: Mode, folders: Mapping[str, Path], limits: Limits, *, with_cpu: bool) -> None:
    set_limits = _limit_v2 if mode is Mode.V2 else _limit_v1
    set_limits(folders, limits)
    quota = str(max(1000, int(limits.cpus * PERIOD_US)))
    if with_cpu and "cpu" in folders:
        if mode is Mode.V2:
            _write(folders["cpu"] / "cpu.max", f"{quota} {PERIOD_US}")
        else:
            _write(folders["cpu"] / "cpu.cfs_period_us", str(PERIOD_US))
            _write(folders["cpu"] / "cpu.cfs_quota_us", quota)


def _limit_v2(folders: Mapping[str, Path], limits: Limits) -> None:
    memory = folders["memory"]
    _write(memory / "memory.max", str(limits.memory_bytes))
    with contextlib.suppress(SandboxFault):  # a host kernel without swap has no such file
        _write(memory / "memory.swap.max", "0")
    _write(folders["pids"] / "pids.max", str(limits.processes))


def _limit_v1(folders: Mapping[str, Path], limits: Limits) -> None:
    memory = folders["memory"]
    _write(memory / "memory.limit_in_bytes", str(limits.memory_bytes))
    with contextlib.suppress(SandboxFault):  # swap is not counted on every host
        _write(memory / "memory.memsw.limit_in_bytes", str(limits.memory_bytes))
    with contextlib.suppress(SandboxFault):
        _write(memory / "memory.swappiness", "0")
    _write(folders["pids"] / "pids.max", str(limits.processes))


def _measure_v2(folders: Mapping[str, Path]) -> Measured:
    memory, pids = folders["memory"], folders["pids"]
    events = _fields(memory / "memory.events")
    cpu = _fields(memory / "cpu.stat")
    return Measured(
        memory_peak_bytes=_number(memory / "memory.peak"),
        processes_peak=_number(pids / "pids.peak"),
        user_us=cpu.get("user_usec"),
        system_us=cpu.get("system_usec"),
        oom_kills=events.get("oom_kill", 0),
    )


def _measure_v1(folders: Mapping[str, Path]) -> Measured:
    memory, pids = folders["memory"], folders["pids"]
    user_us = system_us = None
    if "cpuacct" in folders:
        user_us = _micro(_number(folders["cpuacct"] / "cpuacct.usage_user"))
        system_us = _micro(_number(folders["cpuacct"] / "cpuacct.usage_sys"))
    return Measured(
        memory_peak_bytes=_number(memory / "memory.max_usage_in_bytes"),
        processes_peak=_number(pids / "pids.peak"),
        user_us=user_us,
        system_us=system_us,
        oom_kills=_fields(memory / "memory.oom_control").get("oom_kill", 0),
    )


def _limit_hits(mode: Mode, folders: Mapping[str, Path]) -> tuple[int, int]:
    """Give how often a step or its session stood at the memory and at the process limit."""
    memory, pids = folders["memory"], folders["pids"]
    # A refused fork is counted in the step alone before Linux 6.12; later where the limit stands
    # and in all groups above it.
    processes = max(
        _fields(pids / "pids.events").get("max", 0),
        _fields(pids.parent / "pids.events").get("max", 0),
    )
    if mode is Mode.V2:
        return _fields(memory.parent / "memory.events").get("oom", 0), processes
    # With one limit for memory and for memory with swap, it is the latter that is hit.
    files = ("memory.failcnt", "memory.memsw.failcnt")
    hits = (_number(folder / file) for folder in (memory, memory.parent) for file in files)
    # Some newer kernels leave both at zero: there an OOM kill must do.
    kills = _fields(memory / "memory.oom_control").get("oom_kill", 0)
    return max(kills, sum(hit or 0 for hit in hits)), processes


def _micro(nanoseconds: int | None) -> int | None:
    return None if nanoseconds is None else nanoseconds // 1000


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _fields(file: Path) -> dict[str, int]:
    try:
        lines = file.read_text("ascii").splitlines()
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENODEV):
            return {}
        raise SandboxFault("cgroup", f"{file}: {exc.strerror}") from exc
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
