"""Opening virtual folders for others (spec 10.6)."""

from __future__ import annotations

from aiohttp import web

from retort.api.answers import json_answer
from retort.api.call import Call
from retort.services.vfolder_sharing import VFolderSharing
from retort.wire import vfolders as wire


class SharingRoutes:
    """Handlers of invitations and shares."""

    def __init__(self, sharing: VFolderSharing) -> None:
        self._sharing = sharing

    async def invite(self, call: Call) -> web.StreamResponse:
        """Offer a folder to users."""
        emails, permission = wire.parse_invite(await call.params())
        invited = await self._sharing.invite(call.keypair, call.ref, emails, permission)
        return json_answer(wire.emails_answer("invited_ids", invited), 201)

    async def received(self, call: Call) -> web.StreamResponse:
        """List the invitations for the caller."""
        found = await self._sharing.received(call.keypair)
        return json_answer({"invitations": [wire.invitation(*pair) for pair in found]})

    async def sent(self, call: Call) -> web.StreamResponse:
        """List the invitations that the caller sent."""
        found = await self._sharing.sent(call.keypair)
        return json_answer({"invitations": [wire.invitation(*pair) for pair in found]})

    async def change(self, call: Call) -> web.StreamResponse:
        """Offer another permission."""
        permission = wire.parse_permission(await call.params(), "perm", "permission")
        await self._sharing.change(call.keypair, call.ref, permission)
        return json_answer({"msg": "The invitation is changed."})

    async def accept(self, call: Call) -> web.StreamResponse:
        """Enter a folder."""
        await self._sharing.accept(call.keypair, (await call.params()).required("inv_id"))
        return json_answer({})

    async def withdraw(self, call: Call) -> web.StreamResponse:
        """Take an invitation back, or turn it down."""
        await self._sharing.withdraw(call.keypair, (await call.params()).required("inv_id"))
        return json_answer({})

    async def leave(self, call: Call) -> web.StreamResponse:
        """Leave a folder that somebody else shares."""
        user_id = wire.parse_optional_id(await call.params(), "shared_user_uuid")
        await self._sharing.leave(call.keypair, call.ref, user_id)
        return json_answer({"msg": "The virtual folder is left."})

    async def shared(self, call: Call) -> web.StreamResponse:
        """List whom the caller's folders are open for."""
        ref = (await call.params()).string("vfolder_id") or None
        found = await self._sharing.shared(call.keypair, ref)
        return json_answer({"shared": [wire.shared(one.folder, one.share) for one in found]})

    async def set_share(self, call: Call) -> web.StreamResponse:
        """Change what a user may do with a folder of the caller's."""
        params = await call.params()
        permission = wire.parse_optional_permission(params, "perm", "permission")
        await self._sharing.set_share(
            call.keypair, params.required("vfolder"), params.required("user"), permission
        )
        return json_answer({"msg": "The share is changed."})

    async def share(self, call: Call) -> web.StreamResponse:
        """Share a group's folder with users."""
        emails, permission = wire.parse_share(await call.params())
        shared = await self._sharing.share(call.keypair, call.ref, emails, permission)
        return json_answer(wire.emails_answer("shared_emails", shared), 201)

    async def unshare(self, call: Call) -> web.StreamResponse:
        """Take such shares back."""
        emails = wire.parse_emails(await call.params())
        unshared = await self._sharing.unshare(call.keypair, call.ref, emails)
        return json_answer(wire.emails_answer("unshared_emails", unshared))
