"""Verdicts and limits: what Retort adds to the objects of the protocol (docs/wire.md).

The original knows none of these keys; its clients ignore them.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from typing import Any

import msgspec

from retort.core.run import Answer, RunLimits, StepResult
from retort.core.verdict import RETRY_SAFE
from retort.wire.params import Params

LONGEST_S = 10_000_000.0  #: no limit of time may be longer: some four months


class UsageObject(msgspec.Struct, frozen=True, rename="camel"):
    """What one step used. Times in microseconds; null where this host cannot tell."""

    wall_us: int
    user_us: int
    system_us: int
    peak_memory_bytes: int | None
    peak_processes: int | None
    read_bytes: int
    written_bytes: int
    cut_chars: int
    host_cpu_wait_us: int | None


class Verdict(msgspec.Struct, frozen=True, rename="camel"):
    """The additive keys of a result that ends a step; the last three of a build with the cache."""

    outcome: str
    signal: str | None
    limit: str | None
    retry_safe: bool
    usage: UsageObject
    walls: Mapping[str, str]
    cached: bool | msgspec.UnsetType = msgspec.UNSET
    cache_key: str | msgspec.UnsetType | None = msgspec.UNSET
    uncacheable: str | msgspec.UnsetType | None = msgspec.UNSET


def verdict_of(answer: Answer) -> Verdict | None:
    """Give the additive keys of an answer; None when it ends no step that ran."""
    result = answer.verdict
    if result is None:
        return None
    usage, note = result.usage, result.cache
    return Verdict(
        outcome=result.outcome.value,
        signal=_signal_name(result),
        limit=None if result.stop is None else result.stop.value,
        retry_safe=result.outcome in RETRY_SAFE,
        usage=UsageObject(
            wall_us=usage.wall_ns // 1000,
            user_us=usage.user_us,
            system_us=usage.system_us,
            peak_memory_bytes=usage.memory_peak_bytes or usage.max_rss_bytes or None,
            peak_processes=usage.processes_peak or None,
            read_bytes=usage.read_bytes,
            written_bytes=usage.written_bytes,
            cut_chars=usage.cut_chars,
            host_cpu_wait_us=usage.host_cpu_wait_us,
        ),
        walls=answer.walls or {},
        cached=msgspec.UNSET if note is None else note.is_hit,
        cache_key=msgspec.UNSET if note is None else note.key,
        uncacheable=msgspec.UNSET if note is None else note.refusal,
    )


def _signal_name(result: StepResult) -> str | None:
    if result.signal is None:
        return None
    try:
        return signal.Signals(result.signal).name
    except ValueError:  # a real-time signal between the named ones
        return f"SIG{result.signal}"


def parse_limits(options: Params) -> RunLimits:
    """Read the additive option `limits` of the batch object.

    Keys: `wallSeconds`, `cpuSeconds` (numbers above 0), `outputBytes` (an integer above 0);
    others are refused, for a limit that is silently ignored protects nobody.

    Raises:
        InvalidRequest: naming the field.
    """
    given = options.mapping("limits")
    if given is None:
        return RunLimits()
    limits = Params(given, where="options.limits.")
    for name in given:
        if name not in ("wallSeconds", "cpuSeconds", "outputBytes"):
            raise limits.refuse(name, "is not a limit of this server")
    return RunLimits(
        wall_s=_seconds(limits, "wallSeconds"),
        cpu_s=_seconds(limits, "cpuSeconds"),
        output_bytes=limits.optional_integer("outputBytes", minimum=1),
    )


def _seconds(limits: Params, name: str) -> float | None:
    value: Any = limits.value(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise limits.refuse(name, "must be a number of seconds")
    if not math.isfinite(value) or not 0 < value <= LONGEST_S:
        raise limits.refuse(name, f"must be more than 0 and at most {LONGEST_S:.0f}")
    return float(value)
