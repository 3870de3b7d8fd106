"""Ending sessions whose time is over: idle too long, or alive too long. One timer for all."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Callable

import structlog

from retort.core.ports import Clock, Placement
from retort.core.session import Session, SessionStatus
from retort.errors import RetortError
from retort.services.sessions import SessionService

log = structlog.get_logger()

LOOK_S = 1.0  # how often all sessions are looked at
IDLE = "idle-timeout"
OLD = "max-lifetime"


@dataclasses.dataclass(slots=True)
class _Seen:
    """What is known of a session, in seconds of the monotonic clock."""

    calls: int
    active_at: float
    born_at: float


class Reaper:
    """Looks at every session now and then, and ends those that are due.

    Times are measured by a monotonic clock, so that setting the host's clock ends nothing. Only the
    age of a session that an earlier server made is taken from its record.

    Args:
        monotonic: seconds of a clock that nobody sets.
        idle_s: without a call and without a program for so long; None: for ever.
        life_s: alive for so long, whatever it does; None: for ever.
    """

    def __init__(
        self,
        sessions: SessionService,
        placement: Placement,
        clock: Clock,
        monotonic: Callable[[], float],
        *,
        idle_s: float | None,
        life_s: float | None,
    ) -> None:
        self._sessions = sessions
        self._placement = placement
        self._clock = clock
        self._monotonic = monotonic
        self._idle_s = idle_s
        self._life_s = life_s
        self._seen: dict[uuid.UUID, _Seen] = {}

    async def look_forever(self) -> None:
        """Look every second; return at once when nothing can ever be due."""
        if self._idle_s is None and self._life_s is None:
            return
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """End every session that is due now."""
        live = {s.id: s for s in self._sessions.all() if s.status is SessionStatus.RUNNING}
        self._seen = {sid: seen for sid, seen in self._seen.items() if sid in live}
        for session in live.values():
            if (reason := self._due(session)) is not None:
                try:
                    await self._sessions.end(session.id, reason)
                except RetortError as exc:  # it ended by itself, or will be tried again
                    log.warning("session.unended", session=str(session.id), reason=str(exc))

    def _due(self, session: Session) -> str | None:
        now, calls = self._monotonic(), self._sessions.calls_of(session.id)
        seen = self._seen.get(session.id)
        if seen is None:
            age_s = (self._clock.now() - session.created_at).total_seconds()
            seen = self._seen[session.id] = _Seen(calls, now, now - max(age_s, 0.0))
        if seen.calls != calls or self._placement.node_of(session.id).is_busy(session.id):
            seen.calls, seen.active_at = calls, now
        if self._life_s is not None and now - seen.born_at >= self._life_s:
            return OLD
        if self._idle_s is not None and now - seen.active_at >= self._idle_s:
            return IDLE
        return None
