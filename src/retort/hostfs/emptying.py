"""Removing a tree that users filled, whatever is in it and whatever they do to it meanwhile.

Flat, not deep: a folder inside is first renamed to the top, under a name of ours. So a tree of any
depth needs two descriptors, and no path is ever longer than one name. Nothing is followed, and
what a mode forbids is allowed first, through the descriptor (spec/attacks.md C3, C4).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets

from retort.core import faults
from retort.hostfs.listing import breathe

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_BREATH_ENTRIES = 64
_ROUNDS = 8  # who fills a folder faster than it is emptied wins that often
_GONE = (FileNotFoundError, NotADirectoryError)


def gone_name() -> bytes:
    """Draw a name for what is to be removed."""
    return b"gone-" + secrets.token_hex(16).encode()


def is_gone_name(name: bytes) -> bool:
    """Tell whether a name is one that `gone_name` drew."""
    return name.startswith(b"gone-")


def remove_tree(at: int, name: bytes) -> bool:
    """Remove whatever has a name in a folder that only the server sees.

    What it holds comes to lie beside it while it is emptied, under names of `gone_name`: after a
    crash these are what is left to remove. Blocks.

    Returns:
        bool: nothing is left; False: users of a mount kept filling it, or the disk failed.
    """
    todo = [name]
    rounds = 0
    while todo:
        here = todo[-1]
        below = _empty(at, here)
        faults.reached(faults.Point.EMPTYING)
        if below:
            todo += below
            continue
        try:
            os.rmdir(here, dir_fd=at)
        except NotADirectoryError:
            os.unlink(here, dir_fd=at)
        except FileNotFoundError:
            pass
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST) or rounds == _ROUNDS:
                return False
            rounds += 1
            continue
        todo.pop()
    return True


def allow(at: int, name: bytes) -> None:
    """Give the owner every right on a folder, without following a link."""
    with contextlib.suppress(OSError):
        fd = os.open(name, _PATH | os.O_DIRECTORY, dir_fd=at)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)  # noqa: PTH101 - what the descriptor holds
        finally:
            os.close(fd)


def _empty(at: int, name: bytes) -> list[bytes]:
    """Unlink all that is no folder in a folder; give the folders' new names beside it."""
    allow(at, name)
    try:
        fd = os.open(name, _FOLDER, dir_fd=at)
    except OSError:
        return []
    moved = []
    try:
        with os.scandir(fd) as listed:
            for number, entry in enumerate(listed):
                if number and number % _BREATH_ENTRIES == 0:
                    breathe()
                if (new := _take(fd, os.fsencode(entry.name), at)) is not None:
                    moved.append(new)
    finally:
        os.close(fd)
    return moved


def _take(fd: int, name: bytes, at: int) -> bytes | None:
    """Unlink an entry or, if it is a folder, move it to the top; give its new name then."""
    try:
        os.unlink(name, dir_fd=fd)
        return None
    except _GONE:
        return None
    except OSError as exc:
        if exc.errno not in (errno.EISDIR, errno.EPERM):
            return None  # rmdir will tell
    allow(fd, name)  # `..` of a folder changes too, which needs the right to write into it
    new = gone_name()
    try:
        os.rename(name, new, src_dir_fd=fd, dst_dir_fd=at)
    except OSError:
        return None
    return new
