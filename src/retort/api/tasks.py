"""Watching background tasks (spec 9.3)."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web

from retort.api.call import Call
from retort.core.task import TaskProgress
from retort.services.tasks import BackgroundTasks
from retort.wire import tasks as wire
from retort.wire.vfolders import parse_id

KEEP_ALIVE_S = 15.0


class TaskRoutes:
    """The event stream of one task."""

    def __init__(self, tasks: BackgroundTasks) -> None:
        self._tasks = tasks

    async def events(self, call: Call) -> web.StreamResponse:
        """Tell how far a task is until it ends."""
        task_id = parse_id(await call.params(), "task_id", "taskId")
        steps = self._tasks.watch(call.keypair.user_id, task_id)
        response = web.StreamResponse(
            headers={"Content-Type": wire.CONTENT_TYPE, "Cache-Control": "no-cache"}
        )
        response.force_close()
        await call.prepare(response)
        news: asyncio.Queue[TaskProgress | None] = asyncio.Queue()

        async def watch() -> None:
            async for progress in steps:
                news.put_nowait(progress)
            news.put_nowait(None)

        watching = asyncio.ensure_future(watch())
        try:
            await _tell(response, news)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        await response.write(wire.CLOSE)
        await response.write_eof()
        return response


async def _tell(response: web.StreamResponse, news: asyncio.Queue[TaskProgress | None]) -> None:
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                progress = await news.get()
        except TimeoutError:
            await response.write(wire.KEEP_ALIVE)
            continue
        if progress is None:
            return
        await response.write(wire.task_event(progress))
