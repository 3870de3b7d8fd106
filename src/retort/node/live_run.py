"""One run as its callers see it: answers that wait to be taken, and callers that wait for them.

Steps and programs are runner.py's; the order of things is core/run.py's.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping

from retort.core.console import Console
from retort.core.run import (
    Answer,
    Outcome,
    OutputFile,
    Report,
    RunLimits,
    RunState,
    Stage,
    Status,
    StepResult,
)
from retort.errors import RunNotFound

OnTake = Callable[["LiveRun", Answer, bool, str | None], Answer]


class LiveRun:
    """A run between its start and the delivery of its last answer.

    Attributes:
        state: where it is, moved only by the runner.
        is_blocked: its program sleeps in a read of its empty input (R11).
        waits: how often it was seen to block; tells one wait from the next.
        typed: input that came before the program that will read it.
        began_at: when its first step started, in seconds since 1970.
        last_call: when a caller last asked, by the loop's clock, in seconds.
        is_gone: its last answer was taken.
        is_abandoned: its only watcher went away; no further step starts.
        decided: how its last step ended, from that moment on.
        is_watched_by_stream: it ends with that.
        cpu_us: what its ended steps used, for its limit.
        caches_build: as its request says.
        began_ns: as `began_at`, by the monotonic clock: what its time limit counts from.

    Args:
        on_take: told of each answer that leaves and whether it was a closed one, with the token of
            the call; gives the answer that is handed out.
    """

    def __init__(
        self,
        run_id: str,
        state: RunState,
        *,
        output_chars: int,
        limits: RunLimits | None = None,
        keeps_background: bool = False,
        walls: Mapping[str, str] | None = None,
        is_watched: bool = False,
        on_take: OnTake | None = None,
    ) -> None:
        self.run_id = run_id
        self.state = state
        self.limits = limits or RunLimits()
        self.keeps_background = keeps_background
        self.cpu_us = 0
        self.caches_build: bool | None = None
        self.decided: StepResult | None = None
        self._walls = walls
        self.console = Console(output_chars)
        self.is_blocked = False
        self.waits = 0
        self.typed = bytearray()
        self.began_at = 0.0
        self.began_ns = 0
        self.is_watched_by_stream = is_watched
        self._on_take = on_take
        self._is_stopping = False
        self.last_call = 0.0
        self.is_gone = False
        self.is_abandoned = False
        self.deadline: asyncio.TimerHandle | None = None
        self._answers: collections.deque[Answer] = collections.deque()
        self._waiters: set[asyncio.Future[bool]] = set()
        self._callers: list[object] = []  # inside next_answer, the newest last

    def __repr__(self) -> str:
        return f"<LiveRun {self.run_id} {self.state.stage.value} answers={len(self._answers)}>"

    @property
    def is_ended(self) -> bool:
        """Whether nothing of it will run any more."""
        return self.state.stage is Stage.ENDED

    def is_late(self, ended_ns: int) -> bool:
        """Tell whether a step that ended then, by the monotonic clock, outlived the run's time."""
        wall_s = self.limits.wall_s
        return wall_s is not None and ended_ns - self.began_ns > wall_s * 1e9

    @property
    def has_answer(self) -> bool:
        """Whether a closed answer waits to be taken."""
        return bool(self._answers)

    @property
    def is_watched(self) -> bool:
        """Whether a caller waits for its next answer."""
        return bool(self._waiters)

    def close_answer(self, report: Report, files: tuple[OutputFile, ...] = ()) -> None:
        """End the present answer: what is printed from now on belongs to the next one."""
        self.console.end_phase()
        self._answers.append(
            Answer(
                self.run_id,
                report.status,
                report.exit_code,
                self.console.take(),
                files,
                is_cancelled=report.result is not None
                and report.result.outcome is Outcome.CANCELLED,
                verdict=report.result,
                walls=self._walls if report.result is not None else None,
            )
        )
        self.wake()

    def wake(self) -> None:
        """Let every waiting caller look again."""
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(True)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The closed answers that nobody took yet."""
        return tuple(self._answers)

    def stand(self, answers: Iterable[Answer]) -> None:
        """Have these closed answers wait: the run is restored."""
        self._answers = collections.deque(answers)

    def take(self, token: str | None = None) -> Answer | None:
        """Give the answer that is ready, if there is one."""
        if self._answers:
            answer = self._answers.popleft()
            self.is_gone = answer.status.ends_run
            return self._taken(answer, True, token)
        if self.is_blocked:
            return self._taken(self._so_far(Status.WAITING_INPUT), False, token)
        return None

    def take_again(self, *, is_closed: bool) -> Answer | None:
        """Let an answer leave that left an earlier server already; nobody is told."""
        if not is_closed:
            return self._so_far(Status.CONTINUED)
        if not self._answers:
            return None
        answer = self._answers.popleft()
        self.is_gone = answer.status.ends_run
        return answer

    def take_output(self, token: str | None = None) -> Answer:
        """Give what was printed so far, as `continued`."""
        return self._taken(self._so_far(Status.CONTINUED), False, token)

    def _so_far(self, status: Status) -> Answer:
        return Answer(self.run_id, status, console=self.console.take())

    def _taken(self, answer: Answer, is_closed: bool, token: str | None) -> Answer:
        if self._on_take is None or not (is_closed or answer.console):
            return answer
        return self._on_take(self, answer, is_closed, token)

    def put_back(self, answer: Answer) -> None:
        """Make an answer the next one again: its caller never got it."""
        answer = dataclasses.replace(answer, ticket=0)
        if answer.status in (Status.CONTINUED, Status.WAITING_INPUT):
            if not self._answers:
                self.console.put_back(answer.console)
                return
            # Output that comes before an answer that is closed already stays an answer of its own.
            answer = Answer(self.run_id, Status.CONTINUED, console=answer.console)
            if not answer.console:
                return
        self.is_gone = False
        self._answers.appendleft(answer)
        self.wake()

    async def wait(self, until: float) -> bool:
        """Wait until something may have changed, or the loop's clock shows `until`.

        Returns:
            Whether something may have changed; False when the time is up.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters.add(waiter)
        timer = loop.call_at(until, _give_up, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)

    def stop_waiting(self) -> None:
        """Let calls answer with what there is now: the server stops."""
        self._is_stopping = True
        self.wake()

    async def next_answer(self, wait_s: float, token: str | None = None) -> Answer:
        """Wait for the next answer, at most `wait_s` seconds (R4).

        Of several callers the newest is served: an older one is most likely a caller whose
        connection broke, and who asks again.

        Raises:
            RunNotFound: another caller took the last answer meanwhile.
        """
        now = asyncio.get_running_loop().time
        until = now() + wait_s
        caller = object()
        self._callers.append(caller)
        try:
            while True:
                self.last_call = now()
                if self.is_gone:
                    raise RunNotFound
                is_newest = self._callers[-1] is caller
                if is_newest and (answer := self.take(token)) is not None:
                    return answer
                if now() >= until or self._is_stopping:
                    return self.take_output(token) if is_newest else self._nothing()
                await self.wait(until)
        finally:
            self._callers.remove(caller)
            self.wake()  # there may be more, for those who were passed over

    def _nothing(self) -> Answer:
        return Answer(self.run_id, Status.CONTINUED)


def _give_up(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)
