"""Noticing that a program waits for input (spec R11): looks at one exec step, by its init.

A program waits when two looks `SECOND_LOOK_S` apart find it asleep in a read of its empty stdin.
Looks are only taken while somebody waits for the run's next answer, ever more seldom while the
program does something else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Protocol

from retort.errors import SandboxFault
from retort.node.live_run import LiveRun

FIRST_LOOK_S = 0.010  # a program that ends at once is never looked at
SECOND_LOOK_S = 0.050
SLOWEST_LOOK_S = 0.400


class Input(Protocol):
    """The program's input and output, as far as this room needs them."""

    @property
    def input_is_consumed(self) -> bool:
        """Whether the program has read all it was given."""
        ...

    def drain(self) -> None:
        """Read what is in the pipes now."""
        ...


class InputWatch:
    """Looks at one step and marks its run as blocked, or no longer blocked.

    Args:
        is_waiting: asks init whether the program sleeps in a read of its stdin.
        spawn: runs a coroutine in the background.
    """

    __slots__ = ("_first_seen", "_is_asking", "_is_closed", "_is_waiting", "_loop", "_pipes",
                 "_run", "_spawn", "_timer")  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        run: LiveRun,
        pipes: Input,
        is_waiting: Callable[[], Coroutine[None, None, bool]],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._loop = loop
        self._run = run
        self._pipes = pipes
        self._is_waiting = is_waiting
        self._spawn = spawn
        self._timer: asyncio.TimerHandle | None = None
        self._first_seen: float | None = None
        self._is_asking = False
        self._is_closed = False

    def look_soon(self) -> None:
        """Begin to look, unless looking already."""
        if self._timer is None and not self._is_asking:
            self._look_in(FIRST_LOOK_S)

    def input_given(self) -> None:
        """End the present wait: what comes next is another one."""
        self._run.is_blocked = False
        self._first_seen = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._look_in(FIRST_LOOK_S)

    async def confirm(self) -> None:
        """Look once whether a wait is over without input: a signal or a timeout ended it."""
        await self._ask()

    def close(self) -> None:
        """Look no more: the step ended."""
        self._is_closed = True
        self._run.is_blocked = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_in(self, delay_s: float) -> None:
        if self._timer is None and not self._is_closed:
            self._timer = self._loop.call_later(delay_s, self._look, delay_s)

    def _look(self, waited_s: float) -> None:
        self._timer = None
        if not self._run.is_watched:
            self._first_seen = None
        elif not self._pipes.input_is_consumed:
            self._first_seen = None
            self._look_in(SECOND_LOOK_S)
        elif not self._is_asking:
            self._is_asking = True
            self._spawn(self._ask_and_go_on(waited_s))

    async def _ask_and_go_on(self, waited_s: float) -> None:
        try:
            await self._ask()
        finally:
            self._is_asking = False
        if self._run.is_blocked:
            self._look_in(SLOWEST_LOOK_S)
        elif self._first_seen is not None:
            self._look_in(SECOND_LOOK_S)
        else:
            self._look_in(min(max(waited_s * 2, SECOND_LOOK_S), SLOWEST_LOOK_S))

    async def _ask(self) -> None:
        try:
            is_waiting = await self._is_waiting()
        except (SandboxFault, OSError):  # it ended meanwhile
            is_waiting = False
        if self._is_closed:
            return
        if not is_waiting or not self._pipes.input_is_consumed:
            self._run.is_blocked = False
            self._first_seen = None
        elif self._first_seen is None:
            self._first_seen = self._loop.time()
        elif not self._run.is_blocked and (
            self._loop.time() - self._first_seen >= SECOND_LOOK_S * 0.9
        ):
            self._pipes.drain()  # whatever it printed before it fell asleep comes first
            self._run.is_blocked = True
            self._run.waits += 1
            self._run.wake()
