"""The client of retort-init: one sandbox's socket, as futures and callbacks.

Follows ``docs/init-protocol.md``. Nothing that arrives is trusted: every length, count and number
is checked, and a message that makes no sense closes the connection. The hot path (``exec``, its
answer and its exit) makes one system call per message and no task; it runs on any asyncio loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from retort.errors import SandboxFault
from retort.sandbox import protocol
from retort.sandbox.channel import Nonsense, Request, close_all, connect_to
from retort.sandbox.init_files import FileRequests
from retort.sandbox.protocol import ExecFlags, Features, Phase, Scope, State, Type
from retort.sandbox.step_values import (
    ExecStep,
    Standby,
    Started,
    StepExit,
    StepNotStarted,
    StepRecord,
    StepUsage,
)

_NO_LIMIT: Final = 2**64 - 1
_ERRNO_END: Final = 4096  # the host kernel's own bound
_PHASES: Final = frozenset(Phase)
_STATES: Final = frozenset(State)

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
    Type.FEED: Type.DONE,
}

_COUNTED: Final = frozenset({Type.MKDIRS, Type.FEED})  # whose DONE says how many


class InitClient(FileRequests):
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
        self._on_exit: dict[int, Callable[[StepExit], None]] = {}
        self._exits: dict[int, StepExit] = {}  # arrived before somebody adopted the step
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
        super().__init__(sock, on_lost)

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
                sock = target if isinstance(target, socket.socket) else await connect_to(target)
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

    def prepare(self, cgroup_fd: int | None = None) -> asyncio.Future[Standby]:
        """Have a child ready for the next step; the request is sent before this returns.

        An existing child is answered again; with a cgroup it is replaced.

        Args:
            cgroup_fd: a cgroup v2 folder that the child is born in.

        Returns:
            A future of the child, or OSError: it could not be made, or (EBUSY) a step is ending.
        """
        fds = () if cgroup_fd is None else (cgroup_fd,)
        return self._request(Type.PREPARE, 0, 0, fds=fds)

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
            close_all([fd for record in records for fd in record.held if fd is not None])
            raise
        for record in records:
            if record.exit is not None and record.number not in self._on_exit:
                self._exits[record.number] = record.exit
        return records

    def release(self, number: int) -> asyncio.Future[None]:
        """Drop an ended step's record and held descriptors; sent before this returns.

        Returns:
            A future of None, or FileNotFoundError: no step has this number, or OSError: EBUSY, it
            has not ended.
        """
        self._exits.pop(number, None)
        future = self._request(Type.RELEASE, number, subject=number)
        future.add_done_callback(_retrieve)
        return future

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

    def feed(self, number: int, data: bytes) -> asyncio.Future[int]:
        """Write input for a step; the request is sent before this returns.

        Into the first of ``ExecStep.held``, which must be the other end of the step's stdin and
        not block. Init counts what it wrote (``StepRecord.fed``), whatever happens to us.

        Args:
            data: 1 to `protocol.FEED_MAX` bytes.

        Returns:
            A future of how many bytes there was room for, 0 to all; or BrokenPipeError when nobody
            reads any more, or OSError: EBADF, it has no input; or FileNotFoundError when no step
            has this number.
        """
        if not 0 < len(data) <= protocol.FEED_MAX:
            raise ValueError(f"{len(data)} bytes of input at once")
        return self._request(Type.FEED, number, tail=data, subject=number)

    def _forget(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        self._on_exit.clear()
        self._exits.clear()

    # --- answers -------------------------------------------------------------------------------

    def _receive(self, type_: int, id_: int, length: int, fds: list[int]) -> None:
        handler = self._handlers.get(type_)
        if handler is None:
            raise Nonsense(f"unknown type {type_}")
        handler(id_, length, fds)

    def _take(self, answer: Type, id_: int) -> Request:
        request = self._taken = self._requests.pop(id_, None)
        if request is None or _ANSWERS[request.type] is not answer:
            raise Nonsense(f"{answer.name} that answers nothing")
        return request

    def _unpack(self, layout: struct.Struct, length: int) -> tuple[Any, ...]:
        if length != layout.size:
            raise Nonsense(f"{length} bytes for {layout.size}")
        return layout.unpack_from(self._buffer)

    def _receive_started(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, number, pid, _ = self._unpack(protocol.STARTED, length)
        request = self._take(Type.STARTED, id_)
        if number != request.subject or pid <= 0:
            raise Nonsense("STARTED of another step")
        _resolve(request.future, Started(number, pid))

    def _receive_exited(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, number, status, _, *numbers = self._unpack(protocol.EXITED, length)
        if id_ or not (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
            raise Nonsense(f"EXITED with wait status {status}")
        exited = StepExit(number, status, StepUsage(*numbers[:9]), *numbers[9:])
        on_exit = self._on_exit.pop(number, None)
        if on_exit is not None:
            # Not called from here: futures call back soon too, and STARTED comes first.
            self._loop.call_soon(on_exit, exited)
        elif len(self._exits) < protocol.STEPS_MAX:
            self._exits[number] = exited
        else:
            raise Nonsense("EXITED of more steps than there are")

    def _receive_failed(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, number, error = self._unpack(protocol.FAILED, length)
        request = self._taken = self._requests.pop(id_, None)
        if request is None or not 0 < error < _ERRNO_END or number not in _PHASES:
            raise Nonsense(f"FAILED that answers nothing (phase {number}, errno {error})")
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
        _resolve(request.future, count if request.type in _COUNTED else None)

    def _receive_input(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, waiting, _ = self._unpack(protocol.INPUT, length)
        _resolve(self._take(Type.INPUT, id_).future, bool(waiting))

    def _receive_opened(self, id_: int, length: int, fds: list[int]) -> None:
        self._unpack(protocol.OPENED, length)
        self._give(Type.OPENED, id_, fds, lambda fd: fd)

    def _receive_prepared(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, pid, _ = self._unpack(protocol.PREPARED, length)
        self._give(Type.PREPARED, id_, fds, lambda fd: Standby(pid, fd))

    def _receive_welcome(self, id_: int, length: int, fds: list[int]) -> None:
        _, _, version, running, unreleased, features = self._unpack(protocol.WELCOME, length)
        if version != protocol.VERSION:
            raise Nonsense(f"version {version}")
        self.running, self.unreleased, self.features = running, unreleased, Features(features)
        request = self._take(Type.WELCOME, id_)
        if len(fds) != 1:
            raise Nonsense(f"{len(fds)} descriptors in WELCOME")
        self.pidfd = fds.pop()
        _resolve(request.future, None)

    def _receive_step(self, id_: int, length: int, fds: list[int]) -> None:
        if length < protocol.STEP.size:
            raise Nonsense(f"{length} bytes of STEP")
        _, _, number, state, pid, status, flags, mask, tag_length, *numbers, fed = (
            protocol.STEP.unpack_from(self._buffer)
        )
        request = self._take(Type.STEP, id_)
        wanted = mask.bit_count()
        if length != protocol.STEP.size + tag_length or mask >> protocol.HELD_MAX:
            raise Nonsense("STEP that does not add up")
        if state not in _STATES or len(fds) != wanted:
            raise Nonsense(f"STEP in state {state} with {len(fds)} descriptors")
        exited = None
        if state == State.ENDED:
            exited = StepExit(number, status, StepUsage(*numbers[:9]), *numbers[9:])
        if request.future.done():  # cancelled
            close_all(fds)
            fds.clear()
            return
        held = [fds.pop(0) if mask >> index & 1 else None for index in range(protocol.HELD_MAX)]
        record = StepRecord(
            number, State(state), pid, ExecFlags(flags),
            bytes(self._view[protocol.STEP.size : length]), (held[0], held[1], held[2]), exited, fed
        )  # fmt: skip
        request.future.set_result(record)

    def _give(self, answer: Type, id_: int, fds: list[int], wrap: Callable[[int], object]) -> None:
        """Resolve a request with its one descriptor; close it if nobody waits any more."""
        request = self._take(answer, id_)
        if len(fds) != 1:
            raise Nonsense(f"{len(fds)} descriptors in {answer.name}")
        if request.future.done():
            close_all(fds)
        else:
            request.future.set_result(wrap(fds[0]))
        fds.clear()


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
