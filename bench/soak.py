"""`python -m bench.soak`: mixed clients for a long time; all that a server holds must stay flat.

From minute two to the end a straight line is laid through each figure; its rise over that time
must stay within a margin, however long the run: a leak of one descriptor in a
hundred sessions shows in ten minutes, one of a thousand in hours. Latency is that of a trivial run
in a warm session over that of a bare spawn in the same seconds, so that what else the machine does
is in both. Exit code 1: something grew, or a client was answered what it must not be.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import floors
from bench.chaos_client import Client, Shared
from bench.chaos_programs import KINDS
from bench.leftovers import held, settled
from bench.measure import once
from bench.server import Bench, Server

MIB = 1 << 20
UID_COUNT = 65_536
EVERY_S = 5.0  # between looks
PROBES = 10  # runs, and bare spawns, of a look
END_S = 120.0  # for clients to end


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one instant.

    Attributes:
        at_s: since the start.
        pss_bytes: of the server; memory that it shares is divided by those who share it.
        latency: of a run, over that of a bare spawn.
    """

    at_s: float
    rss_bytes: float
    pss_bytes: float
    descriptors: float
    threads: float
    processes: float
    groups: float
    mounts: float
    run_ms: float
    latency: float


#: Figure -> how far its line may rise from minute two to the end, given its value there.
MARGINS: dict[str, Callable[[float], float]] = {
    "rss_bytes": lambda _: 8 * MIB,
    "pss_bytes": lambda _: 8 * MIB,
    "descriptors": lambda _: 8,
    "threads": lambda _: 4,
    "processes": lambda _: 8,
    "groups": lambda _: 8,
    "mounts": lambda _: 8,
    "latency": lambda value: value / 4,
}


def main() -> int:
    """Run; exit 0 when everything was flat and every answer right."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long [10]")
    parser.add_argument("--from-minute", type=float, default=2.0, help="flat from here on [2]")
    parser.add_argument("--clients", type=int, default=8, help="at the same time [8]")
    parser.add_argument("--seed", type=int, default=None, help="draws the same clients again")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(
        f"host: {platform.release()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f};"
        f" {options.clients} clients for {options.minutes:g} minutes, seed {seed}",
        flush=True,
    )
    first_uid = 1_000_000_000 + random.Random(seed).randrange(10_000) * UID_COUNT
    uids = range(first_uid, first_uid + UID_COUNT)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"RETORT_SANDBOX_HOST_UID_FIRST": str(first_uid)}
        settings["RETORT_POOL_SIZE"] = "0"  # what the pool holds would look like something left
        server = Server(folder, settings=settings)
        assert server.start()
        bench = server.bench()
        probe = bench.session()
        bench.run(probe, build=None, exec="true")
        before = held(bench, uids, (), is_alone=False)
        shared = Shared(server.url, server.token)
        clients = [
            Client(shared, f"{seed}:{number}", uses_tokens=number % 2 == 0, kinds=list(KINDS))
            for number in range(options.clients)
        ]
        for client in clients:
            client.start()
        looks = _looks(bench, uids, shared, probe, options.minutes * 60)
        shared.is_over.set()
        until = time.monotonic() + END_S
        for client in clients:
            client.join(max(0.0, until - time.monotonic()))
        if any(client.is_alive() for client in clients):
            shared.wrong(f"clients have not ended {END_S:.0f} s after they were told to")
        _, left = settled(bench, uids, shared.ids, before, is_alone=False)
        bench.destroy(probe)
        server.stop()
    return _told(looks, options.from_minute * 60, shared, left)


def _looks(bench: Bench, uids: range, shared: Shared, probe: str, seconds: float) -> list[Look]:
    """Look every few seconds."""
    began_at = time.monotonic()
    looks: list[Look] = []
    while (at_s := time.monotonic() - began_at) < seconds:
        now = held(bench, uids, list(shared.ids), is_alone=False)
        runs, spawns = [], []
        for _ in range(PROBES):
            spawns.append(once(lambda: floors.spawn("/bin/bash", "-c", "true")))
            runs.append(once(lambda: bench.run(probe, build=None, exec="true")))
        run_ms = statistics.median(runs)
        looks.append(
            Look(
                at_s,
                now.server_bytes,
                pss(bench.pid),
                now.descriptors,
                now.threads,
                now.processes,
                now.groups,
                now.mounts,
                run_ms,
                run_ms / statistics.median(spawns),
            )
        )
        if len(looks) % 12 == 1:
            print(
                f"{at_s:6.0f} s: {looks[-1].pss_bytes / MIB:.1f} MiB, "
                f"{looks[-1].descriptors:.0f} descriptors, {looks[-1].processes:.0f} processes, "
                f"run {run_ms:.1f} ms, {shared.counts['calls']} calls",
                flush=True,
            )
        time.sleep(max(0.0, began_at + at_s + EVERY_S - time.monotonic()))
    return looks


def pss(pid: int) -> int:
    """Give the memory of a process, what it shares divided by those who share it."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise ValueError("no Pss")


def rise(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Lay a line through points; gives its height at the first, and its rise to the last.

    Its slope is the median of those between each point and the one half of all points later (as
    Theil and Sen do with every pair): a few moments when the machine was busy do not bend it.
    """
    half = len(points) // 2
    slope = statistics.median(
        (later[1] - point[1]) / (later[0] - point[0])
        for point, later in zip(points, points[half:], strict=False)
    )
    first, last = points[0][0], points[-1][0]
    height = statistics.median(value - slope * (at - first) for at, value in points)
    return height, slope * (last - first)


def _told(looks: list[Look], from_s: float, shared: Shared, left: str) -> int:
    late = [look for look in looks if look.at_s >= from_s]
    grew = []
    print(
        f"{'figure':12} {'at first':>12} {'rise':>10} {'may rise':>10} {'least':>12} {'most':>12}"
    )
    for name, margin in MARGINS.items():
        values = [getattr(look, name) for look in late]
        unit = MIB if name.endswith("bytes") else 1
        height, up = rise([(look.at_s, getattr(look, name)) for look in late])
        grew += [name] if up > margin(height) else []
        print(
            f"{name.removesuffix('_bytes'):12} {height / unit:12.2f} {up / unit:+10.2f}"
            f" {margin(height) / unit:10.2f} {min(values) / unit:12.2f} {max(values) / unit:12.2f}"
            f"{'  GREW' if name in grew else ''}"
        )
    run_ms = sorted(look.run_ms for look in late)
    print(f"a run beside that load: p50 {statistics.median(run_ms):.1f} ms, most {run_ms[-1]:.1f}")
    for what, count in sorted(shared.counts.items()):
        print(f"{what:32} {count:7}")
    for wrong in shared.wrongs:
        print(f"WRONG {wrong}")
    print(
        f"{late[-1].at_s:.0f} s: {', '.join(grew) or 'nothing'} grew, {len(shared.wrongs)} answers"
        f" wrong, left: {left or 'nothing'}"
    )
    return 1 if grew or shared.wrongs or left else 0


if __name__ == "__main__":
    sys.exit(main())
