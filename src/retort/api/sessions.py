"""Sessions: create, info, restart, destroy and the small calls about them (spec 7)."""

from __future__ import annotations

import dataclasses
import datetime as dt

from aiohttp import web

from retort.api.answers import json_answer, no_content
from retort.api.call import Call
from retort.core.mount import asked_mounts
from retort.core.ports import Clock
from retort.core.session import Session, SessionRequest
from retort.errors import InvalidRequest, NotPermitted
from retort.services.sessions import SessionService
from retort.wire import create as wire_create
from retort.wire import sessions as wire
from retort.wire.repeats import derived_id
from retort.wire.slots import Slots


class SessionRoutes:
    """Handlers of sessions."""

    def __init__(self, sessions: SessionService, clock: Clock) -> None:
        self._sessions = sessions
        self._clock = clock

    async def create(self, call: Call) -> web.StreamResponse:
        """Make a session, or give the live one of that name (spec 7.1)."""
        asked = wire_create.parse_create(await call.params())
        request = _session_request(asked)
        if (key := call.reply_key) is not None:
            made = derived_id(key.owner, key.token, "session")
            request = dataclasses.replace(request, id=made)
        session, is_new = await self._sessions.create(call.keypair, request)
        body = wire.create_answer(
            str(session.id), session.name, status=session.status.value, is_new=is_new
        )
        return json_answer(body, 201 if is_new else 200)

    async def info(self, call: Call) -> web.StreamResponse:
        """Tell about a session (spec 7.2)."""
        session = await self._sessions.running(call.keypair, call.ref)
        usage = await self._sessions.usage(session)
        return json_answer(wire.info_answer(self._info(session, usage.user_us + usage.system_us)))

    async def restart(self, call: Call) -> web.StreamResponse:
        """Kill everything in a session; its files stay (spec 7.4)."""
        await self._sessions.restart(call.keypair, call.ref)
        return no_content()

    async def destroy(self, call: Call) -> web.StreamResponse:
        """End a session and tell what it used (spec 7.3, 5.5)."""
        wire.parse_destroy(await call.params())
        usage = await self._sessions.destroy(call.keypair, call.ref)
        stats = wire.Stats(
            cpu_used=(usage.user_us + usage.system_us) // 1000,
            mem_max_bytes=usage.max_rss_bytes,
            io_read_bytes=usage.read_bytes,
            io_write_bytes=usage.written_bytes,
        )
        return json_answer(wire.destroy_answer(stats, call.version))

    async def rename(self, call: Call) -> web.StreamResponse:
        """Give a session another name (spec 7.5)."""
        name = wire.parse_rename(await call.params())
        await self._sessions.rename(call.keypair, call.ref, name)
        return no_content()

    async def interrupt(self, call: Call) -> web.StreamResponse:
        """Send SIGINT to the running program (spec 7.6)."""
        await self._sessions.interrupt(call.keypair, call.ref)
        return no_content()

    async def match(self, call: Call) -> web.StreamResponse:
        """Find sessions by the beginning of their name or UUID (spec 7.11)."""
        prefix = (await call.params()).required("id")
        found = self._sessions.matching(call.keypair, prefix)
        return json_answer(
            wire.matches_answer(wire.Match(str(s.id), s.name, s.status.value) for s in found)
        )

    def _info(self, session: Session, cpu_us: int) -> wire.SessionInfo:
        slots = Slots(session.limits.cpus, session.limits.memory_bytes)
        age = max(self._clock.now() - session.created_at, dt.timedelta())  # it may be set back
        return wire.SessionInfo(
            image=session.image,
            status=session.status.value,
            created_at=session.created_at,
            age_ms=age // dt.timedelta(milliseconds=1),
            user_id=str(session.user_id),
            container_id=str(session.id),
            tag=session.tag,
            status_info=session.reason or None,
            requested=slots,
            occupied=slots,
            environ=session.environ,
            runs=session.num_queries,
            cpu_used_ms=cpu_us // 1000,
        )


def _session_request(asked: wire_create.CreateRequest) -> SessionRequest:
    """Take what this server acts on, and refuse what it would otherwise silently leave out."""
    if asked.session_type is wire_create.SessionType.BATCH:
        raise InvalidRequest.field("type", "this server has interactive sessions only")
    config = asked.config
    if config.agent_list:
        raise NotPermitted("agent_list is for administrators")
    for field, value in (("domain", asked.domain), ("group", asked.group)):
        if value != "default":
            raise InvalidRequest.field(field, "this server has only 'default'")
    if config.scaling_group not in (None, "default"):
        raise InvalidRequest.field("config.scaling_group", "this server has only 'default'")
    return SessionRequest(
        image=asked.image,
        name=asked.name,
        tag=asked.tag,
        environ=config.environ,
        cpus=config.slots.cpu,
        memory_bytes=config.slots.memory_bytes,
        bootstrap_script=asked.bootstrap_script,
        reuse=asked.may_reuse,
        mounts=asked_mounts(config.mounts, config.mount_map),
    )
