"""Files that a run left under /home/work/.output (spec 5.4), found by descriptor."""

from __future__ import annotations

import itertools
import os
import stat

from retort.core.run import OutputFile
from retort.errors import SandboxFault
from retort.node.stamps import SLACK_NS
from retort.sandbox.init import InitClient

OUTPUT_DIR = b".output"
MAX_FILES = 1000
MAX_DEPTH = 16
MAX_LOOKED_AT = 20_000  # entries in all: the server does nothing else meanwhile


async def changed_since(client: InitClient, since: float) -> tuple[OutputFile, ...]:
    """List regular files made or changed since a time, in seconds since 1970.

    At most `MAX_FILES` files, `MAX_DEPTH` folders deep; names that are not UTF-8 cannot be put
    into a URL and are left out. An unreadable folder counts as empty.
    """
    try:
        root = await client.open(OUTPUT_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (OSError, SandboxFault):
        return ()
    search = _Search(since - SLACK_NS / 1e9)
    search.collect(root, "", MAX_DEPTH)
    return tuple(search.found)


class _Search:
    """One walk over a tree that a stranger made."""

    def __init__(self, since: float) -> None:
        self.found: list[OutputFile] = []
        self._since = since
        self._left = MAX_LOOKED_AT

    def collect(self, folder: int, prefix: str, depth: int) -> None:
        """Look through a folder, and close its descriptor."""
        try:
            with os.scandir(folder) as entries:
                few = list(itertools.islice(entries, self._left))
            self._left -= len(few)
            for entry in sorted(few, key=lambda e: e.name):
                if len(self.found) >= MAX_FILES:
                    return
                self._look_at(folder, entry, prefix, depth)
        except OSError:
            return
        finally:
            os.close(folder)

    def _look_at(self, folder: int, entry: os.DirEntry[str], prefix: str, depth: int) -> None:
        try:
            entry.name.encode()
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and status.st_ctime >= self._since:
                self.found.append(OutputFile(prefix + entry.name))
            elif stat.S_ISDIR(status.st_mode) and depth:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
                inner = os.open(entry.name, flags, dir_fd=folder)
                self.collect(inner, f"{prefix}{entry.name}/", depth - 1)
        except (OSError, UnicodeEncodeError):  # vanished, unreadable, or not UTF-8
            return
