"""Which runs of a session are known, and what is written down of them.

The runner moves runs; this room names them, keeps their answers until they arrive, and sees to it
that the journal says what a later server must know, and little more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from retort.core.limits import Usage
from retort.core.run import Answer, OutputFile, RunLimits, RunState, StepResult, Stop
from retort.node import records as r
from retort.node.deliveries import Deliveries
from retort.node.journal import QUIET_BYTES, Journal
from retort.node.live_run import LiveRun
from retort.node.replay import Replay, pending_of, remember_token
from retort.node.run_settings import RunSettings

CUT_STEP_CHARS = 1024 * 1024  # dropped characters are written down by such steps


@dataclasses.dataclass(frozen=True, slots=True)
class StepNow:
    """The step that init has, as far as the journal must know it.

    Attributes:
        run: it belongs to; that may have ended, and be known to nobody any more.
        fed, unfed: as in `SessionRecord`.
    """

    sent: r.Sent
    run: LiveRun
    stop: Stop | None = None
    fed: int = 0
    unfed: bytes = b""


class RunBook:
    """The runs of one session that calls can name.

    Attributes:
        usage: of all steps that ended.
        started: runs since the session was made.
    """

    def __init__(
        self, journal: Journal, settings: RunSettings, walls: Mapping[str, str] | None
    ) -> None:
        self.journal = journal
        self._settings = settings
        self._walls = walls
        self._runs: dict[str, LiveRun] = {}
        self._deliveries = Deliveries(journal)
        self._tokens: dict[str, None] = {}
        self._cut_told = 0
        self.usage = Usage()
        self.started = 0

    def __iter__(self) -> Iterator[LiveRun]:
        return iter(list(self._runs.values()))

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, run_id: str | None) -> LiveRun | None:
        """Find a run by its id."""
        return self._runs.get(run_id) if run_id is not None else None

    # --- runs ---------------------------------------------------------------------------

    def make(
        self, run_id: str, state: RunState, limits: RunLimits, keeps: bool, is_watched: bool
    ) -> LiveRun:
        """Make a run that nobody knows yet."""
        return LiveRun(
            run_id,
            state,
            output_chars=self._settings.output_chars,
            limits=limits,
            keeps_background=keeps,
            walls=self._walls,
            is_watched=is_watched,
            on_take=None if is_watched else self._deliveries.take,
        )

    def open(self, run: LiveRun) -> None:
        """Know a new run.

        Raises:
            Unavailable: it cannot be written down; it is not known then.
        """
        self.journal.add(
            r.Opened(
                run.run_id, run.state.plan, run.limits, run.keeps_background,
                run.is_watched_by_stream, run.caches_build,
            )
        )  # fmt: skip
        self.journal.insist()
        self.started += 1
        self._runs[run.run_id] = run
        if len(self._runs) > self._settings.max_kept:
            ended = (run.run_id for run in self._runs.values() if run.is_ended)
            self.forget(next(ended, ""))

    def forget(self, run_id: str) -> None:
        """Know a run no more."""
        if self._runs.pop(run_id, None) is not None:
            self.journal.later(r.Forgotten(run_id))

    def forget_old(self, now: float) -> None:
        """Forget ended runs whose answers nobody fetched for a long time (R16)."""
        oldest = now - self._settings.forget_s
        for run in self:
            if run.is_ended and run.last_call < oldest:
                self.forget(run.run_id)

    # --- answers ------------------------------------------------------------------------

    def taken(self, run: LiveRun) -> None:
        """Let a run go whose last answer left."""
        if run.is_gone and self._runs.get(run.run_id) is run:
            del self._runs[run.run_id]

    def delivered(self, answer: Answer) -> None:
        """Know that an answer reached its caller."""
        if answer.ticket:
            self._deliveries.arrived(answer.ticket)

    def undeliver(self, answer: Answer) -> None:
        """Put an answer back that did not reach its caller."""
        delivery = self._deliveries.failed(answer.ticket)
        if delivery is not None:
            delivery.put_back(self._runs)

    # --- what happens to runs -----------------------------------------------------------

    def knows(self, token: str | None) -> bool:
        """Whether a call brought its input already."""
        return token is not None and token in self._tokens

    def typed(self, run: LiveRun, data: bytes, token: str | None) -> None:
        """Write down what a caller typed."""
        if token is not None:
            remember_token(self._tokens, token)
        self.journal.add(r.Typed(run.run_id, data, token))

    def sent(self, sent: r.Sent) -> None:
        """Write down that a step is about to be sent to init."""
        self._cut_told = 0
        self.journal.add(sent)

    def ended(
        self, run: LiveRun, number: int, result: StepResult, files: tuple[OutputFile, ...]
    ) -> None:
        """Write down how a step ended. It is written at the latest by `journal.flush`."""
        self.cut(run, at_least=1)
        self.journal.later(r.Ended(run.run_id, number, result, files))

    def cut(self, run: LiveRun, *, at_least: int = CUT_STEP_CHARS) -> None:
        """Write down what was dropped of a run's output, if it is worth it."""
        if run.console.cut_chars - self._cut_told < at_least:
            return
        self._cut_told = run.console.cut_chars
        self.journal.later(
            *(
                r.Cut(stream, run.console.cut_chars, data)
                for stream, data in pending_of(run).items()
            )
        )

    # --- the journal as a whole -----------------------------------------------------------

    def restore(self, replay: Replay) -> None:
        """Know what a journal says."""
        self._runs = replay.runs
        self._tokens = replay.tokens
        self._deliveries.last_ticket = replay.last_ticket
        for ticket, delivery in replay.on_their_way.items():
            self._deliveries.hold(ticket, delivery)
        self.usage, self.started = replay.usage, replay.started

    def shorten(
        self,
        queue: Iterable[LiveRun],
        number: int,
        *,
        keeps_background: bool,
        step: StepNow | None = None,
        always: bool = False,
    ) -> None:
        """Leave out of the journal what nobody needs any more, when that is worth it.

        Args:
            queue: runs that have not ended, in their order.
            number: of the last step.
            step: that init has.
            always: also when it is not worth it: the journal must be made whole again.
        """
        journal = self.journal
        is_quiet = not self._runs and not len(self._deliveries) and step is None
        if not (
            always
            or journal.is_behind
            or journal.is_large
            or (is_quiet and journal.size_bytes > QUIET_BYTES)
        ):
            return
        of_step = step.run if step is not None else None
        runs = [*queue, *self._runs.values(), *self._deliveries.runs()]
        runs += [of_step] if of_step is not None else []
        session = r.SessionRecord(
            runs=self.started,
            usage=self.usage,
            number=number,
            ticket=self._deliveries.last_ticket,
            keeps_background=keeps_background,
            sent=step.sent if step is not None else None,
            stop=step.stop if step is not None else None,
            fed=step.fed if step is not None else 0,
            unfed=step.unfed if step is not None else b"",
            tokens=tuple(self._tokens),
        )
        records = (self._record_of(run, has_step=run is of_step) for run in dict.fromkeys(runs))
        journal.renew([session, *records])

    def _record_of(self, run: LiveRun, *, has_step: bool) -> r.RunRecord:
        return r.RunRecord(
            run_id=run.run_id,
            state=run.state,
            limits=run.limits,
            keeps_background=run.keeps_background,
            is_watched=run.is_watched_by_stream,
            is_listed=self._runs.get(run.run_id) is run,
            began_at=run.began_at,
            began_ns=run.began_ns,
            cpu_us=run.cpu_us,
            typed=bytes(run.typed),
            answers=run.answers,
            taken=tuple((t, d.answer, d.token) for t, d in self._deliveries.of(run)),
            console=run.console.peek(),
            pending=pending_of(run),
            cut_chars=run.console.cut_chars,
            caches_build=run.caches_build,
            has_step=has_step,
        )


def journal_path(folder: Path) -> Path:
    """Give where a session's journal lies, below its folder."""
    return folder / "journal"
