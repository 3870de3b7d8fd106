"""Capping the files of a sandbox by number, from outside of it and before its first program.

bubblewrap gives a tmpfs a size but no number of files; who may set that is the uid that made the
sandbox, from the host. `retort-init --cap-inodes` does it, as a process of its own: it enters the
sandbox's namespaces, which no thread of a server can (init/inodes.c).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from retort.errors import SandboxFault
from retort.sandbox.launcher import Launcher, Sandbox
from retort.sandbox.view import SandboxSpec, inode_caps

CAP_S = 10.0  #: it takes 1 ms


async def cap_inodes(launcher: Launcher, sandbox: Sandbox, spec: SandboxSpec) -> None:
    """Let no file system of a sandbox hold more files than its spec says.

    Raises:
        SandboxFault: phase "inodes"; this host does not allow it, or the sandbox has ended.
    """
    uid = os.geteuid() if sandbox.host_uid is None else sandbox.host_uid
    caps = [word for place, count in inode_caps(spec) for word in (place, str(count))]
    try:
        async with asyncio.timeout(CAP_S):
            code, text = await launcher.run_helper(
                sandbox, ["--cap-inodes", str(sandbox.pid), "{pidfd}", str(uid), *caps]
            )
    except (TimeoutError, OSError) as exc:
        raise SandboxFault("inodes", str(exc) or f"no end after {CAP_S:g} s") from exc
    if code != 0:
        raise SandboxFault("inodes", text or f"exit code {code}")


async def why_uncapped(launcher: Launcher, folder: Path, host_uid: int | None) -> str | None:
    """Say why this host cannot cap files by number; None if it can. Tries it on a sandbox.

    Args:
        folder: for the sandbox's socket; made, and removed again.
        host_uid: as in `SandboxSpec`.
    """
    spec = SandboxSpec("trial", host_uid=host_uid)
    try:
        sandbox = await launcher.start(spec, folder)
        try:
            await cap_inodes(launcher, sandbox, spec)
        finally:
            await launcher.kill(sandbox)
    except SandboxFault as exc:
        return exc.reason
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return None
