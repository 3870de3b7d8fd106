from __future__ import annotations

import errno

import pytest

from retort.core.shortage import shortage
from retort.errors import HostShort, SandboxFault


@pytest.mark.parametrize(
    "exc",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENFILE, "Too many open files in system"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError(),
        RuntimeError("can't start new thread"),
        SandboxFault("launch", "bwrap: Creating new namespace failed: No space left on device"),
        SandboxFault("launch", "bwrap: Can't fork: Resource temporarily unavailable"),
        HostShort("descriptors"),
    ],
    ids=repr,
)
def test_what_passes_is_a_shortage_also_as_a_cause(exc: Exception) -> None:
    assert isinstance(shortage(exc), HostShort)
    outer = SandboxFault("launch", "failed")
    outer.__cause__ = exc
    assert isinstance(shortage(outer), HostShort)


@pytest.mark.parametrize(
    "exc",
    [
        OSError(errno.EACCES, "Permission denied"),
        RuntimeError("a bug"),
        ZeroDivisionError(),
        SandboxFault("launch", "bwrap: No permissions to create new namespace"),
    ],
    ids=repr,
)
def test_what_stays_is_none(exc: Exception) -> None:
    assert shortage(exc) is None
