"""What this host can do, and the programs that came with this package."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from pathlib import Path

import retort
from retort.errors import SandboxFault
from retort.sandbox.inodes import why_uncapped
from retort.sandbox.launcher import Launcher
from retort.sandbox.probe import TRIAL_UID, Finding, HostFacts, advice, probe, with_groups
from retort.sandbox.rootfs import Base, build


def init_program() -> Path:
    """Give the path of the compiled retort-init that came with this package."""
    return Path(retort.__file__).parent / "_bin" / "retort-init"


def host_facts() -> tuple[HostFacts, list[Finding]]:
    """Find out what this host allows, and what is missing (`retort doctor`)."""
    facts = with_groups(probe())
    if facts.can_sandbox:
        facts = dataclasses.replace(facts, inode_problem=asyncio.run(_try_inode_caps(facts)))
    return facts, list(advice(facts))


async def _try_inode_caps(facts: HostFacts) -> str | None:
    assert facts.bwrap_path is not None
    with tempfile.TemporaryDirectory(prefix="retort-doctor-") as name:
        try:
            base = await asyncio.to_thread(_build_for_others, Path(name))
        except SandboxFault as exc:
            return exc.reason
        launcher = Launcher(Path(facts.bwrap_path), base)
        try:
            uid = TRIAL_UID if facts.is_root else None
            return await why_uncapped(launcher, Path(name) / "trial", uid)
        finally:
            launcher.close()


def _build_for_others(folder: Path) -> Base:
    folder.chmod(0o755)  # as root, the trial is of another uid
    return build(folder, init_program())
