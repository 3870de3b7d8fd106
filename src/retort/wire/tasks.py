"""Background tasks as server-sent events (specification 9.3)."""

from __future__ import annotations

from typing import Any

import msgspec

from retort.core.task import TaskProgress, TaskState

CONTENT_TYPE = "text/event-stream"
KEEP_ALIVE = b": keep-alive\r\n\r\n"
CLOSE = b"event: server_close\r\ndata: {}\r\n\r\n"

_NAMES = {
    TaskState.RUNNING: "bgtask_updated",
    TaskState.DONE: "bgtask_done",
    TaskState.FAILED: "bgtask_failed",
    TaskState.CANCELLED: "bgtask_cancelled",
}


def task_event(progress: TaskProgress) -> bytes:
    """Write how far a task is as one event."""
    data: dict[str, Any] = {"task_id": str(progress.id), "message": progress.message}
    if not progress.is_over:
        data |= {"current_progress": progress.done, "total_progress": progress.total}
    line = msgspec.json.encode(data).decode()
    return f"event: {_NAMES[progress.state]}\r\ndata: {line}\r\n\r\n".encode()
