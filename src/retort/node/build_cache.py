"""The build cache: a build step that is the same as an earlier one is not run again.

The key is the digest of all that a build step depends on; docs/decisions/0016-a-build-cache.md says
of what, and what is left out. Of several builds of one key one is run, the others wait for it. A
session asks through its SessionBuilds: `look` before a build step, `keep` after it, `drop` when it
came to nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from retort.core.build import CacheNote
from retort.core.console import Recording, Stream
from retort.core.run import Outcome, RunLimits, StepResult
from retort.errors import SandboxFault
from retort.hostfs.beneath import TreeOpener
from retort.hostfs.snapshot import Tree, TreeLimits, Unfit, read_tree
from retort.hostfs.staging import finished
from retort.node import stamps
from retort.node.build_restore import Restoring, changes
from retort.node.build_store import BuildStore, Damaged, Manifest, Pack, PackWriter
from retort.sandbox.toolchain import Toolchain

T = TypeVar("T")

log = structlog.get_logger()

THREADS = 2  # reading and copying trees; builds themselves need the processors more
_VERSION = b"retort build 1"
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


@dataclasses.dataclass(frozen=True, slots=True)
class CacheSettings:
    """What the server's configuration says about the cache; units as in config/sections.py."""

    is_default: bool = False
    is_shared: bool = False
    tree: TreeLimits = TreeLimits()


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """What of a session its builds depend on, besides its files.

    Attributes:
        owner: whose builds may stand for one another.
        facts: whatever else can change a result: image, environment, limits, walls.
    """

    owner: str
    facts: Mapping[str, object]


@dataclasses.dataclass(slots=True, eq=False)
class Build:
    """One build step that asked for the cache.

    Attributes:
        key: None when it has none.
        refusal: why it will not be kept.
        hit: the result of an identical build, whose files are in place.
        printed: what that one printed.
        recording: of what this one prints.
        holds_key: others of this key wait for it.
    """

    key: bytes | None = None
    refusal: str | None = None
    hit: StepResult | None = None
    printed: Sequence[tuple[Stream, bytes]] = ()
    recording: Recording | None = None
    before: Tree = dataclasses.field(default_factory=dict)
    toolchain: bytes = b""
    changes: int = 0
    began_ns: int = 0
    holds_key: bool = False

    @property
    def note(self) -> CacheNote:
        """What to say of it."""
        key = None if self.key is None else self.key.hex()
        return CacheNote(self.hit is not None, key, self.refusal)


class BuildCache:
    """What the sessions of a node share: the store, and who builds what just now.

    Args:
        toolchain: makes the identity of the host's programs; run in a thread, at once.
    """

    def __init__(
        self, store: BuildStore, toolchain: Callable[[], Toolchain], settings: CacheSettings
    ) -> None:
        self.settings = settings
        self.store = store
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="retort-cache")
        self._toolchain = self.threads.submit(toolchain)
        self._building: dict[bytes, asyncio.Future[None]] = {}

    def close(self) -> None:
        """End the threads."""
        self.threads.shutdown(wait=True)

    def identity(self) -> bytes:
        """Give the identity of the host's programs; waits for its making. For a thread."""
        return self._toolchain.result().identity()

    async def claim(self, key: bytes) -> Pack | None:
        """Find a stored build, waiting for one that runs; None: the caller builds, and releases."""
        while True:
            if (pack := self.store.open(key)) is not None:
                return pack
            other = self._building.get(key)
            if other is None:
                self._building[key] = asyncio.get_running_loop().create_future()
                return None
            await asyncio.wait((other,))

    def release(self, key: bytes) -> None:
        """Let the next one look again, and build if there is nothing."""
        if (waited := self._building.pop(key, None)) is not None and not waited.done():
            waited.set_result(None)


class SessionBuilds:
    """The builds of one session.

    Args:
        home: opens its files.
        surroundings: says what else its builds depend on; asked by each build that is cached.
        changes: counts the uploads that began or ended; odd while one is under way.
        leftovers: says what lies outside of /home/work, where a build can see it; for a thread.
    """

    def __init__(
        self,
        cache: BuildCache,
        home: TreeOpener,
        surroundings: Callable[[], Surroundings],
        changes: Callable[[], int | None],
        leftovers: Callable[[], str | None],
    ) -> None:
        self._cache = cache
        self._home = home
        self._surroundings = surroundings
        self._changes = changes
        self._leftovers = leftovers

    @property
    def is_default(self) -> bool:
        """Whether builds that do not say are cached."""
        return self._cache.settings.is_default

    async def look(self, argv: Sequence[str], limits: RunLimits, *, is_alone: bool) -> Build:
        """Take a build step from the cache, or get ready to keep it.

        Args:
            argv: its command.
            limits: of its run.
            is_alone: no process of the session lives.

        Raises:
            SandboxFault: init failed, or the files were put in place in part.
        """
        build = Build(refusal=None if is_alone else "a background process of the session lives")
        while build.refusal is None:
            pack = None
            try:
                if build.key is None:
                    await self._find_key(build, argv, limits)
                pack = await self._claim(build)
                if pack is None:
                    return build
                await self._restore(build, pack)
                return build
            except Unfit as exc:
                build.refusal = str(exc)
            except Damaged as exc:
                log.warning("cache.damaged", key=build.note.key, reason=str(exc))
                self._cache.store.remove(build.key or b"")
            except OSError as exc:  # no room for its files: the build itself shall say so
                build.refusal = f"its files cannot be read or put in place: {exc.strerror}"
            finally:
                if pack is not None:
                    pack.close()
        return build

    async def keep(
        self, build: Build, result: StepResult, *, is_pure: bool, is_valid: Callable[[], bool]
    ) -> StepResult:
        """Store what a build did, if it can be; give its result with what the cache says of it.

        Args:
            build: as `look` gave it.
            result: how its step ended.
            is_pure: no limit of the session was met, nor did anybody interfere.
            is_valid: asked last; False: what was read may not be what the build left.
        """
        try:
            await self._keep(build, result, is_pure, is_valid)
        except Unfit as exc:
            build.refusal = str(exc)
        except (OSError, SandboxFault) as exc:
            log.warning("cache.not_stored", reason=str(exc))
            build.refusal = "it could not be stored"
        finally:
            self.drop(build)
        return dataclasses.replace(result, cache=build.note)

    def drop(self, build: Build) -> None:
        """Forget a build that is not run, or of which nothing is kept."""
        if build.key is not None and build.holds_key:
            build.holds_key = False
            self._cache.release(build.key)

    # --- before -------------------------------------------------------------------------

    async def _find_key(self, build: Build, argv: Sequence[str], limits: RunLimits) -> None:
        build.changes = self._still()
        surroundings = self._surroundings()
        facts = [surroundings.facts, list(argv), dataclasses.astuple(limits)]
        owner = "" if self._cache.settings.is_shared else surroundings.owner
        looked = await self._read(functools.partial(self._look_at, (owner, facts)))
        self._check_still(build)
        build.before, build.toolchain, build.key = looked

    def _look_at(self, facts: object, root: int) -> tuple[Tree, bytes, bytes]:
        if (left := self._leftovers()) is not None:
            raise Unfit(left)
        tree = read_tree(root, self._cache.settings.tree)
        toolchain = self._cache.identity()
        return tree, toolchain, _key(toolchain, facts, tree)

    async def _claim(self, build: Build) -> Pack | None:
        assert build.key is not None
        pack = await self._cache.claim(build.key)
        build.holds_key = pack is None
        try:
            self._check_still(build)  # it may have waited for long
        except Unfit:
            if pack is not None:
                pack.close()
            self.drop(build)
            build.key = None
            raise
        build.began_ns = stamps.earliest_ns()
        return pack

    async def _restore(self, build: Build, pack: Pack) -> None:
        manifest = pack.manifest
        root = await self._open_home()
        device = os.fstat(root).st_dev
        os.close(root)
        work = Restoring(self._home, device, build.before, pack, self._cache.threads)
        try:
            await finished(work.stage())
            self._check_still(build)
            try:
                await finished(work.place())
            except OSError as exc:
                raise SandboxFault(
                    "cache", f"files of a build put in place in part: {exc}"
                ) from exc
        finally:
            work.close()
        build.printed = [(Stream(name), data) for name, data in manifest.console]
        build.hit = StepResult(Outcome.EXITED, manifest.exit_code, usage=manifest.usage)
        build.hit = dataclasses.replace(build.hit, cache=build.note)

    # --- after --------------------------------------------------------------------------

    async def _keep(
        self, build: Build, result: StepResult, is_pure: bool, is_valid: Callable[[], bool]
    ) -> None:
        if build.refusal is not None or build.key is None:
            return
        recording = build.recording
        if result.outcome is not Outcome.EXITED or not is_pure:
            raise Unfit("it did not end by itself, or met a limit")
        if result.exit_code:  # perhaps for want of something on this host that no key tells
            raise Unfit("it failed, and only what succeeds is kept")
        if recording is None or not recording.is_whole or result.usage.cut_chars:
            raise Unfit("it printed too much to keep")
        writer = await self._in_thread(self._cache.store.writer)
        try:
            written = await self._read(
                functools.partial(self._pack, build, recording, result, writer)
            )
            self._check_still(build)
            if not is_valid():
                raise Unfit("its run ended meanwhile")
            # Here and not in a thread: nothing can come between the look and the rename.
            self._cache.store.store(build.key, written)
        finally:
            writer.discard()

    def _pack(
        self, build: Build, recording: Recording, result: StepResult, writer: PackWriter, root: int
    ) -> tuple[Path, int]:
        if (left := self._leftovers()) is not None:
            raise Unfit(left)
        if self._cache.identity() != build.toolchain:
            raise Unfit("the programs of this host changed meanwhile")
        after = read_tree(root, self._cache.settings.tree, build.before, writer.keep)
        done = changes(build.before, after, build.began_ns, writer.places)
        console = [(stream.value, data) for stream, data in recording.items]
        return writer.finish(
            Manifest(
                build.key or b"",
                console,
                result.exit_code,
                result.usage,
                done.removed,
                done.folders,
                done.files,
            )
        )

    # --- both ---------------------------------------------------------------------------

    def _still(self) -> int:
        count = self._changes()
        if count is None:
            raise Unfit("files are being uploaded")
        return count

    def _check_still(self, build: Build) -> None:
        if self._still() != build.changes:
            raise Unfit("files were uploaded meanwhile")

    async def _open_home(self) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY
        fd = await finished(self._home.open(b".", flags), discard=os.close)
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise SandboxFault("files", "init gave something else for a folder")
        return fd

    async def _read(self, work: Callable[[int], T]) -> T:
        """Do something that blocks with the folder of the session's files, in a thread."""
        root = await self._open_home()
        try:
            return await self._in_thread(functools.partial(work, root))
        finally:
            os.close(root)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        return await finished(loop.run_in_executor(self._cache.threads, work))


def _key(toolchain: bytes, facts: object, tree: Tree) -> bytes:
    """Give the digest of all that a build depends on.

    Times count by their order alone, and those of folders not at all: that is what make compares.
    """
    times = sorted({e.mtime_ns for e in tree.values() if e.kind != stat.S_IFDIR})
    ranks = {ns: rank for rank, ns in enumerate(times)}
    entries = [
        (path, e.kind, e.mode, e.content, 0 if e.kind == stat.S_IFDIR else ranks[e.mtime_ns])
        for path, e in sorted(tree.items())
    ]
    return hashlib.sha256(_encode((_VERSION, toolchain, facts, entries))).digest()
