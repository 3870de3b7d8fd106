"""Running programs in a session."""

from __future__ import annotations

from collections.abc import Sequence

from retort.core.keypair import KeyPair
from retort.core.ports import Placement, RunStream
from retort.core.run import Answer, RunRequest
from retort.core.session import Session
from retort.errors import SessionNotFound
from retort.services.sessions import SessionService


class RunService:
    """One engine beneath the polling call, the WebSocket and the command line.

    Args:
        poll_s: a call without news answers `continued` after this many seconds (R4).
    """

    def __init__(self, sessions: SessionService, placement: Placement, *, poll_s: float) -> None:
        self._sessions = sessions
        self._placement = placement
        self._poll_s = poll_s

    async def execute(
        self, owner: KeyPair, ref: str, request: RunRequest
    ) -> tuple[Session, Answer]:
        """Start, continue or feed a run and give its next answer.

        Raises:
            SessionNotFound: none of this name or id belongs to the caller.
            RunNotFound: the call continues a run that is not there (R3).
            LimitExceeded: too many runs wait, or too much input.
        """
        try:
            session = await self._sessions.running(owner, ref)
        except SessionNotFound as lost:
            # Whoever waits for a run's end shall hear it, also when the session ended with it.
            fallen = None if request.mode.starts else self._sessions.fallen(owner, ref)
            if fallen is None:
                raise
            try:
                node = self._placement.node_of(fallen.id)
                return fallen, await node.execute(fallen.id, request, self._poll_s)
            except SessionNotFound:
                raise lost from None
        if request.mode.starts:
            self._sessions.count_run(session)
        node = self._placement.node_of(session.id)
        return session, await node.execute(session.id, request, self._poll_s)

    async def complete(self, owner: KeyPair, ref: str) -> Sequence[str]:
        """Complete code in a session: no image does (spec 7.9). Raises SessionNotFound."""
        await self._sessions.running(owner, ref)
        return ()

    async def delivered(self, session: Session, answer: Answer) -> None:
        """Know that an answer reached its caller: also a killed server will not give it again."""
        await self._placement.node_of(session.id).delivered(session.id, answer)

    async def undeliver(self, session: Session, answer: Answer) -> None:
        """Put back an answer whose connection broke before it was written."""
        await self._placement.node_of(session.id).undeliver(session.id, answer)

    async def stream(
        self, owner: KeyPair, ref: str, request: RunRequest
    ) -> tuple[Session, RunStream]:
        """Start a run and watch it (spec 9.1). Raises as `execute`."""
        session = await self._sessions.running(owner, ref)
        self._sessions.count_run(session)
        return session, await self._placement.node_of(session.id).stream(session.id, request)
