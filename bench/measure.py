"""Timing a floor and Retort in turns, so that both see the same machine."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable


@dataclasses.dataclass
class Row:
    """One line of the report: times in milliseconds, each call one sample.

    Attributes:
        budget: of the median, as text, from DESIGN 10.
        budget_ms: the same in milliseconds, made from the floor of this run.
        unit: what the figures are, where not milliseconds.
        p99_budget_ms: of the 99th percentile; None: none.
    """

    name: str
    floor_ms: list[float]
    retort_ms: list[float]
    budget: str
    budget_ms: float
    load: float = 0.0
    unit: str = "ms"
    p99_budget_ms: float | None = None

    @property
    def floor(self) -> float:
        """The floor's median."""
        return statistics.median(self.floor_ms)

    @property
    def median(self) -> float:
        """Retort's median."""
        return statistics.median(self.retort_ms)

    @property
    def p99(self) -> float:
        """Retort's 99th percentile."""
        return _p99(self.retort_ms)

    @property
    def floor_p99(self) -> float:
        """The floor's 99th percentile."""
        return _p99(self.floor_ms)

    @property
    def ratio(self) -> float:
        """Retort's median over the floor's."""
        return self.median / self.floor

    @property
    def is_within(self) -> bool:
        """Whether the median, and the 99th percentile where it has one, keep their budgets."""
        is_p99_within = self.p99_budget_ms is None or self.p99 <= self.p99_budget_ms
        return self.median <= self.budget_ms and is_p99_within


def _p99(samples: list[float]) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def once(work: Callable[[], object]) -> float:
    """Time one call, in milliseconds."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def in_turns(
    floor: Callable[[], object],
    retort: Callable[[], object],
    *,
    rounds: int,
    pause_s: float = 0.0,
    warm_up: int = 3,
) -> tuple[list[float], list[float], float]:
    """Time both, one after the other, `rounds` times; the first `warm_up` do not count.

    Args:
        pause_s: idleness before each call, as a person or an agent leaves it.
    """
    floors, retorts = [], []
    for number in range(rounds + warm_up):
        time.sleep(pause_s)
        floor_ms = once(floor)
        time.sleep(pause_s)
        retort_ms = once(retort)
        if number >= warm_up:
            floors.append(floor_ms)
            retorts.append(retort_ms)
    return floors, retorts, os.getloadavg()[0]
