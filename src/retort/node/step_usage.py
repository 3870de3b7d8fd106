"""What a step used: from init's rusage and the control group's counters to one Usage."""

from __future__ import annotations

from retort.core.limits import Usage
from retort.sandbox.session_group import Measured
from retort.sandbox.step_values import StepExit

BLOCK_BYTES = 512  # the unit of ru_inblock and ru_oublock (getrusage(2))


def usage_of(
    end: StepExit, measured: Measured, cut_chars: int, host_cpu_wait_us: int | None = None
) -> Usage:
    """Put a step's usage together.

    A group counts every process; rusage only the main one and those it waited for, so it is the
    second choice. The largest resident set stands for a peak that the group cannot tell.
    """
    max_rss_bytes = end.max_rss_kib * 1024
    return Usage(
        wall_ns=max(0, end.ended_ns - end.started_ns),
        user_us=end.user_us if measured.user_us is None else measured.user_us,
        system_us=end.system_us if measured.system_us is None else measured.system_us,
        max_rss_bytes=max_rss_bytes,
        read_bytes=end.usage.in_blocks * BLOCK_BYTES,
        written_bytes=end.usage.out_blocks * BLOCK_BYTES,
        cut_chars=cut_chars,
        memory_peak_bytes=measured.memory_peak_bytes or max_rss_bytes,
        processes_peak=measured.processes_peak or 0,
        host_cpu_wait_us=host_cpu_wait_us,
    )
