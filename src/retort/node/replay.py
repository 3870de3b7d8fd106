"""The runs of a session, as its journal tells of them: read once, when a server adopts it.

The same rules that moved the runs while they lived move them here, without anything being done:
core/run.py's `advance`, and `LiveRun`'s own. What is to be done then is resume.py's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from retort.core.console import Stream
from retort.core.limits import Usage
from retort.core.run import (
    Begun,
    Cancelled,
    Event,
    OutputFile,
    Plan,
    Report,
    RunLimits,
    RunState,
    Stage,
    StartStep,
    StepEnded,
    Stop,
    TimeUp,
    advance,
)
from retort.node import records as r
from retort.node.deliveries import Delivery
from retort.node.live_run import LiveRun

MakeRun = Callable[[str, RunState, RunLimits, bool, bool], LiveRun]
IsKept = Callable[[str], Awaitable[bool]]
MAX_GIVEN_BYTES = 2 * 1024 * 1024  #: more than may wait for a program that has not started
MAX_TOKENS = 256  #: of calls that brought input; a repeated one is no second line


class Replay:
    """What a journal comes to.

    Args:
        make_run: makes a `LiveRun` of an id, a state, its limits, whether it keeps background
            processes and whether it is a stream's.

    Attributes:
        runs: that calls can name, by id.
        queue: runs that have not ended, in their order; the first may have begun.
        order: the step that the first of the queue is at, until it ended.
        sent: the step that init was sent, until it ended; its run may have been cancelled.
        sent_run: that it belongs to.
        fed: bytes of input of `sent` that were in its pipe when the journal was begun anew.
        unfed: what was typed after them.
        given: all input of `sent`, for the case that nothing of the step ever ran.
        on_their_way: answers that were taken and not delivered, by ticket.
        started: runs since the session was made.
    """

    def __init__(self, make_run: MakeRun) -> None:
        self._make_run = make_run
        self.runs: dict[str, LiveRun] = {}
        self.queue: list[LiveRun] = []
        self.order: StartStep | None = None
        self.sent: r.Sent | None = None
        self.sent_run: LiveRun | None = None
        self.stop: Stop | None = None
        self.fed = 0
        self.unfed = bytearray()
        self.given = bytearray()
        self.on_their_way: dict[int, Delivery] = {}
        self.tokens: dict[str, None] = {}
        self.keeps_background = False
        self.started = 0
        self.last_number = 0
        self.last_ticket = 0
        self.usage = Usage()

    def read(self, records: Iterable[r.Record | r.Printed]) -> None:
        """Go through a journal."""
        for record in records:
            self._apply(record)

    async def settle(self, is_kept: IsKept) -> None:
        """Decide on answers that were on their way when the server ended.

        One whose call had a token has arrived if it is kept for that token, and will be given when
        the call is repeated. Of any other nobody can know, and it is given again.
        """
        for ticket, delivery in reversed(list(self.on_their_way.items())):
            del self.on_their_way[ticket]
            if delivery.token is None or not await is_kept(delivery.token):
                delivery.put_back(self.runs)

    @property
    def current(self) -> LiveRun | None:
        """The run that began and has not ended."""
        first = self.queue[0] if self.queue else None
        return first if first is not None and first.state.stage is not Stage.QUEUED else None

    def _apply(self, record: r.Record | r.Printed) -> None:
        match record:
            case r.Printed(stream, data):
                if self.sent_run is not None:
                    self.sent_run.console.feed(stream, data)
            case r.Cut():
                self._cut(record)
            case r.Recalled():
                if (run := self._unended(record.run_id)) is not None:
                    for stream, data in record.printed:
                        run.console.feed(stream, data)
            case r.Opened():
                self._opened(record)
            case r.Began():
                self._began(record)
            case r.Sent():
                self._sent(record)
            case r.Ended():
                self._ended(record)
            case r.TimedOut():
                self.stop = self.stop or record.stop
                self._advance(self.current, record.run_id, TimeUp())
            case r.CancelledRun():
                self._advance(self._unended(record.run_id), record.run_id, Cancelled())
            case r.Stopped():
                self.stop = record.stop
            case r.Typed():
                self._typed(record)
            case _:
                self._apply_delivery(record)

    def _apply_delivery(self, record: r.Record) -> None:
        match record:
            case r.Taken():
                self._taken(record)
            case r.Delivered():
                self.on_their_way.pop(record.ticket, None)
            case r.PutBack():
                if (delivery := self.on_their_way.pop(record.ticket, None)) is not None:
                    delivery.put_back(self.runs)
            case r.Forgotten():
                self.runs.pop(record.run_id, None)
            case r.BackgroundEnded():
                self.keeps_background = False
            case r.RunRecord():
                self._stand(record)
            case r.SessionRecord():
                self._base(record)

    # --- where a journal begins anew ------------------------------------------------------

    def _base(self, record: r.SessionRecord) -> None:
        self.started, self.usage = record.runs, record.usage
        self.last_number, self.last_ticket = record.number, record.ticket
        self.keeps_background = record.keeps_background
        self.sent, self.stop = record.sent, record.stop
        self.fed, self.unfed = record.fed, bytearray(record.unfed)
        self.tokens = dict.fromkeys(record.tokens)

    def _stand(self, record: r.RunRecord) -> None:
        run = self._new(
            record.run_id, record.state, record.limits, record.keeps_background, record.is_watched
        )
        run.began_at, run.began_ns, run.cpu_us = record.began_at, record.began_ns, record.cpu_us
        run.typed += record.typed
        run.caches_build = record.caches_build
        run.stand(record.answers)
        run.console.put_back(record.console)
        run.console.cut_chars = record.cut_chars
        for stream, pending in record.pending.items():
            run.console.set_pending(stream, pending)
        if record.is_listed:
            self.runs[run.run_id] = run
        # Its end is on its way: if that did not arrive, calls must be able to name it again.
        run.is_gone = any(answer.status.ends_run for _, answer, _ in record.taken)
        for ticket, answer, token in record.taken:
            self.on_their_way[ticket] = Delivery(run, answer, token)
        if not run.is_ended:
            self.queue.append(run)
            if (phase := _PHASES.get(run.state.stage)) is not None:
                self.order = StartStep(phase, tuple(run.state.plan.commands[phase]))
        if record.has_step:
            self.sent_run = run

    # --- the life of runs -----------------------------------------------------------------

    def _new(
        self, run_id: str, state: RunState, limits: RunLimits, keeps: bool, is_watched: bool
    ) -> LiveRun:
        return self._make_run(run_id, state, limits, keeps, is_watched)

    def _opened(self, record: r.Opened) -> None:
        plan: Plan = record.plan
        run = self._new(
            record.run_id, RunState(plan), record.limits, record.keeps_background, record.is_watched
        )
        run.caches_build = record.caches_build
        self.runs[run.run_id] = run
        self.queue.append(run)
        self.started += 1

    def _began(self, record: r.Began) -> None:
        run = self.queue[0] if self.queue else None
        if run is not None and run.run_id == record.run_id:
            run.began_at, run.began_ns = record.at, record.at_ns
            self._advance(run, record.run_id, Begun())

    def _sent(self, record: r.Sent) -> None:
        self.sent, self.sent_run, self.stop = record, self.current, None
        self.last_number = max(self.last_number, record.number)
        self.fed = 0
        self.unfed.clear()
        self.given.clear()
        if self.sent_run is not None and record.phase.has_input:
            self.keeps_background |= self.sent_run.keeps_background
            self.unfed += self.sent_run.typed
            self.given += self.sent_run.typed
            self.sent_run.typed.clear()

    def _ended(self, record: r.Ended) -> None:
        run = self._unended(record.run_id)
        if self.sent is not None and record.number == self.sent.number:
            run = self.sent_run  # of its name there may be another by now
            self.sent = self.sent_run = self.stop = None
            self.unfed.clear()
        self.usage = self.usage.plus(record.result.usage)
        if run is not None and not run.is_ended:
            run.cpu_us += record.result.usage.user_us + record.result.usage.system_us
            self._advance(run, record.run_id, StepEnded(record.result), record.files)

    def _advance(
        self,
        run: LiveRun | None,
        run_id: str,
        event: Event,
        files: tuple[OutputFile, ...] = (),
    ) -> None:
        if run is None or run.run_id != run_id:
            return
        run.state, orders = advance(run.state, event)
        for order in orders:
            match order:
                case StartStep():
                    self.order = order
                case Report():
                    run.close_answer(order, files if order.status.ends_run else ())
        if run.is_ended:
            if run is self.queue[0]:
                self.order = None
            self.queue.remove(run)

    def _unended(self, run_id: str) -> LiveRun | None:
        return next((run for run in self.queue if run.run_id == run_id), None)

    # --- input and output -----------------------------------------------------------------

    def _cut(self, record: r.Cut) -> None:
        if self.sent_run is not None:
            self.sent_run.console.cut_chars = record.chars
            self.sent_run.console.set_pending(record.stream, record.pending)

    def _typed(self, record: r.Typed) -> None:
        if record.token is not None:
            remember_token(self.tokens, record.token)
        run = self.runs.get(record.run_id)
        if run is None:
            return
        if run is self.sent_run and self.sent is not None and self.sent.phase.has_input:
            self.unfed += record.data
            if len(self.given) < MAX_GIVEN_BYTES:
                self.given += record.data
        else:
            run.typed += record.data

    def _taken(self, record: r.Taken) -> None:
        self.last_ticket = max(self.last_ticket, record.ticket)
        run = self.runs.get(record.run_id)
        if run is None:
            return
        run.is_blocked = False
        answer = run.take_again(is_closed=record.is_closed)
        if answer is None:
            return
        if run.is_gone:
            del self.runs[run.run_id]
        self.on_their_way[record.ticket] = Delivery(run, answer, record.token)


def remember_token(tokens: dict[str, None], token: str) -> None:
    """Know a call's token; the oldest are forgotten."""
    tokens[token] = None
    if len(tokens) > MAX_TOKENS:
        del tokens[next(iter(tokens))]


def pending_of(run: LiveRun) -> dict[Stream, bytes]:
    """Give the bytes of characters of a run's output that are not whole yet."""
    return {stream: run.console.pending(stream) for stream in Stream}


_PHASES = {stage: phase for stage in Stage if (phase := stage.phase) is not None}
