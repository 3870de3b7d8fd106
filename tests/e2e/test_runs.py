"""The rules of a run but R11 and R13 to R15 (spec 6.2), by polling a real server."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
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
    ends,
    go_on,
    sh,
    start,
    status_of,
    until,
    wait_for_file,
)

CAP = 524_288


@pytest.fixture
async def name(new_session: NewSession) -> str:
    return await new_session("bash")


# --- R1, R2, R3: names --------------------------------------------------------------------------


async def test_r1_a_run_without_an_id_gets_a_random_one(api: Calls, name: str) -> None:
    answers = [await run_to_end(api, name, exec="echo hi") for _ in range(2)]
    ids = [{a["runId"] for a in run} for run in answers]
    assert all(len(one) == 1 and re.fullmatch("[0-9a-f]{32}", next(iter(one))) for one in ids)
    assert ids[0] != ids[1]


@pytest.mark.parametrize("run_id", ["x", "ü 世界/../%00#?", "r" * 128])
async def test_r1_a_callers_id_is_carried_by_every_answer(
    api: Calls, name: str, run_id: str
) -> None:
    first = await start(api, name, run_id, exec="echo hi", clean=None)
    answers = await until(api, name, first, "finished")
    assert {a["runId"] for a in answers} == {run_id}
    assert printed(answers) == "hi\n"


async def test_r2_starting_an_unfinished_run_again_continues_it(api: Calls, name: str) -> None:
    first = await start(api, name, "same", exec="read x; echo got $x")
    assert first["status"] == "build-finished"
    again = await start(api, name, "same", exec="echo never")
    assert again["status"] == "waiting-input"
    answers = await until(api, name, await go_on(api, name, "same", "it"), "finished")
    assert printed(answers) == "got it\n"


async def test_r2_the_id_of_a_finished_run_may_be_used_again(api: Calls, name: str) -> None:
    for text in ("one", "two"):
        answers = await until(
            api, name, await start(api, name, "again", exec=f"echo {text}"), "finished"
        )
        assert printed(answers) == f"{text}\n"


@pytest.mark.parametrize("mode", ["continue", "input"])
async def test_r3_a_run_that_is_not_there_is_404(api: Calls, name: str, mode: str) -> None:
    answers = await run_to_end(api, name, exec="true")
    for run_id in ("nobody", answers[0]["runId"]):
        status, problem = await status_of(api, name, mode=mode, code="x", runId=run_id)
        assert (status, problem["title"]) == (404, "No such run.")


@pytest.mark.parametrize("mode", ["continue", "input"])
async def test_r3_going_on_needs_an_id(api: Calls, name: str, mode: str) -> None:
    status, problem = await status_of(api, name, mode=mode, code="", runId=None)
    assert (status, problem["msg"]) == (400, "continuation requires explicit run ID")


# --- R4: when an answer comes -------------------------------------------------------------------


@pytest.fixture
async def patient_api(tmp_path: Path) -> AsyncIterator[Calls]:
    """A server where a call without news takes longer than the tests wait."""
    with running_server(tmp_path / "state", RETORT_RUNS_POLL_S="100s") as running:
        headers = {"Authorization": f"Bearer {running.token}"}
        async with aiohttp.ClientSession(running.url, headers=headers) as session:
            yield session


@pytest.mark.slow
async def test_r4_a_call_without_news_answers_after_two_seconds_with_the_output(
    api: Calls, name: str
) -> None:
    first = await start(api, name, exec="echo early; sleep 30; echo never")
    assert first["status"] == "build-finished"
    began = time.monotonic()
    answer = await go_on(api, name, first["runId"])
    assert 1.9 <= time.monotonic() - began < 20
    assert answer["status"] == "continued"
    assert answer["exitCode"] is None
    assert answer["options"] is None
    assert answer["files"] == []
    assert answer["console"] == [["stdout", "early\n"]]


@pytest.mark.slow
async def test_r4_the_end_is_answered_at_once(patient_api: Calls) -> None:
    name = await create(patient_api)
    first = await start(patient_api, name, exec="sleep 0.5; exit 3")
    async with asyncio.timeout(50):
        answer = await go_on(patient_api, name, first["runId"])
    assert (answer["status"], answer["exitCode"]) == ("finished", 3)
    await destroy(patient_api, name)


# --- R5, R6, R7, R9: phases ---------------------------------------------------------------------

PHASES: list[tuple[dict[str, Any], list[tuple[str, int]]]] = [
    (
        {"clean": "exit 1", "build": "exit 0", "exec": "exit 2"},
        [("clean-finished", 1), ("build-finished", 0), ("finished", 2)],
    ),
    ({}, [("build-finished", 0), ("finished", 0)]),
    ({"clean": None}, [("clean-finished", 0), ("build-finished", 0), ("finished", 0)]),
    ({"clean": ""}, [("clean-finished", 0), ("build-finished", 0), ("finished", 0)]),
    ({"build": "", "exec": ""}, [("build-finished", 0), ("finished", 0)]),
    ({"exec": "exit 9"}, [("build-finished", 0), ("finished", 9)]),
    ({"build": "exit 5"}, [("build-finished", 5), ("finished", 127)]),
    ({"build": "exit 5", "exec": "echo never"}, [("build-finished", 5), ("finished", 127)]),
    ({"build": "kill -9 $$"}, [("build-finished", 137), ("finished", 127)]),
    (
        {"clean": "kill -15 $$", "exec": "exit 1"},
        [("clean-finished", 143), ("build-finished", 0), ("finished", 1)],
    ),
    (
        {"clean": "*", "build": "*", "exec": "true"},
        [("clean-finished", 0), ("build-finished", 0), ("finished", 0)],
    ),
]


@pytest.mark.parametrize(("options", "expected"), PHASES)
async def test_r5_r6_r7_r9_phases_end_in_their_order(
    api: Calls, name: str, options: dict[str, Any], expected: list[tuple[str, int]]
) -> None:
    answers = await run_to_end(api, name, **options)
    assert ends(answers) == expected
    assert "never" not in printed(answers)


async def test_r5_output_belongs_to_its_phase(api: Calls, name: str) -> None:
    answers = await run_to_end(
        api, name, clean="echo c; echo d >&2", build="echo b", exec="echo e; exit 1"
    )
    told = [a for a in answers if a["status"] != "continued"]
    assert [sorted(a["console"]) for a in told] == [
        [["stderr", "d\n"], ["stdout", "c\n"]],
        [["stdout", "b\n"]],
        [["stdout", "e\n"]],
    ]


async def test_r9_a_failed_build_concerns_its_own_run_only(api: Calls, name: str) -> None:
    await run_to_end(api, name, build="exit 1")
    assert ends(await run_to_end(api, name, build="true", exec="true"))[-1] == ("finished", 0)


async def test_r6_the_default_commands_use_a_makefile(api: Calls, name: str) -> None:
    makefile = "all:\n\t@echo making > made; echo m\nclean:\n\t@rm -f made; echo c\n"
    await upload(api, name, Makefile=makefile, main__sh="cat made")
    answers = await run_to_end(api, name, clean="*", build="*", exec="*")
    assert ends(answers) == [("clean-finished", 0), ("build-finished", 0), ("finished", 0)]
    assert printed(answers) == "c\nm\nmaking\n"


@pytest.mark.parametrize(("image", "code"), [("gcc", 127), ("bash", 127), ("python", 127)])
async def test_r9_without_a_program_the_default_commands_end_with_127(
    api: Calls, new_session: NewSession, image: str, code: int
) -> None:
    answers = await run_to_end(api, await new_session(image), clean="*", build="*", exec="*")
    assert answers[-1]["exitCode"] == code
    assert printed(answers, "stderr")


# --- R10: the console ---------------------------------------------------------------------------


@pytest.mark.slow
async def test_r10_output_is_cut_at_the_cap_for_each_stream(api: Calls, name: str) -> None:
    command = "head -c 600000 /dev/zero | tr '\\0' a; head -c 600000 /dev/zero | tr '\\0' b >&2"
    await start(api, name, "r", exec=f"{command}; echo > done; read x; echo tail")
    await wait_for_file(api, name, "done")
    answers = await until(api, name, await go_on(api, name, "r"), "waiting-input")
    assert len(answers) == 1
    assert printed(answers) == "a" * CAP
    assert printed(answers, "stderr") == "b" * CAP
    rest = await until(api, name, await go_on(api, name, "r", ""), "finished")
    assert printed(rest) == "tail\n"
    assert printed(rest, "stderr") == ""


@pytest.mark.slow
async def test_r10_a_flood_that_nobody_reads_neither_blocks_nor_fills_the_server(
    api: Calls, name: str, server: Server
) -> None:
    before = resident_bytes(server.process.pid)
    await start(api, name, "r", exec="head -c 67108864 /dev/zero; echo > done; sleep 30")
    await wait_for_file(api, name, "done")
    assert resident_bytes(server.process.pid) - before < 24 * 1024 * 1024
    answer = await go_on(api, name, "r")
    assert printed([answer]) == "\0" * CAP


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("phase", ["clean", "build"])
async def test_r10_the_cap_holds_in_every_phase(api: Calls, name: str, phase: str) -> None:
    answers = await run_to_end(api, name, **{phase: "head -c 600000 /dev/zero | tr '\\0' z"})
    assert all(len(printed([a])) <= CAP for a in answers)
    assert printed(answers)[:CAP] == "z" * CAP


async def test_r10_a_split_character_arrives_whole(api: Calls, name: str) -> None:
    command = r"printf '\xe4'; sleep 0.05; printf '\xb8'; sleep 0.05; printf '\x96\n'"
    answers = await run_to_end(api, name, exec=command)
    assert printed(answers) == "世\n"


async def test_r10_invalid_bytes_become_replacement_characters(api: Calls, name: str) -> None:
    answers = await run_to_end(
        api,
        name,
        build=r"printf '\xe4\xb8'",
        exec=r"printf '\x96a\xff\0b\e[31m'; printf '\xc3' >&2",
    )
    assert printed(answers) == "��a�\0b\x1b[31m"
    assert printed(answers, "stderr") == "�"


# --- R12: several at once -----------------------------------------------------------------------


@pytest.mark.slow
async def test_r12_runs_of_one_session_come_one_after_the_other(api: Calls, name: str) -> None:
    command = "echo $(date +%s.%N) start $N; sleep 0.1; echo $(date +%s.%N) end"
    runs = await asyncio.gather(
        *(run_to_end(api, name, exec=command.replace("$N", str(n))) for n in range(4))
    )
    # Which of four calls at once comes first is the network's affair.
    spans = sorted([float(line.split()[0]) for line in printed(run).splitlines()] for run in runs)
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


@pytest.mark.slow
async def test_r12_a_waiting_run_answers_continued_with_nothing(api: Calls, name: str) -> None:
    await begin(api, name, "sleep 60")
    began = time.monotonic()
    answer = await start(api, name, clean=None, exec="echo mine")
    assert 1.9 <= time.monotonic() - began < 20
    assert (answer["status"], answer["console"]) == ("continued", [])


async def test_r12_sessions_do_not_wait_for_each_other(
    api: Calls, name: str, new_session: NewSession
) -> None:
    other = await new_session("bash")
    await begin(api, name, "sleep 60")
    assert await sh(api, other, "echo free") == (0, "free\n")


async def test_r12_too_many_waiting_runs_are_refused(api: Calls, new_session: NewSession) -> None:
    name = await new_session("bash")
    await begin(api, name, "sleep 60")
    calls = [
        asyncio.ensure_future(status_of(api, name, mode="batch", code="", runId=f"r{n}"))
        for n in range(70)
    ]
    statuses = Counter(status for status, _ in await asyncio.gather(*calls))
    assert statuses == {200: 64, 412: 6}


@pytest.mark.slow
async def test_two_pollers_of_a_run_get_every_output_once(api: Calls, name: str) -> None:
    first = await start(api, name, exec="for i in $(seq 200); do echo $i; done; sleep 0.3; exit 7")
    run_id = first["runId"]
    texts: list[str] = []
    statuses: list[int] = []
    codes: list[int] = []

    async def poll() -> None:
        while True:
            status, body = await status_of(api, name, mode="continue", code="", runId=run_id)
            statuses.append(status)
            if status == 404:
                return
            texts.append(printed([body["result"]]))
            if body["result"]["status"] == "finished":
                codes.append(body["result"]["exitCode"])
                return

    await asyncio.gather(poll(), poll())
    assert sorted("".join(texts).split(), key=int) == [str(n) for n in range(1, 201)]
    assert codes == [7]
    assert statuses.count(404) == 1


# --- R16, R17 -----------------------------------------------------------------------------------


async def test_r16_a_run_goes_on_when_nobody_polls(api: Calls, name: str) -> None:
    first = await start(api, name, exec="for i in 1 2 3; do echo $i; sleep 0.03; done; touch done")
    await wait_for_file(api, name, "done")
    answers = await until(api, name, await go_on(api, name, first["runId"]), "finished")
    assert printed(answers) == "1\n2\n3\n"


async def test_r17_files_of_one_run_are_there_for_the_next(api: Calls, name: str) -> None:
    await run_to_end(api, name, exec="mkdir -p a/b; echo kept > a/b/c")
    assert await sh(api, name, "cat a/b/c") == (0, "kept\n")
