"""Init's listening sockets, each in the folder of its sandbox; the next one is made ahead.

On a disk each new file takes up to a millisecond, and a folder and a socket are two, before there
is anything to start. A spare that has all is given the sandbox's name when there is one to start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

SOCKET_NAME = "init.sock"


@dataclasses.dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket in its folder.

    Attributes:
        is_filled: the folder holds what `prepare` was told to put there.
    """

    folder: Path
    socket: socket.socket
    is_filled: bool = False


class Listeners:
    """Makes listening sockets; all calls are one thread's.

    Args:
        spares: a folder for what is made ahead, on the file system of sandboxes' folders, for
            nobody else; None: nothing is. No process knows of what is in it, so that what an
            earlier server left there is removed first.
    """

    def __init__(self, spares: Path | None = None) -> None:
        self._spares = spares
        self._is_clear = False
        self._spare: Listener | None = None

    def take(self, folder: Path) -> Listener:
        """Give one in a folder, which is made with mode 0700 if missing.

        Raises:
            OSError: there is none.
        """
        spare, self._spare = self._spare, None
        if spare is not None:
            try:
                spare.folder.rename(folder)
            except OSError:  # of another file system, or there is something in it
                _discard(spare)
            else:
                return dataclasses.replace(spare, folder=folder)
        return Listener(folder, _listen(folder))

    def prepare(self, fill: Callable[[Path], None] | None = None) -> None:
        """Make the next one; where that fails, it is made when it is taken.

        Args:
            fill: puts more into the folder.
        """
        if self._spare is not None or self._spares is None:
            return
        if not self._is_clear:
            shutil.rmtree(self._spares, ignore_errors=True)
            self._is_clear = True
        folder = self._spares / secrets.token_hex(8)
        try:
            self._spares.mkdir(mode=0o700, parents=True, exist_ok=True)
            spare = Listener(folder, _listen(folder), is_filled=fill is not None)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            return
        try:
            if fill is not None:
                fill(folder)
        except OSError:
            _discard(spare)
        else:
            self._spare = spare

    def close(self) -> None:
        """Remove what nobody took."""
        if self._spare is not None:
            _discard(self._spare)
            self._spare = None


def _discard(spare: Listener) -> None:
    spare.socket.close()
    shutil.rmtree(spare.folder, ignore_errors=True)


def _listen(folder: Path) -> socket.socket:
    """Make a socket; through a descriptor, as a name is cut at 107 bytes."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET_NAME, dir_fd=fd)
        listener.bind(f"/proc/self/fd/{fd}/{SOCKET_NAME}")
        listener.listen(8)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(fd)
    return listener
