"""Opening virtual folders for others: invitations, shares, leaving."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence

from retort.core.keypair import KeyPair
from retort.core.ports import Clock, VFolderStore
from retort.core.vfolder import Invitation, Permission, SeenVFolder, Share, VFolder
from retort.errors import (
    InsufficientPrivilege,
    InvalidRequest,
    InvitationNotFound,
    VFolderExists,
    VFolderNotFound,
    VFolderOperation,
)
from retort.services.keypairs import KeyRing
from retort.services.vfolders import VFolderLookup


@dataclasses.dataclass(frozen=True, slots=True)
class Shared:
    """A folder with one user it is open for."""

    folder: VFolder
    share: Share


class VFolderSharing:
    """Who lets whom into which folder. A user is who has a key, named by e-mail."""

    def __init__(
        self, store: VFolderStore, lookup: VFolderLookup, keys: KeyRing, clock: Clock
    ) -> None:
        self._store = store
        self._lookup = lookup
        self._keys = keys
        self._clock = clock

    # --- invitations ------------------------------------------------------------------------

    async def invite(
        self, caller: KeyPair, ref: str, emails: Sequence[str], permission: Permission
    ) -> list[str]:
        """Offer a folder to users; give the e-mails of those that are invited now.

        Addresses that no user has are left out.

        Raises:
            VFolderNotFound: the caller sees no such folder.
            VFolderOperation: the caller does not own it.
            InvitationNotFound: none of the addresses is another user's.
            VFolderExists: one of them is in already, or invited.
        """
        seen = await self._owned(caller, ref)
        folder = seen.folder
        users = [user for user in await self._users(emails) if user.user_id != caller.user_id]
        if not users:
            raise InvitationNotFound("No such user to invite.")
        inside = {share.user_id for share in await self._store.shares(folder.id)}
        pending = {
            made.invitee_id
            for made, of in await self._store.invitations_by(caller.user_id)
            if of.id == folder.id
        }
        for user in users:
            if user.user_id in inside | pending:
                raise VFolderExists(f"{user.email} is invited already.")
        now = self._clock.now()
        for user in users:
            await self._store.add_invitation(
                Invitation(
                    id=uuid.uuid4(),
                    folder_id=folder.id,
                    inviter_id=caller.user_id,
                    inviter=caller.email,
                    invitee_id=user.user_id,
                    invitee=user.email,
                    permission=permission,
                    created_at=now,
                    modified_at=now,
                )
            )
        return [user.email for user in users]

    async def received(self, caller: KeyPair) -> Sequence[tuple[Invitation, VFolder]]:
        """Give the invitations for the caller."""
        return await self._store.invitations_to(caller.user_id)

    async def sent(self, caller: KeyPair) -> Sequence[tuple[Invitation, VFolder]]:
        """Give the invitations that the caller sent."""
        return await self._store.invitations_by(caller.user_id)

    async def change(self, caller: KeyPair, ref: str, permission: Permission) -> None:
        """Offer another permission. Raises InvitationNotFound: none that the caller sent."""
        invitation = await self._invitation(ref)
        if invitation.inviter_id != caller.user_id:
            raise InvitationNotFound
        changed = dataclasses.replace(
            invitation, permission=permission, modified_at=self._clock.now()
        )
        await self._store.update_invitation(changed)

    async def accept(self, caller: KeyPair, ref: str) -> None:
        """Enter a folder.

        Raises:
            InvitationNotFound: none for the caller.
            VFolderExists: the caller sees another folder of its name.
        """
        invitation = await self._invitation(ref)
        if invitation.invitee_id != caller.user_id:
            raise InvitationNotFound
        folder = await self._store.get(invitation.folder_id)
        if folder is None:
            raise InvitationNotFound
        for seen in await self._lookup.visible(caller):
            if seen.folder.name == folder.name and seen.folder.id != folder.id:
                raise VFolderExists
        await self._store.accept_invitation(invitation)

    async def withdraw(self, caller: KeyPair, ref: str) -> None:
        """Take an invitation back, or turn it down. Raises InvitationNotFound."""
        invitation = await self._invitation(ref)
        if caller.user_id not in (invitation.inviter_id, invitation.invitee_id):
            raise InvitationNotFound
        await self._store.remove_invitation(invitation.id)

    async def _invitation(self, ref: str) -> Invitation:
        try:
            found = await self._store.invitation(uuid.UUID(ref))
        except ValueError:
            found = None
        if found is None:
            raise InvitationNotFound
        return found

    # --- shares -----------------------------------------------------------------------------

    async def leave(self, caller: KeyPair, ref: str, user_id: uuid.UUID | None = None) -> None:
        """Leave a folder that somebody else shares; its owner may make a user leave.

        Raises:
            VFolderNotFound: the caller sees no such folder.
            VFolderOperation: it is the caller's own, or a group's.
        """
        seen = await self._lookup.find_any(caller, ref)
        if seen.folder.is_of_group:
            raise VFolderOperation("You cannot leave a group's virtual folder")
        leaver = user_id or caller.user_id
        if leaver == seen.folder.user_id:
            raise VFolderOperation("You cannot leave a virtual folder you own")
        if leaver != caller.user_id and not seen.is_owner:
            raise VFolderOperation("Only its owner makes others leave a virtual folder")
        if not await self._store.remove_share(seen.folder.id, leaver):
            raise VFolderOperation("The virtual folder is not shared with that user")

    async def shared(self, caller: KeyPair, ref: str | None) -> list[Shared]:
        """List whom the caller's folders are open for; of one folder, if it is given.

        Raises:
            VFolderNotFound: the caller does not own that folder.
        """
        folders = [seen.folder for seen in await self._lookup.visible(caller) if seen.is_owner]
        if ref is not None:
            found = await self._lookup.find_any(caller, ref)
            if not found.is_owner and not (found.folder.is_of_group and caller.is_admin):
                raise VFolderNotFound
            folders = [found.folder]
        return [
            Shared(folder, share)
            for folder in folders
            for share in await self._store.shares(folder.id)
        ]

    async def set_share(
        self, caller: KeyPair, ref: str, user: str, permission: Permission | None
    ) -> None:
        """Change what a user of the caller's folder may do; None: nothing any more.

        Args:
            user: id or e-mail.

        Raises:
            VFolderNotFound: no such folder; VFolderOperation: not the caller's.
            InvalidRequest: the folder is not open for that user.
        """
        folder = (await self._owned(caller, ref)).folder
        for share in await self._store.shares(folder.id):
            if user.casefold() in (share.email.casefold(), str(share.user_id), share.user_id.hex):
                if permission is None:
                    await self._store.remove_share(folder.id, share.user_id)
                else:
                    await self._store.put_share(dataclasses.replace(share, permission=permission))
                return
        raise InvalidRequest.field("user", "the virtual folder is not shared with them")

    async def share(
        self, caller: KeyPair, ref: str, emails: Sequence[str], permission: Permission
    ) -> list[str]:
        """Give users their own permission on a group's folder; give their e-mails.

        Raises:
            InsufficientPrivilege: the caller is no administrator.
            VFolderNotFound: no such folder.
            VFolderOperation: it is no group's.
            InvitationNotFound: no address is a user's.
        """
        folder = await self._of_group(caller, ref)
        users = await self._users(emails)
        if not users:
            raise InvitationNotFound("No such user to share with.")
        for user in users:
            await self._store.put_share(Share(folder.id, user.user_id, user.email, permission))
        return [user.email for user in users]

    async def unshare(self, caller: KeyPair, ref: str, emails: Sequence[str]) -> list[str]:
        """Take such permissions back; give the e-mails of those who had one. Raises as `share`."""
        folder = await self._of_group(caller, ref)
        users = await self._users(emails)
        if not users:
            raise InvitationNotFound("No such user to unshare from.")
        return [
            user.email for user in users if await self._store.remove_share(folder.id, user.user_id)
        ]

    # --- below ------------------------------------------------------------------------------

    async def _of_group(self, caller: KeyPair, ref: str) -> VFolder:
        if not caller.is_admin:
            raise InsufficientPrivilege
        seen = await self._lookup.find_any(caller, ref)
        if not seen.folder.is_of_group:
            raise VFolderOperation("Only a group's virtual folder is shared so; invite to others")
        return seen.folder

    async def _owned(self, caller: KeyPair, ref: str) -> SeenVFolder:
        seen = await self._lookup.find(caller, ref)
        if not seen.is_owner:
            raise VFolderOperation("You do not own this virtual folder")
        return seen

    async def _users(self, emails: Sequence[str]) -> list[KeyPair]:
        """Find users by e-mail, each once; unknown addresses are left out."""
        found: dict[uuid.UUID, KeyPair] = {}
        for email in emails:
            if (user := await self._keys.user_of(email)) is not None:
                found.setdefault(user.user_id, user)
        return list(found.values())
