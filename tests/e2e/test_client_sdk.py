"""The Python SDK of the protocol's public client, as released, against the running server."""

from __future__ import annotations

import json
import os
import stat
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.clients import Client, client, statuses, tree, with_key
from tests.e2e.conftest import Server, printed

pytestmark = pytest.mark.slow  # each test starts a Python with the client in it

MAIN_C = """\
#include <stdio.h>
int main(void) { printf("%d – grün\\n", 2 + 3); return 7; }
"""


@pytest.fixture
def sdk(server: Server, tmp_path: Path) -> Client:
    return client("client", server, tmp_path / "client")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a user has on their own machine."""
    made = tmp_path / "project"
    made.mkdir()
    return made


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def test_versions_are_told(sdk: Client) -> None:
    told = sdk.scenario("sdk.py", "versions")
    assert told["version"] == "v7.20230615"
    assert told["manager"] == "23.09.10"


def test_a_session_is_made_once_and_then_found(sdk: Client) -> None:
    told = sdk.scenario("sdk.py", "get_or_create")
    first_id, *first = told["first"]
    assert str(uuid.UUID(first_id)) == first_id
    assert first == [True, "RUNNING", []]
    assert told["second"] == [first_id, False, "RUNNING", []]
    for name in ("other_image", "no_reuse"):
        assert told[name]["status"] == 400
        assert told[name]["type"].endswith("/session-already-exists")
        assert told[name]["data"]["existingSessionId"] == first_id
    assert told["unknown_image"]["status"] == 404
    assert told["unknown_image"]["title"] == "No such environment image."
    after_id, is_new = told["after"]
    assert is_new
    assert after_id != first_id


# --- files -------------------------------------------------------------------------------------


def test_twenty_odd_files_come_back_as_they_went(sdk: Client, folder: Path, tmp_path: Path) -> None:
    write(
        folder,
        {
            "plain.txt": "plain\n",
            "empty": "",
            "binary.bin": bytes(range(256)) * 100,
            "largest": os.urandom(1 << 20),
            "a b/c d.txt": "blanks",
            "deep/er/and/deeper/still.h": "nested",
            "deep/other.h": "nested too",
            "ünïcödé/文件 😀.c": "not ASCII",
            "e\u0301.txt": "combining, not composed",
            "100%.txt": "a stray percent",
            "per%20cent%2Fslash": "percent escapes that are none",
            "plus+and&amp=1": "of a query",
            'quote"d': "a quote",
            "semi;colon=x": "of a header",
            "back\\slash": "not a folder",
            "-rf": "an option",
            ".hidden/.config": "hidden",
            "#hash?mark": "of a URL",
            "~tilde$HOME`id`": "of a shell",
            "line\nbreak": "a newline",
        },
    )
    told = sdk.scenario("sdk.py", "round_trip", folder, tmp_path / "back")
    assert told["count"] == 20
    assert sorted(told["listed"]) == sorted(path.name for path in folder.iterdir())
    assert tree(tmp_path / "back") == tree(folder)


def test_an_upload_beyond_a_limit_stores_nothing(sdk: Client, folder: Path) -> None:
    write(folder, {f"{number}.txt": str(number) for number in range(21)})
    write(folder, {"largest": bytes(1 << 20), "larger": bytes((1 << 20) + 1)})
    told = sdk.scenario("sdk.py", "upload_limits", folder)
    assert (told["too_many"]["status"], told["too_many"]["msg"]) == (400, "Too many files")
    assert (told["too_large"]["status"], told["too_large"]["msg"]) == (400, "Too large file")
    assert told["left"] == []
    assert set(told["kept"]) == {f"{number}.txt" for number in range(20)} | {"largest"}
    assert told["kept"]["largest"] == 1 << 20


def test_an_upload_refused_unread_does_not_spoil_the_next_call(sdk: Client, folder: Path) -> None:
    # This client gives up sending once it has an answer, and then goes on with the connection.
    write(folder, {name: bytes(1 << 20) for name in "abc"})
    problems = sdk.scenario("sdk.py", "refused_upload", folder)
    assert [problem["status"] for problem in problems] == [404] * 6


def test_a_folder_is_listed_as_the_client_reads_it(sdk: Client) -> None:
    told = sdk.scenario("sdk.py", "listing")
    top = {entry["filename"]: entry for entry in json.loads(told["top"]["files"])}
    assert set(top) == {"ä ö", "old"}
    assert top["ä ö"]["mode"] == "drwxr-x---"
    assert (top["old"]["size"], top["old"]["mtime"]) == (0, 99)
    assert told["top"]["errors"] == ""
    assert told["top"]["abspath"] == told["top"]["folder_path"] == "/home/work"
    inner = {entry["filename"]: entry for entry in json.loads(told["folder"]["files"])}
    assert set(inner) == {".x", "l"}
    assert inner["l"]["mode"][0] == "l"
    assert inner[".x"]["size"] == 3
    assert told["absolute"] == told["folder"]
    assert told["absolute"]["abspath"] == "/home/work/ä ö"
    assert (told["missing"]["status"], told["missing"]["title"]) == (
        404,
        "No such file or directory.",
    )
    assert told["outside"]["status"] == told["file"]["status"] == 400


def test_a_download_beyond_a_limit_is_refused(sdk: Client, tmp_path: Path) -> None:
    told = sdk.scenario("sdk.py", "download_limits", tmp_path / "back")
    assert (told["too_many"]["status"], told["too_many"]["msg"]) == (400, "Too many files")
    assert (told["missing"]["status"], told["missing"]["msg"]) == (400, "The file is not found.")
    assert told["outside"]["status"] == 400
    assert told["five"] == list("12345")
    assert set(tree(tmp_path / "back")) == set("12345")


# --- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["sdk.py", "sdk_async.py"])
def test_a_batch_tells_clean_build_and_exec_in_order(
    sdk: Client, folder: Path, script: str
) -> None:
    write(
        folder,
        {
            "Makefile": "main: main.c\n\t$(CC) -o $@ $<\nclean:\n\trm -f note\n",
            "main.c": MAIN_C,
            "note": "to be cleaned away",
        },
    )
    options = {"clean": "*", "build": "*", "exec": "./main; s=$?; ls; exit $s"}
    answers = sdk.scenario(script, "batch", folder, "gcc", json.dumps(options))
    assert statuses(answers) == [("clean-finished", 0), ("build-finished", 0), ("finished", 7)]
    by_status = {a["status"]: a for a in answers}
    assert printed([by_status["clean-finished"]]) == "rm -f note\n"
    assert "-o main main.c" in printed([by_status["build-finished"]])
    assert printed(answers).endswith("5 – grün\nMakefile\nmain\nmain.c\n")
    assert all(a["files"] == [] and a["options"] is None for a in answers)


@pytest.mark.parametrize("script", ["sdk.py", "sdk_async.py"])
def test_a_failing_build_ends_with_127(sdk: Client, folder: Path, script: str) -> None:
    write(folder, {"main.c": "int main(void) { return missing; }\n"})
    options = {"clean": "false", "build": "*", "exec": "echo never"}
    answers = sdk.scenario(script, "batch", folder, "gcc", json.dumps(options))
    assert [name for name, _ in statuses(answers)] == [
        "clean-finished",
        "build-finished",
        "finished",
    ]
    codes = [code for _, code in statuses(answers)]
    assert codes[0] == 1
    assert codes[1] not in (0, None)
    assert codes[2] == 127
    assert "missing" in printed(answers, "stderr")
    assert printed(answers) == ""


@pytest.mark.parametrize("script", ["sdk.py", "sdk_async.py"])
def test_a_program_asks_for_several_lines(sdk: Client, folder: Path, script: str) -> None:
    write(
        folder,
        {
            "main.py": "a = input('Wer? ')\nb = input('什么? ')\n"
            "import sys\nc = sys.stdin.readline()\nprint(repr((a, b, c)))\n"
        },
    )
    answers = sdk.scenario(
        script, "batch", folder, "python", '{"exec": "*"}', json.dumps(["Jürg", "三 😀", "last\n"])
    )
    waits = [a for a in answers if a["status"] == "waiting-input"]
    assert [a["options"] for a in waits] == [{"is_password": False}] * 3
    assert [a["exitCode"] for a in waits] == [None] * 3
    assert printed(answers) == "Wer? 什么? ('Jürg', '三 😀', 'last\\n')\n"
    assert printed(answers[: answers.index(waits[0]) + 1]) == "Wer? "
    assert answers[-1]["exitCode"] == 0


@pytest.mark.parametrize("script", ["sdk.py", "sdk_async.py"])
def test_a_c_snippet_is_compiled_and_asks(sdk: Client, script: str) -> None:
    code = """
    #include <stdio.h>
    int main(void) {
        int a, b;
        printf("two numbers: "); fflush(stdout);
        if (scanf("%d", &a) != 1 || scanf("%d", &b) != 1) return 1;
        printf("%d\\n", a * b);
        return 3;
    }
    """
    answers = sdk.scenario(script, "query", "gcc", code, '["6", "7"]')
    assert [name for name, _ in statuses(answers)] == ["waiting-input"] * 2 + ["finished"]
    assert printed(answers) == "two numbers: 42\n"
    assert answers[-1]["exitCode"] == 3


@pytest.mark.parametrize("script", ["sdk.py", "sdk_async.py"])
def test_a_python_snippet_prints_and_its_traceback_goes_to_stderr(sdk: Client, script: str) -> None:
    answers = sdk.scenario(script, "query", "python", "print('é')\n1 / 0\n")
    assert statuses(answers)[-1][0] == "finished"
    assert printed(answers) == "é\n"
    assert "ZeroDivisionError" in printed(answers, "stderr")


def test_the_environment_of_a_session_reaches_its_programs(sdk: Client) -> None:
    assert sdk.scenario("sdk.py", "environ") == "grüß dich"


def test_two_streams_and_a_polled_run_do_not_disturb_each_other(sdk: Client) -> None:
    one, other, polled = sdk.scenario("sdk_async.py", "side_by_side")
    assert printed(one) == "one 1\n"
    assert printed(other) == "other 2\n"
    assert printed(polled) == "polled\n"


def test_a_stream_left_early_takes_its_program_along(sdk: Client) -> None:
    answers = sdk.scenario("sdk_async.py", "leave_early")
    assert printed(answers) == "0\n"


def test_a_careless_call_is_told_what_is_wrong(sdk: Client) -> None:
    told = sdk.scenario("sdk.py", "errors")
    assert told["continue"]["status"] == 400
    assert told["continue"]["msg"] == "continuation requires explicit run ID"
    assert (told["stale"]["status"], told["stale"]["title"]) == (404, "No such run.")
    assert told["options"]["status"] == 400


# --- sessions ----------------------------------------------------------------------------------


def test_information_has_the_keys_that_the_client_shows(sdk: Client) -> None:
    info = sdk.scenario("sdk.py", "info")
    assert info["status"] == "RUNNING"
    assert info["image"] == info["lang"]
    assert info["image"].startswith("gcc:")
    assert info["numQueriesExecuted"] == 1
    assert 0 < info["age"] < 60_000
    assert info["terminationTime"] is None
    for key in ("occupiedSlots", "occupyingSlots", "requestedSlots", "environ", "resourceOpts"):
        json.loads(info[key])
    for key in ("memoryLimit", "cpuCreditUsed"):
        assert isinstance(info[key], int)


def test_an_interrupt_reaches_the_program(sdk: Client, folder: Path) -> None:
    write(
        folder,
        {
            "main.py": "import time\nprint('ready', flush=True)\n"
            "try:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    raise SystemExit(42)\n"
        },
    )
    answers = sdk.scenario("sdk.py", "interrupt", folder)
    assert statuses(answers)[-1] == ("finished", 42)


def test_a_restart_keeps_files_and_ends_processes(sdk: Client) -> None:
    told = sdk.scenario("sdk.py", "restart")
    assert statuses([told["interrupted"]]) == [("finished", 130)]
    assert told["sleeping"] == "0\n"
    assert told["file"] == "text\nyes\n"
    assert told["status"] == "RUNNING"


def test_a_renamed_session_answers_to_its_new_name_only(sdk: Client) -> None:
    told = sdk.scenario("sdk.py", "rename")
    assert told["old"]["status"] == 404
    assert told["printed"] == "still here\n"


def test_a_destroyed_session_tells_statistics_and_is_gone(sdk: Client) -> None:
    told = sdk.scenario("sdk.py", "destroy")
    stats = told["first"]["stats"]
    assert stats.pop("status") == "terminated"
    assert stats.pop("version") == 1
    assert all(type(value) is int for value in stats.values())
    assert stats["cpu_used"] > 0
    assert stats["mem_max_bytes"] > 0
    for call in ("second", "execute"):
        assert (told[call]["status"], told[call]["title"]) == (404, "No such session.")
    assert {problem["status"] for problem in sdk.scenario("sdk_async.py", "gone")} == {404}


def test_the_asynchronous_sdk_moves_files(sdk: Client, tmp_path: Path) -> None:
    told = sdk.scenario("sdk_async.py", "files", tmp_path / "back")
    assert told == {"listed": ["sdk_async.py"], "status": "RUNNING"}
    back = tmp_path / "back" / "sdk_async.py"
    assert back.read_bytes() == (Path(__file__).parent / "client_scripts/sdk_async.py").read_bytes()
    assert stat.S_IMODE(back.stat().st_mode) == 0o644


# --- keys --------------------------------------------------------------------------------------


def test_a_key_made_beside_the_server_works_at_once_and_sees_only_its_own(
    sdk: Client, server: Server, tmp_path: Path
) -> None:
    other = with_key("client", server, tmp_path / "other", server.new_key())
    name = f"mine-{uuid.uuid4().hex[:12]}"
    mine, is_new = sdk.scenario("sdk.py", "create", name)
    assert is_new
    try:
        for reference in (name, mine):
            problems = other.scenario("sdk.py", "reach", reference)
            assert {problem["status"] for problem in problems} == {404}
            assert {problem["title"] for problem in problems} == {"No such session."}
        theirs, is_new = other.scenario("sdk.py", "create", name)
        assert is_new
        assert theirs != mine
        other.scenario("sdk.py", "end", name)
    finally:
        ended: dict[str, Any] = sdk.scenario("sdk.py", "end", name)
    assert ended["stats"]["status"] == "terminated"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"secretKey": "not-the-secret"}, "Signature mismatch"),
        ({"accessKey": "AKNOSUCHKEY000000000"}, "Access key not found"),
    ],
)
def test_a_wrong_key_is_refused(
    server: Server, tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    key = {"accessKey": server.access_key, "secretKey": server.secret_key, **changed}
    problem = with_key("client", server, tmp_path, key).scenario("sdk.py", "refused")
    assert problem["status"] == 401
    assert problem["type"].endswith("/auth-failed")
    assert problem["msg"] == message
