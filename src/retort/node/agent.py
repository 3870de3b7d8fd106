"""One machine that holds sessions: the local adapter of `core.ports.Node`.

A session is a sandbox, its init and its runs. This room makes, finds and ends them; runs are
runner.py's, files are files.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import resource
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import structlog

from retort.core import faults
from retort.core.files import Download, FileUpload, Listing
from retort.core.image import Catalogue, Image, environment
from retort.core.limits import Limits, Usage
from retort.core.run import Answer, Mode, RunRequest
from retort.core.session import Session
from retort.errors import RunNotFound, SandboxFault, SessionNotFound
from retort.node.files import FileLimits, SessionFiles
from retort.node.leftovers import remember
from retort.node.places import Place, Places, counts_by_namespace
from retort.node.runner import Runner, RunSettings
from retort.node.watched_run import WatchedRun
from retort.sandbox.host_uids import HostUids
from retort.sandbox.init import InitClient
from retort.sandbox.inodes import cap_inodes
from retort.sandbox.launcher import Launcher, Sandbox
from retort.sandbox.view import SandboxSpec

log = structlog.get_logger()

CONNECT_S = 10.0
SWEEP_S = 30.0  # how often ended runs that nobody fetched are looked for
BOOTSTRAP_S = 300.0
NPROC_MARGIN = 128  # between the group's limit of processes and the second wall, RLIMIT_NPROC
INODE_SHARE_BYTES = 16 * 1024  # of the memory for each file: an empty one costs 1 KiB and more
MAX_FALLEN = 64  # lost sessions whose last answers are kept
RESTART_S = 10.0  # a process that outlives its SIGKILL for so long sits in the kernel


@dataclasses.dataclass(slots=True, eq=False)
class _Held:
    """A session on this node."""

    session: Session
    sandbox: Sandbox
    client: InitClient
    runner: Runner
    files: SessionFiles
    host_uid: int | None
    place: Place


class LocalNode:
    """Sessions as sandboxes on this machine.

    Args:
        folder: where sandboxes have their sockets; the server's own, mode 0700.
        host_uids: None when the server is not root.
        places: makes the control groups of sessions.
        shares_network: sessions have the host's network.
        on_lost: told when a session's sandbox ended by itself, with the reason.
    """

    def __init__(
        self,
        launcher: Launcher,
        catalogue: Catalogue,
        folder: Path,
        *,
        host_uids: HostUids | None,
        runs: RunSettings,
        files: FileLimits,
        flush_s: float,
        places: Places,
        shares_network: bool,
        on_lost: Callable[[uuid.UUID, str], None],
    ) -> None:
        self._launcher = launcher
        self._catalogue = catalogue
        self._folder = folder
        self._host_uids = host_uids
        self._run_settings = runs
        self._file_limits = files
        self._flush_s = flush_s
        self._places = places
        self._shares_network = shares_network
        self._on_lost = on_lost
        self._held: dict[uuid.UUID, _Held] = {}
        self._fallen: dict[uuid.UUID, Runner] = {}  # of lost sessions, the oldest first
        self._clearing: set[asyncio.Task[None]] = set()  # what is left of lost sessions

    # --- sessions -----------------------------------------------------------------------

    async def create(self, session: Session) -> None:
        """Make a session's sandbox; see `ports.Node`."""
        image = self._catalogue.resolve(session.image)
        host_uid = self._host_uids.acquire() if self._host_uids is not None else None
        folder = self._folder / str(session.id)
        sandbox: Sandbox | None = None
        client: InitClient | None = None
        try:
            spec = _spec(session, host_uid, shares_network=self._shares_network)
            sandbox = await self._launcher.start(spec, folder)
            faults.reached(faults.Point.LAUNCHED)
            remember(sandbox)
            client = await InitClient.connect(
                os.fsencode(sandbox.socket_path),
                timeout_s=CONNECT_S,
                on_lost=lambda exc: self._lost(session.id, exc),
            )
            place = await self._places.make(
                str(session.id),
                session.limits,
                sandbox.pid,
                client,
                functools.partial(cap_inodes, self._launcher, sandbox, spec),
            )
        except BaseException:
            if client is not None:
                client.close()
            await self._clear(sandbox, folder, host_uid, None)
            raise
        held = self._hold(session, image, sandbox, client, host_uid, place)
        self._held[session.id] = held
        try:
            if session.bootstrap_script:
                await self._bootstrap(held, session.bootstrap_script)
            if session.id not in self._held:
                raise SandboxFault("create", "init ended while the session started")
        except BaseException:
            with contextlib.suppress(SessionNotFound):  # its init ended, and `_lost` clears it
                await self.destroy(session.id)
            raise

    async def destroy(self, session_id: uuid.UUID) -> Usage:
        """Kill everything in a session and delete its files."""
        held = self._held.pop(session_id, None)
        if held is None:
            raise SessionNotFound
        held.runner.cancel_all()
        held.client.close()
        usage = held.runner.usage
        faults.reached(faults.Point.DESTROYING)
        await self._clear(held.sandbox, held.sandbox.folder, held.host_uid, held.place)
        return usage

    async def restart(self, session_id: uuid.UUID) -> None:
        """Kill every process of a session; its files are its sandbox's and stay."""
        held = self._find(session_id)
        held.runner.cancel_all()
        try:
            async with asyncio.timeout(RESTART_S):
                await held.runner.end_background()
                await held.runner.settled()
        except TimeoutError:
            raise SandboxFault("restart", "a process of the session does not die") from None

    async def interrupt(self, session_id: uuid.UUID) -> None:
        """Send SIGINT to the running program's process group."""
        self._find(session_id).runner.interrupt()

    async def usage(self, session_id: uuid.UUID) -> Usage:
        """Give what a session used so far."""
        return self._find(session_id).runner.usage

    async def close(self) -> None:
        """End every session of this node."""
        endings = [self.destroy(session_id) for session_id in list(self._held)]
        for result in await asyncio.gather(*endings, return_exceptions=True):
            if isinstance(result, BaseException):
                log.error("session.unended", reason=str(result))
        await asyncio.gather(*self._clearing, return_exceptions=True)
        self._launcher.close()
        await asyncio.to_thread(self._places.close)

    async def sweep_forever(self) -> None:
        """Drop what nobody fetched (R16): one timer for all sessions."""
        while True:
            await asyncio.sleep(SWEEP_S)
            for held in list(self._held.values()):
                held.runner.forget_old()
            for session_id, runner in list(self._fallen.items()):
                runner.forget_old()
                if not runner.has_answers:
                    del self._fallen[session_id]

    # --- runs ---------------------------------------------------------------------------

    async def execute(self, session_id: uuid.UUID, request: RunRequest, wait_s: float) -> Answer:
        """Start, continue or feed a run; see `ports.Node`."""
        fallen = self._fallen.get(session_id)
        if fallen is None or request.mode.starts:
            return await self._find(session_id).runner.execute(request, wait_s)
        try:  # what its runs still have to say is told; then it is gone
            return await fallen.execute(request, wait_s)
        except RunNotFound:
            raise SessionNotFound from None

    async def undeliver(self, session_id: uuid.UUID, answer: Answer) -> None:
        """Put an answer back that could not be written."""
        held = self._held.get(session_id)
        if runner := held.runner if held else self._fallen.get(session_id):
            runner.undeliver(answer)

    async def stream(self, session_id: uuid.UUID, request: RunRequest) -> WatchedRun:
        """Start a run and watch it."""
        runner = self._find(session_id).runner
        return WatchedRun(session_id, runner, request, flush_s=self._flush_s)

    # --- files --------------------------------------------------------------------------

    async def upload(self, session_id: uuid.UUID, files: AsyncIterator[FileUpload]) -> None:
        """Store files, all or none."""
        await self._find(session_id).files.upload(files)

    async def listing(self, session_id: uuid.UUID, path: str) -> Listing:
        """List a folder."""
        return await self._find(session_id).files.listing(path)

    async def download(self, session_id: uuid.UUID, paths: Sequence[str]) -> list[Download]:
        """Open files or folders as tar streams."""
        return await self._find(session_id).files.download(paths)

    async def download_single(self, session_id: uuid.UUID, path: str) -> Download:
        """Open one regular file as it is."""
        return await self._find(session_id).files.download_single(path)

    # --- inside -------------------------------------------------------------------------

    def _find(self, session_id: uuid.UUID) -> _Held:
        held = self._held.get(session_id)
        if held is None:
            raise SessionNotFound
        return held

    def _hold(
        self,
        session: Session,
        image: Image,
        sandbox: Sandbox,
        client: InitClient,
        host_uid: int | None,
        place: Place,
    ) -> _Held:
        runner = Runner(
            client,
            image,
            environment(session.environ),
            _rlimits(
                session.limits,
                counts_processes=host_uid is not None or counts_by_namespace(),
                has_group=place.group is not None,
            ),
            self._run_settings,
            place,
        )
        files = SessionFiles(client, self._file_limits)
        return _Held(session, sandbox, client, runner, files, host_uid, place)

    async def _bootstrap(self, held: _Held, script: str) -> None:
        """Run the user's bootstrap script before the session is ready (spec 7.1).

        A script that fails is the user's affair, as in the original: the session starts anyway.
        """
        request = RunRequest(Mode.BATCH, run_id="bootstrap", exec=script)
        watched = WatchedRun(held.session.id, held.runner, request, flush_s=self._flush_s)
        try:
            async with asyncio.timeout(BOOTSTRAP_S):
                async for answer in watched:
                    log.debug("session.bootstrap", status=answer.status.value)
        except TimeoutError:
            await watched.abandon()

    def _lost(self, session_id: uuid.UUID, exc: Exception | None) -> None:
        """React to an init that went away or talks nonsense: end its runs as our failure."""
        held = self._held.get(session_id)
        if held is None:
            return
        reason = str(exc) if exc else "init ended"
        held.runner.broken(reason)
        del self._held[session_id]
        self._fallen[session_id] = held.runner
        if len(self._fallen) > MAX_FALLEN:
            del self._fallen[next(iter(self._fallen))]
        self._on_lost(session_id, reason)  # at once: its name must not lead to a dead session
        clearing = self._clear(held.sandbox, held.sandbox.folder, held.host_uid, held.place)
        task = asyncio.ensure_future(clearing)
        self._clearing.add(task)
        task.add_done_callback(self._cleared)

    def _cleared(self, task: asyncio.Task[None]) -> None:
        self._clearing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("session.unended", reason=str(error))

    async def _clear(
        self, sandbox: Sandbox | None, folder: Path, host_uid: int | None, place: Place | None
    ) -> None:
        if sandbox is not None:
            await self._launcher.kill(sandbox)
        if place is not None:
            await self._places.clear(place)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if self._host_uids is not None and host_uid is not None:
            self._host_uids.release(host_uid)


def _spec(session: Session, host_uid: int | None, *, shares_network: bool) -> SandboxSpec:
    limits = session.limits
    # Files on a tmpfs are memory: all of them together must leave some for programs and init.
    half, part = limits.memory_bytes // 2, limits.memory_bytes // 8
    return SandboxSpec(
        hostname="main1",
        scratch_bytes=min(limits.scratch_bytes, half),
        tmp_bytes=min(limits.tmp_bytes, part),
        shm_bytes=min(limits.shm_bytes, part),
        scratch_inodes=min(limits.scratch_inodes, limits.memory_bytes // INODE_SHARE_BYTES),
        tmp_inodes=min(limits.tmp_inodes, limits.memory_bytes // (8 * INODE_SHARE_BYTES)),
        host_uid=host_uid,
        shares_network=shares_network,
    )


def _rlimits(
    limits: Limits, *, counts_processes: bool, has_group: bool
) -> tuple[tuple[int, int, int], ...]:
    """Give each program's limits for setrlimit(2): soft and hard alike.

    None is above the server's own, which no program could be given.
    """
    wanted = {
        resource.RLIMIT_CORE: _core_limit(),
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_STACK: limits.stack_bytes,
        resource.RLIMIT_MEMLOCK: 64 * 1024,
    }
    if counts_processes:
        # A group's limit comes first, for it also counts what it refuses.
        wanted[resource.RLIMIT_NPROC] = limits.processes + (NPROC_MARGIN if has_group else 0)
    possible = ((number, _at_most_own(number, value)) for number, value in wanted.items())
    return tuple((number, value, value) for number, value in possible)


def _at_most_own(number: int, value: int) -> int:
    hard = resource.getrlimit(number)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _core_limit() -> int:
    """Give the limit under which no core is ever written, nor piped to a handler of the host.

    A piped `core_pattern` is run whatever the limit, unless that is exactly 1 byte, which is also
    too little for any file (core(5), fs/coredump.c). Where it cannot be raised to that, 0.
    """
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    return 1 if hard == resource.RLIM_INFINITY or hard >= 1 else 0
