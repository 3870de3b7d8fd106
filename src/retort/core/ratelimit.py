"""The rolling request window of spec 4.3, one per access key.

Pure: the caller passes the time in. A key costs a fixed amount of memory however often it calls:
its window is a ring of buckets, and a bucket counts until all of it is older than the window.
"""

from __future__ import annotations

import array
import dataclasses

WINDOW_S = 900  #: the length of the window that `X-RateLimit-Window` names
_BUCKET_S = 10  # a request leaves the count at most this late, and never early
_RING = WINDOW_S // _BUCKET_S + 1  # the bucket being filled, and those the window still reaches


@dataclasses.dataclass(frozen=True, slots=True)
class RateVerdict:
    """Whether one request may pass, and what its answer's headers say.

    Attributes:
        limit: requests allowed in a window.
        remaining: what is left of it, this request counted.
        is_allowed: False stands for 429.
    """

    limit: int
    remaining: int
    is_allowed: bool


class _Window:
    """Requests of one key: a ring of counts, its newest bucket's number and the counts' sum."""

    __slots__ = ("_counts", "bucket", "total")

    def __init__(self, bucket: int) -> None:
        self._counts = array.array("L", bytes(array.array("L").itemsize * _RING))
        self.bucket = bucket
        self.total = 0

    def move_to(self, bucket: int) -> None:
        """Drop what is too old; a clock that went back is answered from where it stood."""
        for passed in range(self.bucket + 1, min(bucket, self.bucket + _RING) + 1):
            self.total -= self._counts[passed % _RING]
            self._counts[passed % _RING] = 0
        self.bucket = max(self.bucket, bucket)

    def add(self) -> None:
        self._counts[self.bucket % _RING] += 1
        self.total += 1


class RateLimiter:
    """Counts requests per key in a rolling window of `WINDOW_S` seconds.

    No window of that length ever holds more allowed requests than the limit. A refused request
    is not counted, so a client that waits gets through.
    """

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._swept_at = 0  # bucket number of the last sweep

    def __len__(self) -> int:
        """Keys remembered."""
        return len(self._windows)

    def count(self, key: str, limit: int, now_s: float) -> RateVerdict:
        """Count one request, if it may pass.

        Args:
            key: the access key, or whatever stands for callers without one.
            limit: requests this key may make in a window; may differ from call to call.
            now_s: seconds of a monotonic clock.

        Source: spec 4.3.
        """
        bucket = int(now_s // _BUCKET_S)
        if bucket - self._swept_at >= _RING:
            self._sweep(bucket)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(bucket)
        elif bucket != window.bucket:
            window.move_to(bucket)
        if window.total >= limit:
            return RateVerdict(limit, 0, is_allowed=False)
        window.add()
        return RateVerdict(limit, limit - window.total, is_allowed=True)

    def _sweep(self, bucket: int) -> None:
        # Once per window: keys that went silent must not be remembered for ever.
        self._swept_at = bucket
        self._windows = {k: w for k, w in self._windows.items() if bucket - w.bucket < _RING}
