"""What a program sees of its surroundings, and what callers see of its end (spec 5.2, 5.7)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.conftest import (
    NewSession,
    execute,
    printed,
    run_to_end,
)
from tests.e2e.running import (
    Calls,
    create,
    destroy,
    ends,
    sh,
    start,
    status_of,
    until,
)


@pytest.fixture
async def name(new_session: NewSession) -> str:
    return await new_session("bash")


# --- what a program sees ------------------------------------------------------------------------


@pytest.mark.parametrize("signal", ["HUP", "INT", "USR1", "ABRT", "KILL", "SEGV", "PIPE", "TERM"])
async def test_a_signal_is_128_and_its_number(api: Calls, name: str, signal: str) -> None:
    code, _ = await sh(api, name, f"ulimit -c 0; kill -{signal} $$; sleep 5")
    _, number = await sh(api, name, f"kill -l {signal}")
    assert code == 128 + int(number)


@pytest.mark.parametrize("code", [0, 1, 42, 127, 128, 255])
async def test_an_exit_code_comes_as_it_is(api: Calls, name: str, code: int) -> None:
    assert await sh(api, name, f"exit {code}") == (code, "")


async def test_the_environment_of_commands(api: Calls) -> None:
    name = await create(api, config={"environ": {"MINE": "a b=ü'\"\n$x", "LANG": "C"}})
    script = (
        'printf "%s|" "$HOME" "$USER" "$SHELL" "$LANG" "$TERM" "${PATH%%:*}" "$PWD" "$MINE"; '
        "[ -p /dev/stdout ] && [ -p /dev/stderr ] && [ ! -t 0 ] && echo pipes; umask; id -u"
    )
    assert await sh(api, name, script) == (
        0,
        "/home/work|work|/bin/bash|C|xterm|/home/work/.local/bin|/home/work|a b=ü'\"\n$x|pipes\n"
        "0022\n1000\n",
    )
    await destroy(api, name)


@pytest.mark.parametrize("phase", ["clean", "build"])
async def test_the_stdin_of_clean_and_build_is_empty(api: Calls, name: str, phase: str) -> None:
    answers = await run_to_end(api, name, **{phase: "cat; readlink /proc/self/fd/0"})
    assert printed(answers) == "/dev/null\n"


@pytest.mark.parametrize(
    "options",
    [
        {"exec": "x" * (49 * 1024)},
        {"exec": 1},
        {"clean": []},
        {"build": {"a": 1}},
        {"exec": "a\0b"},
        {"buildLog": "yes"},
    ],
)
async def test_a_command_that_cannot_be_is_refused_and_the_session_lives(
    api: Calls, name: str, options: dict[str, Any]
) -> None:
    status, problem = await status_of(api, name, mode="batch", code="", options=options)
    assert (status, problem["type"].rpartition("/")[2]) == (400, "invalid-api-params")
    assert await sh(api, name, "echo on") == (0, "on\n")


async def test_the_largest_environment_and_command_fit(api: Calls) -> None:
    name = await create(api, config={"environ": {"BIG": "v" * 8000}})
    command = "echo ${#BIG} # " + "x" * (47 * 1024)
    first = await start(api, name, "i" * 128, exec=command)
    answers = await until(api, name, first, "finished")
    assert (answers[-1]["exitCode"], printed(answers)) == (0, "8000\n")
    await destroy(api, name)


@pytest.mark.parametrize(
    ("image", "code", "out"),
    [
        ("python", "print(6 * 7)", "42\n"),
        ("bash", "echo $((6 * 7))", "42\n"),
        ("gcc", '#include <stdio.h>\nint main(){puts("42");}', "42\n"),
    ],
)
async def test_a_query_runs_its_code_without_clean_and_build(
    api: Calls, new_session: NewSession, image: str, code: str, out: str
) -> None:
    name = await new_session(image)
    answers = [await execute(api, name, mode="query", code=code)]
    answers = await until(api, name, answers[0], "finished")
    assert ends(answers) == [("finished", 0)]
    assert printed(answers) == out
