"""One machine that holds sessions: the local adapter of `core.ports.Node`.

A session is a sandbox, its init and its runs. This room makes, finds and ends them; runs are
runner.py's, files are files.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import structlog

from retort.core import faults
from retort.core.files import Download, FileUpload, Listing
from retort.core.image import Catalogue, Image, environment
from retort.core.limits import Usage
from retort.core.run import Answer, Mode, RunRequest
from retort.core.session import Session
from retort.errors import RunNotFound, SandboxFault, SessionLost, SessionNotFound
from retort.node import reserve
from retort.node.adopt import GONE, replay_of, resume
from retort.node.boxes import Box, Boxes
from retort.node.build_cache import BuildCache, SessionBuilds, Surroundings
from retort.node.files import FileLimits, SessionFiles
from retort.node.journal import Journal, read_journal
from retort.node.places import Place
from retort.node.pool import Pool
from retort.node.replay import IsKept
from retort.node.run_book import journal_path
from retort.node.run_settings import RunSettings
from retort.node.runner import Runner
from retort.node.watched_run import WatchedRun
from retort.sandbox.outside import left_outside

log = structlog.get_logger()

SWEEP_S = 30.0  # how often ended runs that nobody fetched are looked for
BOOTSTRAP_S = 300.0
MAX_CLEARING = 64  # ended sessions of which something is left
MAX_FALLEN = 64  # lost sessions whose last answers are kept
RESTART_S = 10.0  # a process that outlives its SIGKILL for so long sits in the kernel


@dataclasses.dataclass(slots=True, eq=False)
class _Held:
    """A session on this node."""

    session: Session
    box: Box
    runner: Runner
    files: SessionFiles


class LocalNode:
    """Sessions as sandboxes on this machine.

    Args:
        boxes: makes their sandboxes.
        pool: has some of them ready.
        folder: where sandboxes have their sockets; the server's own, mode 0700.
        on_lost: told when a session's sandbox ended by itself, with the reason.
        cache: of builds; the node closes it.
        is_kept: says whether the answer to a call is kept for its token, so that it has arrived.
    """

    def __init__(
        self,
        boxes: Boxes,
        pool: Pool,
        catalogue: Catalogue,
        folder: Path,
        *,
        runs: RunSettings,
        files: FileLimits,
        flush_s: float,
        on_lost: Callable[[uuid.UUID, str], None],
        is_kept: IsKept,
        cache: BuildCache | None = None,
    ) -> None:
        self._boxes = boxes
        self._pool = pool
        self._cache = cache
        self._catalogue = catalogue
        self._folder = folder
        self._run_settings = runs
        self._file_limits = files
        self._flush_s = flush_s
        self._on_lost = on_lost
        self._is_kept = is_kept
        self._held: dict[uuid.UUID, _Held] = {}
        self._fallen: dict[uuid.UUID, Runner] = {}  # of lost sessions, the oldest first
        self._clearing: set[asyncio.Task[None]] = set()  # what is left of ended sessions
        self._clearers = asyncio.Semaphore(MAX_CLEARING)

    # --- sessions -----------------------------------------------------------------------

    async def create(self, session: Session) -> None:
        """Make a session's sandbox; see `ports.Node`."""
        image = self._catalogue.resolve(session.image)
        reserve.insist(reserve.Need.RUN)  # one that is ready has most of what it takes
        folder = self._folder / str(session.id)
        ready = None if session.mounts else self._pool.take(session.limits)
        if ready is None:
            reserve.insist(reserve.Need.SESSION)
        box = ready or await self._boxes.make(session.limits, folder, session.mounts)
        try:
            if ready is not None:
                ready.move(folder)
            held = self._hold(session, image, box, Journal(journal_path(folder)))
        except OSError as exc:
            await self._clear_soon(box)
            raise SandboxFault("folder", str(exc)) from exc
        self._held[session.id] = held
        box.loss.tell(lambda exc: self._lost(session.id, exc))
        try:
            if session.bootstrap_script:
                await self._bootstrap(held, session.bootstrap_script)
            if box.loss.has_happened or session.id not in self._held:
                raise SandboxFault("create", "init ended while the session started")
        except BaseException:
            with contextlib.suppress(SessionNotFound):  # its init ended, and `_lost` clears it
                await self.destroy(session.id)
            raise

    async def adopt(self, session: Session) -> Session:
        """Take over a session of an earlier server; see `ports.Node`."""
        folder = self._folder / str(session.id)
        image = self._catalogue.resolve(session.image)
        records, end = await asyncio.to_thread(read_journal, journal_path(folder))
        try:
            box = await self._boxes.adopt(session, folder, lambda exc: self._lost(session.id, exc))
        except SessionLost as exc:
            runner = Runner(GONE, image, {}, (), self._run_settings, Place())
            runner.tell_of(await replay_of(records, runner.make, self._is_kept), exc.message)
            if runner.has_answers:  # what its runs have still to say
                self._let_fall(session.id, runner)
            raise
        held = self._hold(session, image, box, Journal(journal_path(folder), end))
        try:
            replay = await replay_of(records, held.runner.make, self._is_kept)
            await resume(held.runner, replay, box.client)
            await held.files.take_back_uploads()
        except (SandboxFault, OSError) as exc:
            held.runner.broken(str(exc))
            held.runner.close_journal()
            await self._clear_soon(box)
            raise SessionLost(str(exc)) from exc
        self._held[session.id] = held
        usage, started = held.runner.usage, held.runner.started
        return dataclasses.replace(session, usage=usage, num_queries=started)

    async def sweep(self) -> None:
        """End what an earlier server left and nobody adopted."""
        await self._boxes.sweep(self._folder, {str(session_id) for session_id in self._held})

    async def let_go(self) -> None:
        """Leave every session running, for the next server."""
        await self._pool.close()
        await asyncio.gather(*self._clearing, return_exceptions=True)
        held, self._held = list(self._held.values()), {}
        for one in held:
            one.runner.let_go()
            await self._boxes.let_go(one.box)
        await self._boxes.end_sweep(at_once=True)
        await asyncio.to_thread(self._boxes.close)

    async def destroy(self, session_id: uuid.UUID) -> Usage:
        """Kill everything in a session and delete its files.

        Everything in it has been sent its SIGKILL when this returns; what takes time, waiting for
        the end of the last process and giving back its place, goes on in the background, for at
        most `MAX_CLEARING` sessions at a time: beyond that, callers wait for their turn.
        """
        held = self._held.pop(session_id, None)
        if held is None:
            raise SessionNotFound
        held.runner.cancel_all()
        usage = held.runner.usage
        held.runner.close_journal()
        faults.reached(faults.Point.DESTROYING)
        await self._clear_soon(held.box)
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

    def is_busy(self, session_id: uuid.UUID) -> bool:
        """Tell whether a program of a session runs."""
        held = self._held.get(session_id)
        return held is not None and held.runner.is_busy

    async def usage(self, session_id: uuid.UUID) -> Usage:
        """Give what a session used so far."""
        return self._find(session_id).runner.usage

    async def close(self) -> None:
        """End every session of this node."""
        endings = [self.destroy(session_id) for session_id in list(self._held)]
        for result in await asyncio.gather(*endings, return_exceptions=True):
            if isinstance(result, BaseException):
                log.error("session.unended", reason=str(result))
        await self._pool.close()
        await asyncio.gather(*self._clearing, return_exceptions=True)
        await self._boxes.end_sweep(at_once=False)
        await asyncio.to_thread(self._boxes.close)
        if self._cache is not None:
            await asyncio.to_thread(self._cache.close)

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

    async def fill_forever(self) -> None:
        """Have sandboxes ready for sessions to come."""
        await self._pool.fill_forever()

    # --- runs ---------------------------------------------------------------------------

    async def execute(self, session_id: uuid.UUID, request: RunRequest, wait_s: float) -> Answer:
        """Start, continue or feed a run; see `ports.Node`."""
        if request.mode.starts:
            reserve.insist(reserve.Need.RUN)
        fallen = self._fallen.get(session_id)
        if fallen is None or request.mode.starts:
            return await self._find(session_id).runner.execute(request, wait_s)
        try:  # what its runs still have to say is told; then it is gone
            return await fallen.execute(request, wait_s)
        except RunNotFound:
            raise SessionNotFound from None

    async def delivered(self, session_id: uuid.UUID, answer: Answer) -> None:
        """Know that an answer reached its caller."""
        held = self._held.get(session_id)
        if runner := held.runner if held else self._fallen.get(session_id):
            runner.delivered(answer)

    async def stop_waiting(self) -> None:
        """Let waiting calls answer now: the server stops."""
        for held in self._held.values():
            held.runner.stop_waiting()

    async def undeliver(self, session_id: uuid.UUID, answer: Answer) -> None:
        """Put an answer back that could not be written."""
        held = self._held.get(session_id)
        if runner := held.runner if held else self._fallen.get(session_id):
            runner.undeliver(answer)

    async def stream(self, session_id: uuid.UUID, request: RunRequest) -> WatchedRun:
        """Start a run and watch it."""
        reserve.insist(reserve.Need.RUN)
        runner = self._find(session_id).runner
        return WatchedRun(session_id, runner, request, flush_s=self._flush_s)

    # --- files --------------------------------------------------------------------------

    async def upload(self, session_id: uuid.UUID, files: AsyncIterator[FileUpload]) -> None:
        """Store files, all or none."""
        await (await self._files(session_id)).upload(files)

    async def listing(self, session_id: uuid.UUID, path: str) -> Listing:
        """List a folder."""
        return await (await self._files(session_id)).listing(path)

    async def download(self, session_id: uuid.UUID, paths: Sequence[str]) -> list[Download]:
        """Open files or folders as tar streams."""
        return await (await self._files(session_id)).download(paths)

    async def download_single(self, session_id: uuid.UUID, path: str) -> Download:
        """Open one regular file as it is."""
        return await (await self._files(session_id)).download_single(path)

    async def _files(self, session_id: uuid.UUID) -> SessionFiles:
        """Give a session's files when its init may be asked for them."""
        await self._find(session_id).box.place.room()
        return self._find(session_id).files

    # --- inside -------------------------------------------------------------------------

    def _find(self, session_id: uuid.UUID) -> _Held:
        held = self._held.get(session_id)
        if held is None:
            raise SessionNotFound
        return held

    def _hold(self, session: Session, image: Image, box: Box, journal: Journal) -> _Held:
        environ = environment(session.environ)
        files = SessionFiles(box.client, self._file_limits, self._folder / str(session.id))
        rlimits = box.rlimits

        def surroundings() -> Surroundings:
            facts = {
                "image": (str(image.ref), image.kind.value),
                "environment": environ,
                "limits": dataclasses.asdict(session.limits),
                "made with": dataclasses.asdict(box.limits),
                "rlimits": rlimits,
                "walls": dict(box.place.walls),
            }
            return Surroundings(session.owner, facts)

        builds = None
        # What a folder outside of the home holds is in no fingerprint.
        if self._cache is not None and not session.mounts:
            left = functools.partial(left_outside, box.sandbox)
            builds = SessionBuilds(self._cache, box.client, surroundings, files.uploads, left)
        runner = Runner(
            box.client,
            image,
            environ,
            rlimits,
            self._run_settings,
            box.place,
            builds,
            journal,
        )
        return _Held(session, box, runner, files)

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
        held.runner.close_journal()
        del self._held[session_id]
        self._let_fall(session_id, held.runner)
        self._on_lost(session_id, reason)  # at once: its name must not lead to a dead session
        self._clear_in_background(held.box)

    def _let_fall(self, session_id: uuid.UUID, runner: Runner) -> None:
        self._fallen[session_id] = runner
        if len(self._fallen) > MAX_FALLEN:
            del self._fallen[next(iter(self._fallen))]

    async def _clear_soon(self, box: Box) -> None:
        box.kill()
        await self._clearers.acquire()
        self._clear_in_background(box).add_done_callback(lambda _: self._clearers.release())

    def _clear_in_background(self, box: Box) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._boxes.clear(box))
        self._clearing.add(task)
        task.add_done_callback(self._cleared)
        return task

    def _cleared(self, task: asyncio.Task[None]) -> None:
        self._clearing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("session.unended", reason=str(error))
