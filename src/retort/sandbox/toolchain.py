"""Which programs a build of this host can have: a value that changes when they do.

A sandbox sees the host's /usr and /opt. Reading all of it at each build would cost a second; what
is looked at here is what tells a change. A file edited in place, with none added or removed beside
it, is noticed below `DEEP` when the server starts, and everywhere else not at all.
"""

from __future__ import annotations

import hashlib
import os
import platform
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Read to the last file when the server starts: what compilers include and call.
DEEP = ("usr/include", "usr/lib/gcc", "usr/libexec/gcc", "usr/local/include", "usr/local/lib/gcc")

#: Looked at before each build: folders change when something is added, removed or replaced in
#: them, the records of package managers when anything is installed.
WATCHED = (
    *("usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/libexec", "usr/include", "opt"),
    *("var/lib/dpkg/status", "var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/Packages"),
    *("lib/apk/db/installed", "var/lib/pacman/local", "etc/ld.so.cache"),
)
#: The same, with the folders and programs in them, so many levels deep.
WATCHED_BELOW = {"usr/lib/gcc": 3, "usr/libexec/gcc": 3, "usr/local": 3, "opt": 2}
#: The same, for programs that are edited or linked by hand, links followed.
PROGRAMS = (
    *("gcc", "g++", "cc", "c++", "as", "ld", "ar", "make", "cmake", "ninja", "clang", "clang++"),
    *("bash", "sh", "python3", "java", "javac", "go", "rustc", "cargo", "node", "lua"),
)
MAX_WATCHED = 2000  #: paths; looking at one takes about a microsecond

_LOOK = struct.Struct("=QQqqq")  # device, inode, size, and times in nanoseconds


class Toolchain:
    """The identity of this host's programs.

    Args:
        root: what sandboxes see as theirs.
        base: the digest of what else they see (sandbox/rootfs.py).
    """

    def __init__(self, base: str, root: Path = Path("/")) -> None:
        self._root = root
        self._fixed = hashlib.sha256(
            b"\0".join([base.encode(), *_machine(), _deep_digest(root)])
        ).digest()
        self._watched = tuple(_watched(root))

    def identity(self) -> bytes:
        """Give the value as of now; some hundred looks at files, a fraction of a millisecond."""
        hashed = hashlib.sha256(self._fixed)
        for path in self._watched:
            hashed.update(_look(path))
        return hashed.digest()


def _machine() -> Iterable[bytes]:
    """Tell the machine apart: programs are made for it (-march=native) and can ask for it."""
    yield f"{platform.machine()} {platform.release()} {platform.version()}".encode()
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return
    told = ("model name", "cpu family", "model", "stepping", "flags", "Features", "CPU ")
    yield "\n".join(line for line in first.splitlines() if line.startswith(told)).encode()


def _look(path: str) -> bytes:
    try:
        status = os.stat(path)  # noqa: PTH116 - a thousand of them, on the way to an answer
    except OSError:
        return b"-"
    return _LOOK.pack(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def _deep_digest(root: Path) -> bytes:
    hashed = hashlib.sha256()
    for top in DEEP:
        for folder, below, files in os.walk(root / top):
            below.sort()
            for name in sorted(files):
                path = f"{folder}/{name}"
                hashed.update(os.fsencode(path) + b"\0" + _look(path))
    return hashed.digest()


def _watched(root: Path) -> Iterator[str]:
    """List what to look at, the surest first; sorted, so that the order means nothing."""
    paths = [str(root / name) for name in WATCHED]
    paths += [str(root / folder / name) for folder in ("usr/bin", "bin") for name in PROGRAMS]
    for top, levels in WATCHED_BELOW.items():
        start = str(root / top)
        for folder, below, files in os.walk(start):
            below.sort()
            paths.append(folder)
            if top != "usr/local":
                paths += [f"{folder}/{name}" for name in sorted(files)]
            if folder.count("/") - start.count("/") >= levels - 1:
                below.clear()
    return iter(paths[:MAX_WATCHED])
