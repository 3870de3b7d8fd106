"""The server, told where to die: takes the arguments of `retort`; for bench.chaos only.

Variable CHAOS_POINT names a point of retort.core.faults, CHAOS_AFTER says at which arrival there
this process sends itself SIGKILL. Without them it lives like any server.
"""

from __future__ import annotations

import os
import signal
from unittest import mock

from retort.cli.main import main
from retort.core import faults


class Death:
    """Waits at a point for its arrival number `after`."""

    def __init__(self, point: faults.Point, after: int) -> None:
        self._point = point
        self._left = after

    def __call__(self, point: faults.Point) -> None:
        """Be at a point."""
        if point is self._point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if name := os.environ.get("CHAOS_POINT"):
        death = Death(faults.Point(name), int(os.environ["CHAOS_AFTER"]))
        with mock.patch.object(faults, "reached", death):
            main()
    else:
        main()
