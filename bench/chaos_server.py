"""The server, told where to die: takes the arguments of `retort`; for bench.chaos only.

Variable CHAOS_POINT names a point of retort.core.faults, CHAOS_AFTER says at which arrival there
this process sends itself SIGKILL. Without them it lives like any server. CHAOS_SABOTAGE names a
fault to be built in: a control, which shows that the bench tells.
"""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Callable, Iterable
from unittest import mock

from retort.cli.main import main
from retort.core import faults
from retort.hostfs.volume import Volume


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


def _empty_all(
    volume: Volume,
    folder_ids: Iterable[uuid.UUID],
    emptied: Callable[[Volume, Iterable[uuid.UUID]], list[uuid.UUID]] = Volume.empty_trash,
) -> list[uuid.UUID]:
    """Empty every discarded folder, also one whose record is still there; once a real fault."""
    return emptied(volume, {*folder_ids, *volume.trash()})


#: By name, what to put in whose place.
SABOTAGES = {"trash": (Volume, "empty_trash", _empty_all)}


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        if name := os.environ.get("CHAOS_POINT"):
            death = Death(faults.Point(name), int(os.environ["CHAOS_AFTER"]))
            stack.enter_context(mock.patch.object(faults, "reached", death))
        if sabotage := os.environ.get("CHAOS_SABOTAGE"):
            stack.enter_context(mock.patch.object(*SABOTAGES[sabotage]))
        main()
