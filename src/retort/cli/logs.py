"""Where the server's log lines go when a command runs it: standard error, whatever became of it."""

from __future__ import annotations

import contextlib
import logging
import sys

import structlog


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


def configure_logs(level: int = logging.INFO) -> None:
    """Print log lines from a level on, as `key=value` pairs; call before the first line."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(_Tolerant()),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
