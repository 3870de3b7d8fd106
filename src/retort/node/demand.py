"""How many sandboxes of which limits should stand ready: values and rules, no I/O, no clock."""

from __future__ import annotations

import math

from retort.core.limits import Limits

BURST_S = 1.0  # sessions that are asked for within this are wanted at the same time
HALF_LIFE_S = 60.0  # a burst is expected again half as strongly after each of these
FORGOTTEN = 0.5  # a weaker burst is none


class _Burst:
    """The strongest burst of requests lately, weaker as time goes by."""

    __slots__ = ("_began_at", "_count", "_peak", "_peak_at")

    def __init__(self, now: float) -> None:
        self._began_at = now
        self._count = 0
        self._peak, self._peak_at = 0.0, now

    def asked(self, now: float) -> None:
        if now - self._began_at >= BURST_S:
            self._began_at, self._count = now, 0
        self._count += 1
        if self._count >= self.strength(now):
            self._peak, self._peak_at = float(self._count), now

    def strength(self, now: float) -> float:
        aged: float = self._peak * 0.5 ** ((now - self._peak_at) / HALF_LIFE_S)
        return aged


class Demand:
    """What was asked for, and from that what will be.

    Args:
        usual: limits that are always expected.
        least: so many of `usual`, also when nobody asked for long.
        most: of all limits together.
    """

    def __init__(self, usual: Limits, least: int, most: int) -> None:
        self._usual = usual
        self._least = min(least, most)
        self._most = most
        self._bursts: dict[Limits, _Burst] = {}

    def asked(self, limits: Limits, now: float) -> None:
        """Take note that a session with these limits is wanted."""
        burst = self._bursts.get(limits)
        if burst is None:
            burst = self._bursts[limits] = _Burst(now)
        burst.asked(now)

    def wanted(self, now: float) -> dict[Limits, int]:
        """Say how many should stand ready, by limits; those that are wanted most come first."""
        strengths = {limits: burst.strength(now) for limits, burst in self._bursts.items()}
        for limits, strength in strengths.items():
            if strength < FORGOTTEN:
                del self._bursts[limits]
        counts = {
            limits: math.ceil(strength)
            for limits, strength in sorted(strengths.items(), key=lambda pair: -pair[1])
            if strength >= FORGOTTEN
        }
        usual = max(counts.get(self._usual, 0), self._least)
        left = self._most - min(usual, self._most)
        wanted = {self._usual: self._most - left} if left < self._most else {}
        for limits, count in counts.items():
            if limits != self._usual and left > 0:
                wanted[limits] = min(count, left)
                left -= wanted[limits]
        return wanted
