"""Building and running the whole server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import fcntl
import functools
import hashlib
import math
import os
import secrets
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import structlog
from aiohttp import web

from retort.api.about import AboutRoutes
from retort.api.app import Api, ApiServer, Routes
from retort.api.auth import Authenticator
from retort.api.call import BodyLimits
from retort.api.files import FileRoutes, UploadLimits
from retort.api.graphql import GraphqlRoutes
from retort.api.once import Once
from retort.api.runs import RunRoutes
from retort.api.sessions import SessionRoutes
from retort.api.stream import StreamRoutes
from retort.config import Config, ConfigError
from retort.core.image import Catalogue
from retort.core.limits import Limits
from retort.core.run import RunLimits
from retort.errors import RetortError, SandboxFault
from retort.hostfs.snapshot import TreeLimits
from retort.node.agent import LocalNode
from retort.node.boxes import Boxes
from retort.node.build_cache import BuildCache, CacheSettings
from retort.node.build_store import BuildStore
from retort.node.files import FileLimits
from retort.node.folders import Ids, try_mounting
from retort.node.places import Places
from retort.node.pool import Pool, PoolSettings, free_memory_bytes
from retort.node.replay import IsKept
from retort.node.reserve import Need, is_short
from retort.node.run_settings import RunSettings
from retort.placement.local import LocalPlacement, machine_memory_bytes
from retort.sandbox.cgroup import find
from retort.sandbox.host_uids import HostUids
from retort.sandbox.images import host_catalogue
from retort.sandbox.inodes import why_uncapped
from retort.sandbox.launcher import Launcher
from retort.sandbox.rootfs import build
from retort.sandbox.seccomp import compile_filter, is_available
from retort.sandbox.toolchain import Toolchain
from retort.services.files import FileService
from retort.services.keypairs import KeyRing
from retort.services.mounts import MountService
from retort.services.reaper import Reaper
from retort.services.replies import Replies
from retort.services.runs import RunService
from retort.services.session_listing import SessionListing
from retort.services.sessions import SessionService
from retort.services.vfolder_quota import QuotaWatch
from retort.sql.engine import Database
from retort.sql.keypairs import SqlKeyPairs
from retort.sql.migrations import migrate
from retort.sql.replies import SqliteReplies
from retort.sql.sessions import SqlSessions
from retort.wiring.chores import Chore, forget_forever, keep_on, refresh_forever, stop
from retort.wiring.host import init_program
from retort.wiring.store import SteadyClock, SystemClock, open_database
from retort.wiring.vfolders import open_vfolders

log = structlog.get_logger()

SHUTDOWN_S = 5.0  # how long open requests may take when the server stops


class StateInUse(RetortError):
    """Another server runs on this state folder."""

    code = "state-in-use"


@dataclasses.dataclass(slots=True)
class RunningServer:
    """A server that listens.

    Attributes:
        url: where, with the port that was really taken.
        is_new: its state folder had no key; `keys` has none yet.
    """

    url: str
    keys: KeyRing
    sessions: SessionService

    @property
    def is_new(self) -> bool:
        """Whether there is no key at all."""
        return not len(self.keys)


@contextlib.asynccontextmanager
async def running_server(
    config: Config, *, keeps_sessions: bool = False
) -> AsyncIterator[RunningServer]:
    """Run the whole server on a state folder until the block is left.

    It takes over the sessions that an earlier server left on the folder.

    Args:
        keeps_sessions: leave sessions running for the next server; else they end with this one.

    Raises:
        StateInUse: another server has the folder.
        SandboxFault: this host cannot make sandboxes; `retort doctor` says why.
        StoreFault: the database cannot be opened.
        OSError: the address is taken.
    """
    with _lock(config.state.folder):
        async with open_database(config) as database, contextlib.AsyncExitStack() as stack:
            await migrate(database)
            keys = KeyRing(SqlKeyPairs(database), SystemClock(), policy=config.keys.policy)
            await keys.load()
            yield await _serve(config, database, keys, stack, keeps_sessions=keeps_sessions)


async def _serve(
    config: Config,
    database: Database,
    keys: KeyRing,
    stack: contextlib.AsyncExitStack,
    *,
    keeps_sessions: bool,
) -> RunningServer:
    clock = SystemClock()
    http, runs = config.http, config.runs
    found = await asyncio.to_thread(host_catalogue)
    catalogue = _catalogue(config, found)
    secret = _secret(config.state.folder)
    vfolders = await open_vfolders(config, database, keys, clock, secret, stack)
    replies = await _replies(config, stack)
    node = await _local_node(
        config, catalogue, lambda sid, why: sessions.lost(sid, why), replies.keeps
    )
    placement = LocalPlacement(
        node, memory_bytes=_most_memory_bytes(config), cpus=_most_cpus(config)
    )
    sessions = SessionService(
        SqlSessions(database),
        placement,
        catalogue,
        clock,
        _default_limits(config),
        MountService(
            vfolders.lookup,
            vfolders.volume.has_folder,
            vfolders.quotas.is_overfull,
            most=config.vfolders.mounts_per_session,
        ),
        told_for=dt.timedelta(seconds=config.state.told_s),
    )
    await sessions.adopt_all()
    run_service = RunService(sessions, placement, poll_s=runs.poll_s)
    file_service = FileService(sessions, placement, secret=secret)
    run_routes = RunRoutes(
        run_service,
        file_service,
        base_url=config.server.public_url,
        base_path=config.server.base_path,
    )
    stream_routes = StreamRoutes(sessions, run_service, run_routes)
    api = Api(
        Routes(
            AboutRoutes(sessions, config.server.version),
            SessionRoutes(sessions, clock),
            run_routes,
            stream_routes,
            FileRoutes(file_service, UploadLimits(http.upload_files, http.upload_file_bytes)),
            vfolders.folders,
            vfolders.sharing,
            vfolders.storage,
            vfolders.tasks,
            GraphqlRoutes(
                keys, sessions, SessionListing(sessions, SqlSessions(database)), vfolders.life
            ),
        ),
        Authenticator(keys, clock),
        Once(replies),
        limits=BodyLimits(
            http.json_bytes, http.body_grace_s, http.body_min_rate_bytes_s, http.drain_bytes
        ),
        base_path=config.server.base_path,
        is_crowded=functools.partial(is_short, Need.CONNECTION),
    )
    if keeps_sessions:
        stack.push_async_callback(node.let_go)
        stack.push_async_callback(sessions.settle)
    else:
        stack.push_async_callback(node.close)
        stack.push_async_callback(sessions.end_all, "server-stopped")
    reaper = Reaper(
        sessions,
        placement,
        clock,
        time.monotonic,
        idle_s=config.sessions.idle_s,
        life_s=config.sessions.life_s,
    )
    quota_watch = QuotaWatch(
        sessions,
        vfolders.store,
        vfolders.quotas,
        time.monotonic,
        every_s=config.vfolders.count_s,
    )
    chores: dict[str, Chore] = {
        "answers": node.sweep_forever,
        "reaper": reaper.look_forever,
        "quotas": quota_watch.look_forever,
        "pool": node.fill_forever,
        "keys": functools.partial(refresh_forever, keys),
        "records": functools.partial(forget_forever, SqlSessions(database), clock),
    }
    for name, chore in chores.items():
        stack.push_async_callback(stop, asyncio.ensure_future(keep_on(name, chore)))
    server = ApiServer(
        api.handle,
        access_log=None,
        header_s=http.header_s,
        keepalive_timeout=http.keepalive_s,
        max_line_size=http.header_line_bytes,
        max_field_size=http.header_line_bytes,
        auto_decompress=False,
    )
    runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    stack.push_async_callback(node.stop_waiting)
    stack.push_async_callback(stream_routes.close)
    site = web.TCPSite(runner, config.server.host, config.server.port, backlog=1024)
    await site.start()
    return RunningServer(_url(config, runner), keys, sessions)


async def _replies(config: Config, stack: contextlib.AsyncExitStack) -> Replies:
    """Open the answers that are kept for those who repeat a request."""
    kept = config.repeats
    store = SqliteReplies(
        config.state.folder / "replies.db",
        SteadyClock(),
        keep_s=kept.keep_s,
        key_bytes=kept.key_bytes,
    )
    return Replies(await stack.enter_async_context(store), answer_bytes=kept.answer_bytes)


async def _local_node(
    config: Config,
    catalogue: Catalogue,
    on_lost: Callable[[uuid.UUID, str], None],
    is_kept: IsKept,
) -> LocalNode:
    """Build the node of this machine."""
    bwrap = shutil.which(config.sandbox.bwrap)
    if bwrap is None:
        raise SandboxFault("start", f"{config.sandbox.bwrap}: not found; see `retort doctor`")
    base = await asyncio.to_thread(build, config.state.folder, init_program())
    seccomp = await asyncio.to_thread(filter_of, config)
    spares = config.state.folder / "spares"
    launcher = Launcher(Path(bwrap), base, seccomp=seccomp, spares=spares)
    # Named after the folder, so that the next server on it finds what this one leaves.
    tag = hashlib.sha256(os.fsencode(config.state.folder.resolve())).hexdigest()[:12]
    groups = await asyncio.to_thread(find, tag, named=config.sandbox.group)
    folder = config.state.folder / "sessions"
    folder.mkdir(mode=0o700, exist_ok=True)
    is_root = os.geteuid() == 0
    # A uid that no session ever has, and a folder of its own: a sandbox that lives on since an
    # earlier start is neither met by trials nor, if it was such a trial, forgotten by the sweep.
    last_uid = config.sandbox.host_uid_first + config.sandbox.host_uid_count - 1
    trial_uid = last_uid if is_root else None
    trial = folder / f"trial-{secrets.token_hex(4)}"
    if (why := await why_uncapped(launcher, trial, trial_uid)) is not None:
        log.warning("inodes.uncapped", reason=why)
    folders = await try_mounting(
        launcher,
        config.state.folder.resolve() / "folders",
        trial,
        owner=config.vfolders.host_uid if is_root else None,
        host_uid=trial_uid,
    )
    if folders.ids in (Ids.NONE, Ids.SHARED):
        log.warning("folders.mounts", ids=folders.ids.value, reason=folders.problem)
    sandbox, http, runs = config.sandbox, config.http, config.runs
    boxes = Boxes(
        launcher,
        Places(groups, _walls(config, has_filter=seccomp is not None), caps_inodes=why is None),
        host_uids=HostUids(sandbox.host_uid_first, sandbox.host_uid_count - 1) if is_root else None,
        shares_network=sandbox.network == "host",
        folders=folders,
    )
    pool = Pool(
        boxes,
        folder,
        _default_limits(config),
        PoolSettings(**dataclasses.asdict(config.pool)),
        free_bytes=free_memory_bytes,
    )
    return LocalNode(
        boxes,
        pool,
        catalogue,
        folder,
        runs=RunSettings(
            output_chars=runs.output_chars,
            forget_s=runs.forget_s,
            max_queued=runs.max_queued_runs,
            input_bytes=runs.input_bytes,
            limits=RunLimits(runs.wall_s, runs.cpu_s, runs.output_bytes),
        ),
        files=FileLimits(
            max_upload_file_bytes=http.upload_file_bytes,
            max_listed_entries=http.listing_entries,
            max_archive_entries=http.archive_entries,
            max_part_bytes=http.download_part_bytes,
        ),
        flush_s=runs.flush_s,
        on_lost=on_lost,
        is_kept=is_kept,
        cache=await asyncio.to_thread(_build_cache, config, base.digest),
    )


def _build_cache(config: Config, base: str) -> BuildCache | None:
    cache = config.cache
    if cache.builds == "never":
        return None
    return BuildCache(
        BuildStore(config.state.folder / "builds", cache.store_bytes),
        lambda: Toolchain(
            f"{base} network={config.sandbox.network} locks={config.sandbox.file_locks}"
        ),
        CacheSettings(
            is_default=cache.builds == "always",
            is_shared=cache.sharing == "all",
            tree=TreeLimits(cache.tree_entries, cache.tree_bytes),
        ),
    )


def _most_memory_bytes(config: Config) -> int:
    """Give what a session may have at most, by the settings and by this host."""
    return min(config.sandbox.max_memory_bytes or machine_memory_bytes(), machine_memory_bytes())


def _most_cpus(config: Config) -> float:
    """Give the same for CPUs."""
    return min(config.sandbox.max_cpus or math.inf, os.cpu_count() or 1)


def _catalogue(config: Config, found: Catalogue) -> Catalogue:
    """Give the images as the operator names and limits them, within what may be asked for.

    Raises:
        ConfigError: a setting names an image that is not there.
    """
    cpus, memory_bytes = _most_cpus(config), _most_memory_bytes(config)
    limits = {
        name: given.within(cpus=cpus, memory_bytes=memory_bytes)
        for name, given in config.image_limits.items()
    }
    try:
        return Catalogue(found.images, config.sandbox.image_aliases, limits)
    except RetortError as exc:
        raise ConfigError(f"sandbox.image_aliases, sandbox.image_limits: {exc}") from exc


def _default_limits(config: Config) -> Limits:
    """Give the default limits, no larger than what may be asked for: or no session would fit."""
    limits = config.limits
    return dataclasses.replace(
        limits,
        memory_bytes=min(limits.memory_bytes, _most_memory_bytes(config)),
        cpus=min(limits.cpus, _most_cpus(config)),
    )


def filter_of(config: Config) -> bytes | None:
    """Compile the filter of system calls; None where this host cannot.

    Raises:
        SandboxFault: it cannot, and the configuration asks for what nothing else gives.
    """
    allows_locks = config.sandbox.file_locks == "allowed"
    if allows_locks and not is_available():
        return None
    return compile_filter(allows_locks=allows_locks)


def _walls(config: Config, *, has_filter: bool) -> dict[str, str]:
    """Say what stands around every session, besides its control group."""
    allows_locks = config.sandbox.file_locks == "allowed"
    return {
        "namespaces": "bubblewrap",
        "seccomp": ("deny-list" if allows_locks else "deny-list, no locks")
        if has_filter
        else "none",
        "uid": "own" if os.geteuid() == 0 else "shared",
        "network": "loopback" if config.sandbox.network == "none" else "host",
    }


def _url(config: Config, runner: web.ServerRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{config.server.base_path}"


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold a state folder: one server at a time (flock(2); gone with the process)."""
    folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    fd = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateInUse(f"Another server runs on {folder}") from None
        yield
    finally:
        os.close(fd)


def _secret(folder: Path) -> bytes:
    """Read this server's secret, or make it: it signs the addresses of result files."""
    path = folder / "secret"
    try:
        return path.read_bytes()
    except FileNotFoundError:
        made = secrets.token_bytes(32)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(made)
        return made
