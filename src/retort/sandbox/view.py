"""What a sandbox looks like from inside: namespaces, mounts and the order they come in.

Pure: from a spec to bubblewrap's arguments. Who runs them is launcher.py.

Source: bwrap(1); DESIGN 3.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from retort.sandbox.rootfs import HOME, USER_ID, Base

MIB = 2**20

RESOLV_CONF = "/etc/resolv.conf"
INIT = "/.retort/init"  #: init's path inside; the folder is root's only child not known from Debian

MASKED = (
    "/proc/keys",  # kernel keyrings are not in any namespace but the user's
    "/proc/key-users",
    "/proc/kcore",
    "/proc/timer_list",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/config.gz",
    "/proc/kallsyms",
    "/proc/modules",
)  #: host-wide files of /proc, shown as empty where the host has them

USR_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  #: links into /usr on a merged host


@dataclass(frozen=True, slots=True)
class Mount:
    """A host folder seen inside a sandbox; put there by mounts.py.

    Args:
        source: a folder of the server's own, that nobody else can replace; absolute.
        destination: absolute, inside.
        below: the folder in `source` that is meant, by relative path.
        read_only: no write, whatever the modes say.
    """

    source: Path
    destination: str
    below: str = "."
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What one sandbox looks like from inside.

    Args:
        hostname: of its own uts namespace.
        scratch_bytes: size of the tmpfs at `/home/work`; whole pages, memory of the host.
        tmp_bytes: size of each of `/tmp` and `/var/tmp`.
        shm_bytes: size of `/dev/shm`.
        scratch_inodes: files and folders in `/home/work`; set by inodes.py, as bubblewrap cannot.
        tmp_inodes: in each of `/tmp`, `/var/tmp` and `/dev/shm`.
        mounts: folders of the host; here their places are made, mounts.py fills them.
        host_uid: the kernel's uid (and gid) of everything inside; a must for a server that is
            root, and impossible for any other, whose sandboxes have its own uid.
        shares_network: programs have the host's network, all of it; for trusted use only.
    """

    hostname: str
    scratch_bytes: int = 1024 * MIB
    tmp_bytes: int = 64 * MIB
    shm_bytes: int = 64 * MIB
    scratch_inodes: int = 131_072
    tmp_inodes: int = 16_384
    mounts: tuple[Mount, ...] = ()
    host_uid: int | None = None
    shares_network: bool = False


class Handed(NamedTuple):
    """Descriptors that a sandbox inherits: their numbers are part of the command line."""

    listener: int  #: init's listening socket
    ready: int  #: a pipe's end that nobody has open once init runs
    info: int  #: bubblewrap writes init's pid here
    filter: int = -1  #: the system call filter of programs, as a file; -1: none

    @property
    def fds(self) -> tuple[int, ...]:
        """All that are there."""
        return tuple(fd for fd in self if fd >= 0)


def view(
    spec: SandboxSpec,
    handed: Handed,
    base: Base,
    *,
    system: Iterable[str],
    masks: Iterable[str],
) -> list[str]:
    """Build bubblewrap's arguments; the order of mounts matters, later ones cover.

    Args:
        spec: how the sandbox shall look.
        handed: descriptors that it inherits.
        base: the shared files.
        system: mounts of the host's programs, from `system_mounts`.
        masks: mounts over what must not be read, from `masks_of`.
    """
    user = str(USER_ID)
    return [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1"),
        *(("--share-net",) if spec.shares_network else ()),
        *("--new-session", "--uid", user, "--gid", user, "--hostname", spec.hostname),
        *("--clearenv", "--cap-drop", "ALL", "--info-fd", str(handed.info)),
        *system,
        *("--ro-bind", str(base.etc), "/etc"),
        # With the host's network its name servers; the base has an empty file in that place.
        *(("--ro-bind-try", RESOLV_CONF, RESOLV_CONF) if spec.shares_network else ()),
        *("--perms", "0755", "--dir", os.path.dirname(INIT)),  # noqa: PTH120 - not a host path
        *("--ro-bind", str(base.init), INIT),
        *("--proc", "/proc"),
        *masks,
        # bubblewrap's /dev is a tmpfs without a size: nothing may be written into it.
        *("--dev", "/dev", *_tmpfs("/dev/shm", spec.shm_bytes, "1777")),  # noqa: S108
        *("--remount-ro", "/dev"),
        *("--dir", "/run", "--perms", "0755", "--dir", "/var", "--symlink", "/run", "/var/run"),
        *_tmpfs("/tmp", spec.tmp_bytes, "1777"),  # noqa: S108 - a mount point
        *_tmpfs("/var/tmp", spec.tmp_bytes, "1777"),  # noqa: S108
        *("--perms", "0755", "--dir", os.path.dirname(HOME)),  # noqa: PTH120
        *_tmpfs(HOME, spec.scratch_bytes, "0755"),
        *_places(spec.mounts),
        *("--remount-ro", "/", "--chdir", HOME),
        *("--", INIT, str(handed.listener)),
        *(("--filter", str(handed.filter)) if handed.filter >= 0 else ()),
    ]


def inode_caps(spec: SandboxSpec) -> list[tuple[str, int]]:
    """Say how many files each writable place may hold, its own folder included."""
    small = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - mount points
    return [(HOME, spec.scratch_inodes), *((place, spec.tmp_inodes) for place in small)]


def system_mounts(root: Path = Path("/")) -> tuple[str, ...]:
    """Say how the host's programs appear inside: `/usr`, what leads into it, and `/opt`.

    `/bin`, `/lib` and their kind are links on a merged host and folders on an older one.
    """
    argv = ["--ro-bind", str(root / "usr"), "/usr"]
    for name in USR_LINKS:
        path = root / name
        if path.is_symlink():
            argv += ["--symlink", str(path.readlink()), f"/{name}"]
        elif path.is_dir():
            argv += ["--ro-bind", str(path), f"/{name}"]
    if (root / "opt").is_dir():
        argv += ["--ro-bind", str(root / "opt"), "/opt"]
    return tuple(argv)


def _tmpfs(place: str, size_bytes: int, mode: str) -> tuple[str, ...]:
    return ("--size", str(size_bytes), "--perms", mode, "--tmpfs", place)


def masks_of(base: Base) -> Iterator[str]:
    """Cover the host-wide files of /proc that this host has with an empty one.

    Not those that only the host's root may read: no sandbox has its uid, and a mount takes 0.2 ms.
    """
    for place in map(Path, MASKED):
        if place.exists() and place.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
            yield from ("--ro-bind", str(base.empty), str(place))


def _places(mounts: Sequence[Mount]) -> Iterator[str]:
    """Make the mount points; a missing parent is made too."""
    for mount in mounts:
        yield from ("--perms", "0755", "--dir", mount.destination)
