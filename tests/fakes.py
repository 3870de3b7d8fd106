"""Doubles: small working things that pass the contract suites too."""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from collections.abc import Sequence

from retort.core.keypair import KeyPair
from retort.core.moment import Moment
from retort.core.reply import Reply, ReplyKey
from retort.core.session import Session, SessionStatus
from retort.core.vfolder import Invitation, Share, VFolder
from retort.errors import (
    Conflict,
    InvitationNotFound,
    NotFound,
    SessionNotFound,
    StoreFault,
    VFolderExists,
    VFolderNotFound,
)

START = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)


class FakeClock:
    """A `core.ports.Clock` that stands still until it is told to jump."""

    def __init__(self, now: dt.datetime = START) -> None:
        self._now = now

    def now(self) -> dt.datetime:
        return self._now

    def jump(self, seconds: float) -> None:
        """Move the time; backwards too."""
        self._now += dt.timedelta(seconds=seconds)


class FakeHost:
    """Both clocks of a host: one that people set, and one that only its start sets."""

    def __init__(self) -> None:
        self._now = Moment(START.timestamp(), 1000.0, "0a1b2c3d")

    def __call__(self) -> Moment:
        return self._now

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._now = self._now.after(seconds)

    def set_clock(self, seconds: float) -> None:
        """Set the clock ahead or back."""
        self._now = dataclasses.replace(self._now, wall_s=self._now.wall_s + seconds)

    def start_anew(self, seconds: float) -> None:
        """Switch the host off for so long."""
        self._now = Moment(self._now.wall_s + seconds, 1.0, "ffffffff")


class _Memory:
    """What the stores in memory share.

    Attributes:
        is_broken: every call raises StoreFault, as when the database is gone.
        calls: names of the methods called, in order.
    """

    def __init__(self) -> None:
        self.is_broken = False
        self.calls: list[str] = []

    def _enter(self, method: str) -> None:
        self.calls.append(method)
        if self.is_broken:
            raise StoreFault


class MemoryKeyPairs(_Memory):
    """A `core.ports.KeyPairStore` in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._pairs: dict[str, KeyPair] = {}

    async def add(self, keypair: KeyPair) -> None:
        self._enter("add")
        if keypair.access_key in self._pairs:
            raise Conflict
        self._check_token(keypair)
        self._pairs[keypair.access_key] = keypair

    async def get(self, access_key: str) -> KeyPair | None:
        self._enter("get")
        return self._pairs.get(access_key)

    async def get_by_token(self, token_sha256: str) -> KeyPair | None:
        self._enter("get_by_token")
        found = (pair for pair in self._pairs.values() if pair.token_sha256 == token_sha256)
        return next(found, None)

    async def all(self) -> Sequence[KeyPair]:
        self._enter("all")
        return sorted(self._pairs.values(), key=lambda pair: (pair.created_at, pair.access_key))

    async def update(self, keypair: KeyPair) -> None:
        self._enter("update")
        if keypair.access_key not in self._pairs:
            raise NotFound
        self._check_token(keypair)
        self._pairs[keypair.access_key] = keypair

    async def remove(self, access_key: str) -> None:
        self._enter("remove")
        if self._pairs.pop(access_key, None) is None:
            raise NotFound

    def _check_token(self, keypair: KeyPair) -> None:
        for other in self._pairs.values():
            same_token = other.token_sha256 == keypair.token_sha256
            if same_token and other.access_key != keypair.access_key:
                raise Conflict


class MemorySessions(_Memory):
    """A `core.ports.SessionStore` in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._sessions: dict[uuid.UUID, Session] = {}

    async def add(self, session: Session) -> None:
        self._enter("add")
        if session.id in self._sessions:
            raise Conflict
        self._check_name(session)
        self._sessions[session.id] = session

    async def update(self, session: Session) -> None:
        self._enter("update")
        if session.id not in self._sessions:
            raise SessionNotFound
        self._check_name(session)
        self._sessions[session.id] = session

    async def get(self, session_id: uuid.UUID) -> Session | None:
        self._enter("get")
        return self._sessions.get(session_id)

    async def live(self) -> Sequence[Session]:
        self._enter("live")
        return [session for session in self._oldest_first() if session.status.is_live]

    async def find(
        self,
        owner: str | None,
        *,
        statuses: Sequence[SessionStatus] = (),
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[Session]:
        self._enter("find")
        found = [
            session
            for session in reversed(self._oldest_first())
            if owner in (None, session.owner) and (not statuses or session.status in statuses)
        ]
        return found[offset : offset + limit]

    async def ended_since(self, at: dt.datetime) -> Sequence[Session]:
        self._enter("ended_since")
        ends = [(s.terminated_at, s.id, s) for s in self._sessions.values() if s.terminated_at]
        return [session for ended_at, _, session in sorted(ends) if ended_at > at]

    async def forget_ended_before(self, at: dt.datetime) -> int:
        self._enter("forget_ended_before")
        old = [
            session.id
            for session in self._sessions.values()
            if not session.status.is_live
            and session.terminated_at is not None
            and session.terminated_at < at
        ]
        for session_id in old:
            del self._sessions[session_id]
        return len(old)

    def _oldest_first(self) -> list[Session]:
        return sorted(self._sessions.values(), key=lambda session: (session.created_at, session.id))

    def _check_name(self, session: Session) -> None:
        key = (session.owner, session.name)
        others = (other for other in self._sessions.values() if other.id != session.id)
        if session.status.is_live and any(
            other.status.is_live and (other.owner, other.name) == key for other in others
        ):
            raise Conflict


class MemoryVFolders(_Memory):
    """A `core.ports.VFolderStore` in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._folders: dict[uuid.UUID, VFolder] = {}
        self._shares: dict[tuple[uuid.UUID, uuid.UUID], Share] = {}
        self._invitations: dict[uuid.UUID, Invitation] = {}

    async def add(self, folder: VFolder) -> None:
        self._enter("add")
        if folder.id in self._folders:
            raise VFolderExists
        self._check_name(folder)
        self._folders[folder.id] = folder

    async def update(self, folder: VFolder) -> None:
        self._enter("update")
        if folder.id not in self._folders:
            raise VFolderNotFound
        self._check_name(folder)
        self._folders[folder.id] = folder

    async def remove(self, folder_id: uuid.UUID) -> None:
        self._enter("remove")
        if self._folders.pop(folder_id, None) is None:
            raise VFolderNotFound
        self._shares = {key: s for key, s in self._shares.items() if s.folder_id != folder_id}
        self._invitations = {
            key: made for key, made in self._invitations.items() if made.folder_id != folder_id
        }

    async def get(self, folder_id: uuid.UUID) -> VFolder | None:
        self._enter("get")
        return self._folders.get(folder_id)

    async def all(self) -> Sequence[VFolder]:
        self._enter("all")
        return sorted(self._folders.values(), key=lambda folder: (folder.name, folder.id))

    async def visible_to(
        self, user_id: uuid.UUID, group_id: uuid.UUID
    ) -> Sequence[tuple[VFolder, Share | None]]:
        pairs = [(f, self._shares.get((f.id, user_id))) for f in await self.all()]
        return [
            (folder, share)
            for folder, share in pairs
            if folder.user_id == user_id or folder.group_id == group_id or share
        ]

    async def put_share(self, share: Share) -> None:
        self._enter("put_share")
        if share.folder_id not in self._folders:
            raise VFolderNotFound
        self._shares[share.folder_id, share.user_id] = share

    async def remove_share(self, folder_id: uuid.UUID, user_id: uuid.UUID) -> bool:
        self._enter("remove_share")
        return self._shares.pop((folder_id, user_id), None) is not None

    async def shares(self, folder_id: uuid.UUID) -> Sequence[Share]:
        self._enter("shares")
        found = (share for share in self._shares.values() if share.folder_id == folder_id)
        return sorted(found, key=lambda share: share.email)

    async def add_invitation(self, invitation: Invitation) -> None:
        self._enter("add_invitation")
        if invitation.folder_id not in self._folders:
            raise VFolderNotFound
        for known in self._invitations.values():
            if (known.folder_id, known.invitee_id) == (invitation.folder_id, invitation.invitee_id):
                raise VFolderExists
        self._invitations[invitation.id] = invitation

    async def update_invitation(self, invitation: Invitation) -> None:
        self._enter("update_invitation")
        if invitation.id not in self._invitations:
            raise InvitationNotFound
        self._invitations[invitation.id] = invitation

    async def remove_invitation(self, invitation_id: uuid.UUID) -> None:
        self._enter("remove_invitation")
        if self._invitations.pop(invitation_id, None) is None:
            raise InvitationNotFound

    async def accept_invitation(self, invitation: Invitation) -> None:
        await self.remove_invitation(invitation.id)
        await self.put_share(
            Share(
                invitation.folder_id,
                invitation.invitee_id,
                invitation.invitee,
                invitation.permission,
            )
        )

    async def invitation(self, invitation_id: uuid.UUID) -> Invitation | None:
        self._enter("invitation")
        return self._invitations.get(invitation_id)

    async def invitations_to(self, user_id: uuid.UUID) -> Sequence[tuple[Invitation, VFolder]]:
        return self._invitations_where("invitee_id", user_id)

    async def invitations_by(self, user_id: uuid.UUID) -> Sequence[tuple[Invitation, VFolder]]:
        return self._invitations_where("inviter_id", user_id)

    def _invitations_where(
        self, role: str, user_id: uuid.UUID
    ) -> Sequence[tuple[Invitation, VFolder]]:
        self._enter("invitations")
        found = [made for made in self._invitations.values() if getattr(made, role) == user_id]
        found.sort(key=lambda made: (made.created_at, made.id))
        return [(made, self._folders[made.folder_id]) for made in found]

    def _check_name(self, folder: VFolder) -> None:
        for known in self._folders.values():
            if known.id == folder.id or known.name != folder.name:
                continue
            is_same_user = known.user_id is not None and known.user_id == folder.user_id
            is_same_group = known.group_id is not None and known.group_id == folder.group_id
            if is_same_user or is_same_group:
                raise VFolderExists


class MemoryReplies(_Memory):
    """A `core.ports.ReplyStore` in memory."""

    def __init__(
        self, clock: FakeClock, *, keep_s: float = 900.0, key_bytes: int = 1_000_000
    ) -> None:
        super().__init__()
        self._clock = clock
        self._keep = dt.timedelta(seconds=keep_s)
        self._key_bytes = key_bytes
        self._kept: dict[ReplyKey, tuple[dt.datetime, Reply]] = {}  # the longest unused first

    async def get(self, key: ReplyKey) -> Reply | None:
        self._enter("get")
        kept_at, reply = self._kept.get(key, (None, None))
        if reply is None or kept_at is None or kept_at < self._clock.now() - self._keep:
            return None
        self._kept[key] = self._kept.pop(key)
        return reply

    async def put(self, key: ReplyKey, reply: Reply) -> None:
        self._enter("put")
        self._kept.pop(key, None)
        mine = [k for k in self._kept if k.owner == key.owner]
        while mine and self._size(mine) + reply.size_bytes > self._key_bytes:
            del self._kept[mine.pop(0)]
        self._kept[key] = (self._clock.now(), reply)

    def _size(self, keys: Sequence[ReplyKey]) -> int:
        return sum(self._kept[key][1].size_bytes for key in keys)
