"""PREPARE, and what happens when the child that it made is not there any more."""
# ruff: noqa: ASYNC110, ASYNC240  what is polled and read here is procfs and other processes

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
from pathlib import Path

import pytest
from tests.sandbox.init.box import DEADLINE_S, Box, open_descriptors

from retort.sandbox.init import InitClient
from retort.sandbox.protocol import Phase
from retort.sandbox.step_values import Standby, StepNotStarted


def kill_and_wait(standby: Standby) -> None:
    signal.pidfd_send_signal(standby.pidfd, signal.SIGKILL)
    assert select.select([standby.pidfd], [], [], DEADLINE_S)[0]
    os.close(standby.pidfd)


async def test_step_runs_in_the_prepared_child(box: Box, client: InitClient) -> None:
    standby = await client.prepare()
    host_pid = standby.host_pid
    os.close(standby.pidfd)
    assert Path(f"/proc/{host_pid}/comm").read_text() in ("retort-init\n", "init\n")
    ran = await box.sh(client, "echo $$", standby=standby.pid_inside)
    assert ran.started.pid_inside == standby.pid_inside
    assert ran.text == f"{standby.pid_inside}\n"


async def test_prepare_twice_answers_the_same_child(client: InitClient) -> None:
    first, second = await client.prepare(), await client.prepare()
    assert first.pid_inside == second.pid_inside
    assert first.host_pid == second.host_pid
    os.close(first.pidfd)
    os.close(second.pidfd)


async def test_standby_keeps_no_descriptor_of_init(box: Box, client: InitClient) -> None:
    kept = os.open("/dev/null", os.O_RDONLY)
    with await box.start(client, "/bin/sleep", "60", held=(kept, kept, kept)) as running:
        os.close(kept)
        standby = await client.prepare()
        host_pid = standby.host_pid
        os.close(standby.pidfd)
        # It closes them as the first thing that it does, maybe just after we were answered.
        async with asyncio.timeout(DEADLINE_S):
            while open_descriptors(host_pid) != 4:
                await asyncio.sleep(0.001)
        await client.kill(running.number, signal.SIGKILL)
        await running.ended()


async def test_killed_standby_is_replaced_when_any_will_do(box: Box, client: InitClient) -> None:
    kill_and_wait(await client.prepare())
    assert (await box.sh(client, "echo ok")).text == "ok\n"


async def test_killed_standby_is_never_replaced_when_it_was_asked_for(
    box: Box, client: InitClient
) -> None:
    standby = await client.prepare()
    kill_and_wait(standby)
    with pytest.raises(StepNotStarted) as caught:
        await box.start(client, "/bin/true", standby=standby.pid_inside)
    assert caught.value.step_phase is Phase.STANDBY
    again = await client.prepare()
    os.close(again.pidfd)
    assert again.pid_inside != standby.pid_inside
    assert (await box.sh(client, "echo ok", standby=again.pid_inside)).text == "ok\n"


async def test_child_that_is_killed_before_execve_ran_nothing(box: Box, client: InitClient) -> None:
    standby = await client.prepare()
    # Stopped, it cannot reach its execve before the SIGKILL that follows.
    signal.pidfd_send_signal(standby.pidfd, signal.SIGSTOP)
    os.kill(box.pid(client), signal.SIGSTOP)
    future = None
    try:
        starting = box.start(client, "/bin/true", standby=standby.pid_inside)
        future = asyncio.ensure_future(starting)
        await asyncio.sleep(0)
        kill_and_wait(standby)
    finally:
        os.kill(box.pid(client), signal.SIGCONT)
    with pytest.raises(StepNotStarted) as caught:
        await future
    assert (caught.value.step_phase, caught.value.errno) in (
        (Phase.STANDBY, errno.ESRCH),
        (Phase.STANDBY, errno.EPIPE),
    )
    assert await client.steps() == []


async def test_stopped_standby_goes_on_at_exec(box: Box, client: InitClient) -> None:
    standby = await client.prepare()
    signal.pidfd_send_signal(standby.pidfd, signal.SIGSTOP)
    os.close(standby.pidfd)
    assert (await box.sh(client, "echo ok", standby=standby.pid_inside)).text == "ok\n"


async def test_descriptor_that_is_no_cgroup_is_refused(box: Box, client: InitClient) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(OSError, match="FORK"):
        await client.prepare(null)
    os.close(null)
    os.close((await client.prepare()).pidfd)  # the bad one is forgotten


@pytest.mark.parametrize("kind", ["bare"], indirect=True)
async def test_standby_is_born_in_its_cgroup(box: Box, client: InitClient) -> None:
    root = next(
        (p for p in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"))
         if (p / "cgroup.procs").exists() and os.access(p / "cgroup.procs", os.W_OK)), None,
    )  # fmt: skip
    if root is None:
        pytest.skip("no writable cgroup v2 tree")
    groups = [root / f"retort-test-{os.getpid()}-{i}" for i in range(2)]
    try:
        for group in groups:
            group.mkdir()
        fds = [os.open(group, os.O_RDONLY | os.O_DIRECTORY) for group in groups]
        first = await client.prepare(fds[0])
        second = await client.prepare(fds[1])
        assert first.pid_inside != second.pid_inside
        assert groups[1].joinpath("cgroup.procs").read_text() == f"{second.host_pid}\n"
        # A child made in place of a killed one belongs to the same group.
        kill_and_wait(second)
        ran = await box.sh(client, "grep 0:: /proc/self/cgroup")
        assert ran.text.strip().endswith(groups[1].name)
        for fd in (*fds, first.pidfd):
            os.close(fd)
    finally:
        for group in groups:
            group.rmdir()


async def test_standby_made_during_a_step_dies_with_it(box: Box, client: InitClient) -> None:
    with await box.start(client, "/bin/sleep", "60") as running:
        standby = await client.prepare()
        await client.kill(running.number, signal.SIGKILL)
        await running.ended()
        assert select.select([standby.pidfd], [], [], DEADLINE_S)[0]
        os.close(standby.pidfd)
    assert (await box.sh(client, "echo ok")).text == "ok\n"
