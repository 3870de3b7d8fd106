"""Calls about the server itself: versions, who am I, announcements (spec 2.1, 7.11)."""

from __future__ import annotations

from aiohttp import web

from retort.api.answers import json_answer
from retort.api.call import Call
from retort.services.sessions import SessionService
from retort.wire import vfolders
from retort.wire.slots import SLOT_TYPES
from retort.wire.versions import document, root_document


class AboutRoutes:
    """Handlers that need no session."""

    def __init__(self, sessions: SessionService, server_version: str) -> None:
        self._sessions = sessions
        self._root = root_document(server_version)

    async def root(self, call: Call) -> web.StreamResponse:
        """Tell the newest version spoken (spec 2.1)."""
        return json_answer(self._root)

    async def version(self, call: Call) -> web.StreamResponse:
        """Tell the version behind a prefix (spec 2.1)."""
        assert call.target.generation is not None
        return json_answer(document(call.target.generation))

    async def whoami(self, call: Call) -> web.StreamResponse:
        """Say that the signature was right, and echo."""
        params = await call.params()
        return json_answer({"authorized": "yes", "echo": params.value("echo")})

    async def role(self, call: Call) -> web.StreamResponse:
        """Tell the caller's role."""
        is_admin = call.keypair.is_admin
        return json_answer(
            {
                "global_role": "superadmin" if is_admin else "user",
                "domain_role": "admin" if is_admin else "user",
                "group_role": None,
            }
        )

    async def announcement(self, call: Call) -> web.StreamResponse:
        """Tell that there is none."""
        return json_answer({"enabled": False, "message": ""})

    async def status(self, call: Call) -> web.StreamResponse:
        """Tell that the server runs, and how many sessions it has."""
        return json_answer(
            {"nodes": [], "status": "running", "active_sessions": self._sessions.live_count}
        )

    async def resource_slots(self, call: Call) -> web.StreamResponse:
        """Tell the known slots and their types."""
        return json_answer(dict(SLOT_TYPES))

    async def vfolder_types(self, call: Call) -> web.StreamResponse:
        """Tell whose folders there may be."""
        return json_answer(list(vfolders.TYPES))
