"""FEED: input goes in once, and init can say how much of it, whatever happens to the server."""

from __future__ import annotations

import os

import pytest
from tests.sandbox.init.box import Box, Running

from retort.errors import SandboxFault
from retort.sandbox import protocol
from retort.sandbox.init import InitClient
from retort.sandbox.protocol import Type

PIPE_BYTES = 65_536


async def reader(box: Box, client: InitClient, script: str, *, blocks: bool = False) -> Running:
    """Start a program whose stdin init may write into."""
    ours, theirs = os.pipe()[::-1]
    os.set_blocking(ours, blocks)
    try:
        return await box.start(client, "/bin/bash", "-c", script, stdin=theirs, held=(ours,))
    finally:
        os.close(ours)
        os.close(theirs)


async def fed(client: InitClient, number: int) -> int:
    """Ask how much input a step was given."""
    (record,) = [record for record in await client.steps() if record.number == number]
    for end in record.held:
        if end is not None:
            os.close(end)
    return record.fed


async def test_a_program_reads_what_is_fed_and_init_counts_it(box: Box, client: InitClient) -> None:
    with await reader(box, client, "read a; read b; echo $b $a") as running:
        assert await client.feed(running.number, b"one\n") == 4
        assert await client.feed(running.number, b"zwei\n") == 5
        assert await fed(client, running.number) == 9
        assert await running.line() == "zwei one"
        await running.ended()
        assert await fed(client, running.number) == 9


async def test_no_more_is_counted_than_there_was_room_for(box: Box, client: InitClient) -> None:
    with await reader(box, client, "exec sleep 600") as running:
        written = [await client.feed(running.number, b"x" * 40_960) for _ in range(3)]
        assert written == [40_960, PIPE_BYTES - 40_960, 0]
        assert await fed(client, running.number) == PIPE_BYTES


async def test_what_a_dying_server_sent_is_given_and_counted(box: Box) -> None:
    first = await box.connect()
    with await reader(box, first, "while read -r line; do echo got $line; done") as running:
        first.feed(running.number, b"1\n")
        first.feed(running.number, b"2\n")
        first.close()  # without its answers
        second = await box.connect()
        assert await fed(second, running.number) in (0, 2, 4)
        counted = await fed(second, running.number)
        assert await second.feed(running.number, b"1\n2\n3\n"[counted:]) == 6 - counted
        assert [await running.line() for _ in range(3)] == ["got 1", "got 2", "got 3"]
        second.close()


async def test_input_that_nobody_reads_any_more_is_a_broken_pipe(
    box: Box, client: InitClient
) -> None:
    with await reader(box, client, "exec <&-; echo ready; exec sleep 600") as running:
        assert await running.line() == "ready"
        with pytest.raises(BrokenPipeError):
            await client.feed(running.number, b"x")
        assert await fed(client, running.number) == 0
        assert client.pidfd >= 0  # SIGPIPE did not end init


async def test_an_end_that_would_block_init_is_refused(box: Box, client: InitClient) -> None:
    with await reader(box, client, "read line; echo $line", blocks=True) as running:
        with pytest.raises(OSError, match="FEED: Invalid argument"):
            await client.feed(running.number, b"x\n")
        assert await fed(client, running.number) == 0


async def test_a_step_without_input_cannot_be_fed(box: Box, client: InitClient) -> None:
    with (
        await box.start(client, "/bin/bash", "-c", "exec sleep 600") as running,
        pytest.raises(OSError, match="FEED: Bad file descriptor"),
    ):
        await client.feed(running.number, b"x")
    with pytest.raises(FileNotFoundError):
        await client.feed(running.number + 1, b"x")


async def test_nothing_at_all_is_no_input(box: Box, client: InitClient) -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        client.feed(1, b"")
    with pytest.raises(ValueError, match="bytes of input at once"):
        client.feed(1, bytes(protocol.FEED_MAX + 1))
    with await reader(box, client, "read line") as running:
        empty = client._request(Type.FEED, running.number, subject=running.number)
        with pytest.raises(SandboxFault, match="refused FEED"):
            await empty


async def test_a_whole_message_of_input_goes_through(box: Box, client: InitClient) -> None:
    with await reader(box, client, "head -c 65520 | wc -c") as running:
        assert await client.feed(running.number, bytes(protocol.FEED_MAX)) == protocol.FEED_MAX
        assert await running.line() == str(protocol.FEED_MAX)
