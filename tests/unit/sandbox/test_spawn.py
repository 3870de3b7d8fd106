from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from retort.sandbox.spawn import Child, spawn


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def output_of(pipe: tuple[int, int], script: str, keep: tuple[int, ...] = ()) -> str:
    child = spawn(["/bin/bash", "-c", script], stdout=pipe[1], stderr=-1, env={"A": "b"}, keep=keep)
    assert child.wait() == 0
    return os.read(pipe[0], 65_536).decode()


def test_a_child_has_the_descriptors_that_were_named_and_no_other(pipe: tuple[int, int]) -> None:
    mine = [os.open("/dev/zero", os.O_RDONLY), *os.pipe(), os.memfd_create("x")]
    ours = socket.socket()
    try:
        seen = output_of(pipe, "cd /proc/self/fd; echo *", keep=(mine[0],)).split()
        assert {"0", "1", "2", str(mine[0])} <= set(seen)
        assert not {str(fd) for fd in (*mine[1:], ours.fileno(), *pipe)} & (
            set(seen) - {"3"}
        )  # 3: the folder itself
        seen = output_of(pipe, f"readlink /proc/self/fd/0 /proc/self/fd/{mine[0]}", (mine[0],))
        assert seen == "/dev/null\n/dev/zero\n"
    finally:
        ours.close()
        for fd in mine:
            os.close(fd)


def test_a_kept_descriptor_is_still_closed_for_the_next_child(pipe: tuple[int, int]) -> None:
    fd = os.open("/dev/zero", os.O_RDONLY)
    try:
        output_of(pipe, "echo", keep=(fd,))
        os.read(pipe[0], 0)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_signals_that_python_ignores_are_as_usual(pipe: tuple[int, int]) -> None:
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    ignored = int(output_of(pipe, "grep SigIgn /proc/self/status").split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


def test_the_environment_is_the_given_one_alone(pipe: tuple[int, int]) -> None:
    assert output_of(pipe, "tr '\\0' '\\n' < /proc/$$/environ") == "A=b\n"


def test_how_it_ended_is_told_as_popen_does() -> None:
    for script, code in (("exit 3", 3), ("kill -9 $$", -9), ("exit 0", 0)):
        child = spawn(["/bin/bash", "-c", script], stdout=-1, stderr=-1, env={}, keep=())
        assert (child.wait(), child.poll(), child.returncode) == (code, code, code)


def test_a_killed_child_is_over_and_killing_again_is_no_error() -> None:
    child = spawn(["/bin/sleep", "1000"], stdout=-1, stderr=-1, env={}, keep=(), is_leader=True)
    assert os.getsid(child.pid) == child.pid
    assert child.poll() is None
    child.kill()
    assert child.wait() == -signal.SIGKILL
    child.kill()


def test_a_child_that_somebody_else_waited_for_has_ended() -> None:
    child = spawn(["/bin/true"], stdout=-1, stderr=-1, env={}, keep=())
    os.waitpid(child.pid, 0)
    assert Child(child.pid).wait() == 0


def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        spawn(["/no/such/program"], stdout=-1, stderr=-1, env={}, keep=())
