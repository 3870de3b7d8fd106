"""The rules of a run (spec 6.2) where they are hard to keep: callers, output, states.

Each rule by itself is in test_runs.py, test_input.py and test_run_ends.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Server, printed, run_to_end, running_server, upload
from tests.e2e.running import (
    Calls,
    begin,
    create,
    destroy,
    go_on,
    interrupt,
    is_over,
    restart,
    runs_of,
    sh,
    start,
    status_of,
    until,
    wait_for,
    wait_for_file,
)

pytestmark = pytest.mark.slow
MIB = 1024 * 1024
CAP = 524_288  # characters of each stream in an answer (R10)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose answers come after 10 ms, wherever the output is by then."""
    folder = tmp_path_factory.mktemp("hasty") / "state"
    with running_server(folder, RETORT_RUNS_POLL_S="0.01", RETORT_POOL_SIZE="0") as running:
        yield running


@pytest.fixture
async def quick(hasty: Server) -> AsyncIterator[Calls]:
    headers = {"Authorization": f"Bearer {hasty.token}"}
    async with aiohttp.ClientSession(hasty.url, headers=headers) as session:
        yield session


# --- many callers --------------------------------------------------------------------------------


async def test_overlapping_runs_go_in_the_order_of_their_starts_and_never_at_once(
    quick: Calls,
) -> None:
    """Twenty clients poll their own runs meanwhile; each gets its own output, whole."""
    name = await create(quick)
    await begin(quick, name, "until [ -e go ]; do sleep 0.02; done")
    orders = range(20)
    command = "echo begin {n} >> log; for i in $(seq 50); do echo {n} $i; done; echo end {n} >> log"
    for number in orders:
        await start(quick, name, f"run-{number}", exec=command.format(n=number))
    await upload(quick, name, go="")

    async def follow(number: int) -> str:
        run_id = f"run-{number}"
        return printed(await until(quick, name, await go_on(quick, name, run_id), "finished"))

    outputs = await asyncio.gather(*map(follow, orders))
    assert outputs == ["".join(f"{n} {i}\n" for i in range(1, 51)) for n in orders]
    log = "".join(f"begin {n}\nend {n}\n" for n in orders)
    assert await sh(quick, name, "cat log") == (0, log)


async def test_callers_that_hang_up_and_repeat_with_their_token_get_every_byte_once(
    quick: Calls,
) -> None:
    """Four poll one run; two of them leave each call after 3 ms and make it again."""
    name = await create(quick)
    command = "for i in $(seq 400); do echo $i; [ $((i % 20)) = 0 ] && sleep 0.02; done; exit 3"
    run_id = (
        await start(quick, name, "r", exec=f"until [ -e go ]; do sleep 0.02; done; {command}")
    )["runId"]
    body = {"mode": "continue", "code": "", "runId": run_id}
    texts: list[str] = []
    codes: list[int] = []

    async def answer(token: str) -> tuple[int, Any]:
        headers = {"X-BackendAI-Client-Token": token}
        async with quick.post(f"/session/{name}", json=body, headers=headers) as got:
            return got.status, await got.json()

    async def poll(*, leaves: bool) -> None:
        while not codes:
            token = uuid.uuid4().hex
            if leaves:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(answer(token), 0.003)
            status, got = await answer(token)
            if status == 404:
                return
            texts.append(printed([got["result"]]))
            if got["result"]["status"] == "finished":
                codes.append(got["result"]["exitCode"])

    await upload(quick, name, go="")
    async with asyncio.timeout(120):
        await asyncio.gather(*(poll(leaves=number % 2 == 1) for number in range(4)))
    assert codes == [3]
    assert sorted("".join(texts).split(), key=int) == [str(number) for number in range(1, 401)]


# --- much output ---------------------------------------------------------------------------------


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def test_64_mib_that_nobody_asks_for_fill_neither_memory_nor_disk_and_are_counted(
    quick: Calls, hasty: Server
) -> None:
    name = await create(quick)
    await run_to_end(quick, name, exec="echo warm")
    before, took = resident_bytes(hasty.process.pid), 0
    flood = "head -c 33554432 /dev/zero | tr '\\0' a & head -c 33554432 /dev/zero >&2 & wait"
    await start(
        quick,
        name,
        "r",
        exec=f"touch begun; {flood}; touch done; until [ -e go ]; do sleep 0.02; done",
    )
    async with asyncio.timeout(120):
        while True:
            took = max(took, resident_bytes(hasty.process.pid) - before)
            journals = [f.stat().st_size for f in (hasty.state / "sessions").glob("*/journal*")]
            assert max(journals) < 24 * MIB
            try:
                async with asyncio.timeout(0.05):
                    await wait_for_file(quick, name, "done")
            except TimeoutError:
                continue
            break
    assert took < 24 * MIB
    first = await go_on(quick, name, "r")
    given = len(printed([first])) + len(printed([first], "stderr"))
    assert len(printed([first])) <= CAP
    await upload(quick, name, go="")
    answers = await until(quick, name, await go_on(quick, name, "r"), "finished")
    given += len(printed(answers)) + len(printed(answers, "stderr"))
    assert given >= 2 * CAP
    assert given + answers[-1]["usage"]["cutChars"] == 64 * MIB


TEXT = "aé世🎈\n" * 40 + "ÿ߿ࠀ￿𐀀\n"  # the first and last characters of each length


@pytest.mark.parametrize("offset", range(4))
async def test_characters_split_at_every_byte_and_by_every_answer_stay_whole(
    quick: Calls, offset: int
) -> None:
    """Every byte is written by itself, the streams alternate, and answers come in between."""
    name = await create(quick, "python")
    data = ("." * offset + TEXT).encode()
    code = (
        f"import os, time\nfor i, b in enumerate({data!r}):\n"
        " os.write(1, bytes([b])); os.write(2, bytes([b]))\n"
        " time.sleep(0.004 if i % 3 == 0 else 0)"
    )
    await upload(quick, name, split__py=code)
    answers = [await start(quick, name, "r", exec="python3 split.py")]
    answers += await until(quick, name, await go_on(quick, name, "r"), "finished")
    assert len(answers) > 10
    for stream in ("stdout", "stderr"):
        assert printed(answers, stream) == "." * offset + TEXT


# --- destroy, restart, interrupt, in the states that test_run_ends.py leaves out ---------------

Act = Callable[[Calls, str], Awaitable[None]]


async def called(api: Calls, name: str, run_id: str) -> tuple[int, Any]:
    status, body = await status_of(api, name, mode="continue", code="", runId=run_id)
    return status, body.get("result")


@pytest.mark.parametrize("act", [destroy, restart, interrupt])
async def test_r15_a_queued_run_meets_its_session_s_fate(quick: Calls, act: Act) -> None:
    name = await create(quick)
    mark = f"21{time.monotonic_ns() % 10**9}"
    ahead = await begin(quick, name, f"sleep {mark}")
    await start(quick, name, "queued", exec="echo ran; exit 4")
    await wait_for(lambda: runs_of(quick, name, 2))
    await act(quick, name)
    if act is destroy:
        assert (await called(quick, name, "queued"))[0] == 404
        await wait_for(lambda: is_over(mark))
        return
    answers = await until(quick, name, (await called(quick, name, "queued"))[1], "finished")
    # An interrupt is for the program that runs; the next one has its turn.
    wanted = (130, "") if act is restart else (4, "ran\n")
    assert (answers[-1]["exitCode"], printed(answers)) == wanted
    status, end = await called(quick, name, ahead)
    assert (status, end["status"], end["exitCode"]) == (200, "finished", 130)
    assert await sh(quick, name, "echo next") == (0, "next\n")


@pytest.mark.parametrize("act", [destroy, restart, interrupt])
@pytest.mark.parametrize("is_taken", [False, True], ids=["untaken", "taken"])
async def test_r15_a_run_that_has_ended_stays_as_it_ended(
    quick: Calls, act: Act, is_taken: bool
) -> None:
    name = await create(quick)
    run_id = await begin(quick, name, "until [ -e go ]; do sleep 0.02; done; echo out; exit 5")
    await upload(quick, name, go="")
    assert await sh(quick, name, "echo after it") == (0, "after it\n")
    if is_taken:
        await until(quick, name, await go_on(quick, name, run_id), "finished")
    await act(quick, name)
    status, first = await called(quick, name, run_id)
    if act is destroy or is_taken:
        assert status == 404
    else:
        answers = await until(quick, name, first, "finished")
        assert (answers[-1]["exitCode"], printed(answers)) == (5, "out\n")
        assert (await called(quick, name, run_id))[0] == 404
    if act is not destroy:
        assert await sh(quick, name, "echo next") == (0, "next\n")
