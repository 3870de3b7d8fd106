"""Sandboxes that outlived the server which started them: found by what it wrote down."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

import structlog

from retort.errors import SandboxFault
from retort.sandbox.launcher import Identity, Launcher, Sandbox

log = structlog.get_logger()

RECORD = "identity"  # in the sandbox's folder: pid and start time of its init


def remember(sandbox: Sandbox) -> None:
    """Write down how a later server finds this sandbox."""
    text = f"{sandbox.identity.pid} {sandbox.identity.start_ticks}\n"
    (sandbox.folder / RECORD).write_text(text, "ascii")


async def end_leftovers(launcher: Launcher, sessions: Path) -> int:
    """End every sandbox that an earlier server left, and remove its folder.

    Args:
        sessions: the folder with one folder per sandbox; the server's own.

    Returns:
        How many were still alive.
    """
    ended = 0
    for folder in await asyncio.to_thread(lambda: sorted(sessions.iterdir())):
        if (sandbox := _find(launcher, folder)) is not None:
            with contextlib.suppress(SandboxFault):
                await launcher.kill(sandbox)
            ended += 1
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    if ended:
        log.warning("node.leftovers", ended=ended)
    return ended


def _find(launcher: Launcher, folder: Path) -> Sandbox | None:
    try:
        pid, start_ticks = (folder / RECORD).read_text("ascii").split()
        return launcher.adopt(Identity(int(pid), int(start_ticks)), folder)
    except (OSError, ValueError, OverflowError):  # half-made: it had not come so far
        return None
