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
    INPUT_FED = "input-fed"  #: input is on its way into a program's pipe, and nobody told
    STEP_ENDED = "step-ended"  #: a program ended, and what follows has not begun
    ANSWER_TAKEN = "answer-taken"  #: an answer left its run, and is not written
    ANSWER_WRITTEN = "answer-written"  #: it is written to its connection
    REQUEST_DONE = "request-done"  #: a request with a token is done, and its answer not yet kept
    ANSWER_KEPT = "answer-kept"  #: its answer is kept for its token, and not written
    DESTROYING = "destroying"  #: a session is being ended, and lives
    DESTROYED = "destroyed"  #: it is being killed, and its record not written yet
    FOLDER_MADE = "folder-made"  #: a virtual folder's directory is made, its record is not
    FOLDER_RECORDED = "folder-recorded"  #: its record is written, the directory not in its place
    CHUNK_WRITTEN = "chunk-written"  #: a part of a chunk is on the disk, the rest still comes
    UPLOAD_WHOLE = "upload-whole"  #: an upload is complete, and not in its place
    UPLOAD_PLACED = "upload-placed"  #: it is in its place, and nobody told
    CLONING = "cloning"  #: a folder's files are being copied
    CLONED = "cloned"  #: the copy's record says that it is ready, it is not in its place
    FOLDER_RENAMED = "folder-renamed"  #: a folder has its new name, and nobody told
    FOLDER_DISCARDED = "folder-discarded"  #: a folder is out of its place, its record still there
    FOLDER_FORGOTTEN = "folder-forgotten"  #: its record is gone, all its files are there
    EMPTYING = "emptying"  #: some of what is in a deleted folder or directory is removed
    EMPTIED = "emptied"  #: a deleted folder is gone from the disk, others may wait for that
    FILES_REMOVED = "files-removed"  #: a directory in a folder is out of sight, and all there


#: Those in the lives of virtual folders.
OF_FOLDERS = frozenset(list(Point)[list(Point).index(Point.FOLDER_MADE) :])


def reached(point: Point) -> None:
    """Say that this process is at a point; replaced by tests only."""
