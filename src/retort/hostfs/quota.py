"""Project quotas: the host kernel counts what lies in a folder, and bounds it (decision 0018).

A project is a number that directories hand on to all that is made in them; XFS, and ext4 with
`prjquota`, keep a count and limits for each. The number stands on the disk, in the directories
themselves, and nowhere else: so after a crash there is nothing to compare with.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import os
import secrets
import struct
import threading
from collections.abc import Iterable

from retort.core.vfolder import Quota

# linux/fs.h and linux/quota.h; the numbers are the same on x86-64 and arm64.
_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_FREE_EOFBLOCKS = 0x8080583A  # XFS_IOC_FREE_EOFBLOCKS, linux/fs/xfs/libxfs/xfs_fs.h
_EOFBLOCKS = struct.Struct("=6I104x")  # version, flags, user, group, project
_OF_PROJECT = 1 << 3  # XFS_EOF_FLAGS_PRID
_FSXATTR = struct.Struct("=5I8s")  # flags, extent size, extents, project, cow extent size, padding
_INHERIT = 0x200  # FS_XFLAG_PROJINHERIT
_SYS_QUOTACTL_FD = 443
_PROJECTS = 2  # PRJQUOTA
_GETQUOTA, _SETQUOTA, _XGETQSTAT = 0x800007, 0x800008, 0x5805
_DQBLK = struct.Struct("=8QI4x")  # if_dqblk
_LIMITS = 0x1 | 0x4  # QIF_BLIMITS, QIF_ILIMITS
_BLOCK = 1024  # QIF_DQBLKSIZE: bytes in which limits are said
_COUNTS_AND_BOUNDS = 0x10 | 0x20  # FS_QUOTA_PDQ_ACCT, FS_QUOTA_PDQ_ENFD
_IDS = 1 << 20
_DRAWS = 1000

_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """What a project holds: bytes on the disk, and inodes."""

    bytes: int
    inodes: int


def project_of(fd: int) -> int:
    """Give the project of what a descriptor holds; 0 for none. Raises OSError: none here."""
    return _fsxattr(fd)[3]


def set_project(fd: int, project: int) -> None:
    """Put an empty directory into a project, and all that will be made in it. Raises OSError."""
    flags, extent_size, _, _, cow_size, _ = _fsxattr(fd)
    wanted = _FSXATTR.pack(flags | _INHERIT, extent_size, 0, project, cow_size, b"")
    fcntl.ioctl(fd, _FSSETXATTR, wanted)


def held_by(fd: int, project: int) -> Held:
    """Tell what a project holds on a file system. Raises OSError."""
    said = bytearray(_DQBLK.size)
    try:
        _quotactl(fd, _GETQUOTA, project, said)
    except OSError as exc:
        if exc.errno != errno.ENOENT:  # XFS: never heard of
            raise
    _, _, space, _, _, inodes, *_ = _DQBLK.unpack(said)
    return Held(space, inodes)


def settle(fd: int, project: int) -> None:
    """Have XFS count what was removed from a project just now; blocks until that is done.

    XFS frees what was unlinked a little later (since 5.14), and until then it counts. Asked to give
    back what it reserved beyond the ends of files, it finishes that, too. Elsewhere nothing
    happens.
    """
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _FREE_EOFBLOCKS, _EOFBLOCKS.pack(1, _OF_PROJECT, 0, 0, project, 0))


def set_limits(fd: int, project: int, max_bytes: int | None, max_inodes: int | None) -> None:
    """Bound a project; None: not at all. Raises OSError."""
    blocks = 0 if max_bytes is None else -(-max_bytes // _BLOCK)
    inodes = max_inodes or 0
    said = bytearray(_DQBLK.pack(blocks, 0, 0, inodes, 0, 0, 0, 0, _LIMITS))
    _quotactl(fd, _SETQUOTA, project, said)


class Projects:
    """The projects of this server's folders on one file system; each belongs to one folder.

    Use `open_projects` to learn whether there are any. Calls may come from several threads.

    Args:
        root: a descriptor of a directory on that file system; stays open, and must.
        first: the ids are drawn from the 2^20 from here on.
    """

    def __init__(self, root: int, first: int) -> None:
        self._root = root
        self._ids = range(first, first + _IDS)
        self._used: dict[int, str] = {}
        self._lock = threading.Lock()

    def take(self, project: int, owner: str) -> bool:
        """Note whose a project is that was found on the disk; False: it is another's.

        One that is none of ours stays unknown.
        """
        with self._lock:
            return project not in self._ids or self._used.setdefault(project, owner) == owner

    def draw(self, owner: str) -> int:
        """Give a new owner a project that nothing on the file system is in.

        What was deleted but is still open counts too, so its project is not given to another.

        Raises:
            OSError: EAGAIN if no free one is found; or the disk failed.
        """
        with self._lock:
            for _ in range(_DRAWS):
                project = self._ids.start + secrets.randbelow(_IDS)
                if project not in self._used and not held_by(self._root, project).inodes:
                    self._used[project] = owner
                    return project
        raise OSError(errno.EAGAIN, "no free project id")

    def is_of(self, project: int, owner: str) -> bool:
        """Tell whether a project is an owner's, and nobody else's."""
        return self._used.get(project) == owner

    def release(self, owner: str) -> None:
        """Let go of the projects of an owner that is gone."""
        with self._lock:
            for project in [p for p, whose in self._used.items() if whose == owner]:
                del self._used[project]
                settle(self._root, project)
                with contextlib.suppress(OSError):
                    # While somebody holds its files open, they stay bound.
                    if not held_by(self._root, project).inodes:
                        set_limits(self._root, project, None, None)

    def bound(self, project: int, directories: Iterable[int], quota: Quota) -> None:
        """Set a project's limits, on top of what its own directories take. Raises OSError."""
        own = [os.fstat(fd) for fd in directories]
        max_bytes, max_inodes = quota.max_bytes, quota.max_inodes
        if max_bytes is not None:
            max_bytes += sum(status.st_blocks * 512 for status in own)
        if max_inodes is not None:
            max_inodes += len(own)
        set_limits(self._root, project, max_bytes, max_inodes)

    def held(self, project: int, directories: Iterable[int]) -> Held:
        """Tell what is in a project besides its own directories. Raises OSError."""
        own = [os.fstat(fd) for fd in directories]
        held = held_by(self._root, project)
        size = held.bytes - sum(status.st_blocks * 512 for status in own)
        return Held(max(size, 0), max(held.inodes - len(own), 0))

    def settle(self, project: int) -> None:
        """Have the host kernel count what was removed just now. Blocks."""
        settle(self._root, project)


def open_projects(root: int, first: int) -> tuple[Projects | None, str]:
    """Find out whether project quotas are in force at a directory, by asking for all of it.

    Args:
        root: a descriptor of the directory; a directory is made in it for a moment.

    Returns:
        The projects, or None and why not.
    """
    state = bytearray(256)
    name = f"trial-{secrets.token_hex(8)}"
    try:
        _quotactl(root, _XGETQSTAT, 0, state)
        if int.from_bytes(state[2:4], "little") & _COUNTS_AND_BOUNDS != _COUNTS_AND_BOUNDS:
            return None, "the file system is not mounted with prjquota"
        projects = Projects(root, first)
        os.mkdir(name, 0o700, dir_fd=root)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
            try:
                project = projects.draw(name)
                set_project(fd, project)
                projects.bound(project, [fd], Quota(1 << 20, 1))
                is_counted = held_by(root, project).inodes == 1
            finally:
                os.close(fd)
        finally:
            os.rmdir(name, dir_fd=root)
        projects.release(name)
    except OSError as exc:
        return None, f"quotactl: {exc.strerror}"
    return (projects, "") if is_counted else (None, "the file system does not count projects")


def _fsxattr(fd: int) -> tuple[int, int, int, int, int, bytes]:
    said = bytearray(_FSXATTR.size)
    fcntl.ioctl(fd, _FSGETXATTR, said)
    return _FSXATTR.unpack(said)


def _quotactl(fd: int, command: int, project: int, said: bytearray) -> None:
    room = (ctypes.c_char * len(said)).from_buffer(said)
    word = ctypes.c_uint(command << 8 | _PROJECTS)
    if _libc.syscall(_SYS_QUOTACTL_FD, fd, word, ctypes.c_uint(project), room) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
