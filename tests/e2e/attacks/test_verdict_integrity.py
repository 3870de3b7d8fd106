"""Attacks on the verdict itself (attacks.md, I, and incident I17)."""

# ruff: noqa: ASYNC220 - a test may block

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time

import pytest

from tests.e2e.conftest import Server, printed, run_to_end

from .box import Box, outside
from .conftest import NewBox, sandbox_of

pytestmark = pytest.mark.slow

# It waits until its parent has written the honest result, then writes its own over it.
REWARD = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3): os.close(fd)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if os.path.exists("reward") and open("reward").read() == "0":
                open("reward", "w").write("1")
                os._exit(0)
            time.sleep(0.001)
    os._exit(0)
os.wait()
time.sleep(0.05)
with open("reward.new", "w") as file: file.write("0")
os.rename("reward.new", "reward")
os._exit(0)
"""


async def test_a_result_is_read_when_nobody_can_change_it_any_more(box: Box) -> None:
    control = outside(
        "code = " + repr(REWARD) + "\nif os.fork() == 0: exec(code)\nos.wait()\n"
        "end = time.monotonic() + 5\n"
        "while open('reward').read() != '1' and time.monotonic() < end: time.sleep(0.01)\n"
        "print(open('reward').read())"
    )
    assert control.stdout == "1\n"
    ended = await box.python(REWARD)
    assert ended.told == ("exited", 0, None)
    seen = []
    for _ in range(5):
        async with box.api.get(
            f"/session/{box.name}/download_single", json={"file": "reward"}
        ) as answer:
            assert answer.status == 200
            seen.append(await answer.read())
    # Whatever the daemon managed while the program ran, nothing changes after the result came.
    assert len(set(seen)) == 1


async def test_an_init_killed_by_the_operator_is_our_failure_and_never_the_programs(
    new_box: NewBox, server: Server
) -> None:
    box, other = await new_box(), await new_box()
    running = asyncio.ensure_future(
        run_to_end(box.api, box.name, build=None, exec="echo here; sleep 100")
    )
    await asyncio.sleep(0.5)
    beside = asyncio.ensure_future(other.sh("sleep 1; echo fine"))
    os.kill((await sandbox_of(server, box))["pid"], signal.SIGKILL)
    end = (await running)[-1]
    assert (end["outcome"], end["retrySafe"], end["exitCode"]) == ("infrastructure", True, -1)
    assert (await beside).out == "fine\n"


async def test_a_caller_who_asks_after_the_session_was_lost_still_hears_the_end(
    new_box: NewBox, server: Server
) -> None:
    box, other = await new_box(), await new_box()
    runs = [{"mode": "batch", "code": "", "runId": run_id,
             "options": {"build": None, "exec": "echo here; sleep 100"}}
            for run_id in ("one", "two")]  # fmt: skip
    path, status = f"/session/{box.name}", ""
    for body in runs:  # the second waits for the first
        while status != "continued":
            async with box.api.post(path, json=body) as answer:
                status = (await answer.json())["result"]["status"]
        status = ""
    os.kill((await sandbox_of(server, box))["pid"], signal.SIGKILL)
    while True:  # until the server has seen it
        async with box.api.get(path) as answer:
            if answer.status == 404:
                break
        await asyncio.sleep(0.01)
    ends = []
    for run_id in ("one", "two"):
        going_on = {"mode": "continue", "code": "", "runId": run_id}
        async with box.api.post(path, json=going_on) as answer:
            assert answer.status == 200, await answer.text()
            ends.append((await answer.json())["result"])
    assert [(e["status"], e["outcome"]) for e in ends] == [
        ("finished", "infrastructure"),
        ("finished", "cancelled"),
    ]
    for body in ({"mode": "continue", "code": "", "runId": "one"}, {**runs[0], "runId": "three"}):
        async with box.api.post(path, json=body) as answer:
            assert answer.status == 404  # said once, to its owner alone, and nothing new starts
    await other.works()


async def test_a_program_cannot_make_a_failure_look_like_ours(box: Box) -> None:
    """Whatever it does to itself and its kin, the outcome stays its own."""
    for command in (
        "kill -KILL $$",
        "kill -9 -1; exit 9",
        "kill -9 1; exit 9",
        "exec 0<&- 1>&- 2>&-; exit 9",
        "cd /; exec -c /bin/false",
        "ulimit -n 0; ulimit -v 1000; true | true; exit 9",
        "exec /nowhere/at/all",
    ):
        ended = await box.sh(command)
        assert ended.answer["outcome"] in ("exited", "signalled"), (command, ended)
        assert ended.answer["retrySafe"] is False


async def test_words_of_the_protocol_in_the_output_are_only_output(box: Box) -> None:
    text = '{"status": "finished", "exitCode": 0, "outcome": "exited"}'
    ended = await box.sh(f"echo '{text}'; echo '{text}' >&2; exit 5")
    assert (*ended.told, ended.out, ended.err) == ("exited", 5, None, f"{text}\n", f"{text}\n")


async def test_leaving_early_or_from_a_thread_is_no_success(box: Box) -> None:
    code = "import threading\nthreading.Thread(target=lambda: os._exit(3)).start()\ntime.sleep(5)\n"
    assert (await box.python(code)).told == ("exited", 3, None)
    code = "import atexit\natexit.register(lambda: os._exit(0))\nraise SystemExit(1)\n"
    # A program may well call its own failure a success: what it printed is for a checker to judge.
    assert (await box.python(code)).told == ("exited", 0, None)


SPIN = """
#include <time.h>
int main(void) {{
    struct timespec used;
    do
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    while (used.tv_sec + used.tv_nsec / 1e9 < {seconds});
    return 0;
}}
"""


async def test_a_program_near_its_limit_has_the_same_verdict_on_a_busy_host(
    box: Box, new_box: NewBox
) -> None:
    if box.walls["cpuTime"] == "rlimit":
        pytest.skip("this host counts no CPU time by group (docs/threat-model.md)")
    # In C: what an interpreter takes to start is nearer to the limit on a slow machine.
    await box.put(attack__c=SPIN.format(seconds=0.3))
    assert (await box.sh("true", build="gcc -O1 -o attack attack.c")).told == ("exited", 0, None)
    busy = [
        subprocess.Popen(["/bin/bash", "-c", "while :; do :; done"])
        for _ in range(os.cpu_count() or 1)
    ]
    waits: list[tuple[int, int]] = []
    try:
        begun, told = time.monotonic(), set()
        for _ in range(50 if "RETORT_LONG" in os.environ else 10):
            answers = await run_to_end(
                box.api, box.name, build=None, exec="exec ./attack",
                limits={"cpuSeconds": 0.6, "wallSeconds": 30},
            )  # fmt: skip
            told.add((answers[-1]["outcome"], answers[-1]["exitCode"], printed(answers)))
            usage = answers[-1]["usage"]
            waits.append((usage["hostCpuWaitUs"], usage["wallUs"]))
        assert told == {("exited", 0, "")}
        # Every processor is taken, so somebody always waits; the usage of the runs tells it.
        if waits[0][0] is not None:
            assert sum(wait for wait, _ in waits) > 0.5 * sum(wall for _, wall in waits)
        assert time.monotonic() - begun < 120
    finally:
        for process in busy:
            process.kill()
            process.wait()
