"""Descriptors kept free, so that a server that runs out of them can still answer, and end things.

Descriptors are given lowest first. So the number of a fresh one tells how many are in use, in a
microsecond, and the limit is read anew each time: an operator may change it (prlimit(1)).
"""

from __future__ import annotations

import enum
import os
import resource

from retort.errors import HostShort


class Need(enum.Enum):
    """What wants descriptors; the value is what must stay free: as a part of the limit, at most."""

    SESSION = (3, 128)  #: a sandbox takes some twenty while it is made
    RUN = (6, 64)  #: a step takes ten
    CONNECTION = (12, 32)  #: what remains is for the calls of those who are connected


def is_short(need: Need) -> bool:
    """Tell whether too few descriptors are free for one more of these."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return False
    part, most = need.value
    try:
        fresh = os.dup(0)
    except OSError:
        return True
    os.close(fresh)
    return fresh >= limit - min(limit // part, most)


def insist(need: Need) -> None:
    """Refuse when there are too few.

    Raises:
        HostShort: the caller may try again when others have ended something.
    """
    if is_short(need):
        raise HostShort(f"file descriptors: too few are free for one more {need.name.lower()}")
