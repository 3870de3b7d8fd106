"""What the configuration says about the runs of every session."""

from __future__ import annotations

import dataclasses

from retort.core.run import RunLimits


@dataclasses.dataclass(frozen=True, slots=True)
class RunSettings:
    """What the server's configuration says about runs; units as in config/sections.py."""

    output_chars: int = 524_288
    forget_s: float = 900.0
    max_queued: int = 64
    max_kept: int = 256
    input_bytes: int = 1024 * 1024
    limits: RunLimits = RunLimits()
