"""GraphQL: what the public client's commands list (spec 8)."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import web

from retort.api.answers import json_answer
from retort.api.call import Call
from retort.core.keypair import KeyPair
from retort.core.limits import Usage
from retort.core.session import Session
from retort.core.vfolder import DEFAULT_GROUP, SeenVFolder
from retort.errors import GraphqlFailed, InsufficientPrivilege, InvalidRequest, RetortError
from retort.services.keypairs import KeyRing
from retort.services.session_listing import SessionListing
from retort.services.sessions import SessionService
from retort.services.vfolder_life import VFolderService
from retort.wire import graphql as wire
from retort.wire.graphql_sessions import parse_statuses, session


class GraphqlRoutes:
    """Handlers of queries."""

    def __init__(
        self,
        keys: KeyRing,
        sessions: SessionService,
        listing: SessionListing,
        folders: VFolderService,
    ) -> None:
        self._keys = keys
        self._sessions = sessions
        self._listing = listing
        self._folders = folders

    async def query(self, call: Call) -> web.StreamResponse:
        """Answer a query, its errors too, with 200."""
        return json_answer(await self._answer(call))

    async def bare_query(self, call: Call) -> web.StreamResponse:
        """Answer as before v6.20210815: the data alone, errors as a problem."""
        answer = await self._answer(call)
        if errors := answer.get("errors"):
            raise GraphqlFailed(data=errors)
        return json_answer(answer["data"])

    async def _answer(self, call: Call) -> dict[str, Any]:
        asked = wire.parse_query(await call.params())
        return await wire.execute(asked, self._roots(call.keypair))

    def _roots(self, caller: KeyPair) -> dict[str, Any]:
        seen: list[SeenVFolder] | None = None  # read once, however often a query asks

        async def folders(is_wanted: Callable[[SeenVFolder], bool], page: Any) -> dict[str, Any]:
            nonlocal seen
            if seen is None:
                seen = await self._folders.listed(caller)
            found = [wire.vfolder(one) for one in seen if is_wanted(one)]
            return wire.page(
                found, page["limit"], page["offset"], page.get("filter"), page.get("order")
            )

        async def vfolder_list(_info: Any, **given: Any) -> dict[str, Any]:
            if given.get("access_key") not in (None, caller.access_key):
                raise InsufficientPrivilege
            group = given.get("group_id")
            if group is None:
                return await folders(lambda _: True, given)
            is_ours = str(group) in (str(DEFAULT_GROUP), DEFAULT_GROUP.hex)
            return await folders(lambda one: one.folder.is_of_group and is_ours, given)

        async def own(_info: Any, **given: Any) -> dict[str, Any]:
            return await folders(lambda one: one.is_owner, given)

        async def invited(_info: Any, **given: Any) -> dict[str, Any]:
            return await folders(lambda one: not one.is_owner and not one.folder.is_of_group, given)

        async def project(_info: Any, **given: Any) -> dict[str, Any]:
            return await folders(lambda one: one.folder.is_of_group, given)

        async def compute_session(_info: Any, **given: Any) -> dict[str, Any] | None:
            return await self._session(caller, str(given["id"]))

        async def compute_session_list(_info: Any, **given: Any) -> dict[str, Any]:
            return await self._session_list(caller, given)

        async def keypair(_info: Any, **given: Any) -> dict[str, Any] | None:
            return await self._keypair(caller, given.get("access_key"))

        async def groups(_info: Any, **given: Any) -> list[dict[str, Any]]:
            is_ours = given.get("domain_name") in (None, "default")
            return [wire.default_group()] if is_ours and given.get("is_active", True) else []

        async def groups_by_name(_info: Any, **given: Any) -> list[dict[str, Any]]:
            return [wire.default_group()] if given["name"] == "default" else []

        return {
            "keypair": keypair,
            "compute_session": compute_session,
            "compute_session_list": compute_session_list,
            "vfolder_list": vfolder_list,
            "vfolder_own_list": own,
            "vfolder_invited_list": invited,
            "vfolder_project_list": project,
            "groups": groups,
            "groups_by_name": groups_by_name,
        }

    async def _session(self, caller: KeyPair, ref: str) -> dict[str, Any] | None:
        try:
            session_id = uuid.UUID(ref)
        except ValueError:
            raise InvalidRequest.field("id", "must be a UUID") from None
        found = await self._listing.get(caller, session_id)
        if found is None:
            return None
        used = None
        if found.status.is_live:
            with contextlib.suppress(RetortError):  # it is ending, or not there yet
                used = await self._sessions.usage(found)
        return self._shown(found, used)

    async def _session_list(self, caller: KeyPair, given: dict[str, Any]) -> dict[str, Any]:
        is_ours = given.get("domain_name") in (None, "default") and given.get("group_id") in (
            None, "default", str(DEFAULT_GROUP), DEFAULT_GROUP.hex,
        )  # fmt: skip
        statuses = parse_statuses(given.get("status"))
        found = await self._listing.find(caller, given.get("access_key"), statuses)
        items = [self._shown(one) for one in found] if is_ours else []
        return wire.page(
            items, given["limit"], given["offset"], given.get("filter"), given.get("order")
        )

    def _shown(self, found: Session, used: Usage | None = None) -> dict[str, Any]:
        owner = self._keys.find(found.owner)
        return session(found, None if owner is None else owner.email, used)

    async def _keypair(self, caller: KeyPair, access_key: str | None) -> dict[str, Any] | None:
        pair: KeyPair | None = caller
        if access_key not in (None, caller.access_key):
            if not caller.is_admin:
                raise InsufficientPrivilege
            pair = self._keys.find(access_key or "")
        return None if pair is None else wire.keypair(pair, len(self._sessions.owned_by(pair)))
