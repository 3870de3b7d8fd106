"""The client against an init that lies: a scripted peer at the other end of the socket."""
# ruff: noqa: ASYNC110  what is polled and read here is procfs and other processes

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from tests.sandbox.init.box import DEADLINE_S, Box, open_descriptors

from retort.errors import SandboxFault
from retort.sandbox import protocol
from retort.sandbox.init import InitClient
from retort.sandbox.protocol import Phase, State, Type
from retort.sandbox.step_values import ExecStep, StepExit, StepNotStarted

USAGE = (1, 2, 3, 4, 5, 6, 7, 8, 9)


class Liar:
    """The peer: says what the test wants."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(DEADLINE_S)
        self.lost: list[Exception | None] = []

    async def connect(self) -> InitClient:
        connecting = asyncio.ensure_future(
            InitClient.connect(self.theirs, timeout_s=DEADLINE_S, on_lost=self.lost.append)
        )
        await asyncio.sleep(0)
        _, id_, version, _ = protocol.HELLO.unpack(self.ours.recv(100))
        assert version == protocol.VERSION
        self.say(protocol.WELCOME.pack(Type.WELCOME, id_, version, 0, 0, 3), os.pidfd_open(1))
        return await connecting

    def say(self, message: bytes, *fds: int) -> None:
        socket.send_fds(self.ours, [message], fds)
        for fd in fds:
            os.close(fd)

    def heard(self) -> tuple[int, int]:
        message, fds, _, _ = socket.recv_fds(self.ours, 70000, 8)
        for fd in fds:
            os.close(fd)
        return struct.unpack_from("=II", message)  # type: ignore[return-value]


@pytest.fixture
def liar() -> Iterator[Liar]:
    peer = Liar()
    yield peer
    peer.ours.close()
    peer.theirs.close()


def null() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def step_message(id_: int, mask: int = 0, state: int = State.RUNNING, tag: bytes = b"") -> bytes:
    head = (Type.STEP, id_, 1, state, 5, 0, 0, mask, len(tag), *USAGE, 10, 20, 0)
    return protocol.STEP.pack(*head) + tag


NONSENSE: dict[str, Callable[[int], tuple[bytes, list[int]]]] = {
    "short": lambda id_: (b"abc", []),
    "unknown type": lambda id_: (protocol.HEADER.pack(200, id_), []),
    "a request": lambda id_: (protocol.LIST.pack(Type.LIST, id_, 0, 0), []),
    "too short for its type": lambda id_: (protocol.HEADER.pack(Type.OPENED, id_)[:7], []),
    "too long for its type": lambda id_: (protocol.OPENED.pack(Type.OPENED, id_) + b"x", [null()]),
    "too long for any": lambda id_: (protocol.OPENED.pack(Type.OPENED, id_) + bytes(20000), []),
    "answer to nothing": lambda id_: (protocol.OPENED.pack(Type.OPENED, id_ + 1), [null()]),
    "answer of another type": lambda id_: (protocol.DONE.pack(Type.DONE, id_, 1, 0), []),
    "no descriptor": lambda id_: (protocol.OPENED.pack(Type.OPENED, id_), []),
    "two descriptors": lambda id_: (protocol.OPENED.pack(Type.OPENED, id_), [null(), null()]),
    "failed without errno": lambda id_: (protocol.FAILED.pack(Type.FAILED, id_, 10, 0), []),
    "failed, negative errno": lambda id_: (protocol.FAILED.pack(Type.FAILED, id_, 10, -2), []),
    "failed in no phase": lambda id_: (protocol.FAILED.pack(Type.FAILED, id_, 99, 2), []),
    "failed with a descriptor": lambda id_: (
        protocol.FAILED.pack(Type.FAILED, id_, 10, 2), [null()]),
    "exited, stopped": lambda id_: (
        protocol.EXITED.pack(Type.EXITED, 0, 1, 0x137F, 0, *USAGE, 1, 2), []),
    "exited with an id": lambda id_: (
        protocol.EXITED.pack(Type.EXITED, 4, 1, 0, 0, *USAGE, 1, 2), []),
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_closes_the_connection_and_leaks_nothing(liar: Liar, name: str) -> None:
    before = open_descriptors()
    client = await liar.connect()
    opening = asyncio.ensure_future(client.open(b"x", os.O_RDONLY))
    await asyncio.sleep(0)
    type_, id_ = liar.heard()
    assert type_ == Type.OPEN
    message, fds = NONSENSE[name](id_)
    liar.say(message, *fds)
    if name == "failed with a descriptor":
        with pytest.raises(FileNotFoundError):
            await opening
    else:
        with pytest.raises(SandboxFault, match="connection is gone"):
            await opening
    await asyncio.sleep(0)
    assert len(liar.lost) == 1
    assert isinstance(liar.lost[0], SandboxFault)
    with pytest.raises(SandboxFault):
        client.kill(1, 9)
    assert open_descriptors() == before - 1  # the socket itself


@pytest.mark.parametrize(
    ("message", "descriptors"),
    [
        (lambda id_: step_message(id_, mask=1), 0),
        (lambda id_: step_message(id_, mask=0), 1),
        (lambda id_: step_message(id_, mask=8), 1),
        (lambda id_: step_message(id_, state=9), 0),
        (lambda id_: step_message(id_) + b"x", 0),
        (lambda id_: step_message(id_, tag=b"long")[:-1], 0),
        (lambda id_: step_message(id_)[:-1], 0),
    ],
)
async def test_nonsense_step_is_refused(
    liar: Liar, message: Callable[[int], bytes], descriptors: int
) -> None:
    before = open_descriptors()
    client = await liar.connect()
    listing = asyncio.ensure_future(client.steps())
    await asyncio.sleep(0)
    _, id_ = liar.heard()
    liar.say(message(id_), *(null() for _ in range(descriptors)))
    with pytest.raises(SandboxFault):
        await listing
    assert open_descriptors() == before - 1


async def test_endless_list_is_cut(liar: Liar) -> None:
    client = await liar.connect()
    listing = asyncio.ensure_future(client.steps())
    for _ in range(protocol.STEPS_MAX):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        _, id_ = liar.heard()
        liar.say(step_message(id_, mask=1), null())
        for _ in range(5):
            await asyncio.sleep(0)
    records = await listing
    assert len(records) == protocol.STEPS_MAX
    for record in records:
        assert record.held[0] is not None
        os.close(record.held[0])
    client.close()


async def test_flood_of_exits_is_cut(liar: Liar) -> None:
    await liar.connect()
    for number in range(1, protocol.STEPS_MAX + 2):
        liar.say(protocol.EXITED.pack(Type.EXITED, 0, number, 0, 0, *USAGE, 1, 2))
    async with asyncio.timeout(DEADLINE_S):
        while not liar.lost:
            await asyncio.sleep(0)


async def test_started_of_another_step_is_nonsense(liar: Liar) -> None:
    client = await liar.connect()
    device = null()
    future = client.exec(
        ExecStep(7, ["/x"], {}, b"/", (device, device, device)), lambda exit_: None
    )
    os.close(device)
    _, id_ = liar.heard()
    liar.say(protocol.STARTED.pack(Type.STARTED, id_, 8, 1, 0))
    with pytest.raises(SandboxFault):
        await future


async def test_answer_to_a_cancelled_request_is_dropped(liar: Liar) -> None:
    client = await liar.connect()
    before = open_descriptors()
    opening = asyncio.ensure_future(client.open(b"x", os.O_RDONLY))
    await asyncio.sleep(0)
    _, id_ = liar.heard()
    opening.cancel()
    await asyncio.sleep(0)
    liar.say(protocol.OPENED.pack(Type.OPENED, id_), null())
    done = client.kill(1, 0)
    _, id_ = liar.heard()
    liar.say(protocol.DONE.pack(Type.DONE, id_, 0, 0))
    await done
    assert open_descriptors() == before
    client.close()


async def test_closed_by_init_is_told_with_no_cause(liar: Liar) -> None:
    client = await liar.connect()
    pending = client.kill(1, 9)
    liar.heard()
    liar.ours.close()
    with pytest.raises(SandboxFault):
        await pending
    await asyncio.sleep(0)
    assert liar.lost == [None]


async def test_close_tells_nobody_but_ends_what_waits(liar: Liar) -> None:
    client = await liar.connect()
    pending = client.kill(1, 9)
    client.close()
    client.close()
    with pytest.raises(SandboxFault, match="closed"):
        await pending
    with pytest.raises(SandboxFault):
        await client.prepare()
    await asyncio.sleep(0)
    assert liar.lost == []


async def test_requests_wait_for_a_full_socket_and_keep_their_order(liar: Liar) -> None:
    client = await liar.connect()
    before = open_descriptors()
    device = null()
    futures = [client.kill(number, 9) for number in range(1, 1500)]
    futures.append(
        client.exec(ExecStep(1500, ["/x"], {}, b"/", (device, device, device)), lambda _: None)
    )
    os.close(device)
    for number in range(1, 1500):
        message = liar.ours.recv(100)
        type_, id_, heard, _, _ = protocol.KILL.unpack(message)
        assert (type_, heard) == (Type.KILL, number)
        liar.say(protocol.DONE.pack(Type.DONE, id_, 0, 0))
        await asyncio.sleep(0)
    await asyncio.gather(*futures[:-1])
    _, id_ = liar.heard()
    liar.say(protocol.FAILED.pack(Type.FAILED, id_, Phase.EXEC, 2))
    with pytest.raises(StepNotStarted) as caught:
        await futures[-1]
    assert (caught.value.step_phase, caught.value.errno) == (Phase.EXEC, 2)
    assert open_descriptors() == before
    client.close()


async def test_connect_gives_up_after_its_time(liar: Liar) -> None:
    with pytest.raises(SandboxFault, match="no answer"):
        await InitClient.connect(liar.theirs, timeout_s=0.01, on_lost=liar.lost.append)
    assert liar.lost == []


async def test_connect_to_nobody_is_a_fault(tmp_path: Any) -> None:
    with pytest.raises(SandboxFault, match="connect"):
        await InitClient.connect(str(tmp_path / "s"), timeout_s=1, on_lost=lambda _: None)


@pytest.mark.parametrize(
    "change",
    [
        {"argv": ["a\0b"]},
        {"cwd": b"/\0"},
        {"env": {"A": "\0"}},
        {"argv": ["x" * 70000]},
        {"tag": b"x" * 66000},
    ],
)
async def test_step_that_fits_no_message_is_a_value_error(
    liar: Liar, change: dict[str, Any]
) -> None:
    client = await liar.connect()
    fields = {"argv": ["/x"], "env": {}, "cwd": b"/", **change}
    with pytest.raises(ValueError, match=r"NUL|too long"):
        client.exec(ExecStep(1, stdio=(0, 0, 0), **fields), lambda _: None)
    client.close()


async def test_bad_descriptor_of_the_caller_harms_only_its_request(liar: Liar) -> None:
    client = await liar.connect()
    with pytest.raises(OSError, match="Bad file"):
        client.exec(ExecStep(1, ["/x"], {}, b"/", (9999, 9999, 9999)), lambda _: None)
    done = client.kill(1, 0)
    _, id_ = liar.heard()
    liar.say(protocol.DONE.pack(Type.DONE, id_, 0, 0))
    await done
    client.close()


async def test_paths_that_cannot_be_sent_are_refused_here(liar: Liar) -> None:
    client = await liar.connect()
    with pytest.raises(ValueError, match="NUL"):
        await client.open(b"a\0b", os.O_RDONLY)
    with pytest.raises(OSError, match="too long"):
        await client.open(b"a" * 4096, os.O_RDONLY)
    client.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_whole_cycle_runs_on_either_loop(
    box: Box, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def cycle() -> None:
        client = await box.connect()
        standby = await client.prepare()
        os.close(standby.pidfd)
        ran = await box.sh(client, "echo ok", standby=standby.pid_inside)
        assert ran.text == "ok\n"
        running = await box.start(client, "/bin/bash", "-c", "exit 3")
        client.close()
        second = await box.connect()
        (record,) = await second.steps()
        done: asyncio.Future[StepExit] = asyncio.get_running_loop().create_future()
        second.adopt(record.number, done.set_result)
        assert (await asyncio.wait_for(done, DEADLINE_S)).exit_code == 3
        running.close()
        second.close()

    main: Coroutine[Any, Any, None] = cycle()
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main)


async def test_without_descriptors_a_request_fails_and_the_connection_lives(
    box: Box, client: InitClient
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        asked = client.prepare(), client.open(b".", os.O_PATH)
        opening = asyncio.ensure_future(asked[1])
        await asyncio.sleep(0)  # it is sent
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        for answer in (asked[0], opening):
            with pytest.raises(OSError, match="Too many open files"):
                await answer
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    os.close((await client.prepare()).pidfd)
    assert (await box.sh(client, "echo alive")).text == "alive\n"
