"""Chores go on after they failed."""

from __future__ import annotations

import asyncio
import errno

import pytest
from structlog.testing import capture_logs

from retort.errors import StoreFault
from retort.wiring import chores


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "AGAIN_S", 0.0)


@pytest.mark.parametrize(
    "failure", [OSError(errno.EMFILE, "Too many open files"), StoreFault("gone"), KeyError("x")]
)
async def test_a_chore_that_fails_is_logged_with_an_id_and_begun_again(failure: Exception) -> None:
    begun = 0

    async def chore() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise failure

    with capture_logs() as lines:
        await chores.keep_on("quotas", chore)
    assert begun == 3
    assert [(line["event"], line["chore"], line["reason"]) for line in lines] == [
        ("chore.failed", "quotas", str(failure))
    ] * 2
    assert len({line["fault"] for line in lines}) == 2


async def test_a_chore_that_is_stopped_is_not_begun_again() -> None:
    begun = 0

    async def chore() -> None:
        nonlocal begun
        begun += 1
        await asyncio.sleep(600)

    task = asyncio.ensure_future(chores.keep_on("pool", chore))
    await asyncio.sleep(0)
    await chores.stop(task)
    assert task.cancelled()
    assert begun == 1


async def test_a_chore_that_is_stopped_while_it_waits_to_be_begun_again_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chores, "AGAIN_S", 600.0)

    async def chore() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    task = asyncio.ensure_future(chores.keep_on("pool", chore))
    await asyncio.sleep(0)
    assert not task.done()
    await chores.stop(task)
    assert task.cancelled()
