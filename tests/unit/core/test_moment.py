from __future__ import annotations

import pytest

from retort.core.moment import Moment, moment_of

NOW = Moment(1_800_000_000.25, 500.5, "0123abcd")


def test_a_moment_is_over_when_its_time_has_passed() -> None:
    later = NOW.after(60)
    assert not later.is_over(NOW.after(59.9))
    assert later.is_over(NOW.after(60))


@pytest.mark.parametrize("set_by", [-1e9, 1e9])
def test_the_clock_that_people_set_does_not_matter_while_the_host_runs(set_by: float) -> None:
    def at(boot_s: float) -> Moment:
        return Moment(NOW.wall_s + set_by, boot_s, NOW.boot)

    assert not NOW.after(60).is_over(at(560.4))
    assert NOW.after(60).is_over(at(560.5))


def test_after_a_new_start_of_the_host_it_is_all_there_is() -> None:
    assert not NOW.after(60).is_over(Moment(NOW.wall_s + 59, 9000.0, "ffffffff"))
    assert NOW.after(60).is_over(Moment(NOW.wall_s + 60, 1.0, "ffffffff"))


def test_digits_tell_it_in_whole_seconds_and_not_before_it() -> None:
    assert moment_of(NOW.hex()) == Moment(1_800_000_001, 501, "0123abcd")


@pytest.mark.parametrize("digits", ["", "0" * 25, "0" * 27, "x" * 26])
def test_what_are_no_such_digits_is_no_moment(digits: str) -> None:
    assert moment_of(digits) is None
