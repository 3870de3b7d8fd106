"""A source of bytes that blocks, read from the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from retort.hostfs.archive import Archive, SingleFile
from retort.hostfs.staging import finished

T = TypeVar("T")

_INLINE_BYTES = 1024 * 1024  # a tmpfs reads that in 0.2 ms


class Stream:
    """A source that blocks, read from the event loop; one call at a time touches it."""

    def __init__(self, source: Archive | SingleFile, inline_entries: int = 1) -> None:
        self._source = source
        self._inline_entries = inline_entries
        self._lock = asyncio.Lock()

    async def plan(self) -> None:
        """Plan in a thread, which ends soon when the caller is cancelled."""
        async with self._lock:
            await in_thread(self._source.plan, self._source.stop)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the stream; the descriptors stay open until `close`."""
        source = self._source
        is_small = source.entries <= self._inline_entries and source.size <= _INLINE_BYTES
        while True:
            async with self._lock:  # not over the yield: who stops listening there may close
                chunk = source.read() if is_small else await in_thread(source.read, source.stop)
            if not chunk:
                return
            yield chunk

    async def close(self) -> None:
        """Release the descriptors; again does nothing."""
        self._source.stop()
        await finished(self._close())

    async def _close(self) -> None:
        async with self._lock:
            self._source.close()


@contextlib.asynccontextmanager
async def freed_in_thread(name: bytes, at: int) -> AsyncIterator[None]:
    """Hold what has a name in a folder while the block removes or replaces it; then let it go.

    The kernel frees a large file with its last reference, which takes a second for some gigabytes:
    that is to happen in a thread, not in the event loop.
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=at)
    except OSError:
        fd = -1  # the block will see why
    try:
        yield
    finally:
        if fd >= 0:
            await in_thread(functools.partial(os.close, fd))


async def in_thread(work: Callable[[], T], stop: Callable[[], None] | None = None) -> T:
    """Do something that blocks; when cancelled, wait for it, since it holds descriptors."""
    return await finished(asyncio.get_running_loop().run_in_executor(None, work), stop)
