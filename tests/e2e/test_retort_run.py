"""`retort run`, with a server and without one: the program as if it had been started here."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import ROOT, Server, environment
from tests.e2e.running import processes_with

pytestmark = pytest.mark.slow
COMMAND = (sys.executable, "-m", "retort.cli.main", "run")


@pytest.fixture
def place() -> Iterator[Path]:
    """Where temporary servers put their folder: passable by every uid, empty afterwards."""
    place = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))  # short: sockets lie in it
    place.chmod(0o755)
    yield place
    left = [path.name for path in place.iterdir()]
    shutil.rmtree(place)
    assert left == [], "something was left behind"


@pytest.fixture(params=["own", "server"])
def env(request: pytest.FixtureRequest, place: Path) -> dict[str, str]:
    """The environment of a `retort run`: with a temporary server, and with a running one."""
    if request.param == "own":
        return environment(TMPDIR=str(place))
    server: Server = request.getfixturevalue("server")
    return environment(
        TMPDIR=str(place),
        BACKEND_ENDPOINT=server.url,
        BACKEND_ACCESS_KEY=server.access_key,
        BACKEND_SECRET_KEY=server.secret_key,
    )


def _run(
    env: dict[str, str], folder: Path, *args: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *args], env=env, cwd=folder, input=stdin, capture_output=True, timeout=60
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib/add.h").write_text("int add(int a, int b);\n")
    (folder / "lib/add.c").write_text('#include "add.h"\nint add(int a, int b) { return a + b; }\n')
    (folder / "main.c").write_text(
        '#include <stdio.h>\n#include "lib/add.h"\n'
        'int main(void) { printf("%d\\n", add(2, 3)); fprintf(stderr, "oops\\n"); return 7; }\n'
    )
    return folder


def test_streams_are_apart_and_the_exit_code_is_the_programs(
    env: dict[str, str], project: Path
) -> None:
    done = _run(env, project, "--quiet", ".")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"5\n", b"oops\n")


def test_a_failing_build_is_127_and_shows_why(env: dict[str, str], project: Path) -> None:
    (project / "main.c").write_text("int main(void) { return nonsense; }")
    done = _run(env, project, ".")
    assert (done.returncode, done.stdout) == (127, b"")
    assert b"nonsense" in done.stderr
    assert b"the build failed with exit code 1" in done.stderr


def test_a_signal_is_128_and_its_number(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "main.sh").write_text("kill -SEGV $$\n")
    assert _run(env, tmp_path, "main.sh").returncode == 128 + signal.SIGSEGV


def test_input_is_passed_on_line_by_line_when_asked_for(
    env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text("print(input('a? '), input('b? '))\n")
    done = _run(env, tmp_path, "main.py", stdin="eins\nzwölf\n".encode())
    assert done.stdout.decode() == "a? b? eins zwölf\n"
    assert done.returncode == 0


def test_a_program_that_waits_for_more_than_there_is_gets_ended(
    env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "main.sh").write_text("cat\n")
    done = _run(env, tmp_path, "main.sh", stdin=b"one\n")
    assert (done.returncode, done.stdout) == (125, b"one\n")
    assert b"--stdin" in done.stderr


def test_all_of_the_input_goes_with_its_end_and_every_byte(
    env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "main.sh").write_text('sha256sum; echo "[$BASH_ENV]"\n')
    done = _run(env, tmp_path, "--stdin", "main.sh", stdin=bytes(range(256)))
    assert done.stdout.split() == [
        b"40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880", b"-", b"[]",
    ]  # fmt: skip


def test_output_comes_while_the_program_still_runs(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "main.sh").write_text("echo first; read line; echo second\n")
    with subprocess.Popen(
        [*COMMAND, "-q", "main.sh"],
        env=env, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.stdout.read() == b"second\n"


def test_variables_and_commands_are_the_callers(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("data")
    done = _run(
        env | {"FROM_HERE": "2"},
        tmp_path,
        *("--image", "bash", "--build", "cat data.txt > made", "--env", "A=1", "--env=FROM_HERE"),
        *("--exec", 'cat made; echo "$A$FROM_HERE"', "data.txt"),
    )
    assert (done.returncode, done.stdout) == (0, b"data12\n")


def test_what_was_made_is_fetched_byte_for_byte(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    made = "import os; os.makedirs('.output/d'); open('.output/d/x', 'wb').write(bytes(range(256)))"
    (tmp_path / "main.py").write_text(made + "; os.symlink('/etc/passwd', '.output/link')")
    done = _run(env, tmp_path, "main.py", "--fetch", ".output", "--to", "into")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "into/.output/d/x").read_bytes() == bytes(range(256))
    assert not os.path.lexists(tmp_path / "into/.output/link")


def test_a_missing_file_to_fetch_is_our_failure_if_the_program_had_none(
    env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "main.sh").write_text("exit $CODE\n")
    for code, expected in (("0", 125), ("3", 3)):
        done = _run(env, tmp_path, "main.sh", "--env", f"CODE={code}", "--fetch", "nothing")
        assert done.returncode == expected
        assert b"--fetch nothing: " in done.stderr


def test_bytes_that_are_not_utf8_are_marked_and_the_rest_is_whole(
    env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "main.sh").write_text(r"printf 'a\xff\x1b[1mb\xc3\xbc\0'")
    assert _run(env, tmp_path, "main.sh").stdout == "a\ufffd\x1b[1mbü\0".encode()


def test_an_unknown_image_is_told_plainly(env: dict[str, str], tmp_path: Path) -> None:
    done = _run(env, tmp_path, "--image", "cobol", "--exec", "true")
    assert done.returncode == 125
    assert b"No such environment image: cobol" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_leaves_ends_everything(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "main.sh").write_text("yes\n")
    with subprocess.Popen(
        [*COMMAND, "-q", "main.sh"],
        env=env, cwd=tmp_path, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 128 + signal.SIGPIPE


SLEEPS = "import time\nprint('ready', flush=True)\ntry: time.sleep(600)\nfinally: print('bye')\n"


def _stopped(env: dict[str, str], folder: Path, signum: int, mark: str = "") -> tuple[int, bytes]:
    """Send a signal to a program that runs; give the exit code and what was printed after."""
    (folder / "main.py").write_text(SLEEPS)
    with subprocess.Popen(
        [*COMMAND, "-q", "--exec", f"exec python3 -u main.py {mark}", "main.py"],
        env=env, cwd=folder, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.killpg(process.pid, signum)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out


def test_an_interrupt_reaches_the_program_and_is_130(env: dict[str, str], tmp_path: Path) -> None:
    assert _stopped(env, tmp_path, signal.SIGINT) == (130, b"bye\n")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_termination_ends_all_at_once(env: dict[str, str], tmp_path: Path, signum: int) -> None:
    mark = f"retort-{uuid.uuid4().hex}"
    assert _stopped(env, tmp_path, signum, mark)[0] == 128 + signum
    assert not processes_with(mark)


async def test_sessions_end_with_the_command_unless_kept(
    server: Server, tmp_path: Path, api: aiohttp.ClientSession
) -> None:
    env = environment(BACKEND_ENDPOINT=server.url, RETORT_TOKEN=server.token)
    (tmp_path / "main.sh").write_text("true\n")

    async def sessions() -> set[str]:
        async with api.get("/session/_/match", params={"id": "run-"}) as answer:
            return {match["name"] for match in (await answer.json())["matches"]}

    assert _run(env, tmp_path, "main.sh").returncode == 0
    assert await sessions() == set()
    assert _run(env, tmp_path, "--keep", "main.sh").returncode == 0
    (kept,) = await sessions()
    async with api.delete(f"/session/{kept}") as answer:
        assert answer.status == 200


def test_a_wrong_key_is_told_plainly(server: Server, tmp_path: Path) -> None:
    env = environment(BACKEND_ENDPOINT=server.url, RETORT_TOKEN="rt_" + "x" * 40)
    done = _run(env, tmp_path, "--image", "bash", "--exec", "true")
    assert done.returncode == 125
    assert done.stderr.startswith(b"Error: ")
    assert b"Traceback" not in done.stderr


def test_settings_of_the_real_server_are_not_the_temporary_ones(
    place: Path, tmp_path: Path
) -> None:
    env = environment(TMPDIR=str(place), RETORT_DATABASE_URL="postgresql://nobody@127.0.0.1:1/x",
                      RETORT_STATE_FOLDER="/nonexistent", RETORT_RUNS_WALL_S="0.3")  # fmt: skip
    (tmp_path / "main.sh").write_text("sleep 600\n")
    done = _run(env, tmp_path, "main.sh")
    assert done.returncode == 124
    assert b"time ran out" in done.stderr


def as_nobody(*argv: str) -> list[str] | None:
    """A command as another user, with an interpreter that this user can start; None: no way."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    for python in (sys.executable, "/usr/bin/python3"):
        command = [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-i"),
            *("PATH=/usr/bin:/bin", f"PYTHONPATH={ROOT / 'src'}:{packages}"),
            *("PYTHONDONTWRITEBYTECODE=1", f"PYTHON={python}"),
        ]
        try:
            subprocess.run(
                [*command, python, "-c", "import uvloop, retort"], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return [*command, *(python if word == sys.executable else word for word in argv)]
    return None


def test_an_unprivileged_user_can_run_without_a_server(place: Path) -> None:
    command = as_nobody("HOME=" + str(place / "home"), f"TMPDIR={place}", *COMMAND, "main.c")
    if os.geteuid() != 0 or command is None:
        pytest.skip("needs root, and an interpreter that others can start")
    work = place / "work"
    work.mkdir()
    (work / "main.c").write_text('#include <stdio.h>\nint main(void) { puts("hi"); return 4; }\n')
    place.chmod(0o1777)
    done = subprocess.run(command, cwd=work, capture_output=True, timeout=60)
    shutil.rmtree(work)
    assert (done.returncode, done.stdout) == (4, b"hi\n"), done.stderr


def test_the_demo_shows_every_step_and_the_same_program(place: Path) -> None:
    python = environment(TMPDIR=str(place), PYTHON=sys.executable)
    done = subprocess.run([ROOT / "scripts/demo"], env=python, capture_output=True, timeout=60)
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    for word in ("POST /session/demo/upload", "y = sin(x)", "curves.csv", "the same", "serve"):
        assert word in text
    assert "\x1b" not in text


def test_progress_is_shown_on_a_terminal_and_output_stays_clean(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "main.sh").write_text("echo out\n")
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [*COMMAND, "main.sh"],
        env=environment(TMPDIR=str(place)),
        cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    out, _ = process.communicate(timeout=60)
    shown = b""
    while select.select([ours], [], [], 0)[0]:
        try:
            shown += os.read(ours, 65_536)
        except OSError:
            break
    os.close(ours)
    assert out == b"out\n"
    assert b"exit code 0" in shown
