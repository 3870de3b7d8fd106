"""Steps of a real init in control groups: the server moves the waiting child, from outside."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
from tests.sandbox.init.box import Box, Ran

from retort.core.limits import MIB, Limits
from retort.sandbox.cgroup import Groups, Mode, SessionGroup, StepGroup, find
from retort.sandbox.init import InitClient

pytestmark = pytest.mark.parametrize("kind", ["pid1"], indirect=True)

LIMITS = Limits(memory_bytes=64 * MIB, processes=20, cpus=1)
HOG = "/usr/bin/python3 -c 'a = bytearray(200 << 20); print(len(a))'; exit $?"


@pytest.fixture
def groups() -> Iterator[Groups]:
    found = find(uuid.uuid4().hex[:8])
    if found.mode is Mode.NONE:
        pytest.skip(f"this host gives no groups: {found.why_none}")
    yield found
    found.close()


@pytest.fixture
def session(groups: Groups) -> Iterator[SessionGroup]:
    made = groups.session("session", LIMITS)
    assert made is not None
    yield made
    assert made.remove()


async def run_in(box: Box, client: InitClient, step: StepGroup, script: str) -> Ran:
    standby = await client.prepare()
    step.add(standby.host_pid)
    os.close(standby.pidfd)
    return await box.sh(client, script, standby=standby.pid_inside)


async def test_a_step_is_killed_at_its_limit_and_init_lives_on(
    box: Box, client: InitClient, session: SessionGroup
) -> None:
    control = await box.sh(client, HOG)
    assert control.exit.exit_code == 0
    step = session.step("1")
    ran = await run_in(box, client, step, HOG)
    assert ran.exit.exit_code == 137
    assert step.measure().oom_kills == 1
    assert step.remove()
    assert (await box.sh(client, "echo on")).text == "on\n"


async def test_what_a_step_leaves_behind_is_gone_before_its_group(
    box: Box, client: InitClient, session: SessionGroup
) -> None:
    for name in ("1", "2"):
        step = session.step(name)
        ran = await run_in(box, client, step, "sleep 1000 & sleep 1000 & echo ok")
        assert ran.text == "ok\n"
        assert step.measure().processes_peak in (3, None)
        assert step.remove()


async def test_init_cannot_reach_a_group_by_itself(
    box: Box, client: InitClient, groups: Groups, session: SessionGroup
) -> None:
    """It has a cgroup namespace of its own: so groups are the server's matter alone."""
    if groups.mode is not Mode.V2:
        pytest.skip("v2 only")
    session.step("1")
    fd = os.open(groups._folders["memory"] / "session" / "1", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="FORK"):
            os.close((await client.prepare(fd)).pidfd)
    finally:
        os.close(fd)
