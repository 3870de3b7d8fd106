"""Temporary names of an upload that its server did not live to finish (staging.py)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re

from retort.hostfs.beneath import RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, TreeOpener

SPARE = re.compile(r"\.retort-[0-9a-f]{16}")  #: what staging.py calls them
_RESOLVE = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS


async def clear_spares(tree: TreeOpener) -> None:
    """Remove them: what they hold was never acknowledged, or was replaced by what was.

    Raises:
        SandboxFault: init failed.
    """
    with contextlib.suppress(OSError):  # a program may forbid what it likes in its own folder
        fd = await tree.open(b".", os.O_RDONLY | os.O_DIRECTORY, 0, _RESOLVE)
        for name in await asyncio.to_thread(_spares_in, fd):
            with contextlib.suppress(OSError):
                await tree.unlink(name, directory=False, resolve=_RESOLVE)


def _spares_in(fd: int) -> list[bytes]:
    """Find them in a folder, and close it."""
    try:
        with os.scandir(fd) as entries:
            return [os.fsencode(e.name) for e in entries if SPARE.fullmatch(e.name)]
    finally:
        os.close(fd)
