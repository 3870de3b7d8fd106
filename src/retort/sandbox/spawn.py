"""Starting processes of the host at a price that does not depend on the server's size.

`subprocess.Popen` closes, in the child, every descriptor that the server has open, while the server
holds still: 9 ms with 4000 of them, which a thousand sessions need. Here they close by themselves:
whatever Python or this project opens is close-on-exec (PEP 446).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import StrOrBytesPath

#: What Python ignores and programs expect as usual (as Popen's `restore_signals`).
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)


class Child:
    """A child process; only one thread may wait for it.

    Attributes:
        returncode: once it was waited for: as Popen's, negative for a signal.
    """

    __slots__ = ("pid", "returncode")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def __repr__(self) -> str:
        return f"<Child {self.pid}>"

    def poll(self) -> int | None:
        """Look whether it has ended."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """Wait for its end, and block."""
        code = self._wait(0)
        assert code is not None
        return code

    def kill(self) -> None:
        """Send it SIGKILL, unless it was waited for."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _wait(self, flags: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, flags)
            except ChildProcessError:  # somebody else waited for it
                self.returncode = 0
                return self.returncode
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def spawn(
    argv: Sequence[StrOrBytesPath],
    *,
    stdout: int,
    stderr: int,
    env: Mapping[str, str],
    keep: Sequence[int],
    is_leader: bool = False,
) -> Child:
    """Start a program; its stdin is /dev/null, its folder ours.

    Args:
        argv: `argv[0]` is the program's path.
        stdout, stderr: descriptors; -1: /dev/null.
        keep: descriptors that it inherits, under their numbers; above 2.
        is_leader: it begins a session, and with it a process group, of its own.

    Raises:
        OSError: it cannot be started.
    """
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    ]
    for fd, number in ((stdout, 1), (stderr, 2)):
        if fd < 0:
            actions.append((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, fd, number))
    # Onto itself: that takes close-on-exec away (posix_spawn_file_actions_adddup2(3p)).
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in keep]
    pid = os.posix_spawn(
        os.fspath(argv[0]),
        list(argv),
        env,
        file_actions=actions,
        setsid=is_leader,
        setsigmask=(),
        setsigdef=_RESTORED,
    )
    return Child(pid)
