"""What a step leaves behind is dead before its end is told."""
# ruff: noqa: ASYNC240  what is polled and read here is procfs and other processes

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
from tests.sandbox.init.box import BINARY, BUILT, Box, open_descriptors
from tests.sandbox.init.conftest import only_pid1

from retort.sandbox.init import InitClient
from retort.sandbox.protocol import Scope

# Forks twice, leaves the session, ignores what can be ignored, keeps the output open.
DAEMON = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        print("daemon", os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
os.wait()
"""


async def test_daemon_is_dead_before_exited(box: Box, client: InitClient) -> None:
    ran = await box.py(client, DAEMON)
    # read_all came to its end: nobody has the output open any more
    assert ran.exit.exit_code == 0
    with pytest.raises(ProcessLookupError):
        await client.kill(0, 0, Scope.EVERYTHING)


@only_pid1
async def test_fork_storm_is_dead_before_exited(box: Box, client: InitClient) -> None:
    # The storm always has descendants that are just being born when the main process ends.
    script = """
import os
started, go = os.pipe()
gate, shut = os.pipe()
for _ in range(4):
    if os.fork() == 0:
        os.close(shut)
        os.read(gate, 1)  # until all four are there: the storm leaves no room for a fifth
        os.write(go, b"x")
        while True:
            try:
                if os.fork() and os.fork(): os._exit(0)
            except OSError: pass
os.close(shut)
for _ in range(4): os.read(started, 1)
os._exit(0)
"""
    ran = await box.py(client, script, rlimits=[(resource.RLIMIT_NPROC, 64, 64)])
    assert ran.exit.exit_code == 0
    with pytest.raises(ProcessLookupError):
        await client.kill(0, 0, Scope.EVERYTHING)
    assert (await box.sh(client, "echo after")).text == "after\n"


async def test_stopped_and_traced_leftovers_die(box: Box, client: InitClient) -> None:
    ran = await box.sh(client, "sleep 600 & kill -STOP $!; setsid sleep 600 & exit 2")
    assert ran.exit.exit_code == 2


async def test_orphans_by_the_hundred_are_reaped(box: Box, client: InitClient) -> None:
    script = "for i in $(seq 300); do (true &) ; done; exit 0"
    await box.sh(client, script)
    children = Path(f"/proc/{box.pid(client)}/task/{box.pid(client)}/children")
    assert children.read_text() == ""


async def test_background_is_kept_when_asked_for(box: Box, client: InitClient) -> None:
    script = "setsid sleep 600 > /dev/null 2>&1 & exit 0"
    await box.sh(client, script, keep_background=True)
    await client.kill(0, 0, Scope.EVERYTHING)  # somebody is there
    await box.sh(client, "exit 0", keep_background=True)
    await client.kill(0, 0, Scope.EVERYTHING)
    await box.sh(client, "exit 0")  # a step without the flag ends it
    with pytest.raises(ProcessLookupError):
        await client.kill(0, 0, Scope.EVERYTHING)


async def test_daemon_of_a_step_that_ends_beside_another_dies_with_the_last(
    box: Box, client: InitClient
) -> None:
    with (
        await box.start(client, "/bin/sleep", "600") as other,
        await box.start(client, "/usr/bin/python3", "-c", DAEMON) as running,
    ):
        assert (await running.line()).startswith("daemon")
        await running.ended()
        await client.kill(other.number, signal.SIGKILL)
        await other.ended()
        assert await running.read_all() == b""


@pytest.mark.slow
async def test_thousand_steps_leave_no_descriptor_and_no_zombie(
    box: Box, client: InitClient
) -> None:
    await box.run(client, "/bin/true")
    init = box.pid(client)

    def growth() -> tuple[int, int, str]:
        return (
            open_descriptors(),
            open_descriptors(init),
            Path(f"/proc/{init}/task/{init}/children").read_text(),
        )

    before = growth()
    null = os.open("/dev/null", os.O_RDONLY)
    for i in range(1000):
        standby = 0
        if i % 3 == 0:
            ready = await client.prepare()
            os.close(ready.pidfd)
            standby = ready.pid_inside
        argv = ["/bin/true"] if i % 10 else ["/bin/bash", "-c", "sleep 600 & exit 0"]
        await box.run(client, *argv, standby=standby, held=(null,) * (i % 4))
    os.close(null)
    assert growth() == before
    memory = Path(f"/proc/{init}/status").read_text()
    resident_kib = int(memory.split("VmRSS:")[1].split()[0])
    if BINARY == BUILT:  # sanitizers keep shadows
        assert resident_kib < 4096
