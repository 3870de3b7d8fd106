"""EXEC, its answers and its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import pty
import resource
import signal
from collections.abc import Callable, Iterator

import pytest
from tests.sandbox.init.box import Box, signal_number

from retort.sandbox.init import InitClient
from retort.sandbox.protocol import Features, Phase, Scope, State
from retort.sandbox.step_values import ExecStep, StepNotStarted


async def test_hello_tells_what_init_is(box: Box, client: InitClient) -> None:
    assert (client.running, client.unreleased) == (0, 0)
    assert bool(client.features & Features.PID1) is (box.kind == "pid1")
    assert client.features & Features.OPENAT2
    assert box.pid(client) > 0


async def test_exit_code_output_and_usage_are_reported(box: Box, client: InitClient) -> None:
    ran = await box.sh(client, "echo out; echo err >&2; exit 3")
    assert ran.output == b"out\nerr\n"
    assert (ran.exit.exit_code, ran.exit.signal) == (3, None)
    assert 0 < ran.exit.started_ns < ran.exit.ended_ns
    assert ran.exit.max_rss_kib > 500
    assert ran.exit.usage.minor_faults > 0


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 254, 255])
async def test_every_exit_code_is_exact(box: Box, client: InitClient, code: int) -> None:
    assert (await box.sh(client, f"exit {code}")).exit.wait_status == code << 8


@pytest.mark.parametrize(
    "name", ["HUP", "INT", "QUIT", "ILL", "ABRT", "FPE", "KILL", "USR1", "SEGV", "PIPE", "ALRM",
             "TERM", "XCPU", "XFSZ", "SYS", "BUS", "TRAP", "IO", "PROF", "RTMIN"]
)  # fmt: skip
async def test_every_fatal_signal_is_exact(box: Box, client: InitClient, name: str) -> None:
    # dash has no handlers of its own, so that every signal is at its default
    ran = await box.run(client, "/bin/dash", "-c", f"kill -{signal_number(name)} $$")
    assert ran.exit.signal == signal_number(name)
    assert ran.exit.exit_code is None


async def test_arguments_environment_and_cwd_arrive_as_sent(box: Box, client: InitClient) -> None:
    arguments = ["plain", "", "two words", "new\nline", "-rf", "ü", os.fsdecode(b"\xff\xfe")]
    script = "import os,sys; print([*map(os.fsencode, sys.argv[1:])], os.environb, os.getcwd())"
    argv = ["/usr/bin/python3", "-c", script, *arguments]
    ran = await box.run(client, *argv, env={"A": "1", "LC_CTYPE": "C.UTF-8"}, cwd=b"/usr")
    expected = [os.fsencode(argument) for argument in arguments]
    assert ran.text == f"{expected} environ({{b'A': b'1', b'LC_CTYPE': b'C.UTF-8'}}) /usr\n"


async def test_program_starts_with_clean_signals_and_umask(box: Box, client: InitClient) -> None:
    ran = await box.sh(client, "grep -E '^Sig(Blk|Ign)|^Umask' /proc/self/status")
    assert dict(line.split(":\t") for line in ran.text.splitlines()) == {
        "Umask": "0022",
        "SigBlk": "0" * 16,
        "SigIgn": "0" * 16,
    }


@contextlib.contextmanager
def ignored_signals(*numbers: int) -> Iterator[None]:
    """Ignore signals, by the kernel itself: glibc keeps 32 and 33 from its callers."""
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    rt_sigaction = {"x86_64": 13, "aarch64": 134}[os.uname().machine]
    ignore = ctypes.create_string_buffer(bytes([signal.SIG_IGN]), 64)
    before = [(number, ctypes.create_string_buffer(64)) for number in numbers]
    for number, old in before:
        assert system_call(rt_sigaction, number, ignore, old, 8) == 0, ctypes.get_errno()
    try:
        yield
    finally:
        for number, old in before:
            system_call(rt_sigaction, number, old, None, 8)


@pytest.mark.skipif(
    os.uname().machine not in ("x86_64", "aarch64"), reason="rt_sigaction has another number here"
)
async def test_signals_that_init_found_ignored_are_not_in_a_program(
    make_box: Callable[..., Box],
) -> None:
    with ignored_signals(signal.SIGUSR1, 32, 33, 64):
        box = make_box()
    client = await box.connect()
    ran = await box.sh(client, "grep SigIgn /proc/self/status")
    client.close()
    assert ran.text.split() == ["SigIgn:", "0" * 16]


async def test_program_leads_its_own_session_and_group(box: Box, client: InitClient) -> None:
    ran = await box.py(client, "import os; print(os.getpid(), os.getpgrp(), os.getsid(0))")
    pid = str(ran.started.pid_inside)
    assert ran.text.split() == [pid, pid, pid]


async def test_only_the_three_standard_descriptors_are_open(box: Box, client: InitClient) -> None:
    kept = os.open("/dev/null", os.O_RDONLY)
    script = """
import os
for fd in range(4096):
    try: print(os.fstat(fd) and fd)
    except OSError: pass
"""
    ran = await box.py(client, script, held=(kept,))
    os.close(kept)
    assert ran.text.split() == ["0", "1", "2"]


async def test_limits_are_set(box: Box, client: InitClient) -> None:
    rlimits = [
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, 64, 128),
        (resource.RLIMIT_FSIZE, 4096, 8192),
    ]
    script = "import resource as r; print(*map(r.getrlimit, (r.RLIMIT_CORE, r.RLIMIT_NOFILE, 1)))"
    ran = await box.py(client, script, rlimits=rlimits)
    assert ran.text == "(0, 0) (64, 128) (4096, 8192)\n"


async def test_without_limits_the_descriptor_limit_is_as_init_found_it(
    box: Box, client: InitClient
) -> None:
    ran = await box.py(client, "import resource as r; print(*r.getrlimit(r.RLIMIT_NOFILE))")
    soft, hard = map(int, ran.text.split())
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)


@pytest.mark.slow
async def test_cpu_limit_ends_the_program_with_sigxcpu(box: Box, client: InitClient) -> None:
    ran = await box.sh(client, "while :; do :; done", rlimits=[(resource.RLIMIT_CPU, 1, 2)])
    assert ran.exit.signal == signal.SIGXCPU


@pytest.mark.parametrize(
    ("change", "phase", "error"),
    [
        ({"argv": ["/nonexistent"]}, Phase.EXEC, errno.ENOENT),
        ({"argv": ["/usr"]}, Phase.EXEC, errno.EACCES),
        ({"argv": ["/usr/bin/python3/x"]}, Phase.EXEC, errno.ENOTDIR),
        ({"argv": ["bash"]}, Phase.EXEC, errno.ENOENT),  # no PATH search
        ({"argv": ["/etc/passwd"]}, Phase.EXEC, None),
        ({"cwd": b"/nonexistent"}, Phase.CWD, errno.ENOENT),
        ({"cwd": b"/usr/bin/bash"}, Phase.CWD, errno.ENOTDIR),
        ({"rlimits": [(9999, 1, 1)]}, Phase.RLIMIT, errno.EINVAL),
        ({"rlimits": [(resource.RLIMIT_NOFILE, 5, 4)]}, Phase.RLIMIT, errno.EINVAL),
        ({"tty": True}, Phase.SESSION, errno.ENOTTY),
    ],
)
async def test_failed_start_names_phase_and_errno(
    box: Box, client: InitClient, change: dict, phase: Phase, error: int | None
) -> None:
    argv = change.get("argv", ["/bin/true"])
    more = {name: value for name, value in change.items() if name != "argv"}
    with pytest.raises(StepNotStarted) as caught:
        await box.start(client, *argv, **more)
    assert caught.value.step_phase is phase
    assert error is None or caught.value.errno == error
    assert await client.steps() == []
    assert (await box.sh(client, "exit 7")).exit.exit_code == 7


async def test_step_number_in_use_is_refused(box: Box, client: InitClient) -> None:
    with await box.start(client, "/bin/cat", "/dev/zero", number=5) as running:
        with pytest.raises(ValueError, match="in use"):
            await box.start(client, "/bin/true", number=5)
        client.kill(5, signal.SIGKILL)
        await running.ended()
    with pytest.raises(StepNotStarted) as caught:
        await box.start(client, "/bin/true", number=5)
    assert (caught.value.step_phase, caught.value.errno) == (Phase.STEP, errno.EEXIST)
    await client.release(5)
    assert (await box.sh(client, "exit 0", number=5)).exit.exit_code == 0


async def test_seventeenth_unreleased_step_is_refused(box: Box, client: InitClient) -> None:
    for number in range(100, 116):
        with await box.start(client, "/bin/true", number=number) as running:
            await running.ended()
    with pytest.raises(StepNotStarted) as caught:
        await box.start(client, "/bin/true")
    assert (caught.value.step_phase, caught.value.errno) == (Phase.STEP, errno.ENOSPC)
    assert len(await client.steps()) == 16
    await client.release(103)
    await box.sh(client, "exit 0")


async def test_release_needs_an_ended_step(box: Box, client: InitClient) -> None:
    with pytest.raises(FileNotFoundError):
        await client.release(77)
    with await box.start(client, "/bin/sleep", "60", number=77) as running:
        with pytest.raises(OSError, match="STEP") as caught:
            await client.release(77)
        assert caught.value.errno == errno.EBUSY
        await client.kill(77, signal.SIGKILL)
        await running.ended()
    await client.release(77)
    with pytest.raises(FileNotFoundError):
        await client.release(77)


async def test_list_describes_running_and_ended_steps(box: Box, client: InitClient) -> None:
    tag = bytes(range(256)) * 32
    with await box.start(client, "/bin/true", tag=b"first") as first:
        await first.ended()
    with await box.start(client, "/bin/sleep", "60", tag=tag) as second:
        ended, running = await client.steps()
        assert (ended.number, ended.state, ended.tag) == (first.number, State.ENDED, b"first")
        assert ended.exit is not None
        assert ended.exit == await first.ended()
        assert (running.number, running.state, running.tag) == (second.number, State.RUNNING, tag)
        assert running.pid_inside == second.started.pid_inside
        assert running.exit is None
        await client.kill(second.number, signal.SIGKILL)
        await second.ended()


async def test_started_comes_before_exited_for_the_shortest_program(
    box: Box, client: InitClient
) -> None:
    order: list[str] = []
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(1, 51):
        done = asyncio.Event()

        def on_exit(_: object, done: asyncio.Event = done) -> None:
            order.append("exited")
            done.set()

        step = ExecStep(number, ["/bin/true"], {}, b"/", (null, null, null))
        future = client.exec(step, on_exit)
        future.add_done_callback(lambda _: order.append("started"))
        await asyncio.wait_for(done.wait(), 10)
        await client.release(number)
    os.close(null)
    assert order == ["started", "exited"] * 50


async def test_kill_reaches_main_process_or_its_group(box: Box, client: InitClient) -> None:
    script = "trap 'echo main' USR1; bash -c 'trap \"echo child\" USR1; echo ready; "
    script += "sleep 60 & wait; wait' & wait; wait; wait"
    with await box.start(client, "/bin/bash", "-c", script) as running:
        assert await running.line() == "ready"
        await client.kill(running.number, signal.SIGUSR1, Scope.MAIN)
        assert await running.line() == "main"
        await client.kill(running.number, 0, Scope.GROUP)
        await client.kill(running.number, signal.SIGKILL, Scope.GROUP)
        assert (await running.ended()).signal == signal.SIGKILL
        assert await running.read_all() == b""
    with pytest.raises(ProcessLookupError):
        await client.kill(running.number, signal.SIGKILL)


async def test_kill_of_everything_needs_no_step(box: Box, client: InitClient) -> None:
    script = "setsid bash -c 'echo ready; sleep 60'; exit 4"
    with await box.start(client, "/bin/bash", "-c", script) as running:
        assert await running.line() == "ready"
        await client.kill(0, signal.SIGKILL, Scope.EVERYTHING)
        assert (await running.ended()).signal == signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        await client.kill(0, 0, Scope.EVERYTHING)


@pytest.mark.parametrize(
    ("number", "sig", "scope"),
    [(0, 9, 1), (0, 9, 2), (1, -1, 1), (1, 9999, 1), (1, 9, 0), (1, 9, 4)],
)
async def test_kill_that_makes_no_sense_is_refused(
    box: Box, client: InitClient, number: int, sig: int, scope: int
) -> None:
    with pytest.raises(Exception, match="Invalid argument"):
        await client.kill(number, sig, scope)  # type: ignore[arg-type]


async def test_kill_of_unknown_step_is_not_found(client: InitClient) -> None:
    with pytest.raises(FileNotFoundError):
        await client.kill(4711, signal.SIGKILL)


async def test_two_steps_run_side_by_side_and_end_apart(box: Box, client: InitClient) -> None:
    with (
        await box.start(client, "/bin/bash", "-c", "sleep 60 & exec sleep 60") as first,
        await box.start(client, "/bin/bash", "-c", "read -t 60 < <(sleep 60)") as second,
    ):
        await client.kill(first.number, signal.SIGKILL)
        assert (await first.ended()).signal == signal.SIGKILL
        assert await first.read_all() == b""  # its background sleep is dead as well
        await client.kill(second.number, 0)
        assert not second.has_ended
        await client.kill(second.number, signal.SIGKILL)
        await second.ended()


async def test_terminal_becomes_the_controlling_one(box: Box, client: InitClient) -> None:
    ours, theirs = pty.openpty()
    ran = await box.sh(client, "echo through > /dev/tty && echo ok", stdin=theirs, tty=True)
    os.close(theirs)
    assert ran.text == "ok\n"
    assert os.read(ours, 100) == b"through\r\n"
    os.close(ours)
