"""From two looks at a tree to what a build did to it, and from that to the same done again.

`changes` is pure. `Restoring` puts files in place as uploads do (docs/decisions/0005): all contents
are copied to unnamed files and compared with their digests first, so that nothing in the session
has changed when something is wrong with the pack, or with the room for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import stat
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from concurrent.futures import Executor

from retort.errors import SandboxFault
from retort.hostfs.beneath import RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, TreeOpener
from retort.hostfs.snapshot import Entry, Tree, Unfit
from retort.hostfs.staging import closing
from retort.node.build_store import Pack, PackedFile, PackedFolder, Stamp
from retort.node.stamps import SLACK_NS, TICK_CLOCK

MAX_FILES = 512  #: made by one build; each is an open descriptor while it is put back
_RESOLVE = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS
_NEEDED = stat.S_IRWXU  # of a folder, to change what is in it and to be opened


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """What a build did to its tree; as in `build_store.Manifest`."""

    removed: list[tuple[bytes, bool]]
    folders: list[PackedFolder]
    files: list[PackedFile]


def changes(
    before: Tree, after: Tree, began_ns: int, places: Mapping[bytes, tuple[int, int]]
) -> Changes:
    """Compare a tree before and after a build.

    Args:
        began_ns: when the build began, since 1970.
        places: where in the pack the contents of new and changed files are, by digest.

    Raises:
        Unfit: the build did something that cannot be put back exactly.
    """
    gone = [path for path, old in before.items() if _kind(after.get(path)) != old.kind]
    changed = {path: new for path, new in after.items() if before.get(path) != new}
    _check(before, after, gone, changed)
    stamps = _Stamps(before, changed, began_ns)
    folders, files = [], []
    for path in sorted(changed):
        new, stamp = changed[path], stamps.of(changed[path].mtime_ns)
        if new.kind == stat.S_IFDIR:
            is_new = _kind(before.get(path)) != stat.S_IFDIR
            folders.append(PackedFolder(path, new.mode, stamp, is_new))
        else:
            offset, size = places[new.content]
            files.append(PackedFile(path, new.mode, stamp, offset, size, new.content))
    removed = [(path, before[path].kind == stat.S_IFDIR) for path in sorted(gone, reverse=True)]
    return Changes(removed, folders, files)


def _kind(entry: Entry | None) -> int:
    return 0 if entry is None else entry.kind


def _check(
    before: Tree, after: Tree, gone: Sequence[bytes], changed: Mapping[bytes, Entry]
) -> None:
    if before[b""].mode != after[b""].mode:
        raise Unfit("the build changed the mode of /home/work")
    if any(new.kind == stat.S_IFLNK for new in changed.values()):
        raise Unfit("the build made a symbolic link")
    if sum(new.kind == stat.S_IFREG for new in changed.values()) > MAX_FILES:
        raise Unfit(f"the build made more than {MAX_FILES} files")
    for path in (*gone, *changed):
        folder = before.get(path.rpartition(b"/")[0])
        own = before.get(path)
        if not all(
            _is_open(entry) for entry in (folder, own) if entry and entry.kind == stat.S_IFDIR
        ):
            raise Unfit("the build changed something in a folder that cannot be written")


def _is_open(folder: Entry) -> bool:
    return folder.mode & _NEEDED == _NEEDED


class _Stamps:
    """Says times of one build so that they mean the same after another: relative to the rest."""

    def __init__(self, before: Tree, changed: Mapping[bytes, Entry], began_ns: int) -> None:
        self._old = {old.mtime_ns: path for path, old in before.items() if old.kind != stat.S_IFDIR}
        self._began_ns = began_ns - SLACK_NS
        during = {new.mtime_ns for new in changed.values() if self._is_of_build(new.mtime_ns)}
        self._ranks = {ns: rank for rank, ns in enumerate(sorted(during))}

    def _is_of_build(self, ns: int) -> bool:
        return ns >= self._began_ns and ns not in self._old

    def of(self, ns: int) -> Stamp:
        if ns in self._old:
            return Stamp(like=self._old[ns])
        return Stamp(rank=self._ranks[ns]) if ns in self._ranks else Stamp(ns=ns)


class Restoring:
    """One stored build on its way into a session; `close` must follow.

    Args:
        home: the session's files.
        device: the one that they are on; nothing else is written to.
        before: its tree as it was looked at just now.
        threads: where contents are copied.
    """

    def __init__(
        self, home: TreeOpener, device: int, before: Tree, pack: Pack, threads: Executor
    ) -> None:
        self._home = home
        self._device = device
        self._before = before
        self._manifest = pack.manifest
        self._pack = pack
        self._threads = threads
        self._unnamed: list[int] = []

    async def stage(self) -> None:
        """Copy every file's content to where it has no name yet.

        Raises:
            Damaged: the pack is not what was stored. OSError: no room, or no descriptors.
            SandboxFault: init failed.
        """
        for _ in self._manifest.files:
            fd = await self._home.open(b".", os.O_WRONLY | os.O_TMPFILE, 0o600, _RESOLVE)
            self._unnamed.append(fd)
            status = os.fstat(fd)
            is_new = stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and not status.st_size
            if not is_new or status.st_dev != self._device:
                raise SandboxFault("files", "init gave something else for a new file")
        await asyncio.get_running_loop().run_in_executor(self._threads, self._fill)

    async def place(self) -> None:
        """Do to the session's files what the build did.

        Raises:
            OSError, SandboxFault: something of it was done, and something not.
        """
        manifest = self._manifest
        base_ns = self._now_ns()
        replaced = [
            (file.path, False)
            for file in manifest.files
            if _kind(self._before.get(file.path)) == stat.S_IFREG
        ]
        folders = [path for path, is_folder in manifest.removed if is_folder]
        names = [path for path, is_folder in (*replaced, *manifest.removed) if not is_folder]
        await _all(self._home.unlink(path, resolve=_RESOLVE) for path in names)
        for path in folders:
            await self._home.unlink(path, directory=True, resolve=_RESOLVE)
        for folder in manifest.folders:
            if folder.is_new:
                await self._home.mkdirs(folder.path, 0o755, _RESOLVE)
        for file, fd in zip(manifest.files, self._unnamed, strict=True):
            self._stamp(fd, file.stamp, base_ns)
        await _all(
            self._home.link(fd, file.path, _RESOLVE)
            for file, fd in zip(manifest.files, self._unnamed, strict=True)
        )
        for folder in reversed(manifest.folders):  # the inner ones first: an outer one may shut
            await self._finish(folder, base_ns)

    def close(self) -> None:
        """Let go of what has no name."""
        for fd in self._unnamed:
            os.close(fd)
        self._unnamed.clear()

    def _fill(self) -> None:
        for file, fd in zip(self._manifest.files, self._unnamed, strict=True):
            self._pack.copy(file, fd)
            os.fchmod(fd, file.mode)

    def _stamp(self, fd: int, stamp: Stamp, base_ns: int) -> None:
        ns = stamp.ns
        if stamp.rank >= 0:
            ns = base_ns + stamp.rank
        elif stamp.like is not None:
            ns = self._before[stamp.like].mtime_ns
        os.utime(fd, ns=(base_ns, ns))

    def _now_ns(self) -> int:
        """Give the time as the host kernel stamps files: not before any that is there already.

        A finer clock would be ahead of what is written in the same tick.
        """
        now, tick = time.time_ns(), time.clock_gettime_ns(TICK_CLOCK)
        return max(tick, *(e.mtime_ns for e in self._before.values() if e.mtime_ns <= now), 0)

    async def _finish(self, folder: PackedFolder, base_ns: int) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        with closing(await self._home.open(folder.path or b".", flags, 0, _RESOLVE)) as fd:
            if os.fstat(fd).st_dev != self._device:
                raise SandboxFault("files", "init gave another folder")
            os.fchmod(fd, folder.mode)
            self._stamp(fd, folder.stamp, base_ns)


async def _all(steps: Iterable[Awaitable[object]]) -> None:
    """Await all, pipelined; raise the first error when every one has ended."""
    for result in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
