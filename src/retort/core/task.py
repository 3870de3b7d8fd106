"""Work that goes on after its call was answered."""

from __future__ import annotations

import dataclasses
import enum
import uuid


class TaskState(enum.Enum):
    """How far a background task is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclasses.dataclass(frozen=True, slots=True)
class TaskProgress:
    """A background task at one moment.

    Attributes:
        message: what it does, or why it failed; safe to show.
        done, total: in whatever the task counts; total 0: not known.
    """

    id: uuid.UUID
    state: TaskState
    message: str
    done: int = 0
    total: int = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.state is not TaskState.RUNNING
