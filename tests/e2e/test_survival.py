"""A server that is killed, at any moment, and the next one on its folder: nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retort.node.adopt import ANSWER_S
from retort.sandbox.listeners import SOCKET_NAME
from retort.wire.repeats import derived_id
from tests.e2e.conftest import environment, execute, printed, retort, upload
from tests.e2e.running import (
    all_are_gone,
    create,
    go_on,
    processes_with,
    runs_of,
    sh,
    start,
    until,
    wait_for,
    wait_for_file,
)

pytestmark = pytest.mark.slow
Calls = aiohttp.ClientSession


class Mortal:
    """A server that is killed and started again on one folder, at one address."""

    def __init__(self, state: Path) -> None:
        self.state = state
        state.mkdir(mode=0o711)
        key = json.loads(retort("keys", "create", "--state", str(state), "--json"))
        self.token, self.access_key = key["token"], key["accessKey"]
        self.listen = "127.0.0.1:0"
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self, *flags: str, **settings: str) -> None:
        with (self.state / "server.log").open("a") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "retort.cli.main", "serve", "--verbose", *flags,
                 "--listen", self.listen, "--state", str(self.state)],
                env=environment(**settings), stdout=subprocess.PIPE, stderr=sink, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "listens on" in line, self.log()
        self.url = next(word for word in line.split() if word.startswith("http"))
        self.listen = self.url.removeprefix("http://")

    def log(self) -> str:
        return (self.state / "server.log").read_text()

    def kill(self, signum: int = signal.SIGKILL) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(signum)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code

    def restart(self) -> None:
        self.kill()
        self.start()

    @contextlib.asynccontextmanager
    async def calls(self) -> AsyncIterator[Calls]:
        """Calls that each have a token of their own: so each answer is given once (spec R4)."""
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(_name_the_request)
        headers = {"Authorization": f"Bearer {self.token}"}
        async with aiohttp.ClientSession(
            self.url, headers=headers, trace_configs=[trace]
        ) as session:
            yield session

    def folders(self) -> list[str]:
        return sorted(entry.name for entry in (self.state / "sessions").iterdir())

    def sandboxes(self) -> list[str]:
        """Those of sessions; others are made ahead."""
        return [name for name in self.folders() if not name.startswith("pool-")]


async def _name_the_request(_: Calls, __: Any, request: aiohttp.TraceRequestStartParams) -> None:
    if request.method in ("POST", "PATCH", "DELETE"):
        request.headers["X-BackendAI-Client-Token"] = uuid.uuid4().hex


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Mortal]:
    server = Mortal(tmp_path / "state")
    server.start()
    yield server
    assert server.process is not None
    if server.process.poll() is None:
        server.kill()
    server.start("--drain")
    assert server.kill(signal.SIGTERM) == 0
    assert server.folders() == []
    assert "Traceback" not in server.log()


async def test_a_session_and_its_files_outlive_a_killed_server(mortal: Mortal) -> None:
    async with mortal.calls() as api:
        name = await create(api, config={"environ": {"COLOUR": "green"}}, tag="kept")
        await upload(api, name, hello__txt="hello\n")
        await sh(api, name, "mkdir d; echo there > d/file")
        before = await (await api.get(f"/session/{name}")).json()
    mortal.restart()
    async with mortal.calls() as api:
        assert await sh(api, name, "cat hello.txt d/file; echo $COLOUR") == (
            0,
            "hello\nthere\ngreen\n",
        )
        after = await (await api.get(f"/session/{name}")).json()
        for same in ("image", "containerId", "tag", "environ", "occupiedSlots", "creationTime"):
            assert after[same] == before[same]
        assert after["numQueriesExecuted"] == before["numQueriesExecuted"] + 1


async def test_a_running_program_goes_on_and_no_byte_of_it_is_lost(mortal: Mortal) -> None:
    """It prints before the kill, while there is no server, and afterwards."""
    program = "i=0; while [ $i -lt 3000 ]; do echo line $i; echo e$i >&2; i=$((i+1)); done; touch all; read x; echo got $x; exit 7"  # noqa: E501
    async with mortal.calls() as api:
        name = await create(api)
        first = await start(api, name, "r", exec=program)
    answers = [first]
    for _ in range(3):
        mortal.restart()
        async with mortal.calls() as api:
            answers.append(await go_on(api, name, "r"))
    async with mortal.calls() as api:
        await wait_for_file(api, name, "all")
        answers += await until(api, name, await go_on(api, name, "r"), "waiting-input")
    mortal.restart()
    async with mortal.calls() as api:
        answers += await until(api, name, await go_on(api, name, "r", "word"), "finished")
    end = answers[-1]
    assert (end["exitCode"], end["outcome"]) == (7, "exited")
    assert printed(answers) == "".join(f"line {i}\n" for i in range(3000)) + "got word\n"
    assert printed(answers, "stderr") == "".join(f"e{i}\n" for i in range(3000))


async def test_a_program_that_ended_while_no_server_ran_is_judged_by_the_next(
    mortal: Mortal,
) -> None:
    async with mortal.calls() as api:
        name = await create(api)
        await start(api, name, "r", exec="touch begun; sleep 0.5; echo done; kill -SEGV $$")
        await wait_for_file(api, name, "begun")
    mortal.kill()
    await asyncio.sleep(1)  # the program's own time, while nobody watches
    mortal.start()
    async with mortal.calls() as api:
        answers = await until(api, name, await go_on(api, name, "r"), "finished")
        assert (answers[-1]["exitCode"], answers[-1]["signal"]) == (139, "SIGSEGV")
        assert printed(answers) == "done\n"
        assert answers[-1]["usage"]["wallUs"] < 5_000_000


async def test_waiting_runs_and_their_order_outlive_the_server(mortal: Mortal) -> None:
    async with mortal.calls() as api:
        name = await create(api)
        await start(api, name, "one", exec="touch begun; read x; echo one >> order")
        await wait_for_file(api, name, "begun")
        starts = []
        for count, run in ((2, "two"), (3, "three")):  # each answers only when its time is up
            command = f"echo {run} >> order"
            starts.append(
                asyncio.ensure_future(start(api, name, run, build="echo built", exec=command))
            )
            await wait_for(lambda count=count: runs_of(api, name, count))
        await asyncio.gather(*starts)
    mortal.restart()
    async with mortal.calls() as api:
        await until(api, name, await go_on(api, name, "one", "go"), "finished")
        for run in ("two", "three"):
            answers = await until(api, name, await go_on(api, name, run), "finished")
            assert [a["status"] for a in answers if a["status"] != "continued"] == [
                "build-finished",
                "finished",
            ]
            assert printed(answers) == "built\n"
        assert (await sh(api, name, "cat order"))[1] == "one\ntwo\nthree\n"


async def test_a_started_run_is_not_started_again(mortal: Mortal) -> None:
    async with mortal.calls() as api:
        name = await create(api)
        await start(api, name, "r", exec="echo x >> count; touch begun; read x")
        await wait_for_file(api, name, "begun")
    mortal.restart()
    async with mortal.calls() as api:
        again = await start(api, name, "r", exec="echo x >> count; touch begun; read x")
        assert again["runId"] == "r"
        await until(api, name, await go_on(api, name, "r", "go"), "finished")
        assert (await sh(api, name, "cat count"))[1] == "x\n"


async def test_answers_that_nobody_fetched_are_there_after_the_kill(mortal: Mortal) -> None:
    async with mortal.calls() as api:
        name = await create(api)
        await start(
            api, name, "r", clean="echo c", build="echo b; exit 0", exec="echo e; touch end; exit 3"
        )
        await wait_for_file(api, name, "end")
        await sh(api, name, "true")  # queued behind it: the run has ended
    mortal.restart()
    async with mortal.calls() as api:
        answers = await until(api, name, await go_on(api, name, "r"), "finished")
        assert printed(answers) in ("e\n", "b\ne\n", "c\nb\ne\n")
        assert answers[-1]["exitCode"] == 3
        async with api.post(
            f"/session/{name}", json={"mode": "continue", "code": "", "runId": "r"}
        ) as gone:
            assert gone.status == 404


async def test_time_limits_go_on_over_a_restart(mortal: Mortal) -> None:
    async with mortal.calls() as api:
        name = await create(api)
        options = {"exec": "touch begun; sleep 60", "limits": {"wallSeconds": 2}}
        await execute(api, name, mode="batch", code="", runId="r", options=options)
        await wait_for_file(api, name, "begun")  # a program that had not begun would be a short one
    mortal.restart()
    async with mortal.calls() as api:
        answers = await until(api, name, await go_on(api, name, "r"), "exec-timeout")
        assert answers[-1]["outcome"] == "timed-out"
        assert 1_500_000 < answers[-1]["usage"]["wallUs"] < 20_000_000


async def test_input_and_a_deep_pipe_outlive_the_server(mortal: Mortal) -> None:
    """More input than a pipe holds was accepted before the kill; all of it is read, once."""
    async with mortal.calls() as api:
        name = await create(api)
        await start(
            api,
            name,
            "r",
            exec="touch begun; while [ ! -e go ]; do sleep 0.05; done; head -c 300000 | sha256sum",
        )
        await wait_for_file(api, name, "begun")
        lines = [f"{i:06}" * 5000 for i in range(10)]
        for line in lines:
            await go_on(api, name, "r", line)
    mortal.restart()
    async with mortal.calls() as api:
        await upload(api, name, go="")
        answers = await until(api, name, await go_on(api, name, "r"), "finished")
    wanted = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()[:300000]).hexdigest()
    assert printed(answers).split()[0] == wanted


async def test_a_session_that_was_destroyed_stays_so_and_one_half_made_is_ended(
    mortal: Mortal,
) -> None:
    async with mortal.calls() as api:
        kept, gone = await create(api), await create(api)
        async with api.delete(f"/session/{gone}") as answer:
            assert answer.status == 200
        await wait_for(lambda: _has(mortal, 1))
        making = asyncio.ensure_future(
            api.post(
                "/session",
                json={"image": "bash", "name": "half-made", "bootstrap_script": "sleep 60"},
            )
        )
        await wait_for(lambda: _has(mortal, 2))
        mortal.kill()
        with pytest.raises(aiohttp.ClientError):
            await making
    mortal.start()
    await wait_for(lambda: _has(mortal, 1))
    async with mortal.calls() as api:
        assert (await sh(api, kept, "echo here")) == (0, "here\n")
        for name in (gone, "half-made"):
            async with api.get(f"/session/{name}") as answer:
                assert answer.status == 404


async def _has(mortal: Mortal, count: int) -> bool:
    return len(mortal.sandboxes()) == count


async def test_a_session_that_died_without_a_server_says_why(mortal: Mortal) -> None:
    async with mortal.calls() as api:
        name = await create(api)
        await start(api, name, "r", exec="echo last words; touch begun; sleep 60")
        await wait_for_file(api, name, "begun")
        session_id = (await (await api.get(f"/session/{name}")).json())["containerId"]
    mortal.kill()
    record = json.loads(
        (mortal.state / "sessions" / mortal.sandboxes()[0] / "sandbox.json").read_text()
    )
    os.kill(record["pid"], signal.SIGKILL)
    mortal.start()
    async with mortal.calls() as api:
        for ref in (name, session_id):
            async with api.get(f"/session/{ref}/files") as answer:
                problem = await answer.json()
                assert answer.status == 404
                assert "init was killed while no server ran" in problem["msg"]
        end = await go_on(api, name, "r")
        assert (end["status"], end["outcome"]) == ("finished", "infrastructure")
        assert printed([end]) == "last words\n"
    await wait_for(lambda: _has(mortal, 0))


async def test_a_stop_answers_those_who_wait_and_leaves_programs_running(mortal: Mortal) -> None:
    async with mortal.calls() as api:
        name = await create(api)
        await start(
            api,
            name,
            "r",
            exec="echo before; touch begun; while [ ! -e go ]; do sleep 0.05; done; echo after",
        )
        await wait_for_file(api, name, "begun")
        answers = [await go_on(api, name, "r")]
        poll = asyncio.ensure_future(go_on(api, name, "r"))
        await asyncio.sleep(0.2)
        assert mortal.kill(signal.SIGTERM) == 0
        answers.append(await poll)
    assert answers[-1]["status"] == "continued"
    mortal.start()
    async with mortal.calls() as api:
        await upload(api, name, go="")
        answers += await until(api, name, await go_on(api, name, "r"), "finished")
    assert printed(answers) in ("after\n", "before\nafter\n")


async def test_a_streams_program_ends_with_its_connection_also_when_the_server_is_killed(
    mortal: Mortal,
) -> None:
    mark = f"retort-{uuid.uuid4().hex}"
    async with mortal.calls() as api:
        name = await create(api)
        session_id = (await (await api.get(f"/session/{name}")).json())["containerId"]
        async with api.ws_connect(f"/stream/session/{session_id}/execute") as ws:
            await ws.send_json(
                {"code": "", "mode": "batch", "options": {"exec": f"exec -a {mark} sleep 600"}}
            )
            await wait_for(lambda: _runs(mark))
            mortal.kill()
    mortal.start()
    async with mortal.calls() as api:
        assert await sh(api, name, "echo free") == (0, "free\n")
        assert not await _runs(mark)


async def _runs(mark: str) -> bool:
    return bool(processes_with(mark))


async def test_a_sandbox_that_was_started_and_not_written_down_is_ended(mortal: Mortal) -> None:
    async with mortal.calls() as api:
        name = await create(api)
    mortal.kill()
    folder = mortal.state / "sessions" / mortal.sandboxes()[0]
    pid = json.loads((folder / "sandbox.json").read_text())["pid"]
    (folder / "sandbox.json").unlink()  # as if the server had been killed just before
    mortal.start()
    await wait_for(lambda: all_are_gone([pid]))
    await wait_for(lambda: _has(mortal, 0))
    async with mortal.calls() as api, api.get(f"/session/{name}") as answer:
        assert answer.status == 404


async def test_a_launch_cut_in_half_does_not_hold_up_a_start_and_is_ended(
    mortal: Mortal,
) -> None:
    """Its listening socket is there, its processes are there, and no init ever answers."""
    mortal.kill()
    plain_s = _seconds(mortal.start)  # slow machines take seconds for it
    mortal.kill()
    name = str(uuid.uuid4())
    folder = mortal.state / "sessions" / name
    folder.mkdir(mode=0o700)
    half = subprocess.Popen(  # noqa: ASYNC220 - a test may block
        ["/bin/sleep", "1000"], env={"RETORT_SANDBOX": name}, start_new_session=True
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        fd = os.open(folder, os.O_PATH)
        listener.bind(f"/proc/self/fd/{fd}/{SOCKET_NAME}")  # the whole path may be too long
        os.close(fd)
        listener.listen(1)
        took_s = _seconds(mortal.start)
        assert name in mortal.folders()  # it listens while the answer is still waited for
        assert took_s < plain_s + ANSWER_S
        async with mortal.calls() as api:
            assert await sh(api, await create(api), "echo ready") == (0, "ready\n")
        await wait_for(lambda: _has_ended(half))
    await wait_for(lambda: _lacks(mortal, name))


async def test_a_session_that_a_repeated_request_makes_is_not_ended_with_its_first_half(
    mortal: Mortal,
) -> None:
    """The request has a token, so that both halves are the same session, in the same folder."""
    token = uuid.uuid4().hex
    name = str(derived_id(mortal.access_key, token, "session"))
    mortal.kill()
    folder = mortal.state / "sessions" / name
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        fd = os.open(folder, os.O_PATH)
        listener.bind(f"/proc/self/fd/{fd}/{SOCKET_NAME}")  # the whole path may be too long
        os.close(fd)
        listener.listen(1)
        half = subprocess.Popen(  # noqa: ASYNC220 - a test may block
            ["/bin/sleep", "1000"], env={"RETORT_SANDBOX": name}, start_new_session=True,
            pass_fds=[listener.fileno()],
        )  # fmt: skip
    mortal.start()
    async with aiohttp.ClientSession(
        mortal.url, headers={"Authorization": f"Bearer {mortal.token}"}
    ) as api:
        body = {"image": "bash", "name": "repeated", "config": {"resources": {"mem": "99m"}}}
        headers = {"X-BackendAI-Client-Token": token}
        async with api.post("/session", json=body, headers=headers) as made:
            assert (made.status, (await made.json())["sessionId"]) == (201, name)
        await wait_for(lambda: _has_ended(half))
        assert await sh(api, "repeated", "echo whole") == (0, "whole\n")
    mortal.restart()  # what it needs to be found again is there
    async with mortal.calls() as api:
        assert await sh(api, "repeated", "echo still") == (0, "still\n")


def _seconds(act: Callable[[], None]) -> float:
    began_at = time.monotonic()
    act()
    return time.monotonic() - began_at


async def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


async def _lacks(mortal: Mortal, name: str) -> bool:
    return name not in mortal.folders()


async def test_a_session_whose_life_ended_while_no_server_ran_is_ended_by_the_next(
    mortal: Mortal,
) -> None:
    mark = f"retort-{uuid.uuid4().hex}"
    mortal.kill()
    mortal.start(RETORT_SESSIONS_LIFE_S="5")
    async with mortal.calls() as api:
        name = await create(api)
        await start(api, name, "r", exec=f"exec -a {mark} sleep 600")
        await wait_for(lambda: _runs(mark))
    mortal.kill()
    assert await _runs(mark)
    await asyncio.sleep(5)
    mortal.start(RETORT_SESSIONS_LIFE_S="5")
    async with mortal.calls() as api:
        await wait_for(lambda: _is_gone(api, name))
        async with api.get(f"/session/{name}") as answer:
            assert "max-lifetime" in await answer.text()
    await wait_for(lambda: _runs_not(mark))
    await wait_for(lambda: _has(mortal, 0))


async def _is_gone(api: Calls, name: str) -> bool:
    async with api.get(f"/session/{name}") as answer:
        return answer.status == 404


async def _runs_not(mark: str) -> bool:
    return not processes_with(mark)


async def test_twenty_kills_in_a_row_lose_nothing(mortal: Mortal) -> None:
    program = "i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); sleep 0.01; done"
    async with mortal.calls() as api:
        name = await create(api)
        answers = [await start(api, name, "r", exec=program)]
    for turn in range(20):
        async with mortal.calls() as api:
            if answers[-1]["status"] == "finished":
                break
            answers.append(await go_on(api, name, "r"))
        if turn % 4 == 0:
            mortal.restart()
    async with mortal.calls() as api:
        if answers[-1]["status"] != "finished":
            answers += await until(api, name, await go_on(api, name, "r"), "finished")
    assert printed(answers) == "".join(f"{i}\n" for i in range(400))
