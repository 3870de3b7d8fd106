"""WAITING: seen, not guessed."""
# ruff: noqa: ASYNC110  what is polled and read here is procfs and other processes

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from tests.sandbox.init.box import DEADLINE_S, Box

from retort.sandbox.init import InitClient

READERS = {
    "bash": ["/bin/bash", "-c", "echo ready; read line; echo done"],
    "cat": ["/bin/bash", "-c", "echo ready; exec cat"],
    "child of bash": ["/bin/bash", "-c", "echo ready; cat; exit 0"],
    "python input": ["/usr/bin/python3", "-uc", "print('ready'); input()"],
    "python readv": ["/usr/bin/python3", "-uc",
                     "import os; print('ready'); os.readv(0, [bytearray(9)])"],
    "thread": ["/usr/bin/python3", "-uc",
               "import threading,sys,time; print('ready');"
               "threading.Thread(target=sys.stdin.readline).start(); time.sleep(0)"],
    "duplicate": ["/usr/bin/python3", "-uc",
                  "import os; os.dup2(0, 77); os.close(0); print('ready'); os.read(77, 1)"],
    "daemon": ["/bin/bash", "-c", "exec 5<&0; setsid cat <&5 & echo ready; wait"],
}  # fmt: skip

OTHERS = {
    "sleeps": ["/bin/bash", "-c", "echo ready; exec sleep 600"],
    "computes": ["/bin/bash", "-c", "echo ready; while :; do :; done"],
    "reads another pipe": ["/bin/bash", "-c", "mkfifo p; exec 3<>p; echo ready; read -u 3"],
    "polls": ["/usr/bin/python3", "-uc",
              "import select; print('ready'); select.select([0], [], [])"],
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
async def test_reader_of_stdin_is_seen_until_input_comes(
    box: Box, client: InitClient, name: str
) -> None:
    stdin_read, stdin_write = os.pipe()
    with await box.start(client, *READERS[name], stdin=stdin_read) as running:
        os.close(stdin_read)
        assert await running.line() == "ready"
        async with asyncio.timeout(DEADLINE_S):
            while not await client.is_waiting(running.number):
                await asyncio.sleep(0.001)
        os.write(stdin_write, b"input\n")
        os.close(stdin_write)
        await running.ended()
        assert not await client.is_waiting(running.number)


@pytest.mark.parametrize("name", OTHERS)
async def test_program_that_does_something_else_is_not_waiting(
    box: Box, client: InitClient, name: str
) -> None:
    stdin_read, stdin_write = os.pipe()
    with await box.start(client, *OTHERS[name], stdin=stdin_read) as running:
        assert await running.line() == "ready"
        for _ in range(5):
            assert not await client.is_waiting(running.number)
            await asyncio.sleep(0.002)
        await client.kill(running.number, signal.SIGKILL)
        await running.ended()
    os.close(stdin_read)
    os.close(stdin_write)


async def test_reader_of_dev_null_is_never_waiting(box: Box, client: InitClient) -> None:
    with await box.start(client, "/bin/bash", "-c", "read; echo ready; sleep 600") as running:
        assert await running.line() == "ready"
        assert not await client.is_waiting(running.number)
        await client.kill(running.number, signal.SIGKILL)
        await running.ended()


async def test_waiting_of_unknown_step_is_not_found(client: InitClient) -> None:
    with pytest.raises(FileNotFoundError):
        await client.is_waiting(31)
