"""Named points at which a test may end this process, to see what the next server makes of it.

Nothing happens at them: `reached` does nothing, costs a call (some 0.05 µs), and no setting changes
that. Only bench/chaos_server.py puts something else in its place.
"""

from __future__ import annotations

import enum


class Point(enum.Enum):
    """Where a server may be when it dies."""

    LAUNCHED = "launched"  #: a sandbox runs, and nothing tells of it yet
    CREATED = "created"  #: a session is whole, but not yet recorded as running
    UPLOADING = "uploading"  #: a file of an upload is in, the others are not
    COMMITTING = "committing"  #: a file of an upload has its temporary name
    PLACED = "placed"  #: a file of an upload is in its place, the others may not be
    STEP_STARTED = "step-started"  #: init was told to start a program
    STEP_ENDED = "step-ended"  #: a program ended, and what follows has not begun
    ANSWER_TAKEN = "answer-taken"  #: an answer left its run, and is not written
    ANSWER_WRITTEN = "answer-written"  #: it is written to its connection
    REQUEST_DONE = "request-done"  #: a request with a token is done, and its answer not yet kept
    ANSWER_KEPT = "answer-kept"  #: its answer is kept for its token, and not written
    DESTROYING = "destroying"  #: a session is being ended, and lives
    DESTROYED = "destroyed"  #: it is being killed, and its record not written yet


def reached(point: Point) -> None:
    """Say that this process is at a point; replaced by tests only."""
