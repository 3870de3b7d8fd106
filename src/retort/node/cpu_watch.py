"""Ending a step whose processes together used their CPU time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

SHORTEST_LOOK_S = 0.010
CPUS = os.cpu_count() or 1


class CpuWatch:
    """Looks at the counter when the limit could be reached at the earliest, not before.

    Args:
        used_us: CPU time of the step so far, in microseconds; None: not known just now.
        limit_us: what is left for it.
        on_over: called once.
    """

    __slots__ = ("_limit_us", "_loop", "_on_over", "_timer", "_used_us")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        used_us: Callable[[], int | None],
        limit_us: int,
        on_over: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._used_us = used_us
        self._limit_us = limit_us
        self._on_over = on_over
        self._timer: asyncio.TimerHandle | None = None
        self._look_after(limit_us)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_after(self, left_us: int) -> None:
        # All CPUs may run for it at once.
        delay_s = max(SHORTEST_LOOK_S, left_us / 1e6 / CPUS)
        self._timer = self._loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        left_us = self._limit_us - (self._used_us() or 0)
        if left_us <= 0:
            self._timer = None
            self._on_over()
        else:
            self._look_after(left_us)
