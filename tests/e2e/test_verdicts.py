"""Verdicts over HTTP: what happened to each step, how much it used, which walls stood."""

from __future__ import annotations

import asyncio
import json
import math
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import NewSession, Server, printed, run_to_end, running_server, upload
from tests.e2e.running import wait_for, wait_for_file

pytestmark = pytest.mark.slow

MIB = 1 << 20
PROCESSES = 1024  # `sandbox.processes`, as it comes
CONFIG = {"resources": {"cpu": 1, "mem": "128m"}}


async def verdict(api: aiohttp.ClientSession, name: str, **options: Any) -> dict[str, Any]:
    """Run something and give its last answer, with all that the run printed."""
    answers = await run_to_end(api, name, build=None, **options)
    return answers[-1] | {"console": [item for answer in answers for item in answer["console"]]}


def groups_named(name: str) -> list[Path]:
    # Not rglob: groups of others vanish while it looks.
    return [Path(root, name) for root, folders, _ in os.walk("/sys/fs/cgroup") if name in folders]


def group_of(server: Server, session_id: str) -> str:
    """Give the name of a session's group: of the sandbox that it is, which may be older."""
    record = json.loads((server.state / "sessions" / session_id / "sandbox.json").read_text())
    pid = record["pid"]
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    (name,) = {line.rpartition("/")[2] for line in lines if "/retort-" in line}
    return name


def needs_groups(answer: dict[str, Any]) -> None:
    if answer["walls"]["memory"] == "none":
        pytest.skip("this host gives no control groups")


@pytest.mark.parametrize(
    ("command", "outcome", "code", "signal"),
    [
        ("exit 0", "exited", 0, None),
        ("exit 3", "exited", 3, None),
        ("kill -SEGV $$", "signalled", 139, "SIGSEGV"),
        ("kill -KILL $$", "signalled", 137, "SIGKILL"),
        ("kill -TERM $$", "signalled", 143, "SIGTERM"),
    ],
)
async def test_how_a_program_ended_is_told_exactly(
    api: aiohttp.ClientSession,
    new_session: NewSession,
    command: str,
    outcome: str,
    code: int,
    signal: str | None,
) -> None:
    name = await new_session("bash")
    answer = await verdict(api, name, exec=command)
    assert (answer["outcome"], answer["exitCode"], answer["signal"]) == (outcome, code, signal)
    assert answer["retrySafe"] is False
    assert answer["limit"] is None


async def test_memory_beyond_the_limit_is_out_of_memory_and_not_a_signal(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("python", config=CONFIG)
    answer = await verdict(api, name, exec="exec python3 -c 'a = bytearray(300 << 20)'")
    needs_groups(answer)
    assert answer["outcome"] == "out-of-memory"
    assert answer["usage"]["peakMemoryBytes"] <= 128 * MIB
    after = await verdict(api, name, exec="echo fine")
    assert (after["outcome"], after["exitCode"], printed([after])) == ("exited", 0, "fine\n")


async def test_peak_memory_is_of_the_step_and_not_of_the_session(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("python", config=CONFIG)
    large = await verdict(api, name, exec="python3 -c 'a = bytearray(80 << 20)'")
    small = await verdict(api, name, exec="true")
    assert large["usage"]["peakMemoryBytes"] > 80 * MIB
    assert small["usage"]["peakMemoryBytes"] < 40 * MIB


async def test_a_fork_bomb_meets_the_process_limit_and_the_session_lives_on(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("python")
    bomb = "import os\ntry:\n  while True: os.fork()\nexcept OSError: os._exit(7)"
    await upload(api, name, bomb__py=bomb)
    needs_groups(await verdict(api, name, exec="true"))  # without, this bomb would hit the host
    answer = await verdict(api, name, exec="python3 bomb.py")
    assert answer["outcome"] == "pids-limit", answer
    after = await verdict(api, name, exec="ls /proc | grep -c '^[0-9]'")
    assert (after["outcome"], after["exitCode"]) == ("exited", 0)
    assert int(printed([after])) < 10


async def test_no_fork_is_refused_before_the_limit_that_counts_it(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    """RLIMIT_NPROC counts a fork half made: every task of a full group may be in one."""
    name = await new_session("bash")
    answer = await verdict(api, name, exec="ulimit -u")
    needs_groups(answer)
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    own = math.inf if hard == resource.RLIM_INFINITY else hard
    assert float(printed([answer])) >= min(own, 2 * (PROCESSES + 2))


async def test_a_wall_limit_of_the_request_ends_the_run(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("bash")
    began_at = time.monotonic()
    answer = await verdict(api, name, exec="sleep 1000", limits={"wallSeconds": 0.3})
    took_s = time.monotonic() - began_at
    assert (answer["status"], answer["exitCode"]) == ("exec-timeout", None)
    assert (answer["outcome"], answer["limit"]) == ("timed-out", "wall")
    assert 0.29 < took_s < 5
    # Of the step alone: the limit counts from the run's beginning.
    assert 0 < answer["usage"]["wallUs"] <= took_s * 1e6


async def test_cpu_time_is_counted_over_all_processes(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("bash")
    spin = "(while :; do :; done) & (while :; do :; done) & wait"
    answer = await verdict(api, name, exec=spin, limits={"cpuSeconds": 0.5, "wallSeconds": 60})
    if answer["walls"]["cpuTime"] == "rlimit":
        pytest.skip("this host counts no CPU time by group")
    told = (answer["status"], answer["outcome"], answer["limit"])
    assert told == ("exec-timeout", "timed-out", "cpu")
    used = answer["usage"]["userUs"] + answer["usage"]["systemUs"]
    assert 450_000 < used < 3_000_000


async def test_sleeping_is_no_cpu_time(api: aiohttp.ClientSession, new_session: NewSession) -> None:
    name = await new_session("bash")
    limits = {"cpuSeconds": 0.2, "wallSeconds": 60}
    answer = await verdict(api, name, exec="sleep 0.5", limits=limits)
    assert (answer["status"], answer["outcome"]) == ("finished", "exited")


async def test_too_much_output_ends_the_step_where_it_is_limited(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("bash")
    limits = {"outputBytes": 1000, "wallSeconds": 60}
    answers = await run_to_end(api, name, build=None, exec="yes", limits=limits)
    assert (answers[-1]["outcome"], answers[-1]["limit"]) == ("output-limit", "output")
    assert printed(answers).startswith("y\ny\n")


async def test_output_beyond_the_cap_is_counted(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("bash")
    answers = await run_to_end(api, name, build=None, exec="head -c 600000 /dev/zero | tr '\\0' x")
    assert answers[-1]["outcome"] == "exited"
    assert len(printed(answers)) + answers[-1]["usage"]["cutChars"] == 600_000


async def test_a_full_scratch_is_disk_full(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("bash")
    answer = await verdict(api, name, exec="for i in 1 2; do head -c 400M /dev/zero > f$i; done")
    assert (answer["outcome"], answer["exitCode"]) == ("disk-full", 1)


async def test_each_step_has_a_verdict_of_its_own(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("bash")
    answers = await run_to_end(api, name, clean="exit 1", build="exit 0", exec="exit 2")
    told = [(a["status"], a["exitCode"], a["outcome"]) for a in answers if "outcome" in a]
    assert told == [
        ("clean-finished", 1, "exited"),
        ("build-finished", 0, "exited"),
        ("finished", 2, "exited"),
    ]


async def test_a_skipped_step_has_no_verdict(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("bash")
    answers = await run_to_end(api, name, clean=None, build=None, exec="true")
    assert ["outcome" in a for a in answers if a["status"] != "continued"] == [False, False, True]


async def test_walls_say_what_was_enforced(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("bash")
    walls = (await verdict(api, name, exec="true"))["walls"]
    assert set(walls) == {
        *("namespaces", "seccomp", "uid", "network"),
        *("memory", "inodes", "processes", "cpu", "cpuTime"),
    }
    assert walls["network"] == "loopback"
    assert walls["seccomp"] == "deny-list"


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"wallSeconds": 0}, "options.limits.wallSeconds"),
        ({"wallSeconds": "1"}, "options.limits.wallSeconds"),
        ({"cpuSeconds": -1}, "options.limits.cpuSeconds"),
        ({"cpuSeconds": True}, "options.limits.cpuSeconds"),
        ({"outputBytes": 0}, "options.limits.outputBytes"),
        ({"memory": 5}, "options.limits.memory"),
        ([], "options.limits"),
    ],
)
async def test_a_limit_that_makes_no_sense_is_refused_by_name(
    api: aiohttp.ClientSession, new_session: NewSession, limits: Any, field: str
) -> None:
    name = await new_session("bash")
    body = {"mode": "batch", "code": "", "options": {"exec": "true", "limits": limits}}
    async with api.post(f"/session/{name}", json=body) as answer:
        assert answer.status == 400
        assert field in (await answer.json())["data"]


async def test_background_processes_live_on_only_when_asked_for(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("bash")
    daemon = "(sleep 1000 > /dev/null 2>&1 &)\n"
    daemon += "until grep -qx sleep /proc/[0-9]*/comm; do read -t 0.01 <> <(:); done 2> /dev/null"
    count = "ls /proc/*/comm | xargs grep -lx sleep 2>/dev/null | wc -l"
    await verdict(api, name, exec=daemon)
    assert printed([await verdict(api, name, exec=count)]) == "0\n"
    await verdict(api, name, exec=daemon, keepBackground=True)
    assert printed([await verdict(api, name, exec=count)]) == "1\n"
    async with api.patch(f"/session/{name}") as answer:
        assert answer.status == 204
    assert printed([await verdict(api, name, exec=count)]) == "0\n"


async def test_system_calls_of_the_deny_list_fail_inside(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("python")
    code = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for number in (101, 321, 425, 250):\n"
        "    result = libc.syscall(number, 0, 0, 0, 0)\n"
        "    print(result, ctypes.get_errno())\n"
    )
    await upload(api, name, probe__py=code)
    answer = await verdict(api, name, exec="python3 probe.py")
    assert printed([answer]) == "-1 1\n-1 1\n-1 38\n-1 1\n"


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path / "s", RETORT_RUNS_WALL_S="2") as running:
        yield running


async def test_the_servers_limit_holds_against_a_larger_one_of_the_request(strict: Server) -> None:
    headers = {"Authorization": f"Bearer {strict.token}"}
    async with aiohttp.ClientSession(strict.url, headers=headers) as api:
        async with api.post("/session", json={"name": "strict", "image": "bash"}) as made:
            assert made.status == 201
        answer = await verdict(api, "strict", exec="sleep 50", limits={"wallSeconds": 100})
        assert (answer["status"], answer["limit"]) == ("exec-timeout", "wall")


async def test_no_group_is_left_when_sessions_end(
    api: aiohttp.ClientSession, server: Server
) -> None:
    async with api.post("/session", json={"name": "gone-soon", "image": "bash"}) as made:
        session_id = (await made.json())["sessionId"]
    answer = await verdict(api, "gone-soon", exec="true")
    needs_groups(answer)
    name = group_of(server, session_id)
    assert groups_named(name)
    async with api.delete("/session/gone-soon") as done:
        assert done.status == 200

    async def is_gone() -> bool:  # after the answer
        return not groups_named(name)

    await wait_for(is_gone)


async def test_who_outlived_the_limit_met_it_also_when_the_server_was_too_slow_to_say_so(
    strict: Server,
) -> None:
    headers = {"Authorization": f"Bearer {strict.token}"}
    async with aiohttp.ClientSession(strict.url, headers=headers) as api:
        async with api.post("/session", json={"name": "slow", "image": "bash"}) as made:
            assert made.status == 201
        for _ in range(10):  # on a busy host the limit may be met before the server is stopped
            assert (await verdict(api, "slow", exec="rm -f begun over"))["outcome"] == "exited"
            running = asyncio.ensure_future(
                verdict(api, "slow", exec="touch begun; sleep 2.5; touch over")
            )
            await wait_for_file(api, "slow", "begun")
            strict.process.send_signal(signal.SIGSTOP)  # as on a host that has no time for it
            await asyncio.sleep(3.5)
            strict.process.send_signal(signal.SIGCONT)
            answer = await running
            assert (answer["status"], answer["outcome"], answer["limit"]) == (
                "exec-timeout",
                "timed-out",
                "wall",
            )
            if (await verdict(api, "slow", exec="test -e over"))["exitCode"] == 0:
                break
        else:
            pytest.fail("no program outlived the limit, or none was let")
        assert answer["usage"]["wallUs"] > 2_000_000
        assert (await verdict(api, "slow", exec="true"))["outcome"] == "exited"


async def test_an_images_limits_are_those_of_its_sessions_and_runs(tmp_path: Path) -> None:
    limits = "bash=mem=96m cpu=0.5, python=wall_s=1"
    with running_server(tmp_path / "s", RETORT_SANDBOX_IMAGE_LIMITS=limits) as running:
        headers = {"Authorization": f"Bearer {running.token}"}
        async with aiohttp.ClientSession(running.url, headers=headers) as api:
            async with api.post("/session", json={"image": "bash", "name": "limited"}) as response:
                assert response.status == 201
            async with api.get("/session/limited") as response:
                info = await response.json()
            assert json.loads(info["occupiedSlots"]) == {"cpu": "0.5", "mem": str(96 * MIB)}
            assert info["memoryLimit"] == 96 * 1024
            large = await verdict(api, "limited", exec="head -c 200M /dev/zero | tail -c 200M")
            assert large["walls"]["memory"] == "none" or large["outcome"] == "out-of-memory"
            more = {"image": "bash", "name": "more", "config": {"resources": {"mem": "97m"}}}
            async with api.post("/session", json=more) as response:
                problem = await response.json()
            assert (response.status, problem["type"].rpartition("/")[2]) == (412, "quota-exceeded")
            assert "for this image" in problem["msg"]
            async with api.post("/session", json={"image": "python", "name": "other"}) as response:
                assert response.status == 201
            late = await verdict(api, "other", exec="exec sleep 600", limits={"wallSeconds": 500})
            assert (late["status"], late["outcome"]) == ("exec-timeout", "timed-out")
