"""What a server holds of its host: compared before and after, whatever is there is a leftover."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from bench.server import Bench

SETTLE_S = 20.0  # until what ends asynchronously must have ended
MEMORY_BYTES = 256 << 20  # other work on the host may come and go
SERVER_BYTES = 96 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """What was found.

    Attributes:
        processes: of the server's uids, or that name its state folder, but for the server itself.
        mounts: lines of the host's and the server's mount tables.
        groups: control groups of its sessions.
        descriptors: of the server.
        threads: of the server.
        files: in the state folder's sessions.
        folders: virtual ones on the disk, half-made and half-deleted ones among them.
        free_bytes: of the host's memory.
        server_bytes: resident memory of the server.
    """

    processes: int
    mounts: int
    groups: int
    descriptors: int
    threads: int
    files: int
    folders: int
    free_bytes: int
    server_bytes: int


def held(bench: Bench, uids: range, names: Iterable[str], *, is_alone: bool = True) -> Held:
    """Look.

    Args:
        names: ids of sessions that were made.
        is_alone: nothing else on this host mounts anything or uses much memory meanwhile; if it
            may, only mounts that name the state folder count, and no memory of the host.
    """
    status = _fields(f"/proc/{bench.pid}/status")
    mark = "" if is_alone else bench.state
    return Held(
        len(_processes(bench, uids)),
        _lines("/proc/self/mountinfo", mark) + _lines(f"/proc/{bench.pid}/mountinfo", mark),
        _groups(bench, set(names)),
        len(list(Path(f"/proc/{bench.pid}/fd").iterdir())),
        int(status["Threads"]),
        len(list(Path(bench.state, "sessions").iterdir())),
        _folders(Path(bench.state, "folders")),
        int(_fields("/proc/meminfo")["MemAvailable"].split()[0]) << 10 if is_alone else 0,
        int(status["VmRSS"].split()[0]) << 10,
    )


def settled(
    bench: Bench, uids: range, names: Iterable[str], before: Held, *, is_alone: bool = True
) -> tuple[Held, str]:
    """Look until nothing is left, or the time is up; gives what was left in words."""
    until = time.monotonic() + SETTLE_S
    names = list(names)
    while True:
        now = held(bench, uids, names, is_alone=is_alone)
        left = leftovers(before, now)
        if not left or time.monotonic() > until:
            return now, ", ".join(left)
        time.sleep(0.2)


def leftovers(before: Held, now: Held) -> list[str]:
    """Name what there is more of than before."""
    found = [
        f"{getattr(now, name) - getattr(before, name)} {name}"
        for name in ("processes", "mounts", "groups", "descriptors", "files", "folders")
        if getattr(now, name) > getattr(before, name)
    ]
    if now.free_bytes < before.free_bytes - MEMORY_BYTES:
        found.append(f"{(before.free_bytes - now.free_bytes) >> 20} MiB of the host's memory")
    if now.server_bytes > before.server_bytes + SERVER_BYTES:
        found.append(f"{(now.server_bytes - before.server_bytes) >> 20} MiB of the server's memory")
    return found


def _processes(bench: Bench, uids: range) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == bench.pid:
            continue
        with contextlib.suppress(OSError, KeyError, ValueError):
            status = _fields(f"{entry.path}/status")
            words = Path(entry.path, "cmdline").read_bytes()
            if (
                int(status["Uid"].split()[0]) in uids
                or int(status["PPid"]) == bench.pid
                or bench.state.encode() in words
            ):
                found.append(int(entry.name))
    return found


def _groups(bench: Bench, names: set[str]) -> int:
    """Count groups of sessions, and of sandboxes made ahead, which keep their first name."""
    tag = hashlib.sha256(os.fsencode(Path(bench.state).resolve())).hexdigest()[:12]
    return sum(
        name in names or (name.startswith("pool-") and root.endswith(f"/retort-{tag}"))
        for root, folders, _ in os.walk("/sys/fs/cgroup")
        for name in folders
    )


def _folders(volume: Path) -> int:
    places = ("making", "trash")
    there = [entry for entry in os.listdir(volume) if entry not in places]  # noqa: PTH208
    return len(there) + sum(len(list((volume / place).iterdir())) for place in places)


def _fields(path: str) -> dict[str, str]:
    lines = Path(path).read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _lines(path: str, mark: str) -> int:
    return sum(mark in line for line in Path(path).read_text(errors="replace").splitlines())
