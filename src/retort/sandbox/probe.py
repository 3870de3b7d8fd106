"""What this host allows, found by trying, and what an operator can do about the rest."""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import errno
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from retort.sandbox.images import SEARCH_PATH

TRIAL_S = 20  #: a trial that takes longer has failed
TRIAL_UID = 65534  #: as root, trials run as nobody: any uid without a right will do
OLDEST_BWRAP = (0, 8)  #: the first with --disable-userns
TOOLS = ("bash", "gcc", "g++", "make", "python3", "setpriv")

_OPENAT2 = 437  # the same number on every architecture since 5.6
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION = 1
_AT_FDCWD = -100


class CgroupMode(enum.Enum):
    """What the server may do with control groups."""

    V2 = "v2-delegated"  #: it can make groups of its own in the unified tree, with controllers
    V1 = "v1"  #: it can make groups in the older trees
    NONE = "none"  #: it can make none


@dataclasses.dataclass(frozen=True, slots=True)
class HostFacts:
    """What the probe found.

    Attributes:
        is_root: the server runs as root, and gives each sandbox a uid of its own.
        bwrap_path: bubblewrap; None if it is not installed.
        bwrap_version: e.g. (0, 8, 0); empty if unknown.
        sandbox_problem: why a trial sandbox failed, in bubblewrap's words; None if it worked.
        kernel_release: of the host kernel.
        has_openat2, has_pidfd, has_seccomp, has_overlayfs: what the kernel offers.
        landlock_abi: 0 without.
        cgroup_mode: see there.
        cgroup_controllers: those that the server could use.
        memory_bytes, cores: of the host, as this process may use them.
        tools: paths of programs that default commands use, by name.
        core_pattern: of the host kernel; a leading "|" starts a program for each core dump.
        settings: sysctls that decide on user namespaces, where the host has them.
    """

    is_root: bool
    bwrap_path: str | None
    bwrap_version: tuple[int, ...]
    sandbox_problem: str | None
    kernel_release: str
    has_openat2: bool
    has_pidfd: bool
    has_seccomp: bool
    has_overlayfs: bool
    landlock_abi: int
    cgroup_mode: CgroupMode
    cgroup_controllers: tuple[str, ...]
    memory_bytes: int
    cores: int
    tools: Mapping[str, str]
    core_pattern: str
    settings: Mapping[str, str]

    @property
    def can_sandbox(self) -> bool:
        """Sandboxes can be made at all."""
        return (
            self.sandbox_problem is None and self.bwrap_version >= OLDEST_BWRAP and self.has_pidfd
        )


class State(enum.Enum):
    """How a wall stands on this host, in this version."""

    ENFORCED = "enforced"
    MISSING = "missing"
    PLANNED = "planned"  #: this version does not use it yet, whatever the host offers


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One wall, and what would raise it.

    Attributes:
        wall: its name.
        state: how it stands.
        why: one sentence.
        command: what an operator can run or set; "" when there is nothing to do.
    """

    wall: str
    state: State
    why: str
    command: str = ""


@functools.cache
def probe(*, trial_uid: int = TRIAL_UID) -> HostFacts:
    """Find out what this host allows; the trials take some 50 ms, the result is kept.

    Args:
        trial_uid: as root, the uid that the trials run as; a session's is the best choice.
    """
    is_root = os.geteuid() == 0
    bwrap = shutil.which("bwrap")
    mode, controllers = _cgroups()
    as_session = _as_uid(trial_uid) if is_root else ()
    return HostFacts(
        is_root=is_root,
        bwrap_path=bwrap,
        bwrap_version=bwrap_version(bwrap),
        sandbox_problem=_try_sandbox(bwrap, as_session),
        kernel_release=os.uname().release,
        has_openat2=_has_openat2(),
        has_pidfd=_has_pidfd(),
        has_seccomp="errno" in _read("/proc/sys/kernel/seccomp/actions_avail").split(),
        has_overlayfs=_try_overlayfs(as_session),
        landlock_abi=max(
            0, _syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
        ),
        cgroup_mode=mode,
        cgroup_controllers=controllers,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cores=len(os.sched_getaffinity(0)),
        tools={name: path for name in TOOLS if (path := shutil.which(name, path=SEARCH_PATH))},
        core_pattern=_read("/proc/sys/kernel/core_pattern"),
        settings=_settings(),
    )


def advice(facts: HostFacts) -> list[Finding]:
    """Say of every wall whether it stands, and which command would raise it."""
    return [
        _namespaces(facts),
        *_walls_of_bubblewrap(facts),
        _own_uids(facts),
        _paths(facts),
        *_not_used_yet(facts),
        _core_dumps(facts),
        *_toolchains(facts),
    ]


# --- advice -------------------------------------------------------------------------------------


def _namespaces(facts: HostFacts) -> Finding:
    wall = "sandbox"
    if facts.bwrap_path is None:
        return Finding(
            wall, State.MISSING, "bubblewrap is not installed.", "apt-get install bubblewrap"
        )
    if facts.bwrap_version < OLDEST_BWRAP:
        found = ".".join(map(str, facts.bwrap_version)) or "unknown"
        return Finding(
            wall,
            State.MISSING,
            f"bubblewrap is {found}, 0.8 is the oldest that can forbid namespaces inside.",
            "apt-get install bubblewrap  # of Debian 12 or newer",
        )
    if not facts.has_pidfd:
        return Finding(
            wall, State.MISSING, "The host kernel has no pidfd_open (Linux 5.3).", "uname -r"
        )
    if facts.sandbox_problem is not None:
        return Finding(
            wall, State.MISSING, f"A trial failed: {facts.sandbox_problem}", _remedy(facts)
        )
    return Finding(wall, State.ENFORCED, "A trial sandbox with all its namespaces worked.")


def _remedy(facts: HostFacts) -> str:
    """The command for a host that refuses user namespaces."""
    wanted = {
        "kernel.unprivileged_userns_clone": ("0", "1"),
        "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
        "user.max_user_namespaces": ("0", "10000"),
    }
    for name, (bad, good) in wanted.items():
        if facts.settings.get(name) == bad:
            return f"sysctl -w {name}={good}"
    return (
        "in a container: allow unshare, mount and pivot_root in its seccomp profile and an"
        " unmasked /proc (docker run --security-opt seccomp=unconfined"
        " --security-opt systempaths=unconfined)"
    )


def _walls_of_bubblewrap(facts: HostFacts) -> Iterable[Finding]:
    state = State.ENFORCED if facts.can_sandbox else State.MISSING
    yield Finding("network", state, "A namespace of its own with nothing but loopback.")
    yield Finding("capabilities", state, "None, no_new_privs, and no user namespaces inside.")
    yield Finding(
        "file sizes", state, "The file system is read-only but for tmpfs of a fixed size."
    )


def _own_uids(facts: HostFacts) -> Finding:
    wall = "own uid per session"
    if facts.is_root:
        why = "Each sandbox gets a host uid of its own."
        if "setpriv" not in facts.tools:
            why += " Without setpriv(1) that is slower."
        return Finding(wall, State.ENFORCED, why)
    return Finding(
        wall,
        State.MISSING,
        "All sandboxes have the server's uid: limits that the kernel counts by uid are shared.",
        "start retort as root",
    )


def _paths(facts: HostFacts) -> Finding:
    if facts.has_openat2:
        return Finding("openat2", State.ENFORCED, "Paths are resolved beneath the home only.")
    return Finding(
        "openat2",
        State.MISSING,
        "The kernel has no openat2 (Linux 5.6), or a container forbids it; a slower walk is used.",
        "docker run --security-opt seccomp=unconfined  # or a newer host kernel",
    )


def _not_used_yet(facts: HostFacts) -> Iterable[Finding]:
    offers = {
        CgroupMode.V2: "The host would allow it (v2, delegated).",
        CgroupMode.V1: "The host would allow it (v1).",
        CgroupMode.NONE: "The server may not make control groups.",
    }[facts.cgroup_mode]
    delegate = (
        ""
        if facts.cgroup_mode is not CgroupMode.NONE
        else ("systemctl edit retort  # [Service] Delegate=memory pids cpu")
    )
    for wall in ("memory limit", "process limit", "cpu limit"):
        yield Finding(wall, State.PLANNED, f"Control groups: not used yet. {offers}", delegate)
    yield Finding(
        "inode limit", State.PLANNED, "Not used yet: tmpfs sizes bound bytes, not file counts."
    )
    yield Finding(
        "seccomp",
        State.PLANNED,
        "Not used yet. "
        + ("The kernel offers it." if facts.has_seccomp else "The kernel does not offer it."),
    )


def _core_dumps(facts: HostFacts) -> Finding:
    if not facts.core_pattern.startswith("|"):
        return Finding("core dumps", State.ENFORCED, "Core dumps go to files, limited by rlimit.")
    return Finding(
        "core dumps",
        State.MISSING,
        "A program of the host is started for each crash, unless its core limit is exactly 1.",
        "sysctl -w kernel.core_pattern=core",
    )


def _toolchains(facts: HostFacts) -> Iterable[Finding]:
    packages = {"gcc": "gcc libc6-dev", "g++": "g++", "make": "make", "python3": "python3"}
    for tool, package in packages.items():
        if tool not in facts.tools:
            yield Finding(
                f"tool {tool}",
                State.MISSING,
                "Images that need it are not offered.",
                f"apt-get install {package}",
            )


# --- trials -------------------------------------------------------------------------------------


def bwrap_version(path: str | None) -> tuple[int, ...]:
    """Ask bubblewrap for its version; empty if it does not say."""
    if path is None:
        return ()
    match = re.search(r"(\d+(?:\.\d+)+)", _run([path, "--version"])[1])
    return tuple(map(int, match[1].split("."))) if match else ()


def _try_sandbox(bwrap: str | None, as_session: Sequence[str]) -> str | None:
    if bwrap is None:
        return "bubblewrap is not installed"
    code, text = _run(
        [
            *as_session,
            bwrap,
            *("--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1"),
            *("--new-session", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL"),
            *("--hostname", "trial", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"),
            *("--size", "4096", "--tmpfs", "/tmp", "--remount-ro", "/", "true"),  # noqa: S108
        ]
    )
    return None if code == 0 else text or f"exit code {code}"


def _try_overlayfs(as_session: Sequence[str]) -> bool:
    """Mount one in a namespace that ends with the trial."""
    script = (
        "mount -t tmpfs none /tmp && mkdir /tmp/l /tmp/u /tmp/w /tmp/m &&"
        " mount -t overlay -o lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w none /tmp/m"
    )
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    return _run([*as_session, *argv])[0] == 0


def _as_uid(uid: int) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--")


def _run(argv: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TRIAL_S,
            cwd="/",
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        return 127, str(exc)
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()[:2000]


def _syscall(number: int, *arguments: object) -> int:
    """Call the kernel by number; -errno on failure."""
    if not sys.platform.startswith("linux"):
        return -errno.ENOSYS
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    return result if result >= 0 else -ctypes.get_errno()


def _has_openat2() -> bool:
    how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, 0)
    fd = _syscall(_OPENAT2, _AT_FDCWD, b"/", ctypes.byref(how), ctypes.c_size_t(24))
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def _cgroups() -> tuple[CgroupMode, tuple[str, ...]]:
    """Make and remove a group beside our own in each tree that counts."""
    mounts = _cgroup_mounts(_read("/proc/self/mountinfo"))
    groups = dict(_own_groups(_read("/proc/self/cgroup")))
    if "" in mounts and "" in groups:
        folder = Path(mounts[""] + groups[""])
        controllers = tuple(_read(str(folder / "cgroup.controllers")).split())
        if {"memory", "pids"} <= set(controllers) and _can_make_group(folder):
            return CgroupMode.V2, controllers
    old = tuple(
        name
        for name in ("memory", "pids", "cpu", "freezer")
        if name in mounts and name in groups and _can_make_group(Path(mounts[name] + groups[name]))
    )
    return (CgroupMode.V1, old) if {"memory", "pids"} <= set(old) else (CgroupMode.NONE, ())


def _cgroup_mounts(mountinfo: str) -> dict[str, str]:
    """Where each controller's tree is mounted; "" stands for the unified one."""
    found = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = [*right.split(), "", "", ""][:3]
        place = left.split()[4]
        if kind == "cgroup2":
            found[""] = place
        elif kind == "cgroup":
            found.update(dict.fromkeys(options.split(","), place))
    return found


def _own_groups(text: str) -> Iterable[tuple[str, str]]:
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            yield name, path.rstrip("/")


def _can_make_group(folder: Path) -> bool:
    trial = folder / f"retort-probe-{os.getpid()}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError:
        return False
    return True


def _settings() -> dict[str, str]:
    names = (
        "kernel.unprivileged_userns_clone",
        "kernel.apparmor_restrict_unprivileged_userns",
        "user.max_user_namespaces",
    )
    found = {name: _read("/proc/sys/" + name.replace(".", "/")) for name in names}
    return {name: value for name, value in found.items() if value}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
