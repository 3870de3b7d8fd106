"""How long work on this host waited for a processor: pressure stall information.

Source: Documentation/accounting/psi.rst of the Linux kernel; Linux 4.20 or newer, where it is on.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

FILE = Path("/proc/pressure/cpu")
READ_BYTES = 256

_SOME_TOTAL = re.compile(rb"some [^\n]*total=(\d+)")


class CpuPressure:
    """The host's counter, kept open: one read costs some 10 us."""

    def __init__(self, file: Path = FILE) -> None:
        try:
            self._fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def waited_us(self) -> int | None:
        """Give the time since boot in which some task of the host waited; None: not told."""
        if self._fd < 0:
            return None
        try:
            found = _SOME_TOTAL.match(os.pread(self._fd, READ_BYTES, 0))
        except OSError:  # switched off at boot (psi=0)
            return None
        return int(found[1]) if found else None

    def close(self) -> None:
        """Close the counter; it tells no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
