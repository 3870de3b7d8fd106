"""A folder's entries, read through its descriptor; links are not followed."""

from __future__ import annotations

import itertools
import os
import time

from retort.core.files import FileEntry

_BREATH_ENTRIES = 256  # about 1 ms


def breathe() -> None:
    """Let another thread have the interpreter.

    One that makes many short system calls hardly ever gives it up otherwise: the event loop would
    wait for the switch interval of 5 ms, and often for several.
    """
    time.sleep(20e-6)


def read_folder(fd: int, max_entries: int) -> tuple[tuple[FileEntry, ...], bool]:
    """List a folder.

    Entries that vanish while it is read are left out. Blocks: about 4 µs an entry.

    Args:
        fd: the folder, open for reading; stays open.
        max_entries: of a larger folder, so many are listed, in no order of preference.

    Returns:
        tuple: the entries sorted by name, and whether there are more.

    Raises:
        OSError: ENOTDIR, EACCES (a folder that may be read but not searched).
    """
    entries = []
    with os.scandir(fd) as found:
        for number, entry in enumerate(itertools.islice(found, max_entries)):
            if number and number % _BREATH_ENTRIES == 0:
                breathe()
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            entries.append(
                FileEntry(
                    os.fsencode(entry.name),
                    status.st_mode,
                    status.st_size,
                    status.st_ctime,
                    status.st_mtime,
                    status.st_atime,
                )
            )
        truncated = next(found, None) is not None
    entries.sort(key=_name)
    return tuple(entries), truncated


def _name(entry: FileEntry) -> bytes:
    return entry.name
