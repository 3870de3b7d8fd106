"""Files that a run left under /home/work/.output (spec 5.4), found by descriptor."""

from __future__ import annotations

import os
import stat

from retort.core.run import OutputFile
from retort.sandbox.init import InitClient

OUTPUT_DIR = b".output"
MAX_FILES = 1000
MAX_DEPTH = 16
CLOCK_SLACK_S = 0.020  # a tmpfs stamps files with the tick's clock, which lags the real one


async def changed_since(client: InitClient, since: float) -> tuple[OutputFile, ...]:
    """List regular files made or changed since a time, in seconds since 1970.

    At most `MAX_FILES` files, `MAX_DEPTH` folders deep; names that are not UTF-8 cannot be put
    into a URL and are left out. An unreadable folder counts as empty.
    """
    try:
        root = await client.open(OUTPUT_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return ()
    found: list[OutputFile] = []
    _collect(root, "", since - CLOCK_SLACK_S, found, MAX_DEPTH)
    return tuple(found)


def _collect(folder: int, prefix: str, since: float, found: list[OutputFile], depth: int) -> None:
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if len(found) >= MAX_FILES:
                    return
                _look_at(folder, entry, prefix, since, found, depth)
    except OSError:
        return
    finally:
        os.close(folder)


def _look_at(
    folder: int,
    entry: os.DirEntry[str],
    prefix: str,
    since: float,
    found: list[OutputFile],
    depth: int,
) -> None:
    try:
        entry.name.encode()
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode) and status.st_ctime >= since:
            found.append(OutputFile(prefix + entry.name))
        elif stat.S_ISDIR(status.st_mode) and depth:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
            inner = os.open(entry.name, flags, dir_fd=folder)
            _collect(inner, f"{prefix}{entry.name}/", since, found, depth - 1)
    except (OSError, UnicodeEncodeError):  # vanished, unreadable, or not UTF-8
        return
