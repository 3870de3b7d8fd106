"""Counting what a folder holds, in bounded time and with few descriptors."""

from __future__ import annotations

import contextlib
import os

from retort.core.vfolder import FolderUsage
from retort.hostfs.listing import breathe

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BREATH_ENTRIES = 64
_DEPTH = 64  # descriptors held at once; what is nested deeper is not counted


def count_tree(root: int, max_entries: int) -> FolderUsage:
    """Count files, directories and everything else below a folder; links are not followed. Blocks.

    Args:
        root: a descriptor open for reading; stays open.
        max_entries: counting ends there, and the result says so.
    """
    entries = size = 0
    is_whole = True
    stack = [os.scandir(root)]
    fds: list[int] = []
    try:
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop().close()
                if fds:
                    os.close(fds.pop())
                continue
            if entries >= max_entries:
                is_whole = False
                break
            entries += 1
            if entries % _BREATH_ENTRIES == 0:
                breathe()
            with contextlib.suppress(OSError):
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    if len(fds) == _DEPTH:
                        is_whole = False
                        continue
                    here = fds[-1] if fds else root
                    fd = os.open(os.fsencode(entry.name), _FOLDER, dir_fd=here)
                    fds.append(fd)
                    stack.append(os.scandir(fd))
    finally:
        for scan in stack:
            scan.close()
        for fd in fds:
            os.close(fd)
    return FolderUsage(size, entries, is_whole)
