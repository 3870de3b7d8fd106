"""Control groups: what a session may use, counted and capped by the host kernel.

One group per session (session_group.py). Found by trying, never by names alone: a v2 subtree that
we may write (systemd's Delegate=yes, or root), the v1 controllers, or none. Every call here writes
to /sys/fs/cgroup and may wait for the host kernel (moving a process: up to 30 ms, DESIGN 3), so the
node calls it from a thread, never while a caller waits.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the Linux kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from retort.core.limits import Limits
from retort.errors import SandboxFault
from retort.sandbox.session_group import (
    Mode,
    SessionGroup,
    make,
    make_session_group,
    remove,
    write,
)

CLEARING_ROUNDS = 10  # of moving processes that were forked while others were moved
REQUIRED = ("memory", "pids")  # without these a hierarchy is of no use to us
WANTED = ("memory", "pids", "cpu", "cpuacct")


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
        self._made: set[str] | None = set()  # by this server, until the first sweep

    def __repr__(self) -> str:
        return f"<Groups {self.mode.value} {sorted(self.controllers)}>"

    def session(self, name: str, limits: Limits) -> SessionGroup | None:
        """Make the group of a session; None where the host has no groups.

        Raises:
            SandboxFault: phase "cgroup".
        """
        if self.mode is Mode.NONE:
            return None
        if self._made is not None:
            self._made.add(name)  # before there is anything that a sweep could see
        folders = {key: folder / name for key, folder in self._folders.items()}
        return make_session_group(self.mode, folders, limits)

    def oom_kills(self, name: str) -> int:
        """Count what the host kernel killed in a session's group for want of memory."""
        folders = {key: folder / name for key, folder in self._folders.items()}
        if self.mode is Mode.NONE or not folders["memory"].is_dir():
            return 0
        return SessionGroup(self.mode, folders).counted.oom_kills

    def sweep(self) -> None:
        """Remove the groups of sessions that an earlier server left and that are empty.

        Not those that this one made since its start: they are empty until their init is moved in.
        """
        own = self._made or ()
        for folder in dict.fromkeys(self._folders.values()):
            left = [session for session in folder.iterdir() if session.is_dir()]
            remove([session for session in left if session.name not in own])
        self._made = None

    def close(self) -> None:
        """Remove the subtree, as far as it is empty."""
        self._made = None
        self.sweep()
        remove(self._folders.values())


_SERVER = "server"  # the server's own leaf in v2: a group with children may have no processes
_MARK = "user.retort"  # an extended attribute of a group that we divide


def find(tag: str, *, named: str | None = None, proc: Path = Path("/proc/self")) -> Groups:
    """Find where this server may have groups, by making them.

    Args:
        tag: names our subtree; the same for the same state folder, so that leftovers are found.
        named: a v2 group that is ours to divide, for sessions that outlive the service beside it
            (docs/decisions/0017): below the mount point, or from our own group when it begins
            with "..". Of no meaning on a host whose controllers are not v2's.
        proc: of this process.

    Raises:
        SandboxFault: phase "cgroup"; the named group cannot be used.
    """
    try:
        mounts = _mounts((proc / "mountinfo").read_text("utf-8", "surrogateescape"))
        own = _own_groups((proc / "cgroup").read_text("utf-8", "surrogateescape"))
    except OSError as exc:
        return Groups(Mode.NONE, {}, f"cgroups cannot be read: {exc.strerror}")
    if named is not None and (mount := mounts.get("")) is not None and _has_controllers(mount):
        return _take_named(mount, own.get("", ""), named, tag)
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


def _has_controllers(mount: Path) -> bool:
    with contextlib.suppress(OSError):
        return set(REQUIRED) <= set((mount / "cgroup.controllers").read_text("ascii").split())
    return False


def _take_named(mount: Path, own: str, named: str, tag: str) -> Groups:
    """Take the group that the settings name, or say what is wrong with it."""
    base = Path(os.path.normpath(mount / own / named if named.startswith("..") else mount / named))
    if not base.is_relative_to(mount):
        raise SandboxFault("cgroup", f"sandbox.group: {named} is not below {mount}")
    try:
        groups = _take_v2(base, tag, is_ours=True)
    except OSError as exc:
        raise SandboxFault("cgroup", f"sandbox.group: {base}: {exc.strerror}") from exc
    # A process may be moved by who may write to the group that has both its old and its new one.
    above = Path(os.path.commonpath([mount / own, base])) / "cgroup.procs"
    if not os.access(above, os.W_OK):
        groups.close()
        raise SandboxFault(
            "cgroup", f"sandbox.group: no process can be moved into {base}: {above} is not ours"
        )
    return groups


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


def _take_v2(base: Path, tag: str, *, is_ours: bool = False) -> Groups:
    available = (base / "cgroup.controllers").read_text("ascii").split()
    if missing := set(REQUIRED) - set(available):
        raise SandboxFault("cgroup", f"has no {' and no '.join(sorted(missing))} controller")
    controllers = [name for name in ("memory", "pids", "cpu") if name in available]
    enabled = (base / "cgroup.subtree_control").read_text("ascii").split()
    ours = base / f"retort-{tag}"
    make([ours])  # the first try to write: nothing has been changed if it may not be
    try:
        if to_enable := [name for name in controllers if name not in enabled]:
            _enable_beside_processes(base, to_enable, is_ours=is_ours)
        _enable(ours, controllers)
    except (OSError, SandboxFault):
        remove([ours])
        raise
    # CPU time is counted by every v2 group, with or without the controller.
    return Groups(Mode.V2, dict.fromkeys([*controllers, "cpuacct"], ours))


def _enable_beside_processes(base: Path, controllers: Iterable[str], *, is_ours: bool) -> None:
    """Let the children of our group have controllers: its processes must be in a leaf for that."""
    for _ in range(CLEARING_ROUNDS):
        if base.joinpath("cgroup.type").exists():  # not the host's root group, the one exception
            _clear(base, is_ours=is_ours)
        try:
            _enable(base, controllers)
        except SandboxFault as exc:
            if not isinstance(exc.__cause__, OSError) or exc.__cause__.errno != errno.EBUSY:
                raise
        else:
            return
    raise SandboxFault("cgroup", f"{base}: processes keep starting in it")


def _clear(base: Path, *, is_ours: bool) -> None:
    """Move the processes of a group that is ours into a leaf of it."""
    inside = (base / "cgroup.procs").read_text("ascii").split()
    # Those of others are moved if systemd, or a container, gave the group to us all.
    is_ours = is_ours or _is_delegated(base) or _is_namespace_root(base)
    if not is_ours and set(inside) - {str(os.getpid())}:
        raise SandboxFault("cgroup", "other processes are in it (no group of our own)")
    with contextlib.suppress(OSError):
        os.setxattr(base, _MARK, b"1")
    leaf = base / _SERVER
    make([leaf])
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
            make([folder])
        except SandboxFault:
            if controller in REQUIRED:
                raise
            continue
        folders[controller] = folder
    with contextlib.suppress(OSError):  # the default, and all there is, since Linux 5.11
        (folders["memory"] / "memory.use_hierarchy").write_text("1", "ascii")
    return Groups(Mode.V1, folders)


def _enable(folder: Path, controllers: Iterable[str]) -> None:
    write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(controllers)))
