"""Background tasks: started by a call, watched by others, remembered for a while."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from retort.core.task import TaskProgress, TaskState
from retort.errors import Fault, RequestError, TaskNotFound

log = structlog.get_logger()

KEPT = 1000  # ended tasks that can still be asked for
TELL_S = 0.1  # between two words to a watcher


class Task:
    """One task, as the work itself sees it. To be used in the event loop's thread."""

    def __init__(self, user_id: uuid.UUID, message: str) -> None:
        self.user_id = user_id
        self.progress = TaskProgress(uuid.uuid4(), TaskState.RUNNING, message)
        self.changed = asyncio.Event()

    def tell(self, done: int, total: int) -> None:
        """Say how far it is."""
        self._become(dataclasses.replace(self.progress, done=done, total=total))

    def end(self, state: TaskState, message: str) -> None:
        """Say that it is over."""
        self._become(dataclasses.replace(self.progress, state=state, message=message))

    def _become(self, progress: TaskProgress) -> None:
        self.progress = progress
        self.changed.set()
        self.changed = asyncio.Event()


class BackgroundTasks:
    """Every task of this server's life."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[uuid.UUID, Task] = OrderedDict()
        self._running: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Cancel what still runs, and wait for it."""
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def start(
        self, user_id: uuid.UUID, message: str, work: Callable[[Task], Awaitable[None]]
    ) -> tuple[Task, asyncio.Task[None]]:
        """Begin some work for a user.

        Args:
            work: given its task to report to; what it raises is the task's failure.
        """
        task = Task(user_id, message)
        while len(self._tasks) >= KEPT:
            oldest = next((key for key, old in self._tasks.items() if old.progress.is_over), None)
            if oldest is None:
                break
            del self._tasks[oldest]
        self._tasks[task.progress.id] = task
        running = asyncio.ensure_future(_run(task, work))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return task, running

    def watch(self, user_id: uuid.UUID, task_id: uuid.UUID) -> AsyncIterator[TaskProgress]:
        """Give how far a task is, whenever that changes, up to its end.

        Raises:
            TaskNotFound: there is none of this user.
        """
        task = self._tasks.get(task_id)
        if task is None or task.user_id != user_id:
            raise TaskNotFound
        return _watched(task)


async def _watched(task: Task) -> AsyncIterator[TaskProgress]:
    while True:
        changed, progress = task.changed, task.progress
        yield progress
        if progress.is_over:
            return
        await changed.wait()
        if not task.progress.is_over:
            await asyncio.sleep(TELL_S)  # many changes, one word


async def _run(task: Task, work: Callable[[Task], Awaitable[None]]) -> None:
    try:
        await work(task)
    except asyncio.CancelledError:
        task.end(TaskState.CANCELLED, "The server stopped.")
        raise
    except RequestError as exc:
        task.end(TaskState.FAILED, exc.message)
    except Exception as exc:
        # The outermost frame of the task: whoever watches must hear of its end.
        log.error(
            "task.failed",
            task=str(task.progress.id),
            reason=str(exc),
            exc_info=None if isinstance(exc, Fault) else exc,
        )
        task.end(TaskState.FAILED, "The server failed; its log says why.")
    else:
        task.end(TaskState.DONE, "")
