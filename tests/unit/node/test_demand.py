from __future__ import annotations

from retort.core.limits import MIB, Limits
from retort.node.demand import HALF_LIFE_S, Demand

USUAL = Limits()
SMALL = Limits(memory_bytes=64 * MIB)
TINY = Limits(memory_bytes=32 * MIB)


def ask(demand: Demand, limits: Limits, *times: float) -> None:
    for now in times:
        demand.asked(limits, now)


def test_the_usual_ones_are_wanted_before_anybody_asks() -> None:
    assert Demand(USUAL, 2, 16).wanted(0.0) == {USUAL: 2}


def test_a_burst_is_expected_again() -> None:
    demand = Demand(USUAL, 2, 16)
    ask(demand, USUAL, 10.0, 10.1, 10.2, 10.3, 10.4)
    assert demand.wanted(11.0) == {USUAL: 5}


def test_a_steady_trickle_is_no_burst() -> None:
    demand = Demand(USUAL, 1, 16)
    ask(demand, USUAL, *(2.0 * number for number in range(50)))
    assert demand.wanted(100.0) == {USUAL: 1}


def test_a_burst_fades_to_what_is_always_ready() -> None:
    demand = Demand(USUAL, 2, 16)
    ask(demand, USUAL, *[10.0] * 8)
    assert demand.wanted(10.0 + HALF_LIFE_S) == {USUAL: 4}
    assert demand.wanted(10.0 + 10 * HALF_LIFE_S) == {USUAL: 2}


def test_other_limits_are_forgotten_when_nobody_asks_for_them() -> None:
    demand = Demand(USUAL, 2, 16)
    ask(demand, SMALL, 10.0)
    assert demand.wanted(11.0) == {USUAL: 2, SMALL: 1}
    assert demand.wanted(10.0 + 2 * HALF_LIFE_S) == {USUAL: 2}


def test_there_are_never_more_than_the_most() -> None:
    demand = Demand(USUAL, 2, 6)
    ask(demand, SMALL, *[1.0] * 3)
    ask(demand, TINY, *[1.0] * 9)
    ask(demand, USUAL, *[1.0] * 2)
    assert demand.wanted(1.0) == {USUAL: 2, TINY: 4}
    ask(demand, USUAL, *[1.0] * 9)
    assert demand.wanted(1.0) == {USUAL: 6}


def test_nothing_is_wanted_of_a_pool_without_room() -> None:
    demand = Demand(USUAL, 2, 0)
    ask(demand, USUAL, 1.0)
    assert demand.wanted(1.0) == {}
