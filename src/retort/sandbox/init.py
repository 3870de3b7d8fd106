"""The client of retort-init: one sandbox's socket, as futures and callbacks.

Follows ``docs/init-protocol.md``. Nothing that arrives is trusted: every length, count and number
is checked, and a message that makes no sense closes the connection. The hot path (``exec``, its
answer and its exit) makes one system call per message and no task; it runs on any asyncio loop.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from retort.errors import SandboxFault
from retort.sandbox import protocol
from retort.sandbox.protocol import ExecFlags, Features, Phase, Scope, State, Type

RESOLVE_NO_XDEV: Final = 0x01  #: openat2(2): refuse to enter another mount
RESOLVE_NO_SYMLINKS: Final = 0x04  #: openat2(2): refuse symbolic links in every component
RENAME_NOREPLACE: Final = 1  #: renameat2(2)
RENAME_EXCHANGE: Final = 2  #: renameat2(2)

_AT_REMOVEDIR: Final = 0x200
_NO_LIMIT: Final = 2**64 - 1
_ERRNO_END: Final = 4096  # the host kernel's own bound
_PHASES: Final = frozenset(Phase)
_STATES: Final = frozenset(State)
_CONNECT_RETRY_S: Final = 0.002  # the backlog of the listening socket is full: try again
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(16 * array.array("i").itemsize)

#: Answer to each request; FAILED is possible for all.
_ANSWERS: Final = {
    Type.HELLO: Type.WELCOME,
    Type.PREPARE: Type.PREPARED,
    Type.EXEC: Type.STARTED,
    Type.RELEASE: Type.DONE,
    Type.DROP: Type.DONE,
    Type.LIST: Type.STEP,
    Type.KILL: Type.DONE,
    Type.WAITING: Type.INPUT,
    Type.OPEN: Type.OPENED,
    Type.MKDIRS: Type.DONE,
    Type.LINK: Type.DONE,
    Type.RENAME: Type.DONE,
    Type.UNLINK: Type.DONE,
}

_LAYOUTS: Final[dict[Type, struct.Struct]] = {
    type_: getattr(protocol, type_.name) for type_ in _ANSWERS
}


class StepNotStarted(SandboxFault):
    """A step's program did not begin; nothing of it ran."""

    def __init__(self, phase: Phase, error: int) -> None:
        super().__init__(phase.name.lower(), os.strerror(error))
        self.step_phase = phase
        self.errno = error


@dataclass(frozen=True, slots=True)
class Standby:
    """The child that waits for the next step; its pidfd belongs to the receiver.

    ``host_pid`` is what to write into a cgroup's ``cgroup.procs``.
    """

    pid_inside: int
    pidfd: int
    host_pid: int


@dataclass(frozen=True, slots=True)
class Started:
    """A program is running; its pid inside is also its process group and session."""

    number: int
    pid_inside: int


@dataclass(frozen=True, slots=True)
class ExecStep:
    """What to run.

    Args:
        number: chosen by the server, unique among unreleased steps, 1 to 2**64 - 1.
        argv: the first is the path to execute; ``PATH`` is not searched.
        env: the whole environment.
        cwd: a path inside the sandbox.
        rlimits: (resource, soft, hard) of setrlimit(2), -1 for no limit; none given: as init's.
        tag: returned by ``steps()``, at most 8 KiB.
        stdio: descriptors of the program's stdin, stdout, stderr; they stay the caller's.
        held: up to three descriptors that init duplicates and gives to the next server.
        keep_background: do not kill what outlives the main process.
        standby: ``Standby.pid_inside`` of the child that was put into the step's cgroups; the step
            runs in it or not at all. 0: any child, and a new one if there is none.
        tty: stdin is a terminal, make it the controlling one.
    """

    number: int
    argv: Sequence[bytes | str]
    env: Mapping[str, str]
    cwd: bytes
    stdio: tuple[int, int, int]
    rlimits: Sequence[tuple[int, int, int]] = ()
    tag: bytes = b""
    held: tuple[int, ...] = ()
    keep_background: bool = False
    standby: int = 0
    tty: bool = False


@dataclass(frozen=True, slots=True)
class StepUsage:
    """getrusage(2) of a step's main process and the children that it waited for."""

    user_us: int
    system_us: int
    max_rss_kib: int
    minor_faults: int
    major_faults: int
    in_blocks: int
    out_blocks: int
    voluntary_switches: int
    involuntary_switches: int


@dataclass(frozen=True, slots=True)
class StepExit:
    """How a step ended; everything that it left behind is dead.

    Times are CLOCK_MONOTONIC of the host: just before execve, and when the main process was reaped.
    """

    number: int
    wait_status: int
    usage: StepUsage
    started_ns: int
    ended_ns: int

    @property
    def exit_code(self) -> int | None:
        """0 to 255, or None when a signal ended it."""
        return os.WEXITSTATUS(self.wait_status) if os.WIFEXITED(self.wait_status) else None

    @property
    def signal(self) -> int | None:
        """The signal that ended it, or None when it exited."""
        return os.WTERMSIG(self.wait_status) if os.WIFSIGNALED(self.wait_status) else None

    @property
    def user_us(self) -> int:
        """User CPU time in microseconds."""
        return self.usage.user_us

    @property
    def system_us(self) -> int:
        """System CPU time in microseconds."""
        return self.usage.system_us

    @property
    def max_rss_kib(self) -> int:
        """Largest resident set of one process in KiB."""
        return self.usage.max_rss_kib


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step that init knows, for a server that did not start it.

    ``held`` has the descriptors in the order of ``ExecStep.held`` (None: dropped or never given);
    they belong to the receiver. ``exit`` is set once the step has ended.
    """

    number: int
    state: State
    pid_inside: int
    flags: ExecFlags
    tag: bytes
    held: tuple[int | None, int | None, int | None]
    exit: StepExit | None


@dataclass(slots=True)
class _Request:
    """A request that waits for its answer."""

    type: Type
    future: asyncio.Future[Any]
    subject: bytes | int | None = None  # the path or step number, for errors and answers


class InitClient:
    """Client of one sandbox's retort-init.

    Everything is called from the loop's thread. After the connection is lost every method raises
    SandboxFault.

    Attributes:
        pidfd: of init itself, readable when the sandbox is dead; closed by ``close()``.
        running: steps not ended when we connected.
        unreleased: steps ended and not released when we connected.
        features: what this init could set up.
    """

    def __init__(self, sock: socket.socket, on_lost: Callable[[Exception | None], None]) -> None:
        self.pidfd = -1
        self.running = 0
        self.unreleased = 0
        self.features = Features(0)
        self._socket = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._lost: SandboxFault | None = None
        self._is_closed = False
        self._next_id = 1
        self._requests: dict[int, _Request] = {}
        self._taken: _Request | None = None  # whose answer is being read
        self._on_exit: dict[int, Callable[[StepExit], None]] = {}
        self._exits: dict[int, StepExit] = {}  # arrived before somebody adopted the step
        self._unsent: deque[tuple[list[bytes], tuple[int, ...]]] = deque()
        self._buffer = bytearray(protocol.ANSWER_MAX + 1)
        self._view = memoryview(self._buffer)
        self._handlers: dict[int, Callable[[int, int, list[int]], None]] = {
            Type.STARTED: self._receive_started,
            Type.EXITED: self._receive_exited,
            Type.FAILED: self._receive_failed,
            Type.DONE: self._receive_done,
            Type.OPENED: self._receive_opened,
            Type.PREPARED: self._receive_prepared,
            Type.INPUT: self._receive_input,
            Type.STEP: self._receive_step,
            Type.WELCOME: self._receive_welcome,
        }
        sock.setblocking(False)
        self._loop.add_reader(self._fd, self._readable)

    @classmethod
    async def connect(
        cls,
        target: str | bytes | socket.socket,
        *,
        timeout_s: float,
        on_lost: Callable[[Exception | None], None],
    ) -> InitClient:
        """Connect and say HELLO.

        Args:
            target: path of the socket, or a connected socket (taken over).
            timeout_s: for connection and answer together.
            on_lost: called once if the connection breaks later; with None when init simply closed
                it. Not called after ``close()``.

        Raises:
            SandboxFault: nobody listens, answers in time, or speaks this version.
        """
        try:
            async with asyncio.timeout(timeout_s):
                sock = target if isinstance(target, socket.socket) else await _connect(target)
                client = cls(sock, on_lost)
                try:
                    await client._request(Type.HELLO, protocol.VERSION, 0)
                except BaseException:
                    client.close()
                    raise
        except TimeoutError:
            raise SandboxFault("init", f"no answer within {timeout_s} s") from None
        except OSError as exc:
            raise SandboxFault("init", f"connect: {exc}") from exc
        return client

    # --- steps ---------------------------------------------------------------------------------

    async def prepare(self, cgroup_fd: int | None = None) -> Standby:
        """Have a child ready for the next step.

        An existing child is answered again; with a cgroup it is replaced.

        Args:
            cgroup_fd: a cgroup v2 folder that the child is born in.

        Raises:
            OSError: the child could not be made, or (EBUSY) a step is still ending.
        """
        fds = () if cgroup_fd is None else (cgroup_fd,)
        standby: Standby = await self._request(Type.PREPARE, 0, 0, fds=fds)
        return standby

    def exec(  # the protocol's word
        self, step: ExecStep, on_exit: Callable[[StepExit], None]
    ) -> asyncio.Future[Started]:
        """Run a program; the request is sent before this returns.

        Args:
            step: what to run.
            on_exit: called once, always after the future is done, when the program and everything
                it left behind is dead. Not called if the step did not start.

        Returns:
            A future of Started, or StepNotStarted, or SandboxFault when the connection breaks.

        Raises:
            ValueError: the step cannot be put into one message (too long, a NUL in a string).
            SandboxFault: the connection is lost.
        """
        argv = [os.fsencode(argument) for argument in step.argv]
        env = [os.fsencode(f"{name}={value}") for name, value in step.env.items()]
        strings = [step.cwd, *argv, *env, b""]
        tail = b"\0".join(strings)
        if tail.count(b"\0") != len(strings) - 1:
            raise ValueError("a string of the step contains NUL")
        if step.number in self._on_exit:
            raise ValueError(f"step {step.number} is in use")
        flags = step.keep_background * ExecFlags.KEEP_BACKGROUND + step.tty * ExecFlags.TTY
        id_ = self._new_id()
        head = protocol.EXEC.pack(
            Type.EXEC, id_, step.number, flags, step.standby,
            len(step.rlimits), len(step.tag), len(argv), len(env),
        )  # fmt: skip
        limits = b"".join(
            protocol.LIMIT.pack(resource, 0, soft & _NO_LIMIT, hard & _NO_LIMIT)
            for resource, soft, hard in step.rlimits
        )
        if len(head) + len(limits) + len(step.tag) + len(tail) > protocol.MESSAGE_MAX:
            raise ValueError("the step is too long for one message")
        future = self._send(
            Type.EXEC, id_, [head, limits, step.tag, tail], step.stdio + step.held, step.number
        )
        self._on_exit[step.number] = on_exit
        return future

    def adopt(self, number: int, on_exit: Callable[[StepExit], None]) -> None:
        """Name who wants to know the end of a step that ``steps()`` listed.

        Called soon, if the step has ended already.
        """
        self._check()
        exited = self._exits.pop(number, None)
        if exited is None:
            self._on_exit[number] = on_exit
        else:
            self._loop.call_soon(on_exit, exited)

    async def steps(self) -> list[StepRecord]:
        """List all steps, running or ended and not released, with new held descriptors."""
        records: list[StepRecord] = []
        try:
            while len(records) < protocol.STEPS_MAX:
                record: StepRecord | None = await self._request(Type.LIST, len(records), 0)
                if record is None:
                    break
                records.append(record)
        except BaseException:
            _close_all([fd for record in records for fd in record.held if fd is not None])
            raise
        for record in records:
            if record.exit is not None and record.number not in self._on_exit:
                self._exits[record.number] = record.exit
        return records

    async def release(self, number: int) -> None:
        """Drop an ended step's record and held descriptors.

        Raises:
            FileNotFoundError: no step has this number.
            OSError: EBUSY, it has not ended.
        """
        await self._request(Type.RELEASE, number, subject=number)
        self._exits.pop(number, None)

    async def drop(self, number: int, *indexes: int) -> None:
        """Close held descriptors of a step by their index in ``ExecStep.held``.

        A program's stdin ends only when every writer closed it, and init is one.
        """
        mask = sum(1 << index for index in set(indexes))
        await self._request(Type.DROP, number, mask, 0, subject=number)

    def kill(self, number: int, signal: int, scope: Scope = Scope.MAIN) -> asyncio.Future[None]:
        """Send a signal; the request is sent before this returns.

        Args:
            number: of the step; 0 with Scope.EVERYTHING needs none.
            signal: 0 only asks whether somebody is there.
            scope: who gets it.

        Returns:
            A future of None, or ProcessLookupError when nobody is there, or FileNotFoundError when
            no step has this number. It need not be awaited.
        """
        future = self._request(Type.KILL, number, signal, scope, subject=number)
        future.add_done_callback(_retrieve)
        return future

    async def is_waiting(self, number: int) -> bool:
        """Whether a thread of the sandbox sleeps in read(2) on the step's stdin."""
        waiting: bool = await self._request(Type.WAITING, number, subject=number)
        return waiting

    # --- files ---------------------------------------------------------------------------------

    async def open(self, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
        """Open a path relative to the session's home; the descriptor is the caller's.

        Non-blocking, close-on-exec, never outside of home, for writing never through a symlink.
        It may be of any type (FIFO, folder): fstat it.

        Args:
            path: relative; ``..`` is refused.
            flags: ``os.O_*``.
            mode: exact, no umask; only with O_CREAT or O_TMPFILE.
            resolve: RESOLVE_NO_XDEV, RESOLVE_NO_SYMLINKS.

        Raises:
            OSError: as openat2(2); EXDEV when the path leads outside, ELOOP at a refused symlink.
        """
        return await self._path_request(Type.OPEN, (flags, mode, resolve), path)

    async def mkdirs(self, path: bytes, mode: int = 0o755, resolve: int = 0) -> int:
        """Make a folder and its missing parents.

        Returns:
            How many were made, the deepest ones. On failure none remains.

        Raises:
            OSError: NotADirectoryError when a component is something else, also a symlink.
        """
        return await self._path_request(Type.MKDIRS, (mode, 0, resolve), path)

    async def link(self, fd: int, path: bytes, resolve: int = 0) -> None:
        """Give a name to a file made with O_TMPFILE.

        Raises:
            FileExistsError: the name is taken.
            OSError: EINVAL, the file has a name already, or is no regular file.
        """
        await self._path_request(Type.LINK, (resolve,), path, fds=(fd,))

    async def rename(self, src: bytes, dst: bytes, flags: int = 0, resolve: int = 0) -> None:
        """Rename inside home; flags are RENAME_NOREPLACE or RENAME_EXCHANGE."""
        await self._path_request(Type.RENAME, (flags, 0, resolve), src, dst)

    async def unlink(self, path: bytes, *, directory: bool = False, resolve: int = 0) -> None:
        """Remove a name, or an empty folder."""
        flags = _AT_REMOVEDIR if directory else 0
        await self._path_request(Type.UNLINK, (flags, 0, resolve), path)

    async def _path_request(
        self, type_: Type, fields: tuple[int, ...], *paths: bytes, fds: tuple[int, ...] = ()
    ) -> int:
        for path in paths:
            if b"\0" in path:
                raise ValueError(f"{path!r} contains NUL")
            if len(path) >= protocol.PATH_MAX:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        tail = b"".join(path + b"\0" for path in paths)
        result: int = await self._request(type_, *fields, tail=tail, fds=fds, subject=paths[0])
        return result

    # --- connection ----------------------------------------------------------------------------

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

    def _request(
        self,
        type_: Type,
        *fields: int,
        tail: bytes = b"",
        fds: tuple[int, ...] = (),
        subject: bytes | int | None = None,
    ) -> asyncio.Future[Any]:
        id_ = self._new_id()
        head = _LAYOUTS[type_].pack(type_, id_, *fields)
        return self._send(type_, id_, [head, tail], fds, subject)

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
        self._requests[id_] = _Request(type_, future, subject)
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
            _close_all(fds)
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
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or length < protocol.HEADER.size:
                raise _Nonsense("cut short")
            type_, id_ = protocol.HEADER.unpack_from(self._buffer)
            handler = self._handlers.get(type_)
            if handler is None:
                raise _Nonsense(f"unknown type {type_}")
            handler(id_, length, rest)
            if rest:
                raise _Nonsense("descriptors that nobody asked for")
        except _Nonsense as exc:
            self._fail(f"sent nonsense: {exc}")
        finally:
            self._taken = None
            _close_all(rest)  # what the handler did not take

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
            _close_all(fds)
        self._unsent.clear()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        requests, self._requests = [*self._requests.values()], {}
        if self._taken is not None:
            requests.append(self._taken)
        self._on_exit.clear()
        self._exits.clear()
        for request in requests:
            if not request.future.done():
                request.future.set_exception(SandboxFault(*self._lost_reason()))
        if tell:
            # Soon, for it may be the caller's own request that found out.
            self._loop.call_soon(self._tell, cause)

    def _tell(self, cause: Exception | None) -> None:
        if not self._is_closed:
            self._on_lost(cause)

    # --- answers -------------------------------------------------------------------------------

    def _take(self, answer: Type, id_: int) -> _Request:
        request = self._taken = self._requests.pop(id_, None)
        if request is None or _ANSWERS[request.type] is not answer:
            raise _Nonsense(f"{answer.name} that answers nothing")
        return request

    def _unpack(self, layout: struct.Struct, length: int) -> tuple[Any, ...]:
        if length != layout.size:
            raise _Nonsense(f"{length} bytes for {layout.size}")
        return layout.unpack_from(self._buffer)

    def _receive_started(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, number, pid, _ = self._unpack(protocol.STARTED, length)
        request = self._take(Type.STARTED, id_)
        if number != request.subject or pid <= 0:
            raise _Nonsense("STARTED of another step")
        _resolve(request.future, Started(number, pid))

    def _receive_exited(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, number, status, _, *numbers = self._unpack(protocol.EXITED, length)
        if id_ or not (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
            raise _Nonsense(f"EXITED with wait status {status}")
        exited = StepExit(number, status, StepUsage(*numbers[:9]), *numbers[9:])
        on_exit = self._on_exit.pop(number, None)
        if on_exit is not None:
            # Not called from here: futures call back soon too, and STARTED comes first.
            self._loop.call_soon(on_exit, exited)
        elif len(self._exits) < protocol.STEPS_MAX:
            self._exits[number] = exited
        else:
            raise _Nonsense("EXITED of more steps than there are")

    def _receive_failed(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, number, error = self._unpack(protocol.FAILED, length)
        request = self._taken = self._requests.pop(id_, None)
        if request is None or not 0 < error < _ERRNO_END or number not in _PHASES:
            raise _Nonsense(f"FAILED that answers nothing (phase {number}, errno {error})")
        phase = Phase(number)
        if request.type is Type.EXEC and isinstance(request.subject, int):
            self._on_exit.pop(request.subject, None)
            _refuse(request.future, StepNotStarted(phase, error))
        elif request.type is Type.LIST and error == errno.ENOENT:
            _resolve(request.future, None)
        elif phase is Phase.PROTOCOL:
            reason = f"refused {request.type.name}: {os.strerror(error)}"
            _refuse(request.future, SandboxFault("init", reason))
        elif isinstance(request.subject, bytes):
            _refuse(request.future, OSError(error, os.strerror(error), request.subject))
        else:
            _refuse(request.future, OSError(error, f"{phase.name}: {os.strerror(error)}"))

    def _receive_done(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, count, _ = self._unpack(protocol.DONE, length)
        request = self._take(Type.DONE, id_)
        _resolve(request.future, count if request.type is Type.MKDIRS else None)

    def _receive_input(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, waiting, _ = self._unpack(protocol.INPUT, length)
        _resolve(self._take(Type.INPUT, id_).future, bool(waiting))

    def _receive_opened(self, id_: int, length: int, fds: list[int]) -> None:
        self._unpack(protocol.OPENED, length)
        self._give(Type.OPENED, id_, fds, lambda fd: fd)

    def _receive_prepared(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, pid, _ = self._unpack(protocol.PREPARED, length)
        self._give(Type.PREPARED, id_, fds, lambda fd: Standby(pid, fd, _host_pid(fd)))

    def _receive_welcome(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, version, running, unreleased, features = self._unpack(protocol.WELCOME, length)
        if version != protocol.VERSION:
            raise _Nonsense(f"version {version}")
        self.running, self.unreleased, self.features = running, unreleased, Features(features)
        request = self._take(Type.WELCOME, id_)
        if len(fds) != 1:
            raise _Nonsense(f"{len(fds)} descriptors in WELCOME")
        self.pidfd = fds.pop()
        _resolve(request.future, None)

    def _receive_step(self, id_: int, length: int, fds: list[int]) -> None:
        if length < protocol.STEP.size:
            raise _Nonsense(f"{length} bytes of STEP")
        _, _, number, state, pid, status, flags, mask, tag_length, *numbers = (
            protocol.STEP.unpack_from(self._buffer)
        )
        request = self._take(Type.STEP, id_)
        wanted = mask.bit_count()
        if length != protocol.STEP.size + tag_length or mask >> protocol.HELD_MAX:
            raise _Nonsense("STEP that does not add up")
        if state not in _STATES or len(fds) != wanted:
            raise _Nonsense(f"STEP in state {state} with {len(fds)} descriptors")
        exited = None
        if state == State.ENDED:
            exited = StepExit(number, status, StepUsage(*numbers[:9]), *numbers[9:])
        if request.future.done():  # cancelled
            _close_all(fds)
            fds.clear()
            return
        held = [fds.pop(0) if mask >> index & 1 else None for index in range(protocol.HELD_MAX)]
        record = StepRecord(
            number, State(state), pid, ExecFlags(flags),
            bytes(self._view[protocol.STEP.size : length]), (held[0], held[1], held[2]), exited,
        )  # fmt: skip
        request.future.set_result(record)

    def _give(self, answer: Type, id_: int, fds: list[int], wrap: Callable[[int], object]) -> None:
        """Resolve a request with its one descriptor; close it if nobody waits any more."""
        request = self._take(answer, id_)
        if len(fds) != 1:
            raise _Nonsense(f"{len(fds)} descriptors in {answer.name}")
        if request.future.done():
            _close_all(fds)
        else:
            request.future.set_result(wrap(fds[0]))
        fds.clear()


class _Nonsense(Exception):
    """A message that no honest init sends."""


def _resolve(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():  # cancelled meanwhile
        future.set_result(result)


def _refuse(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Mark an error as seen, so that asyncio does not log it for a caller who does not care."""
    if not future.cancelled():
        future.exception()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _host_pid(pidfd: int) -> int:
    """Return the pid in our namespace, or -1 for a process that is dead (pidfd_open(2), fdinfo)."""
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as info:  # noqa: PTH123  procfs, hot path
        for line in info:
            if line.startswith(b"Pid:"):
                return int(line[4:])
    raise _Nonsense("a descriptor that is no pidfd")


async def _connect(path: str | bytes) -> socket.socket:
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
