"""How runs end when it is not by themselves: R13 to R15, interrupts, broken connections."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import (
    NewSession,
    Server,
    printed,
    run_to_end,
    running_server,
    upload,
)
from tests.e2e.running import (
    Calls,
    begin,
    create,
    destroy,
    go_on,
    has_process,
    interrupt,
    is_over,
    processes_with,
    restart,
    runs_of,
    sh,
    start,
    status_of,
    until,
    wait_for,
    wait_for_file,
)


@pytest.fixture
async def name(new_session: NewSession) -> str:
    return await new_session("bash")


# --- R13: the wall limit ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hurried") / "state"
    with running_server(folder, RETORT_RUNS_WALL_S="3") as running:
        yield running


@pytest.fixture
async def hurried_api(hurried: Server) -> Any:
    headers = {"Authorization": f"Bearer {hurried.token}"}
    async with aiohttp.ClientSession(hurried.url, headers=headers) as session:
        yield session


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["clean", "build", "exec"])
async def test_r13_a_run_beyond_its_time_is_killed_and_over(hurried_api: Calls, phase: str) -> None:
    name = await create(hurried_api)
    mark = f"17{time.monotonic_ns() % 10**9}"
    command = f"trap '' TERM INT; echo here; setsid sleep {mark} & sleep {mark}"
    answers = [await start(hurried_api, name, **{phase: command})]
    while answers[-1]["status"] in ("continued", "build-finished", "clean-finished"):
        answers.append(await go_on(hurried_api, name, answers[0]["runId"]))
    last = answers[-1]
    assert (last["status"], last["exitCode"]) == ("exec-timeout", None)
    assert printed(answers) == "here\n"
    assert not processes_with(mark)
    status, _ = await status_of(
        hurried_api, name, mode="continue", code="", runId=answers[0]["runId"]
    )
    assert status == 404
    assert await sh(hurried_api, name, "echo next") == (0, "next\n")


# --- R14: what stays behind ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["sleep {m} &", "setsid sleep {m} &", "(setsid sleep {m} & disown) >&- 2>&-"]
)
async def test_r14_a_background_process_does_not_keep_a_run_open(
    api: Calls, name: str, command: str
) -> None:
    mark = f"18{time.monotonic_ns() % 10**9}"
    answers = await run_to_end(api, name, exec=command.format(m=mark) + "\necho out; exit 6")
    assert (answers[-1]["exitCode"], printed(answers)) == (6, "out\n")
    assert not processes_with(mark)


# --- R15, interrupt: in every state -------------------------------------------------------------

Act = Callable[[Calls, str], Awaitable[None]]


STATES: dict[str, dict[str, Any]] = {
    "clean": {"clean": "trap 'exit 9' INT; echo ready; sleep {m} & wait; sleep {m}", "exec": ""},
    "build": {"build": "trap 'exit 9' INT; echo ready; sleep {m} & wait; sleep {m}"},
    "exec": {"exec": "trap 'exit 9' INT; echo ready; sleep {m} & wait; sleep {m}"},
    "waiting": {"exec": "trap 'exit 9' INT; sleep {m} & echo ready; read x; exit 9"},
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("act", [destroy, restart, interrupt])
async def test_r15_a_run_ends_in_whatever_state_it_is(
    api: Calls, new_session: NewSession, state: str, act: Act
) -> None:
    name = await new_session("bash")
    mark = f"19{time.monotonic_ns() % 10**9}"
    options = {key: text.format(m=mark) for key, text in STATES[state].items()}
    run_id = f"run-{state}"
    calling = asyncio.ensure_future(
        status_of(api, name, mode="batch", runId=run_id, options=options)
    )
    await wait_for(lambda: has_process(mark))
    await act(api, name)
    answers = [await calling]
    async with asyncio.timeout(60):
        while answers[-1][0] == 200 and answers[-1][1]["result"]["status"] != "finished":
            answers.append(await status_of(api, name, mode="continue", code="", runId=run_id))
    status, body = answers[-1]
    if act is interrupt:
        assert status == 200
        assert body["result"]["exitCode"] == (
            127 if state == "build" else 0 if state == "clean" else 9
        )
    elif status == 200:
        result = body["result"]
        assert (result["exitCode"], result["options"], result["files"]) == (130, {}, [])
    else:
        assert status == 404
    if act is destroy:  # it answers when everything was killed, before everything is dead
        await wait_for(lambda: is_over(mark))
    else:
        assert not processes_with(mark)
        assert await sh(api, name, "echo next") == (0, "next\n")


@pytest.mark.parametrize("act", [destroy, restart])
async def test_r15_waiting_runs_end_with_their_session(
    api: Calls, new_session: NewSession, act: Act
) -> None:
    name = await new_session("bash")
    await begin(api, name, "sleep 60")
    queued = [
        asyncio.ensure_future(status_of(api, name, mode="batch", options={"exec": "echo no"}))
        for _ in range(3)
    ]
    running = asyncio.ensure_future(status_of(api, name, mode="batch", runId="z", options={}))
    await wait_for(lambda: runs_of(api, name, 5))
    await act(api, name)
    for call in [*queued, running]:
        status, body = await call
        wanted = {"status": "finished", "exitCode": 130, "console": [], "options": {}, "files": []}
        assert status == 404 or body["result"] | wanted == body["result"]
        assert status == 404 or body["result"]["outcome"] == "cancelled"


async def test_r15_restart_and_interrupt_without_a_run_change_nothing(
    api: Calls, name: str
) -> None:
    await interrupt(api, name)
    await restart(api, name)
    await restart(api, name)
    assert await sh(api, name, "echo next") == (0, "next\n")


async def test_interrupt_reaches_the_shell_and_its_children(api: Calls, name: str) -> None:
    run_id = await begin(api, name, "sleep 60; echo after")
    await interrupt(api, name)
    answers = await until(api, name, await go_on(api, name, run_id), "finished")
    assert answers[-1]["exitCode"] == 130
    assert printed(answers) == ""


@pytest.mark.slow
async def test_a_wait_for_input_that_an_interrupt_ended_is_over(api: Calls, name: str) -> None:
    code = (
        'python3 -u -c \'\ntry: input()\nexcept KeyboardInterrupt: print("caught")\n'
        'import time; time.sleep(0.3); print("more")\''
    )
    first = await start(api, name, exec=code)
    await until(api, name, first, "waiting-input")
    await interrupt(api, name)
    answers = [await go_on(api, name, first["runId"])]
    async with asyncio.timeout(60):
        while answers[-1]["status"] != "finished":
            answers.append(await go_on(api, name, first["runId"]))
    assert printed(answers) == "caught\nmore\n"


# --- a broken connection ------------------------------------------------------------------------


UNTIL_TOLD = "until [ -e go ]; do sleep 0.02; done"


async def half_a_poll(server: Server, name: str, run_id: str) -> None:
    """Send a continue call and close the connection before its answer."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"mode": "continue", "code": "", "runId": run_id}).encode()
    writer.write(
        f"POST /session/{name} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await writer.drain()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.15)  # it waits for news
    writer.close()
    await writer.wait_closed()


@pytest.mark.slow
async def test_a_poll_abandoned_half_way_loses_nothing(
    api: Calls, name: str, server: Server
) -> None:
    first = await start(api, name, exec=f"{UNTIL_TOLD}; echo out; exit 5")
    await half_a_poll(server, name, first["runId"])
    await upload(api, name, go="")
    answers = await until(api, name, await go_on(api, name, first["runId"]), "finished")
    assert (answers[-1]["exitCode"], printed(answers)) == (5, "out\n")


@pytest.mark.slow
async def test_an_end_that_only_an_abandoned_poll_saw_is_told_to_the_next(
    api: Calls, name: str, server: Server
) -> None:
    first = await start(api, name, exec=f"echo out; {UNTIL_TOLD}; echo > done; exit 5")
    await half_a_poll(server, name, first["runId"])
    await upload(api, name, go="")
    await wait_for_file(api, name, "done")
    answers = await until(api, name, await go_on(api, name, first["runId"]), "finished")
    assert (answers[-1]["exitCode"], printed(answers)) == (5, "out\n")


# --- nothing is left behind ---------------------------------------------------------------------


@pytest.mark.slow
async def test_five_hundred_runs_leave_no_descriptor_and_no_process(tmp_path: Path) -> None:
    with running_server(tmp_path / "state", RETORT_POOL_SIZE="0") as server:  # nothing else happens
        headers = {"Authorization": f"Bearer {server.token}"}
        async with aiohttp.ClientSession(server.url, headers=headers) as api:
            name = await create(api)
            await run_to_end(api, name, exec="true")
            before = open_descriptors(server.process.pid)
            for number in range(500):
                if number % 100 == 0:
                    await begin(api, name, "sleep 60")
                    await restart(api, name)
                await run_to_end(api, name, exec="echo $RANDOM")
            assert open_descriptors(server.process.pid) <= before + 3


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
