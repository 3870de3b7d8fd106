"""The verdict on a step: from what was seen to one Outcome, never by guessing.

Each sign has one meaning: a wait status says how the main process ended, the host kernel's counters
say whether memory or processes ran out, and only what Retort did itself is called a time-out.
"""

from __future__ import annotations

import dataclasses

from retort.core.limits import Usage
from retort.core.run import Outcome, StepResult, Stop

OUR_KILL = 9  # SIGKILL, what Retort ends a step with
CPU_SIGNAL = 24  # SIGXCPU, by RLIMIT_CPU where no control group counts

#: Outcomes whose step may end otherwise when it is run again, through no change of the program.
RETRY_SAFE = frozenset({Outcome.INFRASTRUCTURE, Outcome.CANCELLED})


@dataclasses.dataclass(frozen=True, slots=True)
class Counters:
    """What the host kernel counted for a step.

    Attributes:
        oom_kills: processes killed for want of memory.
        is_own_limit: the session stood at its memory limit; False with `oom_kills` means that the
            host itself ran out.
        refused_forks: by the process limit.
        is_scratch_full: the session's files fill their space.
    """

    oom_kills: int = 0
    is_own_limit: bool = True
    refused_forks: int = 0
    is_scratch_full: bool = False


def judge(
    wait_status: int,
    usage: Usage,
    counters: Counters,
    stop: Stop | None,
    *,
    is_late: bool = False,
) -> StepResult:
    """Give the verdict on a step that ran.

    A limit is the verdict only if the program failed: one that was refused memory, a process or
    disk space and still succeeded has *exited*. The order below is the order of certainty: what we
    did ourselves, then what the host kernel counted, then how the process ended.

    Args:
        wait_status: of its main process (wait(2)).
        usage: what it used; goes into the result.
        counters: what the host kernel counted.
        stop: why Retort killed it, if it did.
        is_late: it ended after its time, by the clock that it was given; so it met that limit
            even if nobody came to kill it. On a busy host our timer may be later than that.
    """
    signal = wait_status & 0x7F
    code = 128 + signal if signal else (wait_status >> 8) & 0xFF
    # A program that ended by itself in the moment before our kill has its own verdict.
    if signal != OUR_KILL and (stop, signal) != (Stop.CPU, CPU_SIGNAL):
        stop = None
    if is_late and stop is None:
        stop = Stop.WALL
    return StepResult(_outcome(code, signal, counters, stop), code, signal or None, usage, stop)


def _outcome(code: int, signal: int, counters: Counters, stop: Stop | None) -> Outcome:
    if stop is not None:
        return Outcome.OUTPUT_LIMIT if stop is Stop.OUTPUT else Outcome.TIMED_OUT
    if code and counters.oom_kills:
        return Outcome.OUT_OF_MEMORY if counters.is_own_limit else Outcome.INFRASTRUCTURE
    if code and counters.refused_forks:
        return Outcome.PIDS_LIMIT
    if code and counters.is_scratch_full:
        return Outcome.DISK_FULL
    return Outcome.SIGNALLED if signal else Outcome.EXITED
