"""A session's files: upload, list, download (spec 6.1, 6.3 to 6.5).

Every path is opened by the sandbox's init and arrives as a descriptor, which is checked before it
is used: nothing that init answers is trusted (DESIGN 4). How files are stored, listed and packed
is in hostfs; here is what one session's calls do and which errors they raise.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from retort.core import faults
from retort.core.files import Download, FileUpload, Listing
from retort.errors import FileNotFound, PathNotFound, PathRefused, RequestError
from retort.hostfs.archive import Archive, ArchiveLimits, SingleFile
from retort.hostfs.beneath import BeneathPath, TreeOpener, refusal, session_path
from retort.hostfs.listing import read_folder
from retort.hostfs.spares import clear_spares
from retort.hostfs.staging import Staging, finished
from retort.hostfs.stream import Stream, in_thread
from retort.hostfs.upload_note import Notebook, take_back_left

_TRIES = 16  # opens that a program's renames made the kernel unsure of (EAGAIN)


@dataclasses.dataclass(frozen=True, slots=True)
class FileLimits:
    """How much one call may carry.

    Attributes:
        max_upload_file_bytes: of each file; the port's caller has its own cap as well.
        max_listed_entries: a larger folder is listed in part.
        max_archive_entries: of one part of a download.
        max_part_bytes: apparent size of one part of a download, or of a single file.
        chunk_bytes: about what a download gives at a time.
        inline_entries: folders and archives up to so many entries are read without a thread.
    """

    max_upload_file_bytes: int = 1024 * 1024
    max_listed_entries: int = 100_000
    max_archive_entries: int = 100_000
    max_part_bytes: int = 64 * 1024 * 1024
    chunk_bytes: int = 256 * 1024
    inline_entries: int = 64


class SessionFiles:
    """The files of one session, by whoever opens them; methods as in core.ports.Node.

    Args:
        folder: of the host, the session's own, for notes of uploads on their way.
    """

    def __init__(self, tree: TreeOpener, limits: FileLimits, folder: Path | None = None) -> None:
        self._tree = tree
        self._notebook = Notebook(folder)
        self._limits = limits
        self._uploads = 0  # begun so far
        self._uploading = 0  # of these, not ended
        self._archive_limits = ArchiveLimits(
            limits.max_part_bytes, limits.max_archive_entries, limits.chunk_bytes
        )

    def uploads(self) -> int | None:
        """Count the uploads so far; None while one is under way."""
        return None if self._uploading else self._uploads

    async def take_back_uploads(self) -> None:
        """Undo what a killed server left half done. Raises SandboxFault."""
        await take_back_left(self._tree, self._notebook)
        await clear_spares(self._tree)

    async def upload(self, files: AsyncIterator[FileUpload]) -> None:
        """Store files, all or none; of the same path twice, the last.

        Raises:
            PathRefused: a name does not lie strictly under /home/work, or cannot be made there.
            FileTooLarge: over `max_upload_file_bytes`.
            ScratchFull: the session's disk space is used up.
            SandboxFault: init failed.
            RequestError: whatever the iterator raises passes through.
        """
        staging = Staging(self._tree, self._limits.max_upload_file_bytes, self._notebook)
        self._uploads += 1
        self._uploading += 1
        try:
            async for file in files:
                await staging.add(session_path(file.path), file.chunks)
                faults.reached(faults.Point.UPLOADING)
            await staging.commit()
        finally:
            # Before the caller hears of success: a program whose file is still open for writing
            # here could not be started (ETXTBSY, execve(2)).
            try:
                await staging.discard()
            finally:
                self._uploading -= 1

    async def listing(self, path: str) -> Listing:
        """List a folder. Raises PathNotFound, PathRefused, SandboxFault."""
        where = session_path(path, may_be_home=True)
        fd = await self._open(where, os.O_RDONLY | os.O_DIRECTORY, PathNotFound)
        few, most = self._limits.inline_entries, self._limits.max_listed_entries
        try:
            # How many there are is not known beforehand: a few are read at once, a fuller folder
            # is read again in a thread.
            entries, truncated = read_folder(fd, min(few, most))
            if truncated and few < most:
                entries, truncated = await in_thread(functools.partial(read_folder, fd, most))
        except OSError as exc:
            raise refusal(exc, where, PathNotFound) from exc
        finally:
            os.close(fd)
        return Listing(where.absolute, entries, truncated)

    async def download(self, paths: Sequence[str]) -> list[Download]:
        """Open files or folders as tar streams, in the order asked.

        Raises:
            FileNotFound, PathRefused, FileTooLarge, SandboxFault: before anything is streamed.
        """
        asked = [session_path(path, may_be_home=True) for path in paths]
        shared = collections.Counter(path.name for path in asked)
        downloads: list[Download] = []
        try:
            for path in asked:
                downloads.append(await self._archive(path, links=shared[path.name] == 1))
        except BaseException:
            for download in downloads:
                await download.close()
            raise
        return downloads

    async def download_single(self, path: str) -> Download:
        """Open one regular file as it is. Raises as `download`."""
        where = session_path(path, may_be_home=True)
        fd, status = await self._open_checked(where)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise PathRefused(f"{where.absolute}: it is a directory")
        return await self._planned(where, SingleFile(fd, self._archive_limits))

    async def _archive(self, path: BeneathPath, *, links: bool) -> Download:
        fd, _ = await self._open_checked(path)
        return await self._planned(path, Archive(fd, path.name, self._archive_limits, links=links))

    async def _planned(self, path: BeneathPath, source: Archive | SingleFile) -> Download:
        stream = Stream(source, self._limits.inline_entries)
        try:
            await stream.plan()
        except OSError as exc:
            await stream.close()
            raise refusal(exc, path, FileNotFound) from exc
        except BaseException:
            await stream.close()
            raise
        return Download(os.fsdecode(path.name), source.size, stream.chunks, stream.close)

    async def _open_checked(self, path: BeneathPath) -> tuple[int, os.stat_result]:
        """Open what may be sent: a regular file or a folder."""
        fd = await self._open(path, os.O_RDONLY, FileNotFound)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            return fd, status
        os.close(fd)
        raise PathRefused(f"{path.absolute}: not a regular file")

    async def _open(self, path: BeneathPath, flags: int, missing: type[RequestError]) -> int:
        for attempt in range(_TRIES):
            try:
                return await finished(self._tree.open(bytes(path), flags), discard=os.close)
            except BlockingIOError as exc:
                if attempt == _TRIES - 1:
                    raise refusal(exc, path) from exc
            except NotADirectoryError as exc:
                if missing is FileNotFound:
                    raise FileNotFound from exc
                raise refusal(exc, path) from exc
            except OSError as exc:
                raise refusal(exc, path, missing) from exc
        raise AssertionError("unreachable")
