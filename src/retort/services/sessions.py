"""Making, finding and ending sessions: who may have which, and in which order things happen."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import secrets
import uuid
from collections.abc import Coroutine

import structlog

from retort.core import faults
from retort.core.image import Catalogue, Image
from retort.core.keypair import KeyPair
from retort.core.limits import Limits, Usage
from retort.core.mount import Mount
from retort.core.ports import Clock, Placement, SessionStore
from retort.core.session import Session, SessionRequest, SessionStatus
from retort.errors import (
    Conflict,
    InvalidRequest,
    QuotaExceeded,
    RetortError,
    SandboxFault,
    SessionExists,
    SessionLost,
    SessionNotFound,
)
from retort.services.asked import check_environ, slot_of
from retort.services.mounts import MountService

log = structlog.get_logger()


MAX_FALLEN = 1024  # ended sessions that are still known by name, with the reason of their end
ADOPTED_AT_ONCE = 32


class SessionService:
    """Every live session of this server, in memory; the store keeps what must outlive it.

    Args:
        limits: what a session gets when its request does not say.
        mounts: finds its folders; None: there are none.
        told_for: how long callers of a session that ended by itself are told why.
    """

    def __init__(
        self,
        store: SessionStore,
        placement: Placement,
        catalogue: Catalogue,
        clock: Clock,
        limits: Limits,
        mounts: MountService | None = None,
        *,
        told_for: dt.timedelta = dt.timedelta(hours=1),
    ) -> None:
        self._store = store
        self._placement = placement
        self._catalogue = catalogue
        self._clock = clock
        self._limits = limits
        self._mounts = mounts
        self._told_for = told_for
        self._live: dict[uuid.UUID, Session] = {}
        self._names: dict[tuple[str, str], uuid.UUID] = {}
        self._fallen: dict[uuid.UUID, Session] = {}  # lost, the oldest first
        self._ready: dict[uuid.UUID, asyncio.Future[None]] = {}
        self._calls: dict[uuid.UUID, int] = {}
        self._starting: dict[uuid.UUID, asyncio.Task[Session]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- finding ------------------------------------------------------------------------

    def find(self, owner: KeyPair, ref: str) -> Session:
        """Find a live session of this owner by name or UUID (spec 1).

        Raises:
            SessionNotFound: there is none; another owner's is as good as none.
        """
        session_id = self._names.get((owner.access_key, ref))
        if session_id is None:
            try:
                session_id = uuid.UUID(ref)
            except ValueError:
                raise self._not_found(owner, ref) from None
        session = self._live.get(session_id)
        if session is None or session.owner != owner.access_key:
            raise self._not_found(owner, ref)
        self._calls[session_id] = self._calls.get(session_id, 0) + 1
        return session

    def all(self) -> list[Session]:
        """Give every live session of this server, oldest first."""
        return list(self._live.values())

    def calls_of(self, session_id: uuid.UUID) -> int:
        """Give how many calls a live session had; only that it changes means anything."""
        return self._calls.get(session_id, 0)

    def _not_found(self, owner: KeyPair, ref: str) -> SessionNotFound:
        fallen = self.fallen(owner, ref)
        if fallen is None:
            return SessionNotFound()
        return SessionLost(f"The session ended: {fallen.reason}")

    async def running(self, owner: KeyPair, ref: str) -> Session:
        """Find a session and wait until it runs (spec 7.4: calls that arrive meanwhile wait)."""
        session = self.find(owner, ref)
        while session.status is not SessionStatus.RUNNING:
            await self._wait_ready(session.id)
            session = self.find(owner, str(session.id))  # gone, renamed, or restarted once more
        return session

    def fallen(self, owner: KeyPair, ref: str) -> Session | None:
        """Find a session that ended without being asked to, by name or UUID; the last one first."""
        oldest = self._clock.now() - self._told_for
        for session in reversed(self._fallen.values()):
            if session.owner == owner.access_key and ref in (session.name, str(session.id)):
                ended_at = session.terminated_at
                return session if ended_at is None or ended_at > oldest else None
        return None

    def owned_by(self, owner: KeyPair) -> list[Session]:
        """Give the owner's live sessions, oldest first."""
        return [s for s in self._live.values() if s.owner == owner.access_key]

    def matching(self, owner: KeyPair, prefix: str) -> list[Session]:
        """Give the owner's live sessions whose name or UUID begins so (spec 7.11)."""
        return [
            s
            for s in self.owned_by(owner)
            if s.name.startswith(prefix) or str(s.id).startswith(prefix)
        ]

    @property
    def live_count(self) -> int:
        """How many sessions are live on this server."""
        return len(self._live)

    async def usage(self, session: Session) -> Usage:
        """Give what a session used so far."""
        return await self._placement.node_of(session.id).usage(session.id)

    def count_run(self, session: Session) -> None:
        """Count one more run of a session."""
        if held := self._live.get(session.id):
            self._live[session.id] = dataclasses.replace(held, num_queries=held.num_queries + 1)

    # --- making -------------------------------------------------------------------------

    async def create(self, owner: KeyPair, request: SessionRequest) -> tuple[Session, bool]:
        """Make a session, or give the owner's live one of that name (spec 7.1).

        Returns:
            The session, RUNNING, and whether it is new.

        Raises:
            SessionExists: one of that name lives, with another image or not to be reused.
            ImageNotFound: no such image.
            VFolderNotFound, VFolderOperation, InvalidRequest: its mounts cannot be (spec 10.7).
            QuotaExceeded: the key has its number of sessions, or the slots exceed the server's.
            SandboxFault: the sandbox could not be made; the session is forgotten.
            SessionNotFound: it was destroyed before it was ready.
        """
        image = self._catalogue.resolve(request.image)
        if request.id is not None:
            request, made = await self._of_id(owner, request)
            if made is not None:
                return made, True
        existing = await self._existing(owner, request, str(image.ref))
        mounts: tuple[Mount, ...] = ()
        if existing is None and self._mounts is not None:
            mounts = await self._mounts.granted(owner, request.mounts)
            existing = await self._existing(owner, request, str(image.ref))  # made meanwhile
        if existing is not None:
            return existing, False
        if len(self.owned_by(owner)) >= owner.policy.max_sessions:
            raise QuotaExceeded(f"This key may have {owner.policy.max_sessions} live sessions")
        session = self._new(owner, request, image, mounts)
        self._keep(session)  # before the first await: the next create of this name finds it
        self._ready[session.id] = asyncio.get_running_loop().create_future()
        starting = self._starting[session.id] = asyncio.ensure_future(self._start(session))
        try:
            return await starting, True
        except asyncio.CancelledError:
            if starting.cancelled() and session.id not in self._live and not _is_cancelled():
                raise SessionNotFound("The session was destroyed before it was ready") from None
            raise

    async def _of_id(
        self, owner: KeyPair, request: SessionRequest
    ) -> tuple[SessionRequest, Session | None]:
        """Give the live session that this very request made, or free the request of a used id."""
        assert request.id is not None
        held = self._live.get(request.id)
        if held is not None and held.owner == owner.access_key:
            await self._wait_ready(held.id)
            if (held := self._live.get(held.id)) is not None:
                return request, held
        if await self._store.get(request.id) is not None:  # it ended before its answer was kept
            request = dataclasses.replace(request, id=None)
        return request, None

    async def _existing(
        self, owner: KeyPair, request: SessionRequest, image: str
    ) -> Session | None:
        """Find the owner's live session of the asked name, and wait until it is ready."""
        while (existing := self._names.get((owner.access_key, request.name or ""))) is not None:
            if not request.reuse or self._live[existing].image != image:
                raise SessionExists(str(existing))
            await self._wait_ready(existing)
            if existing in self._live:
                return self._live[existing]
        return None

    async def _start(self, session: Session) -> Session:
        is_placed = False
        try:
            node = await self._placement.place(session)
            is_placed = True
            await node.create(session)
            faults.reached(faults.Point.CREATED)
            self._refuse_ended(session)
            session = self._move(session.id, SessionStatus.RUNNING)
            # Once, and before the answer: what had only begun when the server was killed is no
            # session, and its sandbox is swept away.
            await self._store.add(session)
            self._refuse_ended(session)
        except BaseException as exc:
            self._failed(session, exc, is_placed=is_placed)
            raise
        finally:
            del self._starting[session.id]
            self._ready.pop(session.id).set_result(None)
        log.info("session.created", session=str(session.id), image=session.image)
        return session

    def _new(
        self, owner: KeyPair, request: SessionRequest, image: Image, mounts: tuple[Mount, ...]
    ) -> Session:
        now = self._clock.now()
        policy = owner.policy
        limits = dataclasses.replace(
            self._limits,
            cpus=slot_of(
                "cpu",
                request.cpus,
                self._limits.cpus,
                image=image.limits.cpus,
                key=policy.max_cpus,
            ),
            memory_bytes=slot_of(
                "mem",
                request.memory_bytes,
                self._limits.memory_bytes,
                image=image.limits.memory_bytes,
                key=policy.max_memory_bytes,
            ),
        )
        check_environ(request.environ.items())
        session = Session(
            id=request.id or uuid.uuid4(),
            name=request.name or f"session-{secrets.token_hex(6)}",
            owner=owner.access_key,
            user_id=owner.user_id,
            image=str(image.ref),
            asked_image=request.image,
            status=SessionStatus.PENDING,
            created_at=now,
            tag=request.tag,
            environ=dict(request.environ),
            limits=limits,
            resource_slots={"cpu": f"{limits.cpus:g}", "mem": str(limits.memory_bytes)},
            bootstrap_script=request.bootstrap_script,
            history=(("pending", now.isoformat()),),
            mounts=mounts,
        )
        return session.moved(SessionStatus.PREPARING, now)

    def _refuse_ended(self, session: Session) -> None:
        if session.id not in self._live:
            raise SandboxFault("create", "the sandbox ended while it was being made")

    def _failed(self, session: Session, exc: BaseException, *, is_placed: bool) -> None:
        self._drop(session.id)
        if session.status is SessionStatus.RUNNING:  # only the record could not be written
            self._in_background(self._end_quietly(session.id))
        if is_placed:
            self._in_background(self._record_new(self._ended(session, "failed-to-start")))
        if isinstance(exc, asyncio.CancelledError):
            log.info("session.cancelled", session=str(session.id))
        else:
            log.error("session.failed", session=str(session.id), reason=str(exc))

    # --- changing -----------------------------------------------------------------------

    async def rename(self, owner: KeyPair, ref: str, name: str) -> None:
        """Give a session another name (spec 7.5).

        Raises:
            InvalidRequest: another live session of the owner has that name.
        """
        session = await self.running(owner, ref)
        if session.name == name:
            return
        if (owner.access_key, name) in self._names:
            raise InvalidRequest.field("name", "another live session has it")
        self._rename(session.id, name)
        try:
            await self._store.update(self._live[session.id])
        except BaseException as exc:
            self._rename(session.id, session.name)
            if isinstance(exc, Conflict):
                raise InvalidRequest.field("name", "another live session has it") from exc
            raise

    def _rename(self, session_id: uuid.UUID, name: str) -> None:
        if (session := self._drop(session_id)) is not None:
            self._keep(dataclasses.replace(session, name=name))

    async def restart(self, owner: KeyPair, ref: str) -> None:
        """Kill everything in a session; files, environment and mounts stay (spec 7.4)."""
        session = await self.running(owner, ref)
        self._move(session.id, SessionStatus.RESTARTING)
        self._ready[session.id] = asyncio.get_running_loop().create_future()
        try:
            await self._placement.node_of(session.id).restart(session.id)
        finally:
            if session.id in self._live:
                self._move(session.id, SessionStatus.RUNNING)
            self._ready.pop(session.id).set_result(None)

    async def interrupt(self, owner: KeyPair, ref: str) -> None:
        """Send SIGINT to the running program's process group (spec 7.6)."""
        session = await self.running(owner, ref)
        await self._placement.node_of(session.id).interrupt(session.id)

    async def destroy(self, owner: KeyPair, ref: str, reason: str = "user-requested") -> Usage:
        """End a session: gone for every call at once, then nothing is left of it (spec 7.3)."""
        session = self.find(owner, ref)
        if session.id not in self._starting:  # what only starts is not waited for
            session = await self.running(owner, ref)
        return await self._end(session.id, reason)

    async def end(self, session_id: uuid.UUID, reason: str) -> None:
        """End a session for a reason of the server's own, which its record keeps."""
        await self._end(session_id, reason)

    async def settle(self) -> None:
        """Wait for what is being written down: the server stops, its sessions go on."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def end_all(self, reason: str) -> None:
        """End every session: the server stops."""
        endings = [self._end(session_id, reason) for session_id in list(self._live)]
        await asyncio.gather(*endings, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lost(self, session_id: uuid.UUID, reason: str) -> None:
        """Record that a session's sandbox ended by itself; nothing of it is left."""
        session = self._drop(session_id)
        if session is None:
            return
        log.error("session.lost", session=str(session_id), reason=reason)
        ended = self._ended(session, f"sandbox-lost: {reason}")
        self._let_fall(ended)
        if session_id in self._starting:
            return  # `_start` finds out, and records it
        self._in_background(self._record(ended))

    async def adopt_all(self) -> None:
        """Take over every session that an earlier server left; say of the others why they ended.

        Raises:
            StoreFault: the database failed.
        """
        for session in await self._store.ended_since(self._clock.now() - self._told_for):
            self._let_fall(session)
        turn = asyncio.Semaphore(ADOPTED_AT_ONCE)

        async def adopt(session: Session) -> None:
            async with turn:
                await self._adopt(session)

        async with asyncio.TaskGroup() as tasks:
            for session in await self._store.live():
                tasks.create_task(adopt(session))
        await self._placement.sweep()
        if self._live:
            log.info("sessions.adopted", count=len(self._live))

    async def _adopt(self, session: Session) -> None:
        if session.status is not SessionStatus.RUNNING:  # its caller was never told of it
            await self._store.update(self._ended(session, "server-ended: it was not ready yet"))
            return
        try:
            self._keep(await self._placement.node_of(session.id).adopt(session))
        except RetortError as exc:
            log.error("session.lost", session=str(session.id), reason=exc.message)
            ended = self._ended(session, f"sandbox-lost: {exc.message}")
            self._let_fall(ended)
            await self._store.update(ended)

    def _let_fall(self, session: Session) -> None:
        """Remember a session that ended without its owner's asking, and why."""
        if session.reason.startswith("user-requested"):
            return
        self._fallen.pop(session.id, None)
        self._fallen[session.id] = session
        if len(self._fallen) > MAX_FALLEN:
            del self._fallen[next(iter(self._fallen))]

    async def _end(self, session_id: uuid.UUID, reason: str) -> Usage:
        session = self._drop(session_id)
        if session is None:
            raise SessionNotFound
        if (starting := self._starting.get(session_id)) is not None:
            starting.cancel()
            await asyncio.wait((starting,))
            return Usage()
        node = self._placement.node_of(session_id)
        ended = dataclasses.replace(
            self._ended(session, reason), usage=await node.usage(session_id)
        )
        self._let_fall(ended)
        await self._record(ended)  # first: a killed server's successor will finish what follows
        usage = await node.destroy(session_id)
        faults.reached(faults.Point.DESTROYED)
        log.info("session.ended", session=str(session_id), reason=reason)
        return usage

    async def _end_quietly(self, session_id: uuid.UUID) -> None:
        with contextlib.suppress(RetortError):  # the caller has been told of the first failure
            await self._placement.node_of(session_id).destroy(session_id)

    def _ended(self, session: Session, reason: str) -> Session:
        now = self._clock.now()
        if session.status is SessionStatus.PENDING:
            return session.moved(SessionStatus.CANCELLED, now, reason)
        return session.moved(SessionStatus.TERMINATING, now, reason).moved(
            SessionStatus.TERMINATED, now
        )

    async def _record(self, session: Session) -> None:
        try:
            await self._store.update(session)
        except RetortError as exc:  # the session is gone either way; the record is for people
            log.error("session.unrecorded", session=str(session.id), reason=str(exc))

    async def _record_new(self, session: Session) -> None:
        """Record one that ended before, or while, it was recorded for the first time."""
        try:
            await self._store.add(session)
        except Conflict:
            await self._record(session)
        except RetortError as exc:
            log.error("session.unrecorded", session=str(session.id), reason=str(exc))

    # --- memory -------------------------------------------------------------------------

    def _keep(self, session: Session) -> None:
        self._live[session.id] = session
        self._names[session.owner, session.name] = session.id

    def _drop(self, session_id: uuid.UUID) -> Session | None:
        session = self._live.pop(session_id, None)
        if session is not None:
            self._names.pop((session.owner, session.name), None)
            self._calls.pop(session_id, None)
        return session

    def _move(self, session_id: uuid.UUID, status: SessionStatus) -> Session:
        session = self._live[session_id].moved(status, self._clock.now())
        self._live[session_id] = session
        return session

    async def _wait_ready(self, session_id: uuid.UUID) -> None:
        if ready := self._ready.get(session_id):
            await asyncio.shield(ready)

    def _in_background(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_cancelled() -> bool:
    """Whether somebody cancelled the present task, not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
