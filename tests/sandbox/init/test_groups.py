"""A real init in a session's control group: its steps are born inside."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandbox.init.box import Box

from retort.core.limits import MIB, Limits
from retort.sandbox.cgroup import Groups, find
from retort.sandbox.init import InitClient
from retort.sandbox.session_group import Mode, SessionGroup

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
    deadline = time.monotonic() + 10
    while not made.remove():  # the box was killed just now; its last process may still be going
        assert time.monotonic() < deadline
        time.sleep(0.01)


def put(client: InitClient, session: SessionGroup) -> None:
    """Move init in; its standby child is made after that, so it is born inside."""
    info = Path(f"/proc/self/fdinfo/{client.pidfd}").read_text()
    session.add(int(next(line[4:] for line in info.splitlines() if line.startswith("Pid:"))))
    session.take()


async def test_a_step_is_killed_at_its_limit_and_init_lives_on(
    session: SessionGroup, box: Box, client: InitClient
) -> None:
    control = await box.sh(client, HOG)
    assert control.exit.exit_code == 0
    put(client, session)
    ran = await box.sh(client, HOG)
    assert ran.exit.exit_code == 137
    assert session.take().oom_kills == 1
    assert (await box.sh(client, "echo on")).text == "on\n"
    assert session.take().oom_kills == 0


async def test_what_a_step_leaves_behind_does_not_count_for_the_next(
    session: SessionGroup, box: Box, client: InitClient
) -> None:
    put(client, session)
    for _ in range(8):  # 24 processes in all, were they left: the limit is 20
        ran = await box.sh(client, "sleep 1000 & sleep 1000 & echo ok")
        assert ran.text == "ok\n"
        assert session.take().refused_forks == 0


async def test_init_cannot_reach_a_group_by_itself(
    box: Box, client: InitClient, groups: Groups, session: SessionGroup
) -> None:
    """It has a cgroup namespace of its own: so groups are the server's matter alone."""
    if groups.mode is not Mode.V2:
        pytest.skip("v2 only")
    fd = os.open(groups._folders["memory"] / "session", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="FORK"):
            os.close((await client.prepare(fd)).pidfd)
    finally:
        os.close(fd)
