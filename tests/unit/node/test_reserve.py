"""How many descriptors are free is counted, wherever in the table they lie."""

from __future__ import annotations

import contextlib
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.errors import HostShort
from retort.node import reserve
from retort.node.reserve import Need

LIMIT = 256
KEPT = {
    Need.AHEAD: LIMIT // 2,
    Need.SESSION: LIMIT // 3,
    Need.RUN: LIMIT // 6,
    Need.CONNECTION: LIMIT // 12,
}


def numbers_in_use() -> set[int]:
    listed = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    return set(filter(is_open, listed))  # without the one that listed


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


UNSIZED = Path("/proc/self/environ")  # on every host kernel, as /proc/self/fd was before Linux 6.2


@pytest.fixture(params=["as this host kernel tells", "counted"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Lower the limit and use up every descriptor below it; give ours, in order."""
    if request.param == "counted":
        monkeypatch.setattr(reserve, "_OPEN", UNSIZED)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours: list[int] = []
    already = numbers_in_use()
    assert max(already) < LIMIT, "whoever ran these tests left many open"
    assert len(already) < LIMIT // 2 - 1, "whoever ran these tests left many open"
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                ours.append(os.dup(0))
        yield ours
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for number in ours:
            os.close(number)


@pytest.mark.parametrize("need", Need)
@pytest.mark.parametrize("where", ["lowest", "highest", "apart"])
def test_what_is_kept_is_never_given_wherever_the_free_ones_lie(
    few: list[int], need: Need, where: str
) -> None:
    chance = random.Random(20261127)

    def free() -> None:
        index = {"lowest": 0, "highest": -1, "apart": chance.randrange(len(few))}[where]
        os.close(few.pop(index))

    for _ in range(KEPT[need]):
        free()
    assert reserve.is_short(need)
    with pytest.raises(HostShort, match="too few are free"):
        reserve.insist(need)
    free()
    assert not reserve.is_short(need)
    reserve.insist(need)


def test_without_any_number_left_it_is_short(few: list[int]) -> None:
    assert few
    assert all(map(reserve.is_short, Need))


def test_more_open_than_a_lowered_limit_is_short(few: list[int]) -> None:
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (LIMIT // 2, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    assert len(few) > LIMIT // 2
    assert all(map(reserve.is_short, Need))


def test_looking_does_not_have_the_host_kernel_make_a_table_up_to_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 1 << 20
    monkeypatch.setattr(reserve, "_OPEN", UNSIZED)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    # A number near it would be refused here, and be told as short; or it would be given.
    assert not any(map(reserve.is_short, Need))
    status = Path("/proc/self/status").read_text()
    (size,) = [line for line in status.splitlines() if line.startswith("FDSize:")]
    assert int(size.split()[1]) < limit // 2


def test_looking_leaves_nothing_open(few: list[int]) -> None:
    for number in few[::2]:
        os.close(number)
    del few[::2]
    before = numbers_in_use()
    for need in Need:
        reserve.is_short(need)
    assert numbers_in_use() == before


def test_without_a_limit_there_are_always_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: endless)
    assert not any(map(reserve.is_short, Need))
