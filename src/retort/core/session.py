"""A session: what the API creates, its states, and which state may follow which."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import uuid
from collections.abc import Mapping

from retort.core.limits import Limits, Usage
from retort.core.mount import AskedMount, Mount
from retort.errors import Fault


class SessionStatus(enum.Enum):
    """States of a session (spec 7.1). Live means neither TERMINATED nor CANCELLED."""

    PENDING = "PENDING"  #: accepted, not started
    PREPARING = "PREPARING"  #: its sandbox is being made
    RUNNING = "RUNNING"  #: ready for calls
    RESTARTING = "RESTARTING"  #: its processes are being replaced; files stay
    TERMINATING = "TERMINATING"  #: gone for callers, being cleaned up
    TERMINATED = "TERMINATED"  #: nothing of it is left but this record
    ERROR = "ERROR"  #: its sandbox could not be made
    CANCELLED = "CANCELLED"  #: ended before it started

    @property
    def is_live(self) -> bool:
        """Whether the session's name is taken and its calls are answered."""
        return self not in _DEAD


_DEAD = frozenset({SessionStatus.TERMINATED, SessionStatus.CANCELLED})
_S = SessionStatus
_NEXT: Mapping[SessionStatus, frozenset[SessionStatus]] = {
    _S.PENDING: frozenset({_S.PREPARING, _S.CANCELLED, _S.ERROR}),
    _S.PREPARING: frozenset({_S.RUNNING, _S.ERROR, _S.TERMINATING, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.RESTARTING, _S.TERMINATING}),
    _S.RESTARTING: frozenset({_S.RUNNING, _S.ERROR, _S.TERMINATING}),
    _S.ERROR: frozenset({_S.TERMINATING, _S.TERMINATED}),
    _S.TERMINATING: frozenset({_S.TERMINATED}),
    _S.TERMINATED: frozenset(),
    _S.CANCELLED: frozenset(),
}


class IllegalTransition(Fault):
    """A session was asked to take a state that cannot follow its own."""

    code = "illegal-transition"


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """One session as it stands; changed only by `moved`.

    Attributes:
        id: for machines, and for `/stream/...`.
        name: for people; unique among the owner's live sessions.
        owner: the access key that made it.
        image: the reference as it was resolved, e.g. "gcc:12-debian".
        asked_image: the reference as it was written by the caller.
        environ: variables of every command, after the image's own.
        mounts: the virtual folders it was made with.
        num_queries: runs started.
        reason: why it ended or failed, e.g. "user-requested"; "" while it lives.
        history: when each state was entered.
    """

    id: uuid.UUID
    name: str
    owner: str
    user_id: uuid.UUID
    image: str
    asked_image: str
    status: SessionStatus
    created_at: dt.datetime
    tag: str | None = None
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limits: Limits = Limits()
    resource_slots: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bootstrap_script: str | None = None
    num_queries: int = 0
    reason: str = ""
    usage: Usage = Usage()
    terminated_at: dt.datetime | None = None
    history: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()

    def moved(self, status: SessionStatus, at: dt.datetime, reason: str = "") -> Session:
        """Give the session in its next state.

        Args:
            at: the time of the change, aware UTC.

        Raises:
            IllegalTransition: this state cannot follow the present one.
        """
        if status not in _NEXT[self.status]:
            raise IllegalTransition(f"session {self.id}: {self.status.value} -> {status.value}")
        return dataclasses.replace(
            self,
            status=status,
            reason=reason or self.reason,
            terminated_at=self.terminated_at if status.is_live else at,
            history=(*self.history, (status.value.lower(), at.isoformat())),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class SessionRequest:
    """What a caller asks for when it makes a session (spec 7.1), already well-formed.

    Attributes:
        name: None draws one.
        cpus, memory_bytes: the asked slots; None: the server's default.
        id: of the new session; None draws one. The live session that has it is the answer, and
            one that had it makes room for a drawn one.
        reuse: give the live session of this name instead of refusing, when its image is the same.
    """

    image: str
    name: str | None = None
    tag: str | None = None
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cpus: float | None = None
    memory_bytes: int | None = None
    bootstrap_script: str | None = None
    reuse: bool = True
    mounts: tuple[AskedMount, ...] = ()
    id: uuid.UUID | None = None
