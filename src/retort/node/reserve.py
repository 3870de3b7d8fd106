"""Descriptors kept free, so that a server that runs out of them can still answer, and end things.

The host kernel says how many are in use, in some microseconds (the size of `/proc/self/fd`, from
Linux 6.2), and the limit is read anew each time: an operator may change it (prlimit(1)).
"""

from __future__ import annotations

import enum
import fcntl
import os
import resource
from pathlib import Path

from retort.errors import HostShort

_OPEN = Path("/proc/self/fd")  # its size is how many there are (proc(5)); 0 before Linux 6.2


class Need(enum.Enum):
    """What wants descriptors; the value is what must stay free: as a part of the limit, at most."""

    AHEAD = (2, 192)  #: a sandbox that nobody asked for yet: others come first
    SESSION = (3, 128)  #: a sandbox takes some twenty while it is made
    RUN = (6, 64)  #: a step takes ten
    CONNECTION = (12, 32)  #: what remains is for the calls of those who are connected


def is_short(need: Need) -> bool:
    """Tell whether too few descriptors are free for one more of these."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return False
    part, most = need.value
    kept = min(limit // part, most)
    in_use = _OPEN.stat().st_size
    if in_use:
        return limit - in_use <= kept
    return not _has_free(kept + 1)


def _has_free(enough: int) -> bool:
    """Tell whether so many numbers are free, by taking one after the other.

    For a host kernel that tells no size: some 50 µs. The lowest that is free would say little, as
    others lie anywhere above. Nor is a high one asked for: the host kernel would make the whole
    table up to it, for good.
    """
    number = 0
    try:
        for _ in range(enough):
            number = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, number)
            os.close(number)
            number += 1
    except OSError:  # EMFILE; EINVAL at the limit: no number is left
        return False
    return True


def insist(need: Need) -> None:
    """Refuse when there are too few.

    Raises:
        HostShort: the caller may try again when others have ended something.
    """
    if is_short(need):
        raise HostShort("file descriptors: too few are free")
