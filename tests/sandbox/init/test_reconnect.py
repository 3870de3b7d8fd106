"""A server goes away, another comes: steps, exits and descriptors are still there."""
# ruff: noqa: ASYNC110  what is polled and read here is procfs and other processes

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import struct
import time
from pathlib import Path

import pytest
from tests.sandbox.init.box import DEADLINE_S, Box

from retort.errors import SandboxFault
from retort.sandbox import protocol
from retort.sandbox.init import InitClient
from retort.sandbox.protocol import State, Type
from retort.sandbox.step_values import ExecStep, StepExit, StepRecord


async def exit_of(client: InitClient, number: int) -> StepExit:
    done: asyncio.Future[StepExit] = asyncio.get_running_loop().create_future()
    client.adopt(number, done.set_result)
    return await asyncio.wait_for(done, DEADLINE_S)


def close_held(record: StepRecord) -> None:
    for fd in record.held:
        if fd is not None:
            os.close(fd)


async def test_running_step_is_adopted_with_its_descriptors_and_output(box: Box) -> None:
    first = await box.connect()
    stdin_read, stdin_write = os.pipe()
    out_read, out_write = os.pipe()
    script = "read line; echo got $line; exit 5"
    running = await box.start(
        first, "/bin/bash", "-c", script,
        stdin=stdin_read, held=(stdin_write, out_read), tag=b"the run",
    )  # fmt: skip
    for fd in (stdin_read, stdin_write, out_read, out_write):
        os.close(fd)
    first.close()

    second = await box.connect()
    assert (second.running, second.unreleased) == (1, 0)
    (record,) = await second.steps()
    assert (record.number, record.state, record.tag) == (running.number, State.RUNNING, b"the run")
    held_in, held_out, nothing = record.held
    assert held_in is not None
    assert held_out is not None
    assert nothing is None
    os.write(held_in, b"hello\n")
    assert (await exit_of(second, running.number)).exit_code == 5
    assert await running.read_all() == b"got hello\n"
    running.close()
    os.close(held_in)
    os.close(held_out)
    await second.release(running.number)
    assert await second.steps() == []
    second.close()


async def test_output_written_while_nobody_was_connected_is_not_lost(box: Box) -> None:
    first = await box.connect()
    out_read, out_write = os.pipe()
    go_read, go_write = os.pipe()
    running = await box.start(
        first, "/bin/bash", "-c", "read; echo written alone >&2; exit 6",
        stdin=go_read, held=(go_write, out_read),
    )  # fmt: skip
    kept = os.dup(running.output)
    running.close()  # the server's own ends are gone
    for fd in (out_read, out_write, go_read):
        os.close(fd)
    first.close()
    os.write(go_write, b"\n")
    os.close(go_write)
    assert os.read(kept, 100) == b"written alone\n"
    os.close(kept)
    second = await box.connect()
    for record in await second.steps():
        close_held(record)
    assert (await exit_of(second, running.number)).exit_code == 6
    second.close()


@pytest.mark.parametrize("is_held", [True, False])
async def test_held_read_end_keeps_the_program_from_sigpipe(box: Box, is_held: bool) -> None:
    client = await box.connect()
    go_read, go_write = os.pipe()
    out_read, out_write = os.pipe()
    done: asyncio.Future[StepExit] = asyncio.get_running_loop().create_future()
    step = ExecStep(
        1, ["/bin/cat"], {}, b"/", (go_read, out_write, out_write),
        held=(out_read,) if is_held else (),
    )  # fmt: skip
    await client.exec(step, done.set_result)
    for fd in (go_read, out_write, out_read):
        os.close(fd)
    os.write(go_write, b"data")
    os.close(go_write)
    exited = await asyncio.wait_for(done, DEADLINE_S)
    assert exited.signal == (None if is_held else signal.SIGPIPE)
    (record,) = await client.steps()
    if record.held[0] is not None:
        assert os.read(record.held[0], 100) == b"data"
    close_held(record)
    client.close()


async def test_step_that_ended_alone_is_listed_with_its_exit(box: Box) -> None:
    first = await box.connect()
    go_read, go_write = os.pipe()
    running = await box.start(first, "/bin/bash", "-c", "read; exit 9", stdin=go_read)
    os.close(go_read)
    first.close()
    os.close(go_write)  # read fails, bash goes on to its exit
    await running.read_all()
    running.close()
    second = await box.connect()
    while (records := await second.steps())[0].exit is None:
        await asyncio.sleep(0.005)
    (record,) = records
    assert record.state is State.ENDED
    assert record.exit is not None
    assert record.exit.exit_code == 9
    assert (await exit_of(second, record.number)) == record.exit
    await second.release(record.number)
    second.close()


async def test_unreleased_exit_survives_several_servers(box: Box) -> None:
    client = await box.connect()
    with await box.start(client, "/bin/bash", "-c", "exit 11") as running:
        await running.ended()
    for _ in range(3):
        client.close()
        client = await box.connect()
        assert (client.running, client.unreleased) == (0, 1)
        (record,) = await client.steps()
        assert record.exit is not None
        assert record.exit.exit_code == 11
    await client.release(running.number)
    client.close()


async def test_failed_start_leaves_no_record_for_the_next_server(box: Box) -> None:
    with box.raw() as sock:
        sock.send(protocol.HELLO.pack(Type.HELLO, 1, protocol.VERSION, 0))
        null = os.open("/dev/null", os.O_RDWR)
        head = protocol.EXEC.pack(Type.EXEC, 2, 42, 0, 0, 0, 0, 1, 0)
        socket.send_fds(sock, [head + b"/\0/nonexistent\0"], [null] * 3)
        os.close(null)
    client = await box.connect()
    while await client.steps():
        await asyncio.sleep(0.005)
    client.close()


async def test_second_server_waits_until_the_first_is_gone(box: Box) -> None:
    first = await box.connect()
    waiting = asyncio.ensure_future(box.connect())
    await first.steps()
    assert not waiting.done()
    first.close()
    second = await waiting
    assert await second.steps() == []
    second.close()


async def test_dropped_descriptor_lets_stdin_end(box: Box, client: InitClient) -> None:
    stdin_read, stdin_write = os.pipe()
    with await box.start(client, "/bin/cat", stdin=stdin_read, held=(stdin_write,)) as running:
        os.close(stdin_read)
        os.write(stdin_write, b"all")
        os.close(stdin_write)
        (record,) = await client.steps()
        assert record.held[0] is not None
        close_held(record)
        await client.drop(running.number, 0)
        assert (await running.ended()).exit_code == 0
        assert await running.read_all() == b"all"
    (record,) = await client.steps()
    assert record.held == (None, None, None)


async def test_server_that_does_not_read_loses_nothing(box: Box) -> None:
    with box.raw() as sock:
        sock.send(protocol.HELLO.pack(Type.HELLO, 1, protocol.VERSION, 0))
        sock.recv(100)
        sock.settimeout(1.0)
        # Ask until init, which nobody reads, takes no more.
        sent = 0
        sock.setblocking(False)
        quiet = 0
        while quiet < 20:
            try:
                sock.send(protocol.LIST.pack(Type.LIST, sent + 2, 0, 0))
                sent += 1
                quiet = 0
            except BlockingIOError:
                quiet += 1
                await asyncio.sleep(0.005)
        assert sent > 100
        sock.settimeout(DEADLINE_S)
        for expected in range(2, sent + 2):
            type_, id_ = struct.unpack_from("=II", sock.recv(1000))
            assert (type_, id_) == (Type.FAILED, expected)


async def test_exit_reaches_a_server_that_stalled(box: Box) -> None:
    with box.raw() as sock:
        sock.send(protocol.HELLO.pack(Type.HELLO, 1, protocol.VERSION, 0))
        sock.recv(100)
        null = os.open("/dev/null", os.O_RDWR)
        sock.setblocking(False)
        for number in range(1, 9):
            head = protocol.EXEC.pack(Type.EXEC, number, number, 0, 0, 0, 0, 1, 0)
            while True:
                try:
                    socket.send_fds(sock, [head + b"/\0/bin/true\0"], [null] * 3)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.005)
        os.close(null)
        id_ = 100
        quiet = 0
        while quiet < 20:
            try:
                sock.send(protocol.KILL.pack(Type.KILL, id_, 999, 9, 1))
                id_ += 1
                quiet = 0
            except BlockingIOError:
                quiet += 1
                await asyncio.sleep(0.005)
        sock.settimeout(DEADLINE_S)
        seen: dict[int, list[int]] = {}
        answered = 100
        while answered < id_ or sum(map(len, seen.values())) < 16:
            message = sock.recv(1000)
            type_, message_id = struct.unpack_from("=II", message)
            if type_ in (Type.STARTED, Type.EXITED):
                seen.setdefault(struct.unpack_from("=Q", message, 8)[0], []).append(type_)
            else:
                # A step that is refused because another one ends just then has no record.
                assert type_ == Type.FAILED
                if message_id >= 100:
                    assert message_id == answered
                    answered += 1
                else:
                    seen[message_id] = [0, 0]
        allowed = ([Type.STARTED, Type.EXITED], [0, 0])
        assert all(order in allowed for order in seen.values())


async def test_client_learns_that_init_died(box: Box) -> None:
    lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    client = await InitClient.connect(
        str(box.socket_path), timeout_s=DEADLINE_S, on_lost=lost.set_result
    )
    running = await box.start(client, "/bin/sleep", "60")
    waiting = asyncio.ensure_future(client.is_waiting(running.number))
    os.kill(box.pid(client), signal.SIGSTOP)
    await asyncio.sleep(0)
    os.kill(box.pid(client), signal.SIGKILL)
    await asyncio.wait_for(lost, DEADLINE_S)
    with pytest.raises(SandboxFault):
        await waiting
    with pytest.raises(SandboxFault):
        await client.steps()
    running.close()
    box.process.wait()
    box.process.poll = lambda: None  # type: ignore[method-assign]  # expected here


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bare"], indirect=True)
async def test_init_without_descriptors_waits_and_does_not_spin(box: Box) -> None:
    (await box.connect()).close()
    pid = box.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))

    def sleeps() -> int:
        """How often it gave the processor away by itself; time tells little on a busy host."""
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])

    connecting = asyncio.ensure_future(box.connect())
    before, began_at = sleeps(), time.monotonic()
    await asyncio.sleep(0.35)
    while sleeps() - before < 2:  # one that spins never sleeps
        assert time.monotonic() < began_at + DEADLINE_S
        await asyncio.sleep(0.01)
    assert sleeps() - before <= 3 + 10 * (time.monotonic() - began_at)  # ten a second
    assert not connecting.done()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    client = await connecting
    assert await client.steps() == []
    client.close()
