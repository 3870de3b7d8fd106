"""Verdicts: each sign has one meaning, and the order of certainty decides."""

from __future__ import annotations

import itertools

import pytest

from retort.core.limits import Usage
from retort.core.run import Outcome, StepResult, Stop
from retort.core.verdict import RETRY_SAFE, Counters, judge

NOTHING = Counters()
KILLED = 9


def verdict(status: int, counters: Counters = NOTHING, stop: Stop | None = None) -> StepResult:
    return judge(status, Usage(), counters, stop)


@pytest.mark.parametrize("code", range(256))
def test_an_exit_code_is_read_from_a_wait_status(code: int) -> None:
    assert verdict(code << 8) == StepResult(Outcome.EXITED, code)


@pytest.mark.parametrize("core", [0, 0x80])
@pytest.mark.parametrize("signal", range(1, 65))
def test_a_signal_is_128_more_with_or_without_a_core(signal: int, core: int) -> None:
    assert verdict(signal | core) == StepResult(Outcome.SIGNALLED, 128 + signal, signal)


@pytest.mark.parametrize(
    ("counters", "outcome"),
    [
        (Counters(oom_kills=1), Outcome.OUT_OF_MEMORY),
        (Counters(oom_kills=1, is_own_limit=False), Outcome.INFRASTRUCTURE),
        (Counters(refused_forks=3), Outcome.PIDS_LIMIT),
        (Counters(is_scratch_full=True), Outcome.DISK_FULL),
        (Counters(oom_kills=1, refused_forks=1, is_scratch_full=True), Outcome.OUT_OF_MEMORY),
        (Counters(refused_forks=1, is_scratch_full=True), Outcome.PIDS_LIMIT),
    ],
)
@pytest.mark.parametrize("status", [KILLED, 1 << 8, 137 << 8])
def test_what_the_kernel_counted_is_the_verdict_on_a_failure(
    counters: Counters, outcome: Outcome, status: int
) -> None:
    assert verdict(status, counters).outcome is outcome


@pytest.mark.parametrize("counters", [Counters(oom_kills=9, refused_forks=9, is_scratch_full=True)])
def test_a_program_that_succeeds_in_spite_of_a_limit_has_exited(counters: Counters) -> None:
    assert verdict(0, counters) == StepResult(Outcome.EXITED, 0)


@pytest.mark.parametrize("stop", Stop)
def test_our_own_kill_comes_before_every_counter(stop: Stop) -> None:
    counters = Counters(oom_kills=1, refused_forks=1, is_scratch_full=True)
    result = verdict(KILLED, counters, stop)
    wanted = Outcome.OUTPUT_LIMIT if stop is Stop.OUTPUT else Outcome.TIMED_OUT
    assert (result.outcome, result.stop) == (wanted, stop)


@pytest.mark.parametrize(("stop", "status"), list(itertools.product(Stop, [0, 5 << 8, 11])))
def test_a_program_that_ended_just_before_our_kill_has_its_own_verdict(
    stop: Stop, status: int
) -> None:
    result = verdict(status, NOTHING, stop)
    assert result.outcome in (Outcome.EXITED, Outcome.SIGNALLED)
    assert result.stop is None


def test_the_signal_of_a_process_limit_on_cpu_is_a_time_out() -> None:
    assert verdict(24, NOTHING, Stop.CPU).outcome is Outcome.TIMED_OUT
    assert verdict(24, NOTHING, None).outcome is Outcome.SIGNALLED
    assert verdict(24, NOTHING, Stop.WALL).outcome is Outcome.SIGNALLED


def test_only_what_is_no_fault_of_the_program_may_be_retried() -> None:
    assert {Outcome.INFRASTRUCTURE, Outcome.CANCELLED} == RETRY_SAFE
