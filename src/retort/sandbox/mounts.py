"""Mounting folders of the host into a new sandbox, from outside of it and before its first program.

bubblewrap 0.8 binds paths, which it resolves as the sandbox's uid, and maps no ids. So it only
makes the places, and `retort-init --mount` does the rest, as a process of its own (init/mounts.c).
A mount belongs to the sandbox's namespace alone: it ends with it, and the host never has it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from retort.errors import SandboxFault, VFolderOperation
from retort.sandbox.launcher import Launcher, Sandbox
from retort.sandbox.view import Mount, SandboxSpec

MOUNT_S = 10.0  #: it takes 2 ms
_GONE = 3  # MOUNT_GONE of init/init.h
MAX_MOUNTS = 64  #: of one sandbox; MOUNTS_MAX of init/mounts.c


async def mount_folders(
    launcher: Launcher, sandbox: Sandbox, mounts: Sequence[Mount], owner: int | None = None
) -> None:
    """Mount folders into a sandbox whose spec had them, and whose init has started nothing yet.

    Args:
        mounts: those of the spec.
        owner: uid and gid that own the files on the disk, shown as the sandbox's own; None: they
            are shown as they are.

    Raises:
        SandboxFault: phase "mounts"; this host does not allow it, or the sandbox has ended.
        VFolderOperation: a folder is not there, or not one any more: users may change that until
            the moment it is opened.
    """
    if not mounts:
        return
    uid = os.geteuid() if sandbox.host_uid is None else sandbox.host_uid
    words = [str(sandbox.pid), "{pidfd}", str(uid), "-" if owner in (None, uid) else str(owner)]
    for mount in mounts:
        access = "ro" if mount.read_only else "rw"
        words += [access, str(mount.source), mount.below, mount.destination]
    try:
        async with asyncio.timeout(MOUNT_S):
            code, text = await launcher.run_helper(sandbox, ["--mount", *words])
    except (TimeoutError, OSError) as exc:
        raise SandboxFault("mounts", str(exc) or f"no end after {MOUNT_S:g} s") from exc
    if code == _GONE:
        raise VFolderOperation("A folder was taken away while the session was being made.")
    if code != 0:
        raise SandboxFault("mounts", text or f"exit code {code}")


async def why_unmountable(
    launcher: Launcher, folder: Path, trial: Path, host_uid: int | None, owner: int | None
) -> str | None:
    """Say why folders at a place of this host cannot be mounted so; None if they can. Tries it.

    Args:
        folder: on the file system of the folders; a trial folder is made in it, and removed.
        trial: for the sandbox's socket; made, and removed again.
        host_uid: as in `SandboxSpec`.
        owner: as in `mount_folders`.
    """
    source = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=".trial-", dir=folder))
    mount = Mount(source, "/home/work/trial")
    try:
        sandbox = await launcher.start(
            SandboxSpec("trial", mounts=(mount,), host_uid=host_uid), trial
        )
        try:
            await mount_folders(launcher, sandbox, (mount,), owner)
        finally:
            await launcher.kill(sandbox)
    except SandboxFault as exc:
        return exc.reason
    finally:
        for made in (source, trial):
            await asyncio.to_thread(shutil.rmtree, made, ignore_errors=True)
    return None
