"""The runs of one session, as callers meet them: started, continued, fed, watched (spec 6.2).

What moves them is engine.py's.
"""

from __future__ import annotations

import secrets

from retort.core.run import (
    Answer,
    Mode,
    RunLimits,
    RunRequest,
    RunState,
)
from retort.errors import LimitExceeded, RunNotFound
from retort.node.engine import RunEngine
from retort.node.live_run import LiveRun
from retort.node.plan import plan_of


class Runner(RunEngine):
    """All runs of one session; see `RunEngine` for its arguments."""

    # --- callers ------------------------------------------------------------------------

    async def execute(self, request: RunRequest, wait_s: float) -> Answer:
        """Start, continue or feed a run and give its next answer (spec 6.2).

        Raises:
            RunNotFound: the call continues a run that is not there (R3).
            LimitExceeded: too many runs wait in this session, or too much input.
            Unavailable: what the caller wants cannot be written down just now.
        """
        run = self.open(request)
        return await self.next_answer(run, wait_s, request.token)

    def open(self, request: RunRequest, *, is_watched: bool = False) -> LiveRun:
        """Find the run a request is about; start it when it is new, feed it its input."""
        run = self._book.get(request.run_id)
        if request.mode.starts:
            return run or self._start(request, is_watched)
        if run is None:
            raise RunNotFound
        if request.mode is Mode.INPUT and not self._book.knows(request.token):
            self.give_input(run, request.code, request.token)
        return run

    async def next_answer(self, run: LiveRun, wait_s: float, token: str | None = None) -> Answer:
        """Wait for a run's next answer, looking whether its program waits for input."""
        if (watch := self._watch_of(run)) is not None:
            if run.is_blocked:
                await watch.confirm()
            watch.look_soon()
        answer = await run.next_answer(wait_s, token)
        self._book.taken(run)
        return answer

    def take_ready(self, run: LiveRun) -> Answer:
        """Give the answer that is ready now; without one, what was printed so far."""
        answer = run.take() or run.take_output()
        self._book.taken(run)
        return answer

    async def wait(self, run: LiveRun, until: float) -> bool:
        """Wait for a change of a run, until the loop's clock shows `until`; True: it changed."""
        if (watch := self._watch_of(run)) is not None:
            watch.look_soon()
        return await run.wait(until)

    def give_input(self, run: LiveRun, text: str, token: str | None = None) -> None:
        """Give a line to the run's program, now or when it starts (R11)."""
        data = text.encode("utf-8", "replace")
        data += b"" if data.endswith(b"\n") else b"\n"
        step, watch = self._step, self._watch_of(run)
        waiting = len(run.typed) + (step.pipes.pending_bytes if step and watch else 0)
        if waiting + len(data) > self._settings.input_bytes:
            raise LimitExceeded("Too much input waits to be read")
        self._book.typed(run, data, token)
        if step is None or watch is None or not step.is_started:
            run.typed += data
        if step is not None and watch is not None:
            step.pipes.write(data)
            watch.input_given()

    def delivered(self, answer: Answer) -> None:
        """Know that an answer reached its caller."""
        self._book.delivered(answer)
        self._shorten()

    def undeliver(self, answer: Answer) -> None:
        """Put back an answer that could not be written."""
        self._book.undeliver(answer)

    def stop_waiting(self) -> None:
        """Let calls answer with what there is now: the server stops, the runs go on."""
        for run in self._book:
            run.stop_waiting()

    def forget_old(self) -> None:
        """Drop ended runs whose answers nobody fetched for a long time (R16)."""
        self._book.forget_old(self._loop.time())
        self._shorten()

    @property
    def has_answers(self) -> bool:
        """Whether a caller may still come for an answer."""
        return bool(len(self._book))

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way or waits."""
        return self._current is not None or bool(self._queue)

    def _start(self, request: RunRequest, is_watched: bool) -> LiveRun:
        if len(self._queue) >= self._settings.max_queued:
            raise LimitExceeded("Too many runs wait in this session")
        self._shorten()
        of_image = RunLimits(self._image.limits.wall_s, self._image.limits.cpu_s)
        run = self._book.make(
            request.run_id or secrets.token_hex(16),
            RunState(plan_of(request, self._image)),
            self._settings.limits.stricter(of_image).stricter(request.limits),
            request.keeps_background,
            is_watched,
        )
        run.caches_build = request.caches_build
        run.caches_build = request.caches_build
        run.last_call = self._loop.time()
        self._book.open(run)
        self._queue.append(run)
        self._begin_next()
        return run
