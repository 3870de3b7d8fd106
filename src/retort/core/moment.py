"""Times that setting the host's clock does not move."""

from __future__ import annotations

import dataclasses
import math

_WALL, _BOOT_S, _BOOT = 10, 8, 8  # hexadecimal digits of a moment's parts


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """A time by both clocks of the host.

    Attributes:
        wall_s: seconds since 1970, by the clock that people set.
        boot_s: seconds since the host started, by one that nobody sets.
        boot: tells one start of the host from another; eight hexadecimal digits.
    """

    wall_s: float
    boot_s: float
    boot: str

    def after(self, seconds: float) -> Moment:
        """Give the moment so much later."""
        return dataclasses.replace(self, wall_s=self.wall_s + seconds, boot_s=self.boot_s + seconds)

    def is_over(self, now: Moment) -> bool:
        """Tell whether it has come; the clock that people set decides only after a new start."""
        if self.boot == now.boot:
            return self.boot_s <= now.boot_s
        return self.wall_s <= now.wall_s

    def hex(self) -> str:
        """Give it in hexadecimal digits, in whole seconds and not before it."""
        wall_s, boot_s = (math.ceil(max(part, 0)) for part in (self.wall_s, self.boot_s))
        return f"{wall_s:0{_WALL}x}{boot_s:0{_BOOT_S}x}{self.boot}"


def moment_of(digits: str) -> Moment | None:
    """Read what `hex` gave; None: it is nothing of the kind."""
    if len(digits) != _WALL + _BOOT_S + _BOOT:
        return None
    try:
        return Moment(int(digits[:_WALL], 16), int(digits[_WALL:-_BOOT], 16), digits[-_BOOT:])
    except ValueError:
        return None
