"""A run watched by a caller that stays connected: output as it comes (spec 9.1)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

from retort.core.run import Answer, RunRequest, Status
from retort.errors import RunNotFound
from retort.node.runner import Runner


class WatchedRun:
    """The local adapter of `core.ports.RunStream`.

    Args:
        flush_s: output is held back for so long, so that a chatty program makes few messages.
    """

    def __init__(
        self, session_id: uuid.UUID, runner: Runner, request: RunRequest, *, flush_s: float
    ) -> None:
        self.session_id = session_id
        self._runner = runner
        self._run = runner.open(request, is_watched=True)
        self._flush_s = flush_s

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self._run.run_id

    async def __aiter__(self) -> AsyncIterator[Answer]:
        """Give answers up to the one that ends the run; output at least every `flush_s`.

        A wait for input is told once; what follows comes after `give_input`.
        """
        run, now = self._run, asyncio.get_running_loop().time
        told_wait = 0
        while True:
            run.last_call = now()
            is_news = run.is_blocked and run.waits != told_wait
            if run.has_answer or is_news:
                answer = self._runner.take_ready(run)
            elif run.is_gone:
                raise RunNotFound
            else:
                is_changed = await self._runner.wait(run, now() + self._flush_s)
                if is_changed or run.console.is_empty:
                    continue
                answer = run.take_output()
            if answer.status is Status.WAITING_INPUT:
                told_wait = run.waits
            yield answer
            if answer.status.ends_run:
                return

    async def give_input(self, text: str) -> None:
        """Deliver one line to the run's program."""
        self._runner.give_input(self._run, text)

    async def abandon(self) -> None:
        """Interrupt the program and discard the run."""
        self._runner.abandon(self._run)
