"""The command line of the protocol's public client, as released: what a user types and reads."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.clients import Client, client, with_key
from tests.e2e.conftest import Server

pytestmark = pytest.mark.slow  # each command starts a Python with the client in it

MAIN_C = """\
#include <stdio.h>
int add(int, int);
int main(void) { printf("%d\\n", add(2, 3)); return 6; }
"""
ADD_C = "int add(int a, int b) { return a + b; }\n"


@pytest.fixture
def cli(server: Server, tmp_path: Path) -> Client:
    return client("client", server, tmp_path / "home")


@pytest.fixture
def name(cli: Client) -> Iterator[str]:
    """A session that the command line made."""
    made = f"cli-{uuid.uuid4().hex[:12]}"
    done = cli.ok("start", "-t", made, "gcc")
    assert re.search(r"Session ID [0-9a-f-]{36} is created and ready\.", done.stderr)
    yield made
    cli.command("rm", made)


def notes(text: str) -> list[str]:
    """Give the lines that tell what was done, without the progress bars."""
    lines = re.split(r"[\r\n]+", text)
    return [line[2:].removeprefix("[0] ") for line in lines if line[:1] in "✓✔✘✗" and line]


# --- run ---------------------------------------------------------------------------------------


def test_run_builds_c_files_and_runs_the_program(cli: Client) -> None:
    files = cli.write(main__c=MAIN_C, add__c=ADD_C)
    done = cli.ok("run", "--rm", "gcc", *files)
    assert done.stdout == "5\n"
    told = notes(done.stderr)
    assert re.fullmatch(r"Session pysdk-\w+ is ready \(domain=default, group=default\)\.", told[0])
    assert told[1:] == [
        "Uploading done.",
        "Clean finished. (exit code = 0)",
        "Build finished. (exit code = 0)",
        "Execution finished. (exit code = 6)",
        "Cleaned up the session.",
    ]


@pytest.mark.parametrize(
    ("image", "file", "content", "options", "printed"),
    [
        (
            "cpp",
            "main.cpp",
            '#include <iostream>\nint main() { std::cout << "C++ grüßt\\n"; }\n',
            (),
            "C++ grüßt\n",
        ),
        ("python", "main.py", "print('Python', 6 * 7)\n", (), "Python 42\n"),
        ("bash", "go.sh", 'echo "bash: $0 $#"\n', ("--exec", "bash go.sh"), "bash: go.sh 0\n"),
    ],
)
def test_run_speaks_several_languages(
    cli: Client, image: str, file: str, content: str, options: tuple[str, ...], printed: str
) -> None:
    (cli.folder / file).write_text(content)
    done = cli.ok("run", "--rm", "-q", image, file, *options)
    assert done.stdout == printed


def test_run_takes_other_commands(cli: Client) -> None:
    files = cli.write(main__c=MAIN_C, add__c=ADD_C)
    done = cli.ok(
        *("run", "--rm", "gcc", *files),
        *("--clean", "echo clean; false", "--build", "gcc -v -o prog *.c", "--exec", "./prog; ls"),
    )
    assert done.stdout == "clean\n5\nadd.c\nmain.c\nprog\n"
    assert "gcc version" in done.stderr
    assert [line for line in notes(done.stderr) if "finished" in line] == [
        "Clean finished. (exit code = 1)",
        "Build finished. (exit code = 0)",
        "Execution finished. (exit code = 0)",
    ]


def test_run_shows_what_the_compiler_says(cli: Client) -> None:
    files = cli.write(main__c="int main(void) { return missing; }\n")
    done = cli.ok("run", "--rm", "gcc", *files)  # it ran, whatever became of the program
    assert done.stdout == ""
    assert re.search(r"main\.c:1:\d+: error: .*missing", done.stderr)
    assert "Execution finished. (exit code = 127)" in notes(done.stderr)


def test_run_keeps_the_folders_of_its_files(cli: Client) -> None:
    (cli.folder / "lib" / "ünï").mkdir(parents=True)
    (cli.folder / "lib" / "ünï" / "add.h").write_text(ADD_C)
    files = cli.write(
        main__c='#include "lib/ünï/add.h"\nint main(void) { return add(40, 2); }\n',
    )
    done = cli.ok("run", "--rm", "gcc", *files, "lib/ünï/add.h")
    assert "Execution finished. (exit code = 42)" in notes(done.stderr)


def test_run_hands_on_what_is_piped_in(cli: Client) -> None:
    files = cli.write(
        main__py="first = input('Name? ')\nsecond = input('Alter? ')\nprint(first, second)\n"
    )
    done = cli.ok("run", "--rm", "-q", "python", *files, stdin="Jürg\n44\n")
    assert done.stdout == "Name? Alter? Jürg 44\n"


def test_run_takes_a_snippet_and_the_environment(cli: Client) -> None:
    done = cli.ok("run", "--rm", "-e", "GREETING=grüß", "-e", "X=1=2", "bash", "-c", "env")
    variables = done.stdout.splitlines()
    assert "GREETING=grüß" in variables
    assert "X=1=2" in variables
    assert "HOME=/home/work" in variables
    assert not any(line.startswith(("BACKEND_", "RETORT_")) for line in variables)


def test_run_quietly_prints_nothing_of_its_own(cli: Client) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr)"
    done = cli.ok("run", "--rm", "-q", "python", "-c", code)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_run_shows_statistics(cli: Client) -> None:
    done = cli.ok("run", "--rm", "-s", "-q", "python", "-c", "sum(range(3_000_000))")
    stats = dict(re.findall(r"^(\w+?) +([\d.,]+(?: \w+)?) *$", done.stdout, re.MULTILINE))
    assert float(stats["cpu_used_msec"].replace(",", "")) > 0
    assert stats["mem_max_bytes"].endswith("MiB")
    assert {"net_rx_bytes", "io_write_bytes", "io_max_scratch_size"} <= set(stats)


def test_run_tells_what_it_cannot_have(cli: Client) -> None:
    done = cli.ok("run", "no-such-image", "-c", "1")  # the client ends well even then
    assert "No such environment image." in done.stderr


def test_run_fails_with_too_many_files(cli: Client) -> None:
    files = [f"{number}.txt" for number in range(21)]
    for file in files:
        (cli.folder / file).touch()
    done = cli.command("run", "--rm", "bash", *files)
    assert done.returncode == 1
    assert "Too many files" in done.stderr


def test_run_varies_a_build_in_sessions_side_by_side(cli: Client) -> None:
    files = cli.write(main__c="int main(void) { return VALUE; }\n")
    done = cli.ok(
        *("run", "--rm", "gcc", *files, "--build-range", "n=range:3,6"),
        *("--build", "gcc -DVALUE=$n -o main main.c"),
    )
    codes = re.findall(r"Execution finished\. \(exit code = (\d+)\)", done.stderr)
    assert sorted(codes) == ["3", "4", "5"]


# --- sessions and files ------------------------------------------------------------------------


def test_a_session_is_used_again_by_its_name(cli: Client, name: str) -> None:
    assert cli.ok("run", "-t", name, "-q", "gcc", "-c", "int main(){return 0;}").stderr == ""
    done = cli.ok("run", "-t", name, "gcc", "-c", "int main(){return 3;}")
    assert f"Reusing session {name}..." in " ".join(notes(done.stderr))
    assert "Execution finished. (exit code = 3)" in notes(done.stderr)


def test_a_name_is_not_given_to_another_image(cli: Client, name: str) -> None:
    done = cli.command("session", "create", "-t", name, "python")
    assert done.returncode == 1
    assert "The session already exists but you requested not to reuse existing one." in done.stderr
    assert re.search(r"Existing session ID: [0-9a-f-]{36}", done.stderr)


def test_files_are_uploaded_listed_and_downloaded(cli: Client, name: str) -> None:
    (cli.folder / "sub").mkdir()
    (cli.folder / "sub" / "ä b.bin").write_bytes(bytes(range(256)) * 300)
    cli.write(main__c=MAIN_C)
    cli.ok("session", "upload", name, "main.c", "sub/ä b.bin")

    top = cli.ok("session", "ls", name).stdout
    assert re.search(r"^File name +Size +Modified +Mode *$", top, re.MULTILINE)
    assert re.search(rf"^main\.c +{len(MAIN_C)} Bytes .* -rw-r--r--$", top, re.MULTILINE)
    assert re.search(r"^sub +.* d[rwx-]{9}$", top, re.MULTILINE)
    inner = cli.ok("session", "ls", name, "sub").stdout
    assert re.search(r"^ä b\.bin +75\.0 KiB .* -rw-r--r--$", inner, re.MULTILINE)

    cli.ok("session", "download", name, "main.c", "sub", "--dest", cli.folder / "back")
    assert (cli.folder / "back/main.c").read_text() == MAIN_C
    assert (cli.folder / "back/sub/ä b.bin").read_bytes() == bytes(range(256)) * 300


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("ls", "nowhere"), "No such file or directory."),
        (("ls", "/etc"), "Missing or invalid API parameters."),
        (("download", "nowhere"), "The file is not found."),
        (("download", "../.."), "Missing or invalid API parameters."),
    ],
)
def test_a_path_that_is_not_there_is_an_error(
    cli: Client, name: str, command: tuple[str, ...], message: str
) -> None:
    done = cli.command("session", command[0], name, *command[1:])
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize("short", [(), ("session",)], ids=["short", "session"])
def test_a_session_is_restarted_renamed_and_removed(
    cli: Client, name: str, short: tuple[str, ...]
) -> None:
    cli.write(kept="text")
    cli.ok("session", "upload", name, "kept")
    cli.ok(*short, "restart", name)
    renamed = f"{name}-2"
    assert f"Session renamed to {renamed}." in cli.ok("session", "rename", name, renamed).stderr
    assert "kept" in cli.ok("session", "ls", renamed).stdout
    assert cli.command("session", "ls", name).returncode == 1
    done = cli.ok(*short, "rm", "-s", renamed)
    assert "cpu_used_msec" in done.stdout
    again = cli.command(*short, "rm", renamed)
    assert again.returncode == 1
    assert "No such session." in again.stderr


def test_sessions_are_listed_and_told_of(cli: Client, name: str) -> None:
    only = ("--filter", f'name == "{name}"')
    (item,) = json.loads(cli.ok("--output=json", "ps", *only).stdout)["items"]
    session_id = item["session_id"]
    for command in (("ps",), ("session", "list", "--detail"), ("ps", "--running")):
        told = cli.ok(*command, *only).stdout
        row = next(line for line in told.splitlines() if name in line)
        assert all(word in row for word in (session_id, "default", "gcc", "RUNNING", "UNDEFINED"))
    for command in (("info",), ("session", "info")):
        told = cli.ok(*command, session_id).stdout
        assert re.search(rf"^Name +{name}$", told, re.MULTILINE)
        assert "cpu_used" in told
    cli.ok("rm", name)
    dead = cli.ok("ps", "--dead", *only).stdout
    assert "TERMINATED" in next(line for line in dead.splitlines() if name in line)
    assert "TERMINATED" in cli.ok("info", session_id).stdout
    missing = cli.command("info", "00000000-0000-4000-8000-000000000000")
    assert missing.returncode == 1
    assert "no such" in (missing.stdout + missing.stderr).lower()


# --- the client's own settings -----------------------------------------------------------------


def test_config_tells_both_versions(cli: Client, server: Server) -> None:
    told = cli.ok("config").stdout
    assert f"API endpoint: {server.url} (mode: api)" in told
    assert "Server version: 23.09.10 (API: v7.20230615)" in told
    assert "Negotiated API version: (7, '20230615')" in told
    assert server.access_key in told
    assert server.secret_key not in told


def test_a_wrong_secret_is_told(server: Server, tmp_path: Path) -> None:
    key = {"accessKey": server.access_key, "secretKey": "not-the-secret"}
    done = with_key("client", server, tmp_path, key).command("session", "ls", "any-session")
    assert done.returncode == 1
    assert "Credential/signature mismatch." in done.stderr
    assert "Signature mismatch" in done.stderr
