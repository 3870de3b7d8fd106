"""What a session left outside of /home/work is seen from outside, on the real kernel."""

from __future__ import annotations

import pytest
from tests.sandbox.conftest import Start

from retort.sandbox.outside import left_outside


@pytest.mark.parametrize("where", ["/tmp", "/var/tmp", "/dev/shm"])
async def test_file_that_is_left_is_seen_until_it_is_removed(start: Start, where: str) -> None:
    box = await start()
    assert left_outside(box.sandbox) is None
    await box.sh(f"touch {where}/x; touch /home/work/y")
    assert left_outside(box.sandbox) == f"{where} is not empty"
    await box.sh(f"rm {where}/x")
    assert left_outside(box.sandbox) is None


async def test_link_or_shut_folder_hides_nothing(start: Start) -> None:
    box = await start()
    await box.sh("ln -s /etc /tmp/x; chmod 0 /tmp")
    assert left_outside(box.sandbox) == "/tmp is not empty"
