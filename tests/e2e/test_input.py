"""Input of programs: rule R11 (spec 6.2)."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.conftest import (
    NewSession,
    printed,
    run_to_end,
    upload,
)
from tests.e2e.running import (
    Calls,
    go_on,
    interrupt,
    start,
    status_of,
    until,
    wait_for_file,
)


@pytest.fixture
async def name(new_session: NewSession) -> str:
    return await new_session("bash")


# --- R11: input ---------------------------------------------------------------------------------

READERS = {
    "bash": "printf '? '; read x; echo got $x",
    "python": 'python3 -c \'print("got", input("? "))\'',
    "cat": "printf '? '; head -n 1 | sed 's/^/got /'",
    "perl": 'perl -e \'$|=1; print "? "; $x=<STDIN>; print "got $x"\'',
    "child of a child": "printf '? '; bash -c 'bash -c \"read x; echo got \\$x\"; true'; true",
    "thread": (
        'python3 -u -c \'import threading,sys\nprint("? ",end="")\n'
        't=threading.Thread(target=lambda:print("got",sys.stdin.readline()))\nt.start();t.join()\''
    ),
    "daemon beside": "printf '? '; sleep 100 & read x; echo got $x",
}


@pytest.mark.parametrize("reader", READERS)
async def test_r11_a_blocked_read_is_reported_with_what_was_printed_before(
    api: Calls, name: str, reader: str
) -> None:
    first = await start(api, name, exec=READERS[reader])
    answers = await until(api, name, first, "waiting-input")
    assert answers[-1]["options"] == {"is_password": False}
    assert answers[-1]["exitCode"] is None
    assert printed(answers) == "? "
    rest = await until(api, name, await go_on(api, name, first["runId"], "höß 世"), "finished")
    assert printed(rest).strip() == "got höß 世"
    assert rest[-1]["exitCode"] == 0


@pytest.mark.slow
async def test_r11_scanf_of_a_c_program_is_reported(api: Calls, new_session: NewSession) -> None:
    name = await new_session("gcc")
    code = '#include <stdio.h>\nint main(){int a,b;scanf("%d%d",&a,&b);printf("%d\\n",a+b);}'
    await upload(api, name, main__c=code)
    answers = await run_to_end(api, name, build="*", exec="*", stdin=("2", "3"))
    assert [a["status"] for a in answers if a["status"] != "continued"] == [
        "build-finished", "waiting-input", "waiting-input", "finished",
    ]  # fmt: skip
    assert printed(answers) == "5\n"


async def test_r11_until_input_comes_the_wait_is_answered_again(api: Calls, name: str) -> None:
    first = await start(api, name, exec="echo a; read x; echo b")
    await until(api, name, first, "waiting-input")
    for _ in range(3):
        answer = await go_on(api, name, first["runId"])
        assert (answer["status"], answer["console"]) == ("waiting-input", [])
    rest = await until(api, name, await go_on(api, name, first["runId"], "x"), "finished")
    assert printed(rest) == "b\n"


@pytest.mark.slow
async def test_r11_input_before_it_is_asked_for_is_used_without_a_wait(
    api: Calls, name: str
) -> None:
    first = await start(api, name, build="sleep 0.2", exec="sleep 0.2; read x; echo got $x")
    answers = await until(api, name, await go_on(api, name, first["runId"], "early"), "finished")
    assert "waiting-input" not in [a["status"] for a in answers]
    assert printed(answers) == "got early\n"


async def test_r11_input_for_a_queued_run_waits_for_it(api: Calls, name: str) -> None:
    first = await start(api, name, "first", exec="read x; echo $x")
    status, _ = await status_of(api, name, mode="input", code="one", runId=first["runId"])
    assert status == 200
    answers = await run_to_end(api, name, exec="echo next")
    assert printed(answers) == "next\n"


@pytest.mark.parametrize(
    ("text", "shown"), [("a", "<a>"), ("a\n", "<a>"), ("", "<>"), ("a\nb\n", "<a>"), ("ä\n", "<ä>")]
)
async def test_r11_a_newline_is_added_only_where_there_is_none(
    api: Calls, name: str, text: str, shown: str
) -> None:
    command = 'read -r x; echo "<$x>"; read -r -t 0.1 y && echo "more $y"; true'
    first = await start(api, name, exec=command)
    await until(api, name, first, "waiting-input")
    rest = await until(api, name, await go_on(api, name, first["runId"], text), "finished")
    assert printed(rest) == shown + "\n" + ("more b\n" if "\nb" in text else "")


async def test_r11_lines_of_one_input_serve_several_reads(api: Calls, name: str) -> None:
    answers = await run_to_end(
        api, name, exec="read a; read b; read c; echo $a$b$c", stdin=("1\n2\n3",)
    )
    assert [a["status"] for a in answers].count("waiting-input") == 1
    assert printed(answers) == "123\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "sleep 1",
        "python3 -c 'import time; t=time.time()\nwhile time.time()-t < 1: pass'",
        "mkfifo f; (sleep 1; echo x > f) & read x < f",
        "(sleep 1; echo x) | read x",
        "read x < /dev/null; sleep 1",
        "exec < /dev/null; sleep 1; read x",
    ],
)
async def test_r11_a_program_that_only_takes_its_time_is_not_reported(
    api: Calls, name: str, command: str
) -> None:
    answers = await run_to_end(api, name, exec=f"{command}; true")
    assert "waiting-input" not in [a["status"] for a in answers]


@pytest.mark.slow
async def test_r11_a_wait_that_a_timeout_ended_is_not_reported_again(api: Calls, name: str) -> None:
    code = (
        "import signal, sys, time\n"
        "def late(*_): raise TimeoutError\n"
        "signal.signal(signal.SIGALRM, late); signal.setitimer(signal.ITIMER_REAL, 2)\n"
        "try: input()\n"
        "except TimeoutError: open('on', 'w'); time.sleep(0.3); sys.exit(4)\n"
    )
    first = await start(api, name, exec=f'python3 -c "{code}"')
    await until(api, name, first, "waiting-input")
    await wait_for_file(api, name, "on")
    answers = await until(api, name, await go_on(api, name, first["runId"]), "finished")
    assert "waiting-input" not in [a["status"] for a in answers]
    assert answers[-1]["exitCode"] == 4


async def test_r11_too_much_input_is_refused_and_the_program_lives(api: Calls, name: str) -> None:
    first = await start(api, name, exec="sleep 600")
    line = "x" * 300_000
    call = {"mode": "input", "code": line, "runId": first["runId"]}
    calls = [asyncio.ensure_future(status_of(api, name, **call)) for _ in range(5)]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    assert {(await one)[0] for one in done} == {412}
    await interrupt(api, name)
    # The end is told once: to one of the calls that still wait, or to the next.
    told = [body["result"] for status, body in await asyncio.gather(*calls) if status == 200]
    if "finished" not in [answer["status"] for answer in told]:
        told += await until(api, name, await go_on(api, name, first["runId"]), "finished")
    assert [a["exitCode"] for a in told if a["status"] == "finished"] == [130]
