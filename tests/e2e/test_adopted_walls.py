"""The walls of a session are those it was made with, whatever server has it later."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import run_to_end
from tests.e2e.running import create, sh
from tests.e2e.test_survival import Mortal

pytestmark = pytest.mark.slow


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Mortal]:
    """A server that a test starts itself."""
    server = Mortal(tmp_path / "state")
    yield server
    if server.process is not None and server.process.poll() is None:
        server.kill()
    server.start("--drain")
    assert server.kill(signal.SIGTERM) == 0
    assert server.folders() == []


async def test_a_session_tells_the_walls_it_was_made_with(mortal: Mortal) -> None:
    open_ = {"RETORT_SANDBOX_NETWORK": "host", "RETORT_SANDBOX_FILE_LOCKS": "refused"}
    mortal.start(**open_)
    async with mortal.calls() as api:
        name = await create(api)
        before = (await run_to_end(api, name, exec="true"))[-1]
    mortal.kill()
    mortal.start()
    async with mortal.calls() as api:
        after = (await run_to_end(api, name, exec="true"))[-1]
        assert after["walls"] == before["walls"]
        assert (after["walls"]["network"], after["walls"]["seccomp"]) == (
            "host",
            "deny-list, no locks",
        )
        waits = [answer["usage"]["hostCpuWaitUs"] is None for answer in (before, after)]
        assert waits[0] == waits[1]
        new = (await run_to_end(api, await create(api), exec="true"))[-1]
        assert (new["walls"]["network"], new["walls"]["seccomp"]) == ("loopback", "deny-list")


FILES = "stat -f -c %c /home/work"


async def test_a_session_whose_files_were_not_capped_yet_is_capped_by_the_next_server(
    mortal: Mortal,
) -> None:
    """As when the server was killed in the milliseconds between a session's answer and its cap."""
    mortal.start(RETORT_SANDBOX_SCRATCH_INODES="1000")
    async with mortal.calls() as api:
        name = await create(api)
        assert await sh(api, name, FILES) == (0, "1000\n")
    mortal.kill()
    # What the sandbox has is not what its session should have.
    with contextlib.closing(sqlite3.connect(mortal.state / "retort.db")) as database, database:
        changed = database.execute(
            "UPDATE sessions SET limits = json_set(limits, '$.scratch_inodes', 900)"
        )
        assert changed.rowcount == 1
    mortal.start()
    async with mortal.calls() as api:
        assert await sh(api, name, FILES) == (0, "900\n")
