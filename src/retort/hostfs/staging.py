"""The files of one upload: stored all together or not at all.

Each file is first written, unseen, to an unnamed file. `commit` names them in the root
and swaps each in by one rename; what it replaced stays under the temporary name until all are in
place. Undoing looks at what is there instead of trusting a log, so that it is right even after a
call whose answer was lost. Every change goes through a TreeOpener; bytes go by descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import functools
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from retort.core import faults
from retort.errors import FileTooLarge, PathRefused, RetortError, SandboxFault
from retort.hostfs.beneath import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    BeneathPath,
    TreeOpener,
    refusal,
)
from retort.hostfs.upload_note import Note, Notebook, Swap, take_back

T = TypeVar("T")

_DEPTH = 255  # folders above a file; init makes no more in one call (RETORT_DEPTH_MAX)
_TRIES = 16  # a program that swaps the target in a loop wins that often before we give up
_TICK_CLOCK = 5  # CLOCK_REALTIME_COARSE, what the kernel stamps files with; time lacks its name
_RESOLVE = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS
_FILE_MODE = 0o644
_FOLDER_MODE = 0o755

_Identity = tuple[int, int]


@dataclasses.dataclass(slots=True, eq=False)
class _Staged:
    """One file on its way.

    Attributes:
        fd: open for writing; -1 when it is not.
        spare: the temporary name it has, or that what it replaced has now.
        noted: the temporary name that it is going to have, as the note says.
    """

    path: BeneathPath
    fd: int = -1
    spare: BeneathPath | None = None
    noted: BeneathPath | None = None


class Staging:
    """One upload under way; `discard` must follow, whether or not it was committed.

    Args:
        tree: where the files go.
        max_file_bytes: per file; one byte more is FileTooLarge.
        notebook: where it is written down, so that a killed server's successor takes it back.
    """

    def __init__(
        self, tree: TreeOpener, max_file_bytes: int, notebook: Notebook | None = None
    ) -> None:
        self._tree = tree
        self._notebook = notebook or Notebook(None)
        self._max_file_bytes = max_file_bytes
        self._items: dict[BeneathPath, _Staged] = {}
        self._superseded: list[_Staged] = []
        self._made: list[BeneathPath] = []

    async def add(self, path: BeneathPath, chunks: AsyncIterator[bytes]) -> None:
        """Store one file unseen; a path that was given before is replaced.

        Raises:
            FileTooLarge, ScratchFull, PathRefused, SandboxFault; whatever `chunks` raises.
        """
        if len(path.parts) > _DEPTH:
            raise PathRefused(f"The path has more than {_DEPTH} folders.")
        item = _Staged(path)
        if path in self._items:
            self._superseded.append(self._items.pop(path))
        self._items[path] = item
        await finished(self._open(item))
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > self._max_file_bytes:
                raise FileTooLarge
            try:
                _write_all(item.fd, chunk)
            except OSError as exc:
                raise refusal(exc, path) from exc

    async def commit(self) -> None:
        """Put every file in its place; afterwards all are there, or nothing was changed.

        Raises:
            PathRefused, ScratchFull, SandboxFault: nothing was changed.
        """
        _refuse_nesting(self._items)
        await finished(self._commit())

    async def discard(self) -> None:
        """Close the descriptors and remove every temporary name. Never raises."""
        await finished(self._discard())

    async def _open(self, item: _Staged) -> None:
        """Make the unseen file, or a named one where the file system has no unnamed ones."""
        flags = os.O_WRONLY
        try:
            fd = await self._tree.open(b".", flags | os.O_TMPFILE, _FILE_MODE, _RESOLVE)
        except OSError as exc:
            # EISDIR: a kernel or file system that does not know O_TMPFILE at all (open(2)).
            if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise refusal(exc, item.path) from exc
            item.spare = BeneathPath((_spare_name(),))
            flags |= os.O_CREAT | os.O_EXCL
            try:
                fd = await self._tree.open(bytes(item.spare), flags, _FILE_MODE, _RESOLVE)
            except OSError as exc:
                raise refusal(exc, item.path) from exc
        item.fd = fd
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SandboxFault("files", "init gave something else for a new file")

    async def _commit(self) -> None:
        note: Path | None = None
        try:
            await self._make_folders()
            self._stamp()
            note = self._write_down()
            await _all(self._place(item) for item in self._items.values())
        except BaseException:
            await _all(self._take_back(item) for item in self._items.values())
            await _all(self._discard_name(item) for item in self._items.values())
            for folder in reversed(self._made):
                await self._insist(functools.partial(self._unlink, folder, directory=True))
            raise
        finally:
            self._notebook.remove(note)  # from here on what was replaced may go

    def _write_down(self) -> Path | None:
        """Write down what follows; a single file needs no note, as one rename is whole."""
        if len(self._items) < 2:
            return None
        swaps = []
        for item in self._items.values():
            item.noted = item.spare or BeneathPath((_spare_name(),))
            identity = _identity(os.fstat(item.fd))
            swaps.append(Swap(bytes(item.path), bytes(item.noted), *identity))
        return self._notebook.write(Note(swaps, [bytes(folder) for folder in self._made]))

    def _stamp(self) -> None:
        """Give all files one time, since they come all at once.

        Which was written first means nothing, and make and the build cache compare times.
        """
        now = time.clock_gettime_ns(_TICK_CLOCK)
        for item in self._items.values():
            os.utime(item.fd, ns=(now, now))

    async def _make_folders(self) -> None:
        """Make missing parents, shallow ones first."""
        folders = sorted(
            {path.parents()[-1] for path in self._items if len(path.parts) > 1},
            key=lambda folder: (len(folder.parts), folder),
        )
        await _all(self._make_folder(folder) for folder in folders)

    async def _make_folder(self, folder: BeneathPath) -> None:
        try:
            count = await self._tree.mkdirs(bytes(folder), _FOLDER_MODE, _RESOLVE)
        except OSError as exc:
            raise refusal(exc, folder) from exc
        if count > 0:
            self._made.extend([*folder.parents(), folder][-count:])

    async def _place(self, item: _Staged) -> None:
        """Swap one file in, whatever a program does to its target meanwhile."""
        try:
            spare = await self._name(item)
            faults.reached(faults.Point.COMMITTING)
            for _ in range(_TRIES):
                if await self._swap(item, spare):
                    faults.reached(faults.Point.PLACED)
                    return
        except OSError as exc:
            raise refusal(exc, item.path) from exc
        raise refusal(OSError(errno.EAGAIN, "gave up"), item.path)

    async def _name(self, item: _Staged) -> BeneathPath:
        """Give the unseen file a temporary name.

        In the root and not next to the target: no program can move the root away, so that the
        name is found again whatever becomes of the target's folder.
        """
        if item.spare is None:
            item.spare = item.noted or BeneathPath((_spare_name(),))
            await self._tree.link(item.fd, bytes(item.spare), _RESOLVE)
        return item.spare

    async def _swap(self, item: _Staged, spare: BeneathPath) -> bool:
        """Try once to rename the file over its target; say whether nothing interfered."""
        old = await self._look(item.path)
        if old is None:
            os.fchmod(item.fd, _FILE_MODE)
            try:
                await self._rename(spare, item.path, RENAME_NOREPLACE)
            except FileExistsError:
                return False
            item.spare = None
            return True
        if not stat.S_ISREG(old.st_mode):
            raise PathRefused(f"{item.path.absolute}: {_kind(old.st_mode)} is there already")
        os.fchmod(item.fd, old.st_mode & 0o777)
        try:
            await self._rename(spare, item.path, RENAME_EXCHANGE)
        except FileNotFoundError:
            return False
        swapped_out = await self._look(spare)
        if swapped_out is not None and _identity(swapped_out) == _identity(old):
            return True
        # Something else was put there between look and rename: give it back.
        await self._take_back(item)
        return False

    async def _take_back(self, item: _Staged) -> None:
        """Undo `_swap` if it happened."""
        ours = _identity(os.fstat(item.fd))
        await self._insist(lambda: take_back(self._tree, item.path, item.spare, ours))

    async def _discard(self) -> None:
        items = [*self._superseded, *self._items.values()]
        for item in items:
            if item.fd >= 0:
                os.close(item.fd)
                item.fd = -1
        await _all(self._discard_name(item) for item in items)
        self._superseded.clear()
        self._items.clear()

    async def _discard_name(self, item: _Staged) -> None:
        if item.spare is not None:
            spare, item.spare = item.spare, None
            await self._insist(lambda: self._unlink(spare))

    async def _insist(self, step: Callable[[], Awaitable[T]]) -> T | None:
        """Do a step of cleaning up; once more if it fails, and then go on without it."""
        for _ in range(2):
            with contextlib.suppress(OSError, RetortError):
                return await step()
        return None

    async def _look(self, path: BeneathPath) -> os.stat_result | None:
        """See what has a name, without following a link; None when nothing has it."""
        try:
            fd = await self._tree.open(bytes(path), os.O_PATH | os.O_NOFOLLOW, 0, _RESOLVE)
        except FileNotFoundError:
            return None
        with closing(fd):
            return os.fstat(fd)

    async def _rename(self, src: BeneathPath, dst: BeneathPath, flags: int) -> None:
        await self._tree.rename(bytes(src), bytes(dst), flags, _RESOLVE)

    async def _unlink(self, path: BeneathPath, *, directory: bool = False) -> None:
        await self._tree.unlink(bytes(path), directory=directory, resolve=_RESOLVE)


async def finished(
    work: Awaitable[T],
    stop: Callable[[], None] | None = None,
    discard: Callable[[T], None] | None = None,
) -> T:
    """Await something to its end even if the caller is cancelled meanwhile.

    A change whose answer nobody awaits would be of unknown outcome, a descriptor would be lost.
    The cancellation is raised afterwards.

    Args:
        work: what must not be left half done; short.
        stop: called at the cancellation, to make the end come sooner.
        discard: given the result that the cancelled caller will not get.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        # The exception is looked at, or asyncio would report it.
        if not task.cancelled() and task.exception() is None and discard is not None:
            discard(task.result())
        raise


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of a block."""
    try:
        yield fd
    finally:
        os.close(fd)


async def _all(steps: Iterable[Awaitable[None]]) -> None:
    """Await all, pipelined; raise the first error when every one has ended."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _refuse_nesting(paths: Iterable[BeneathPath]) -> None:
    """Refuse a file in the place of another's folder, whatever the order."""
    known = set(paths)
    for path in known:
        for folder in path.parents():
            if folder in known:
                raise PathRefused(f"{folder.absolute}: both a file and a folder in this upload")


def _write_all(fd: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _spare_name() -> bytes:
    return b".retort-" + secrets.token_hex(8).encode()


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a FIFO"}
    return kinds.get(stat.S_IFMT(mode), "something that is no regular file")
