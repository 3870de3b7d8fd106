"""The public client of 2018, as released: API v2, /v2/kernel paths, bodies in the signature."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest

from tests.e2e.clients import Client, client, statuses, with_key
from tests.e2e.conftest import Server, printed

pytestmark = pytest.mark.slow  # each test starts a Python with the client in it

MAIN_C = """\
#include <stdio.h>
#include "lib/ask.h"
int main(void) {
    char one[80], two[80];
    ask("Wer? ", one); ask("什么? ", two);
    printf("%s und %s\\n", one, two);
    return 5;
}
"""
ASK_H = """\
static void ask(const char *question, char *answer) {
    printf("%s", question); fflush(stdout);
    if (scanf("%79s", answer) != 1) answer[0] = 0;
}
"""


@pytest.fixture
def old(server: Server, tmp_path: Path) -> Client:
    return client("client-1", server, tmp_path / "home")


def test_a_kernel_lives_its_life(old: Client) -> None:
    (old.folder / "project" / "lib").mkdir(parents=True)
    (old.folder / "project" / "main.c").write_text(MAIN_C)
    (old.folder / "project" / "lib" / "ask.h").write_text(ASK_H)
    told = old.scenario("kernel_2018.py", "life", old.folder / "project")

    assert told["created"] == [True, False, True]
    assert told["uploaded"] == [200, {}]
    assert (told["too_many"]["status"], told["too_many"]["msg"]) == (400, "Too many files")

    # It never sends `clean`, and would begin anew at a status that it does not know.
    assert statuses(told["batch"]) == [
        ("build-finished", 0),
        ("waiting-input", None),
        ("waiting-input", None),
        ("finished", 0),
    ]
    assert printed(told["batch"]).startswith("Wer? 什么? Jürg und 三\n.:\nlib\nmain\nmain.c\n")
    assert statuses(told["failing"]) == [("build-finished", 3), ("finished", 127)]
    assert printed(told["failing"]) == ""

    assert told["info"]["status"] == "RUNNING"
    assert told["info"]["lang"].startswith("gcc:")
    assert told["info"]["numQueriesExecuted"] == 2
    assert 0 < told["info"]["age"] < 60_000
    assert told["completed"] == {"result": []}
    assert told["other_image"]["status"] == 400
    assert told["other_image"]["type"].endswith("/session-already-exists")

    assert printed(told["kept"]) == "lib\nmain\nmain.c\n"
    stats = told["destroyed"]["stats"]
    assert all(type(value) is int for value in stats.values())  # it takes int() of each
    assert {"cpu_used", "mem_max_bytes", "io_read_bytes"} <= set(stats)
    assert stats["cpu_used"] > 0
    assert told["again"]["status"] == 404


def test_a_snippet_runs_asks_and_knows_its_environment(old: Client) -> None:
    code = "import os; print(input('? '), os.environ['GREETING'])"
    answers = old.scenario("kernel_2018.py", "query", "python", code, '["ä"]')
    assert statuses(answers) == [("waiting-input", None), ("finished", 0)]
    assert printed(answers) == "? ä grüß\n"


def test_the_asynchronous_kernel_works_too(old: Client) -> None:
    answers, destroyed = old.scenario("kernel_2018.py", "asynchronously")
    assert statuses(answers) == [("build-finished", 0), ("finished", 0)]
    assert printed(answers) == "hi\n"
    assert destroyed["stats"]["cpu_used"] >= 0


def test_a_wrong_secret_is_refused(server: Server, tmp_path: Path) -> None:
    key = {"accessKey": server.access_key, "secretKey": "not-the-secret"}
    problem = with_key("client-1", server, tmp_path, key).scenario("kernel_2018.py", "refused")
    assert (problem["status"], problem["msg"]) == (401, "Signature mismatch")


def test_its_command_line_runs_files_and_shows_statistics(old: Client) -> None:
    files = old.write(main__c=MAIN_C.replace('"lib/ask.h"', '"ask.h"'), ask__h=ASK_H)
    done = old.ok("run", "--rm", "-s", "gcc", *files, stdin="Jürg\nEva\n")
    assert done.stdout.startswith("Wer? 什么? Jürg und Eva\n")
    assert re.search(r"cpu_used_msec +\d+", done.stdout)
    assert "Uploading done." in done.stderr
    assert "Build finished. (exit code = 0)" in done.stderr
    assert "Finished. (exit code = 5)" in done.stderr


def test_its_command_line_runs_a_snippet(old: Client) -> None:
    done = old.ok("run", "--rm", "-q", "-e", "X=1", "bash", "-c", "echo X is $X; echo e >&2")
    assert (done.stdout, done.stderr) == ("X is 1\n", "e\n")


def test_its_command_line_ends_a_session(old: Client) -> None:
    name = f"old-{uuid.uuid4().hex[:12]}"
    old.ok("run", "-t", name, "-q", "bash", "-c", "true")
    done = old.ok("terminate", "-s", name)
    assert "Done." in done.stderr
    assert "cpu_used_msec" in done.stdout
