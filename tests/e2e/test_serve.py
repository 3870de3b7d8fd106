"""`retort serve` as its operator meets it: first start, later starts, and what can be wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import environment, retort

pytestmark = pytest.mark.slow
SERVE = (sys.executable, "-m", "retort.cli.main", "serve")


@contextlib.contextmanager
def _serving(state: Path, *args: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """Start a server; it is stopped, and has to stop, with the block."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    process: subprocess.Popen[str] = subprocess.Popen(
        [*SERVE, "--listen", "127.0.0.1:0", "--drain", "--state", str(state), *args],
        env=environment(),
        text=True,
        **given,  # type: ignore[call-overload]
    )
    try:
        yield process
    finally:
        process.terminate()  # killed, it would leave its control groups
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


def _refused(state: Path, *args: str, **env: str) -> str:
    """Start a server that cannot; give what it says."""
    done = subprocess.run(
        [*SERVE, "--state", str(state), *args],
        env=environment(**env), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return next(word for word in process.stdout.readline().split() if word.startswith("http"))


def test_the_first_start_prints_lines_that_work() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as state,  # short: sockets lie in it
        _serving(Path(state)) as process,
    ):
        Path(state).chmod(0o711)
        url = _url(process)
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(9)]
        exports = [line for line in lines if line.startswith("export ")]
        curl = next(line for line in lines if line.startswith("curl "))

        answer = subprocess.run(
            ["bash", "-c", curl + " --silent --fail"], capture_output=True, text=True, check=True
        ).stdout
        ran = subprocess.run(
            ["bash", "-c", "\n".join([*exports, '"$@"']), "bash",
             *(sys.executable, "-m", "retort.cli.main", "run"),
             *("--image", "bash", "--exec", "echo $((6 * 7))")],
            env=environment(), capture_output=True, text=True, check=True,
        )  # fmt: skip

        assert "role" in answer
        assert ran.stdout == "42\n"
        assert f"export BACKEND_ENDPOINT={url}" in exports


def test_a_later_start_answers_at_the_root_and_shows_no_secret(tmp_path: Path) -> None:
    made = retort("keys", "create", "--state", str(tmp_path))
    with _serving(tmp_path) as process:
        with urllib.request.urlopen(_url(process)) as answer:
            assert b"version" in answer.read()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    secret = made.split("BACKEND_SECRET_KEY=")[1].split()[0]
    assert out == "Retort stops.\n"
    assert secret not in out + err
    assert "curl" not in out


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0(tmp_path: Path, signum: int) -> None:
    with _serving(tmp_path) as process:
        _url(process)
        process.send_signal(signum)
        assert process.wait(60) == 0
    assert list((tmp_path / "sessions").iterdir()) == []


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert f"{address} is taken" in _refused(tmp_path, "--listen", address)


def test_a_second_server_on_the_folder_is_refused_and_the_first_lives_on(tmp_path: Path) -> None:
    with _serving(tmp_path) as process:
        url = _url(process)
        said = _refused(tmp_path, "--listen", "127.0.0.1:0")
        assert f"Another server runs on {tmp_path}" in said
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200


def test_no_bubblewrap_points_to_the_doctor(tmp_path: Path) -> None:
    said = _refused(tmp_path, "--listen", "127.0.0.1:0", RETORT_SANDBOX_BWRAP="no-such-bwrap")
    assert "no-such-bwrap: not found" in said
    assert "retort doctor" in said


def test_a_strange_address_is_told(tmp_path: Path) -> None:
    retort("keys", "create", "--state", str(tmp_path))
    assert "not an address of this machine" in _refused(tmp_path, "--listen", "192.0.2.1:0")


def test_a_state_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = _refused(tmp_path / "file" / "state", "--listen", "127.0.0.1:0")
    assert f"state folder {tmp_path / 'file' / 'state'}" in said


def test_beyond_loopback_a_key_comes_first(tmp_path: Path) -> None:
    said = _refused(tmp_path, "--listen", "0.0.0.0:0")
    assert f"retort keys create --state {tmp_path}" in said

    retort("keys", "create", "--state", str(tmp_path))
    with _serving(tmp_path, "--listen", "0.0.0.0:0") as process:
        assert _url(process)


def test_it_serves_on_when_its_output_is_gone(tmp_path: Path) -> None:
    retort("keys", "create", "--state", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reader, writer = os.pipe()
    os.close(reader)
    with _serving(
        tmp_path, "--listen", f"127.0.0.1:{port}", stdout=writer, stderr=writer
    ) as process:
        os.close(writer)
        _wait_for(port, process)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_first_key_that_nobody_saw_is_not_kept(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reader, writer = os.pipe()
    os.close(reader)
    with _serving(tmp_path, "--listen", f"127.0.0.1:{port}", stdout=writer) as process:
        os.close(writer)
        _wait_for(port, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert retort("keys", "list", "--state", str(tmp_path)) == ""


def test_no_key_is_made_for_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under systemd standard output is the journal, which others may read."""
    reader, writer = os.pipe()
    status = os.fstat(writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    with _serving(tmp_path, stdout=writer) as process, os.fdopen(reader) as lines:
        os.close(writer)
        assert "listens on" in lines.readline()
        assert f"retort keys create --admin --state {tmp_path}" in lines.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "export" not in lines.read()
    assert retort("keys", "list", "--state", str(tmp_path)) == ""


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    """Wait until a port is listened on, as long as the process lives."""
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)  # to leave the processor to the server
    pytest.fail("the server ended")
