"""Host uids for the sandboxes of a server that is root: one each, never shared."""

from __future__ import annotations

from retort.errors import SandboxFault


class HostUids:
    """Host uids for the sandboxes of a server that is root: one each, never shared.

    They are handed out in turn, so that a uid rests as long as possible before it is used again.

    Args:
        first: the lowest; from a range that no account of the host uses.
        count: how many, the upper bound of sandboxes alive.
    """

    def __init__(self, first: int, count: int) -> None:
        if first < 1 or count < 1 or first + count > 2**32 - 1:
            raise ValueError(f"no such range of uids: {count} from {first}")
        self._first = first
        self._count = count
        self._next = 0
        self._used: set[int] = set()

    def acquire(self) -> int:
        """Take a uid that no sandbox has.

        Raises:
            SandboxFault: phase "uid"; all are taken.
        """
        if len(self._used) >= self._count:
            raise SandboxFault("uid", f"all {self._count} host uids are taken")
        while (uid := self._first + self._next % self._count) in self._used:
            self._next += 1
        self._next += 1
        self._used.add(uid)
        return uid

    def claim(self, uid: int) -> bool:
        """Mark the uid of an earlier server's sandbox as taken; False if it was already.

        One outside the range is no concern.
        """
        is_new = uid not in self._used
        if self._first <= uid < self._first + self._count:
            self._used.add(uid)
        return is_new

    def release(self, uid: int) -> None:
        """Give a uid back; its sandbox must have ended."""
        self._used.discard(uid)
