"""Which sessions somebody may look at, those that have ended among them."""

from __future__ import annotations

import uuid
from collections.abc import Collection

from retort.core.keypair import KeyPair
from retort.core.ports import SessionStore
from retort.core.session import Session, SessionStatus
from retort.errors import InsufficientPrivilege
from retort.services.sessions import SessionService

MAX_ENDED = 1000  #: of the ended ones, so many are listed, the newest


class SessionListing:
    """Live sessions from memory, ended ones from their records."""

    def __init__(self, sessions: SessionService, store: SessionStore) -> None:
        self._sessions = sessions
        self._store = store

    async def find(
        self,
        caller: KeyPair,
        access_key: str | None = None,
        statuses: Collection[SessionStatus] | None = None,
    ) -> list[Session]:
        """List sessions, newest first.

        Args:
            access_key: whose; None: the caller's own, or everybody's for administrators.
            statuses: only these; None: any.

        Raises:
            InsufficientPrivilege: another's, and the caller is no administrator.
            StoreFault: the database failed.
        """
        owner = access_key or (None if caller.is_admin else caller.access_key)
        if owner != caller.access_key and not caller.is_admin:
            raise InsufficientPrivilege
        wanted = set(SessionStatus if statuses is None else statuses)
        found = [
            session
            for session in self._sessions.all()
            if owner in (None, session.owner) and session.status in wanted
        ]
        if ended := [status for status in wanted if not status.is_live]:
            found += await self._store.find(owner, statuses=ended, limit=MAX_ENDED)
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)

    async def get(self, caller: KeyPair, session_id: uuid.UUID) -> Session | None:
        """Find one in any state; another's is there for administrators only. Raises StoreFault."""
        live = [session for session in self._sessions.all() if session.id == session_id]
        found = live[0] if live else await self._store.get(session_id)
        if found is None or (found.owner != caller.access_key and not caller.is_admin):
            return None
        return found
