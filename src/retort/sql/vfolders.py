"""Virtual folders in SQL: the VFolderStore."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from retort.core.vfolder import (
    Invitation,
    Permission,
    Share,
    UsageMode,
    VFolder,
    VFolderStatus,
)
from retort.errors import Conflict, InvitationNotFound, VFolderExists, VFolderNotFound
from retort.sql.engine import Database
from retort.sql.tables import VFOLDER_INVITATIONS, VFOLDER_SHARES, VFOLDERS

_FOLDER = tuple(field.name for field in dataclasses.fields(VFolder))  # each is a column
_SHARE = tuple(field.name for field in dataclasses.fields(Share))
_INVITATION = tuple(field.name for field in dataclasses.fields(Invitation))
MAX_REMEMBERED = 256  # users whose folders are kept in memory


class SqlVFolders:
    """A `core.ports.VFolderStore` in a database.

    It must be the only writer: what somebody sees is remembered until the next change of anything,
    as every new session asks for it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._visible: dict[
            tuple[uuid.UUID, uuid.UUID], Sequence[tuple[VFolder, Share | None]]
        ] = {}
        self._changes = 0

    @contextlib.asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        """Lend a transaction; what was seen before its end is not remembered."""
        self._forget()
        try:
            async with self._database.write() as connection:
                yield connection
        finally:
            self._forget()

    def _forget(self) -> None:
        self._changes += 1
        self._visible.clear()

    # --- folders ----------------------------------------------------------------------------

    async def add(self, folder: VFolder) -> None:
        """Keep a new folder. Raises VFolderExists, StoreFault."""
        try:
            async with self._write() as connection:
                await connection.execute(VFOLDERS.insert().values(_folder_row(folder)))
        except Conflict as exc:
            raise VFolderExists from exc

    async def update(self, folder: VFolder) -> None:
        """Replace a folder by its id. Raises VFolderNotFound, VFolderExists, StoreFault."""
        statement = VFOLDERS.update().values(_folder_row(folder)).where(VFOLDERS.c.id == folder.id)
        try:
            async with self._write() as connection:
                done = await connection.execute(statement)
        except Conflict as exc:
            raise VFolderExists from exc
        if not done.rowcount:
            raise VFolderNotFound

    async def remove(self, folder_id: uuid.UUID) -> None:
        """Forget a folder, its shares and its invitations. Raises VFolderNotFound, StoreFault."""
        async with self._write() as connection:
            done = await connection.execute(VFOLDERS.delete().where(VFOLDERS.c.id == folder_id))
        if not done.rowcount:
            raise VFolderNotFound

    async def get(self, folder_id: uuid.UUID) -> VFolder | None:
        """Find by id. Raises StoreFault."""
        async with self._database.read() as connection:
            query = VFOLDERS.select().where(VFOLDERS.c.id == folder_id)
            row = (await connection.execute(query)).first()
        return None if row is None else _folder(row._mapping)

    async def all(self) -> Sequence[VFolder]:
        """Give every folder, by name. Raises StoreFault."""
        query = VFOLDERS.select().order_by(VFOLDERS.c.name, VFOLDERS.c.id)
        async with self._database.read() as connection:
            return [_folder(row._mapping) for row in await connection.execute(query)]

    async def visible_to(
        self, user_id: uuid.UUID, group_id: uuid.UUID
    ) -> Sequence[tuple[VFolder, Share | None]]:
        """Give a user's, the group's and the shared folders, by name. Raises StoreFault."""
        who, before = (user_id, group_id), self._changes
        if (remembered := self._visible.get(who)) is not None:
            return list(remembered)
        mine = VFOLDER_SHARES.c.folder_id == VFOLDERS.c.id
        joined = VFOLDERS.outerjoin(VFOLDER_SHARES, mine & (VFOLDER_SHARES.c.user_id == user_id))
        query = (
            sa.select(VFOLDERS, *(_as(VFOLDER_SHARES, name) for name in _SHARE))
            .select_from(joined)
            .where(
                (VFOLDERS.c.user_id == user_id)
                | (VFOLDERS.c.group_id == group_id)
                | VFOLDER_SHARES.c.user_id.is_not(None)
            )
            .order_by(VFOLDERS.c.name, VFOLDERS.c.id)
        )
        async with self._database.read() as connection:
            rows = [row._mapping for row in await connection.execute(query)]
        found = tuple(
            (_folder(row), None if row["_user_id"] is None else _share(row, "_")) for row in rows
        )
        if before == self._changes:  # else it may be older than a change that is known
            if len(self._visible) >= MAX_REMEMBERED:
                self._visible.clear()
            self._visible[who] = found
        return list(found)

    # --- shares -----------------------------------------------------------------------------

    async def put_share(self, share: Share) -> None:
        """Open a folder for a user, or change that. Raises VFolderNotFound, StoreFault."""
        try:
            async with self._write() as connection:
                await _put_share(connection, share)
        except Conflict as exc:
            raise VFolderNotFound from exc

    async def remove_share(self, folder_id: uuid.UUID, user_id: uuid.UUID) -> bool:
        """Close a folder to a user; tell whether it was open. Raises StoreFault."""
        async with self._write() as connection:
            done = await connection.execute(_delete_share(folder_id, user_id))
        return bool(done.rowcount)

    async def shares(self, folder_id: uuid.UUID) -> Sequence[Share]:
        """Give everybody a folder is open for, by e-mail. Raises StoreFault."""
        query = VFOLDER_SHARES.select().where(VFOLDER_SHARES.c.folder_id == folder_id)
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(VFOLDER_SHARES.c.email))
            return [_share(row._mapping) for row in rows]

    # --- invitations ------------------------------------------------------------------------

    async def add_invitation(self, invitation: Invitation) -> None:
        """Keep an invitation. Raises VFolderExists, VFolderNotFound, StoreFault."""
        row = _invitation_row(invitation)
        try:
            async with self._write() as connection:
                await connection.execute(VFOLDER_INVITATIONS.insert().values(row))
        except Conflict as exc:
            if await self.get(invitation.folder_id) is None:
                raise VFolderNotFound from exc
            raise VFolderExists("This user is invited already.") from exc

    async def update_invitation(self, invitation: Invitation) -> None:
        """Replace an invitation by its id. Raises InvitationNotFound, StoreFault."""
        statement = VFOLDER_INVITATIONS.update().values(_invitation_row(invitation))
        async with self._write() as connection:
            done = await connection.execute(
                statement.where(VFOLDER_INVITATIONS.c.id == invitation.id)
            )
        if not done.rowcount:
            raise InvitationNotFound

    async def remove_invitation(self, invitation_id: uuid.UUID) -> None:
        """Forget an invitation. Raises InvitationNotFound, StoreFault."""
        async with self._write() as connection:
            done = await connection.execute(_delete_invitation(invitation_id))
        if not done.rowcount:
            raise InvitationNotFound

    async def accept_invitation(self, invitation: Invitation) -> None:
        """Turn an invitation into a share, at once. Raises InvitationNotFound, StoreFault."""
        share = Share(
            invitation.folder_id, invitation.invitee_id, invitation.invitee, invitation.permission
        )
        async with self._write() as connection:
            done = await connection.execute(_delete_invitation(invitation.id))
            if not done.rowcount:
                raise InvitationNotFound
            await _put_share(connection, share)

    async def invitation(self, invitation_id: uuid.UUID) -> Invitation | None:
        """Find an invitation by id. Raises StoreFault."""
        query = VFOLDER_INVITATIONS.select().where(VFOLDER_INVITATIONS.c.id == invitation_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else _invitation(row._mapping)

    async def invitations_to(self, user_id: uuid.UUID) -> Sequence[tuple[Invitation, VFolder]]:
        """Give the invitations for a user, oldest first. Raises StoreFault."""
        return await self._invitations(VFOLDER_INVITATIONS.c.invitee_id == user_id)

    async def invitations_by(self, user_id: uuid.UUID) -> Sequence[tuple[Invitation, VFolder]]:
        """Give the invitations that a user sent, oldest first. Raises StoreFault."""
        return await self._invitations(VFOLDER_INVITATIONS.c.inviter_id == user_id)

    async def _invitations(
        self, condition: sa.ColumnElement[bool]
    ) -> Sequence[tuple[Invitation, VFolder]]:
        columns = (_as(VFOLDER_INVITATIONS, name) for name in _INVITATION)
        query = (
            sa.select(VFOLDERS, *columns)
            .join_from(VFOLDER_INVITATIONS, VFOLDERS)
            .where(condition)
            .order_by(VFOLDER_INVITATIONS.c.created_at, VFOLDER_INVITATIONS.c.id)
        )
        async with self._database.read() as connection:
            rows = [row._mapping for row in await connection.execute(query)]
        return [(_invitation(row, "_"), _folder(row)) for row in rows]


def _as(table: sa.Table, name: str) -> sa.Label[Any]:
    """Name a column so that it does not hide a folder's column of the same name."""
    return table.c[name].label(f"_{name}")


async def _put_share(connection: Any, share: Share) -> None:
    await connection.execute(_delete_share(share.folder_id, share.user_id))
    row = {name: getattr(share, name) for name in _SHARE} | {"permission": share.permission.value}
    await connection.execute(VFOLDER_SHARES.insert().values(row))


def _delete_share(folder_id: uuid.UUID, user_id: uuid.UUID) -> sa.Delete:
    columns = VFOLDER_SHARES.c
    return VFOLDER_SHARES.delete().where(columns.folder_id == folder_id, columns.user_id == user_id)


def _delete_invitation(invitation_id: uuid.UUID) -> sa.Delete:
    return VFOLDER_INVITATIONS.delete().where(VFOLDER_INVITATIONS.c.id == invitation_id)


def _folder_row(folder: VFolder) -> dict[str, Any]:
    return {name: getattr(folder, name) for name in _FOLDER} | {
        "permission": folder.permission.value,
        "usage_mode": folder.usage_mode.value,
        "status": folder.status.value,
    }


def _folder(row: sa.RowMapping) -> VFolder:
    values = {name: row[name] for name in _FOLDER}
    return VFolder(
        **values
        | {
            "permission": Permission(row["permission"]),
            "usage_mode": UsageMode(row["usage_mode"]),
            "status": VFolderStatus(row["status"]),
        }
    )


def _share(row: sa.RowMapping, prefix: str = "") -> Share:
    values = {name: row[prefix + name] for name in _SHARE}
    return Share(**values | {"permission": Permission(values["permission"])})


def _invitation_row(invitation: Invitation) -> dict[str, Any]:
    row = {name: getattr(invitation, name) for name in _INVITATION}
    return row | {"permission": invitation.permission.value}


def _invitation(row: sa.RowMapping, prefix: str = "") -> Invitation:
    values = {name: row[prefix + name] for name in _INVITATION}
    return Invitation(**values | {"permission": Permission(values["permission"])})
