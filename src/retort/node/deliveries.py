"""Answers on their way to callers: taken from their run, and not known to have arrived."""

from __future__ import annotations

import dataclasses

from retort.core.run import Answer
from retort.node.journal import Journal
from retort.node.live_run import LiveRun
from retort.node.records import Delivered, PutBack, Taken

MAX_UNDELIVERED = 64  #: of one session; beyond, the oldest is taken for delivered


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery:
    """One answer on its way."""

    run: LiveRun
    answer: Answer
    token: str | None

    def put_back(self, runs: dict[str, LiveRun]) -> None:
        """Give the answer back to its run, which is among the known ones again.

        Unless another run has its id by now: then nobody can ask for it any more.
        """
        if self.run.is_gone and runs.setdefault(self.run.run_id, self.run) is not self.run:
            return
        self.run.put_back(self.answer)


class Deliveries:
    """Gives each answer that leaves a ticket, and the run its answer back when it did not arrive.

    Attributes:
        last_ticket: of the newest.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._under_way: dict[int, Delivery] = {}
        self.last_ticket = 0

    def __len__(self) -> int:
        return len(self._under_way)

    def of(self, run: LiveRun) -> list[tuple[int, Delivery]]:
        """Give a run's answers that are on their way, the oldest first."""
        return [(ticket, d) for ticket, d in self._under_way.items() if d.run is run]

    def runs(self) -> list[LiveRun]:
        """Give the runs of all answers that are on their way."""
        return list(dict.fromkeys(delivery.run for delivery in self._under_way.values()))

    def take(self, run: LiveRun, answer: Answer, is_closed: bool, token: str | None) -> Answer:
        """Let an answer leave its run (`LiveRun.on_take`)."""
        self.last_ticket += 1
        answer = dataclasses.replace(answer, ticket=self.last_ticket)
        record = Taken(self.last_ticket, run.run_id, is_closed, token)
        if token is None:
            # Unwritten, the answer has not been taken: it is given again, as it would be anyway.
            self._journal.later(record)
        else:
            # Whether it arrived is known by whether it is kept for its token (replay.py).
            self._journal.add(record)
        self.hold(self.last_ticket, Delivery(run, answer, token))
        return answer

    def hold(self, ticket: int, delivery: Delivery) -> None:
        """Know of an answer that is on its way."""
        self._under_way[ticket] = delivery
        self.last_ticket = max(self.last_ticket, ticket)
        if len(self._under_way) > MAX_UNDELIVERED:
            self.arrived(next(iter(self._under_way)))

    def arrived(self, ticket: int) -> None:
        """Know that an answer reached its caller; an unknown ticket is none of ours."""
        if self._under_way.pop(ticket, None) is not None:
            self._journal.add(Delivered(ticket))

    def failed(self, ticket: int) -> Delivery | None:
        """Give an answer that did not reach its caller, to be put back; None: it is unknown."""
        delivery = self._under_way.pop(ticket, None)
        if delivery is not None:
            self._journal.add(PutBack(ticket))
        return delivery
