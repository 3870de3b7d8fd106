"""Where the server's log lines go when a command runs it: standard error, whatever became of it.

Rendering a line and writing it take longer than many a call. So lines that only tell what goes on
wait, while the loop has something to do, and are written together; one that warns is written at
once, after those that wait.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import logging
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger

WAIT_S = 0.02  #: a line waits for so long at most; a server killed with SIGKILL loses these
MOST = 256  #: lines that wait; one more, and all are written

_LATER = ("debug", "info")


class _Tolerant:
    """Standard error that may have gone away: a log line is never a reason to fail."""

    def write(self, text: str) -> int:
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()


class Lines:
    """A last processor: renders lines, and lets those that can wait do so.

    Args:
        render: makes the text of a line.
        sink: where lines go; never fails.
    """

    def __init__(self, render: structlog.processors.KeyValueRenderer, sink: _Tolerant) -> None:
        self._render = render
        self._sink = sink
        self._waiting = collections.deque[EventDict]()  # threads put lines in, too

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        """Take a line.

        Raises:
            structlog.DropEvent: always: nobody else is to print it.
        """
        self._waiting.append(event)
        if method not in _LATER or len(self._waiting) >= MOST:
            self.flush()
        elif len(self._waiting) == 1:
            try:
                asyncio.get_running_loop().call_later(WAIT_S, self.flush)
            except RuntimeError:  # a thread, or before the loop or after it
                self.flush()
        raise structlog.DropEvent

    def flush(self) -> None:
        """Write what waits."""
        lines = []
        with contextlib.suppress(IndexError):
            while True:
                lines.append(f"{self._render(None, '', self._waiting.popleft())}\n")
        if lines:
            self._sink.write("".join(lines))
            self._sink.flush()


def configure_logs(level: int = logging.INFO) -> None:
    """Print log lines from a level on, as `key=value` pairs; call before the first line."""
    render = structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"])
    lines = Lines(render, _Tolerant())
    atexit.register(lines.flush)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            lines,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
