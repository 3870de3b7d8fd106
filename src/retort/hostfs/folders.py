"""Trees of the server's own (virtual folders), opened by the same rule as session files.

A FolderTree resolves every path from a descriptor of its root by openat2(2), so that what users
put into the tree cannot lead out of it. Where that call is missing (gVisor, Linux before 5.6) a
walk that opens one component at a time without following takes its place. System calls are made
directly in the event loop: each is short, and none waits for a FIFO or a terminal.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat

from retort.hostfs.beneath import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
)

_SYS_OPENAT2 = 437  # the same on every architecture
_LINKS_MAX = 40  # MAXSYMLINKS of the host kernel
_ALWAYS = os.O_CLOEXEC
_NEVER_WAIT = os.O_NONBLOCK | os.O_NOCTTY
_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(dir_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """Open as the kernel's openat2, which Python lacks. Raises OSError."""
    how = _OpenHow(flags, mode, resolve)
    fd: int = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if fd < 0:
        raise _error(path)
    return fd


def renameat2(src_fd: int, src: bytes, dst_fd: int, dst: bytes, flags: int) -> None:
    """Rename as the kernel's renameat2, which Python lacks. Raises OSError."""
    if _libc.renameat2(src_fd, src, dst_fd, dst, ctypes.c_uint(flags)) < 0:
        raise _error(src)


def has_openat2() -> bool:
    """Ask the kernel once; a seccomp filter of a container counts as missing."""
    try:
        os.close(openat2(-100, b".", os.O_PATH | os.O_CLOEXEC, 0, 0))  # -100: AT_FDCWD
    except OSError as exc:
        if exc.errno in (errno.ENOSYS, errno.EPERM):
            return False
        raise
    return True


class FolderTree:
    """A TreeOpener on a descriptor of a folder's root.

    Args:
        root_fd: a directory opened O_RDONLY or O_PATH; stays the caller's, who closes it last.
        owner: user and group that made directories get; None: whoever runs the server.
        walk: never use openat2, even where it exists.
    """

    def __init__(
        self, root_fd: int, *, owner: tuple[int, int] | None = None, walk: bool = False
    ) -> None:
        self._root = root_fd
        self._owner = owner
        self._walks = walk or not has_openat2()

    async def open(self, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
        """Open as TreeOpener says."""
        resolve |= RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
        # O_TMPFILE contains O_DIRECTORY, but always comes with write access.
        if flags & _CHANGES and not flags & os.O_PATH:
            resolve |= RESOLVE_NO_SYMLINKS
        # openat2 refuses O_PATH with flags that it would ignore.
        flags |= _ALWAYS if flags & os.O_PATH else _ALWAYS | _NEVER_WAIT
        return self._open(path, flags, mode, resolve)

    async def mkdirs(self, path: bytes, mode: int, resolve: int = 0) -> int:
        """Make directories as TreeOpener says; the process's umask applies."""
        made: list[bytes] = []
        names = _names(path)
        parent = os.dup(self._root)
        try:
            for index, name in enumerate(names):
                known = len(made)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, mode, dir_fd=parent)
                    made.append(b"/".join(names[: index + 1]))
                child = self._folder(name, resolve, at=parent)
                os.close(parent)
                parent = child
                if self._owner is not None and len(made) > known:
                    # By /proc, because a descriptor of O_PATH takes no fchown.
                    os.chown(f"/proc/self/fd/{child}", *self._owner)
        except OSError:
            for folder in reversed(made):
                with contextlib.suppress(OSError):
                    await self.unlink(folder, directory=True, resolve=resolve)
            raise
        finally:
            os.close(parent)
        return len(made)

    async def link(self, fd: int, path: bytes, resolve: int = 0) -> None:
        """Name an unnamed file as TreeOpener says."""
        parent, name = self._parent(path, resolve)
        try:
            # By /proc, because AT_EMPTY_PATH wants a capability before Linux 6.10 (linkat(2)).
            os.link(f"/proc/self/fd/{fd}".encode(), name, dst_dir_fd=parent, follow_symlinks=True)
        finally:
            os.close(parent)

    async def rename(self, src: bytes, dst: bytes, flags: int = 0, resolve: int = 0) -> None:
        """Rename as TreeOpener says."""
        src_parent, src_name = self._parent(src, resolve)
        try:
            dst_parent, dst_name = self._parent(dst, resolve)
            try:
                renameat2(src_parent, src_name, dst_parent, dst_name, flags)
            finally:
                os.close(dst_parent)
        finally:
            os.close(src_parent)

    async def unlink(self, path: bytes, *, directory: bool = False, resolve: int = 0) -> None:
        """Remove a name as TreeOpener says."""
        parent, name = self._parent(path, resolve)
        try:
            if directory:
                os.rmdir(name, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)
        finally:
            os.close(parent)

    def _parent(self, path: bytes, resolve: int) -> tuple[int, bytes]:
        """Open the folder of a path's last name, without following anything."""
        *above, name = _names(path)
        return self._folder(b"/".join(above) or b".", resolve), name

    def _folder(self, path: bytes, resolve: int, at: int | None = None) -> int:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        resolve |= RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
        return self._open(path, flags, 0, resolve, at)

    def _open(self, path: bytes, flags: int, mode: int, resolve: int, at: int | None = None) -> int:
        root = self._root if at is None else at
        if self._walks:
            return _walk(root, path, flags, mode, resolve)
        return openat2(root, path, flags, mode, resolve)


def _names(path: bytes) -> list[bytes]:
    """Split the path of a change; EINVAL unless every component is a plain name."""
    names = path.split(b"/")
    if any(name in (b"", b".", b"..") for name in names):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return names


def _walk(root: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """Open like openat2 with RESOLVE_BENEATH, one component at a time.

    It cannot see a folder that is moved out of the root after it was opened here; the system
    call can (spec/attacks.md, notes on mitigation). Holds two descriptors at most.
    """
    if path.startswith(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    todo = [name for name in path.split(b"/") if name not in (b"", b".")]
    done: list[bytes] = []  # real folders between the root and `here`
    links = 0
    here = os.dup(root)
    mount = _mount_id(root) if resolve & RESOLVE_NO_XDEV else -1
    try:
        while todo:
            name = todo.pop(0)
            if name == b"..":
                if not done:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
                done.pop()
                todo[:0] = done
                done.clear()
                here = _replace(here, os.dup(root))
                continue
            keep_link = not todo and flags & os.O_PATH and flags & os.O_NOFOLLOW
            try:
                seen = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            except FileNotFoundError:
                if todo or not flags & os.O_CREAT:
                    raise
                return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=here)
            try:
                if mount >= 0 and _mount_id(seen) != mount:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
                kind = os.fstat(seen).st_mode
                if stat.S_ISLNK(kind) and not keep_link:
                    links += 1
                    no_follow = not todo and flags & os.O_NOFOLLOW
                    if links > _LINKS_MAX or no_follow or resolve & RESOLVE_NO_SYMLINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    target = os.readlink(b"", dir_fd=seen)
                    if target.startswith(b"/"):
                        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
                    todo[:0] = [part for part in target.split(b"/") if part not in (b"", b".")]
                    continue
                if not todo:
                    # Opened again by name: what replaced it meanwhile is still of this folder,
                    # and a link is not followed.
                    return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=here)
                if not stat.S_ISDIR(kind):
                    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                done.append(name)
                here, seen = seen, here
            finally:
                os.close(seen)
        return os.open(b".", flags, mode, dir_fd=here)
    finally:
        os.close(here)


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:  # noqa: PTH123 - a file of the kernel's
        for line in lines:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    raise OSError(errno.ENOSYS, "no mnt_id in fdinfo")


def _error(path: bytes) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path)
