"""Sessions in SQL: the SessionStore."""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from retort.core.session import Session, SessionStatus
from retort.errors import Conflict, SessionNotFound
from retort.sql.engine import Database
from retort.sql.tables import ENDED, LIVE, SESSIONS

_FIELDS = tuple(field.name for field in dataclasses.fields(Session))  # each is a column

_INSERT = SESSIONS.insert()
_UPDATE = (
    SESSIONS.update()
    .values({name: sa.bindparam(name) for name in _FIELDS})
    .where(SESSIONS.c.id == sa.bindparam("of_id"))
)


class SqlSessions:
    """A `core.ports.SessionStore` in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, session: Session) -> None:
        """Keep a new session.

        Raises:
            Conflict: its id exists, or its owner has a live one of that name.
            StoreFault: the database failed.
        """
        try:
            await self._database.write_row(_INSERT, _to_row(session))
        except Conflict as exc:
            raise _taken(session) from exc

    async def update(self, session: Session) -> None:
        """Replace a session by its id.

        Raises:
            SessionNotFound: there is none.
            Conflict: its new name belongs to another live session of its owner.
            StoreFault: the database failed.
        """
        row = _to_row(session) | {"of_id": session.id}
        try:
            found = await self._database.write_row(_UPDATE, row)
        except Conflict as exc:
            raise _taken(session) from exc
        if not found:
            raise SessionNotFound

    async def get(self, session_id: uuid.UUID) -> Session | None:
        """Find by id, in any state. Raises StoreFault."""
        found = await self._select(SESSIONS.select().where(SESSIONS.c.id == session_id))
        return found[0] if found else None

    async def live(self) -> Sequence[Session]:
        """Give every live session, oldest first. Raises StoreFault."""
        query = SESSIONS.select().where(sa.text(LIVE))
        return await self._select(query.order_by(SESSIONS.c.created_at, SESSIONS.c.id))

    async def find(
        self,
        owner: str | None,
        *,
        statuses: Sequence[SessionStatus] = (),
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[Session]:
        """List an owner's sessions, or everybody's, newest first; no statuses: in any state.

        Raises:
            StoreFault: the database failed.
        """
        query = SESSIONS.select()
        if owner is not None:
            query = query.where(SESSIONS.c.owner == owner)
        if statuses:
            query = query.where(SESSIONS.c.status.in_([status.value for status in statuses]))
        newest = (SESSIONS.c.created_at.desc(), SESSIONS.c.id.desc())
        return await self._select(query.order_by(*newest).limit(limit).offset(offset))

    async def ended_since(self, at: dt.datetime) -> Sequence[Session]:
        """Give sessions that ended after a time, oldest first. Raises StoreFault."""
        query = SESSIONS.select().where(sa.text(ENDED), SESSIONS.c.terminated_at > at)
        return await self._select(query.order_by(SESSIONS.c.terminated_at, SESSIONS.c.id))

    async def forget_ended_before(self, at: dt.datetime) -> int:
        """Delete records of sessions that ended before a time; give their number.

        Raises:
            StoreFault: the database failed.
        """
        old = SESSIONS.delete().where(sa.text(ENDED), SESSIONS.c.terminated_at < at)
        return await self._database.transact(lambda db: db.execute(old).rowcount)

    async def _select(self, query: sa.Select[Any]) -> list[Session]:
        return await self._database.transact(
            lambda db: [_from_row(row) for row in db.execute(query)]
        )


def _taken(session: Session) -> Conflict:
    return Conflict(f"a session named {session.name}, or of this id, exists")


def _to_row(session: Session) -> dict[str, Any]:
    return {name: getattr(session, name) for name in _FIELDS} | {"status": session.status.value}


def _from_row(row: sa.Row[Any]) -> Session:
    values = row._asdict()
    return Session(**values | {"status": SessionStatus(values["status"])})
