"""What this host can do, and the programs that came with this package."""

from __future__ import annotations

from pathlib import Path

import retort
from retort.sandbox.probe import Finding, HostFacts, advice, probe, with_groups


def init_program() -> Path:
    """Give the path of the compiled retort-init that came with this package."""
    return Path(retort.__file__).parent / "_bin" / "retort-init"


def host_facts() -> tuple[HostFacts, list[Finding]]:
    """Find out what this host allows, and what is missing (`retort doctor`)."""
    facts = with_groups(probe())
    return facts, list(advice(facts))
