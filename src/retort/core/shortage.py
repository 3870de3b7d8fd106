"""Telling a host that is short of something from one that is broken: the first passes, so retry."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from retort.errors import HostShort, SandboxFault

_ERRNOS = (
    errno.EMFILE,  # descriptors of this process
    errno.ENFILE,  # of the host
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EAGAIN,  # processes and threads: fork(2), clone(2)
)
# A sandbox's failure may come from another program, which says so in words.
_WORDS = tuple(os.strerror(number) for number in _ERRNOS)
_NO_THREAD = "can't start new thread"


def shortage(exc: BaseException) -> HostShort | None:
    """Find out whether a failure was the host being short of something.

    Returns:
        A fault that says so, with the failure as its cause; None when it was something else.
    """
    if isinstance(exc, HostShort):
        return exc
    if not any(map(_is_short, _causes(exc))):
        return None
    found = HostShort(str(exc) or type(exc).__name__)
    found.__cause__ = exc
    return found


def _causes(exc: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = exc
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _is_short(exc: BaseException) -> bool:
    if isinstance(exc, MemoryError | HostShort):
        return True
    if isinstance(exc, OSError):
        return exc.errno in _ERRNOS
    if isinstance(exc, RuntimeError):
        return _NO_THREAD in str(exc)
    return isinstance(exc, SandboxFault) and any(words in exc.reason for words in _WORDS)
