"""The connection to one retort-init: datagrams with descriptors, out in order and in one by one.

What the messages mean is init.py's.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from retort.errors import SandboxFault
from retort.sandbox import protocol
from retort.sandbox.protocol import Type

_CONNECT_RETRY_S: Final = 0.002  # the backlog of the listening socket is full: try again
_GIVING: Final = frozenset({Type.HELLO, Type.PREPARE, Type.LIST, Type.OPEN})  # descriptors
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(16 * array.array("i").itemsize)


@dataclass(slots=True)
class Request:
    """A request that waits for its answer."""

    type: Type
    future: asyncio.Future[Any]
    subject: bytes | int | None = None  # the path or step number, for errors and answers


class Channel(ABC):
    """Sends requests and hands what arrives to `_receive`.

    Attributes:
        _requests: unanswered ones by id.
        _taken: the request whose answer is being read.
    """

    def __init__(self, sock: socket.socket, on_lost: Callable[[Exception | None], None]) -> None:
        self._socket = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._lost: SandboxFault | None = None
        self._is_closed = False
        self._next_id = 1
        self._requests: dict[int, Request] = {}
        self._taken: Request | None = None
        self._unsent: deque[tuple[list[bytes], tuple[int, ...]]] = deque()
        self._buffer = bytearray(protocol.ANSWER_MAX + 1)
        self._view = memoryview(self._buffer)
        sock.setblocking(False)
        self._loop.add_reader(self._fd, self._readable)

    @abstractmethod
    def _receive(self, type_: int, id_: int, length: int, fds: list[int]) -> None:
        """Handle one message; raise Nonsense when no honest init sends it. Take used `fds` out."""

    @abstractmethod
    def _forget(self) -> None:
        """Let go of what is bound to the connection; it is gone."""

    def close(self) -> None:
        """Close the connection; the sandbox lives on. Pending futures fail with SandboxFault."""
        self._is_closed = True
        self._end(SandboxFault("init", "connection closed"))

    def _check(self) -> None:
        if self._lost is not None:
            raise SandboxFault(*self._lost_reason())

    def _lost_reason(self) -> tuple[str, str]:
        return "init", f"connection is gone ({self._lost})"

    def _new_id(self) -> int:
        id_ = self._next_id
        self._next_id = id_ % 0xFFFFFFFF + 1
        return id_

    def _send(
        self,
        type_: Type,
        id_: int,
        parts: list[bytes],
        fds: tuple[int, ...],
        subject: bytes | int | None,
    ) -> asyncio.Future[Any]:
        self._check()
        if self._unsent or not self._try_send(parts, fds):
            # Duplicates, for the caller may close its own as soon as we return.
            self._unsent.append((parts, tuple(os.dup(fd) for fd in fds)))
            self._loop.add_writer(self._fd, self._writable)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._requests[id_] = Request(type_, future, subject)
        return future

    def _try_send(self, parts: list[bytes], fds: tuple[int, ...]) -> bool:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg(parts, ancillary, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError as exc:
            # Any other error (EBADF, ETOOMANYREFS) is about this message, not the connection.
            self._fail(f"send: {exc}")
            self._check()
        return True

    def _writable(self) -> None:
        while self._unsent:
            parts, fds = self._unsent[0]
            try:
                if not self._try_send(parts, fds):
                    return
            except SandboxFault:
                return  # everybody has been told
            except OSError as exc:
                self._fail(f"send: {exc}")
                return
            self._unsent.popleft()
            close_all(fds)
        self._loop.remove_writer(self._fd)

    def _readable(self) -> None:
        try:
            length, ancillary, flags, _ = self._socket.recvmsg_into(
                [self._buffer], _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._fail(f"receive: {exc}")
            return
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        if length == 0:
            self._end(SandboxFault("init", "it closed the connection"), tell=True, cause=None)
            return
        rest = list(fds)
        try:
            if flags & socket.MSG_TRUNC or length < protocol.HEADER.size:
                raise Nonsense("cut short")
            type_, id_ = protocol.HEADER.unpack_from(self._buffer)
            if flags & socket.MSG_CTRUNC:
                self._refuse_cut(id_)
                return
            self._receive(type_, id_, length, rest)
            if rest:
                raise Nonsense("descriptors that nobody asked for")
        except Nonsense as exc:
            self._fail(f"sent nonsense: {exc}")
        finally:
            self._taken = None
            close_all(rest)  # what the handler did not take

    def _refuse_cut(self, id_: int) -> None:
        """Fail a request whose answer's descriptors did not come: we have no room for them.

        The message itself is whole then (recvmsg(2), unix(7)): nothing is wrong with init.
        """
        request = self._taken = self._requests.pop(id_, None)
        if request is None or request.type not in _GIVING:
            raise Nonsense("descriptors that nobody asked for")
        if not request.future.done():
            request.future.set_exception(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))

    def _fail(self, reason: str) -> None:
        fault = SandboxFault("init", reason)
        self._end(fault, tell=True, cause=fault)

    def _end(
        self, fault: SandboxFault, *, tell: bool = False, cause: Exception | None = None
    ) -> None:
        if self._lost is not None:
            return
        self._lost = fault
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._socket.close()
        for _, fds in self._unsent:
            close_all(fds)
        self._unsent.clear()
        requests, self._requests = [*self._requests.values()], {}
        if self._taken is not None:
            requests.append(self._taken)
        self._forget()
        for request in requests:
            if not request.future.done():
                request.future.set_exception(SandboxFault(*self._lost_reason()))
        if tell:
            # Soon, for it may be the caller's own request that found out.
            self._loop.call_soon(self._tell, cause)

    def _tell(self, cause: Exception | None) -> None:
        if not self._is_closed:
            self._on_lost(cause)


class Nonsense(Exception):
    """A message that no honest init sends."""


async def connect_to(path: str | bytes) -> socket.socket:
    """Connect to a listening init; the path may be of any length. Raises OSError."""
    folder, name = os.path.split(os.fsencode(path))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    try:
        # Through a descriptor, as the name of a unix socket is cut at 107 bytes (unix(7)).
        place = os.open(folder or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except BaseException:
        sock.close()
        raise
    try:
        while True:
            try:
                sock.connect(b"/proc/self/fd/%d/%s" % (place, name))
            except BlockingIOError:
                # Backlog full. Unix sockets do not finish such a connect later (unix(7)).
                await asyncio.sleep(_CONNECT_RETRY_S)
            else:
                return sock
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(place)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors, whatever state they are in."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
