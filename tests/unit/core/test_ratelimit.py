from __future__ import annotations

import random
from collections import deque

import pytest

from retort.core.ratelimit import WINDOW_S, RateLimiter, RateVerdict


def test_remaining_counts_down_with_this_request_included() -> None:
    limiter = RateLimiter()

    verdicts = [limiter.count("AK", 3, 0.0) for _ in range(3)]

    assert verdicts == [RateVerdict(3, left, is_allowed=True) for left in (2, 1, 0)]


def test_over_the_limit_is_refused_with_nothing_remaining() -> None:
    limiter = RateLimiter()
    limiter.count("AK", 1, 0.0)

    assert limiter.count("AK", 1, 0.0) == RateVerdict(1, 0, is_allowed=False)


def test_keys_do_not_share_their_windows() -> None:
    limiter = RateLimiter()
    limiter.count("AK1", 1, 0.0)

    assert limiter.count("AK2", 1, 0.0).is_allowed


def test_a_limit_of_zero_allows_nothing() -> None:
    assert not RateLimiter().count("AK", 0, 0.0).is_allowed


def test_a_lowered_limit_holds_at_once() -> None:
    limiter = RateLimiter()
    for _ in range(5):
        limiter.count("AK", 10, 0.0)

    assert limiter.count("AK", 3, 0.0) == RateVerdict(3, 0, is_allowed=False)


@pytest.mark.parametrize("start", [0.0, 4.5, 9.99, 123_456.7])
def test_a_request_leaves_the_window_never_early_and_soon_after(start: float) -> None:
    limiter = RateLimiter()
    limiter.count("AK", 1, start)

    assert not limiter.count("AK", 1, start + WINDOW_S - 0.01).is_allowed
    assert limiter.count("AK", 1, start + WINDOW_S + 10).is_allowed


def test_refused_requests_do_not_prolong_the_wait() -> None:
    limiter = RateLimiter()
    limiter.count("AK", 1, 0.0)
    for second in range(1, WINDOW_S):
        limiter.count("AK", 1, float(second))

    assert limiter.count("AK", 1, WINDOW_S + 10.0).is_allowed


def test_a_burst_at_the_end_of_one_window_counts_in_the_next() -> None:
    limiter = RateLimiter()
    for _ in range(10):
        assert limiter.count("AK", 10, WINDOW_S - 1.0).is_allowed

    assert not limiter.count("AK", 10, WINDOW_S + 1.0).is_allowed


def test_a_clock_that_goes_back_neither_fails_nor_forgets() -> None:
    limiter = RateLimiter()
    limiter.count("AK", 2, 5000.0)
    limiter.count("AK", 2, 100.0)

    assert not limiter.count("AK", 2, 5000.0).is_allowed


def test_no_rolling_window_ever_holds_more_than_the_limit() -> None:
    limiter, draw, passed, now = RateLimiter(), random.Random(4), deque[float](), 0.0
    for _ in range(20_000):
        now += draw.choice([0.0, 0.1, 3.0, 40.0, 1000.0 if draw.random() < 0.01 else 1.0])
        while passed and passed[0] <= now - WINDOW_S:
            passed.popleft()
        verdict = limiter.count("AK", 50, now)
        if verdict.is_allowed:
            passed.append(now)
            assert verdict.remaining <= 50 - len(passed)
        assert len(passed) <= 50


def test_silent_keys_are_forgotten() -> None:
    limiter = RateLimiter()
    for number in range(100):
        limiter.count(f"AK{number}", 10, 0.0)

    limiter.count("AK", 10, 2.0 * WINDOW_S)

    assert len(limiter) == 1
