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

from retort.sandbox.cgroup import find
from retort.sandbox.images import SEARCH_PATH
from retort.sandbox.seccomp import is_available
from retort.sandbox.session_group import Mode

TRIAL_S = 20  #: a trial that takes longer has failed
TRIAL_UID = 65534  #: as root, trials run as nobody: any uid without a right will do
OLDEST_BWRAP = (0, 8)  #: the first with --disable-userns
TOOLS = ("bash", "gcc", "g++", "make", "python3", "setpriv")

_OPENAT2 = 437  # the same number on every architecture since 5.6
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION = 1
_AT_FDCWD = -100


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
        has_libseccomp: the library that compiles filters is there.
        landlock_abi: 0 without.
        cgroup_mode: what a server started as this process was gets; NONE until `with_groups`.
        cgroup_controllers: those that it uses.
        cgroup_problem: why there are none.
        inode_problem: why files cannot be capped by number; None if they can (inodes.py tries it).
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
    has_libseccomp: bool
    has_overlayfs: bool
    landlock_abi: int
    memory_bytes: int
    cores: int
    tools: Mapping[str, str]
    core_pattern: str
    settings: Mapping[str, str]
    cgroup_mode: Mode = Mode.NONE
    cgroup_controllers: tuple[str, ...] = ()
    cgroup_problem: str = ""
    inode_problem: str | None = "not tried"

    @property
    def can_sandbox(self) -> bool:
        """Sandboxes can be made at all."""
        return (
            self.sandbox_problem is None and self.bwrap_version >= OLDEST_BWRAP and self.has_pidfd
        )

    @property
    def counts_processes(self) -> bool:
        """RLIMIT_NPROC counts one sandbox: by its own uid, or since Linux 5.14 by its namespace."""
        numbers = re.match(r"(\d+)\.(\d+)", self.kernel_release)
        is_young = numbers is not None and (int(numbers[1]), int(numbers[2])) >= (5, 14)
        return self.is_root or is_young


class State(enum.Enum):
    """How a wall stands on this host."""

    ENFORCED = "enforced"
    MISSING = "missing"


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
        has_libseccomp=is_available(),
        has_overlayfs=_try_overlayfs(as_session),
        landlock_abi=max(
            0, _syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
        ),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cores=len(os.sched_getaffinity(0)),
        tools={name: path for name in TOOLS if (path := shutil.which(name, path=SEARCH_PATH))},
        core_pattern=_read("/proc/sys/kernel/core_pattern"),
        settings=_settings(),
    )


def with_groups(facts: HostFacts) -> HostFacts:
    """Find out about control groups as a server does: by making them; they are removed again.

    Not a part of `probe`: where the host wants that, it moves this process into a leaf.
    """
    groups = find(f"probe-{os.getpid()}")
    try:
        return dataclasses.replace(
            facts,
            cgroup_mode=groups.mode,
            cgroup_controllers=tuple(sorted(groups.controllers)),
            cgroup_problem=groups.why_none,
        )
    finally:
        groups.close()


def advice(facts: HostFacts) -> list[Finding]:
    """Say of every wall whether it stands, and which command would raise it."""
    return [
        _namespaces(facts),
        *_walls_of_bubblewrap(facts),
        _own_uids(facts),
        _paths(facts),
        _inodes(facts),
        *_groups(facts),
        _seccomp(facts),
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
        return Finding(wall, State.ENFORCED, "Each sandbox gets a host uid of its own.")
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


def _inodes(facts: HostFacts) -> Finding:
    wall = "inode limit"
    if facts.inode_problem is None:
        return Finding(wall, State.ENFORCED, "Each writable place holds a fixed number of files.")
    why = f"Files are not capped by number: {facts.inode_problem}."
    if "memory" in facts.cgroup_controllers:
        return Finding(wall, State.ENFORCED, f"{why} They count as memory of their session.")
    return Finding(wall, State.MISSING, why, _remedy(facts))


def _groups(facts: HostFacts) -> Iterable[Finding]:
    """Judge what control groups cap and count."""
    by = f"by control groups ({facts.cgroup_mode.value})"
    why_not = f"No control group for it: {facts.cgroup_problem or 'its controller is missing'}."
    walls = {
        "memory limit": ("memory", f"Of a session, {by}; a verdict names it."),
        "process limit": ("pids", f"Of a session, {by}; a verdict names it."),
        "cpu limit": ("cpu", f"Of a session, {by}."),
        "cpu time": ("cpuacct", f"Counted over all processes of a step, {by}."),
    }
    for wall, (controller, why) in walls.items():
        if controller in facts.cgroup_controllers:
            yield Finding(wall, State.ENFORCED, why)
        elif wall == "process limit" and facts.counts_processes:
            why = "By rlimit, counted for each sandbox; no verdict names it."
            yield Finding(wall, State.ENFORCED, why)
        else:
            yield Finding(wall, State.MISSING, why_not, _delegation(facts))


def _delegation(facts: HostFacts) -> str:
    """The command that lets a server make control groups."""
    if facts.cgroup_mode is not Mode.NONE:
        return "systemctl edit retort  # [Service] Delegate=yes"
    if facts.is_root:
        return (
            "systemctl edit retort  # [Service] Delegate=yes;"
            " in a container: a writable /sys/fs/cgroup"
        )
    return "systemctl edit retort  # [Service] Delegate=yes; or start retort as root"


def _seccomp(facts: HostFacts) -> Finding:
    wall = "seccomp"
    if not facts.has_seccomp:
        return Finding(
            wall,
            State.MISSING,
            "The host kernel offers no filters of system calls.",
            "uname -r  # a kernel with CONFIG_SECCOMP_FILTER",
        )
    if not facts.has_libseccomp:
        return Finding(
            wall,
            State.MISSING,
            "libseccomp, which compiles the filter, is not installed: programs run unfiltered.",
            "apt-get install libseccomp2",
        )
    return Finding(wall, State.ENFORCED, "Programs run under a deny-list of system calls.")


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
