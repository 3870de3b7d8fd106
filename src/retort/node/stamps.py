"""The clock by which files are stamped: that of the last tick, behind the real one.

By 4 to 10 ms as a rule, by more while a hypervisor keeps the processor that counts the ticks.
"""

from __future__ import annotations

import time
from typing import Final

TICK_CLOCK: Final = 5  # CLOCK_REALTIME_COARSE, which Python's time does not name
#: Allowed besides: some of the times compared are floats, of a clock that may be slewed.
SLACK_NS: Final = 20_000_000


def earliest_ns() -> int:
    """Give a time that no file made from now on is stamped before, in nanoseconds since 1970."""
    return min(time.time_ns(), time.clock_gettime_ns(TICK_CLOCK))
