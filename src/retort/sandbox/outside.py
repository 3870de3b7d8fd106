"""What lies in a sandbox's writable places outside of /home/work, counted from outside."""

from __future__ import annotations

import os

from retort.sandbox.launcher import Sandbox

PLACES = ("tmp", "var/tmp", "dev/shm")  #: each a file system of its own (view.py)


def left_outside(sandbox: Sandbox) -> str | None:
    """Say what is not empty there, or cannot be seen; None: nothing is left.

    No name of a tree that a user can write is resolved: the root is read-only, and its mount
    points are asked how many files they hold.
    """
    for place in PLACES:
        try:
            seen = os.statvfs(f"/proc/{sandbox.pid}/root/{place}")
        except OSError as exc:
            return f"/{place} cannot be looked at: {exc.strerror}"
        if not seen.f_files:
            return f"/{place} does not say how many files it holds"
        if seen.f_files - seen.f_ffree > 1:  # one is the folder itself
            return f"/{place} is not empty"
    return None if sandbox.is_alive else "the sandbox has ended"
