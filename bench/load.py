"""Rows of many at once: throughput, a busy neighbour, a thousand idle sessions, memory.

The load comes from processes, one a client, so that it is not one interpreter that is measured;
`generator` shows it against a route that does nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import floors
from bench.http import Connection
from bench.measure import Row, in_turns, once
from bench.server import Bench, running

CLIENTS = 8
ROUNDS = 5
IDLE = 1000
RUNS = 10_000
HELLO = b'#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n'
FORKS = "while :; do /bin/true & /bin/true & wait; done"
MIB = 1 << 20

_FORK: Any = multiprocessing.get_context("fork")


def race(works: list[Callable[[], object]], count: int) -> float:
    """Do each work `count` times, each in a process of its own; give milliseconds for one of all.

    The clock starts when every process stands ready.
    """
    gate = _FORK.Barrier(len(works) + 1)

    def run(work: Callable[[], object]) -> None:
        gate.wait()
        for _ in range(count):
            work()

    racers = [_FORK.Process(target=run, args=(work,)) for work in works]
    for racer in racers:
        racer.start()
    gate.wait()
    begun = time.perf_counter()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    return (time.perf_counter() - begun) * 1000 / (count * len(works))


def _raced(
    floor: list[Callable[[], object]], retort: list[Callable[[], object]], count: int
) -> tuple[list[float], list[float], float]:
    floor_ms, retort_ms = [], []
    for number in range(ROUNDS + 1):
        pair = race(floor, count), race(retort, count)
        if number:
            floor_ms.append(pair[0])
            retort_ms.append(pair[1])
    return floor_ms, retort_ms, os.getloadavg()[0]


class Caller:
    """Makes its connection when it is first called: in its own process."""

    def __init__(self, bench: Bench, call: Callable[[Connection], object]) -> None:
        self._bench = bench
        self._call = call
        self._http: Connection | None = None

    def __call__(self) -> None:
        """Make the call."""
        self._http = self._http or Connection(self._bench.url, self._bench.token)
        self._call(self._http)


def run_of(bench: Bench, name: str, **options: str | None) -> Caller:
    """Give a client that runs something in a session."""
    return Caller(bench, lambda http: bench.run(name, http, **options))


@contextlib.contextmanager
def built_sessions(bench: Bench, count: int) -> Iterator[list[str]]:
    """Make sessions with a built program, and end them."""
    names = []
    for _ in range(count):
        names.append(bench.session())
        bench.upload(names[-1], {"hello.c": HELLO})
        assert bench.run(names[-1], build="gcc -o hello hello.c", exec=None) == 0
    try:
        yield names
    finally:
        for name in names:
            bench.destroy(name)


@contextlib.contextmanager
def _built() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        (folder / "hello.c").write_bytes(HELLO)
        floors.spawn("/usr/bin/gcc", "-o", f"{folder}/hello", f"{folder}/hello.c")
        yield folder


def throughput_exec(bench: Bench) -> Row:
    """Run a built program by 8 clients, a session each: against 8 workers that spawn it."""
    with built_sessions(bench, CLIENTS) as names, _built() as folder:
        hello = f"{folder}/hello"
        floor, retort, load = _raced(
            [lambda: floors.spawn("/bin/bash", "-c", hello)] * CLIENTS,
            [run_of(bench, name, build=None, exec="./hello") for name in names],
            40,
        )
    row = Row("8 clients, exec: ms each", floor, retort, "0.5 x its rate", 0.0, load)
    row.budget_ms = row.floor / 0.5
    return row


def throughput_build(bench: Bench) -> Row:
    """Build a C file by 8 clients, a session each: against 8 workers that build it."""

    def build(number: int) -> Callable[[], object]:
        command = f"gcc -o {folder}/hello{number} {folder}/hello.c"
        return lambda: floors.spawn("/bin/bash", "-c", command)

    with built_sessions(bench, CLIENTS) as names, _built() as folder:
        floor, retort, load = _raced(
            [build(number) for number in range(CLIENTS)],
            [run_of(bench, name, build="gcc -o hello hello.c", exec=None) for name in names],
            3,
        )
    row = Row("8 clients, gcc: ms each", floor, retort, "0.9 x its rate", 0.0, load)
    row.budget_ms = row.floor / 0.9
    return row


def generator(bench: Bench) -> Row:
    """Call a route that does nothing, twice, by the same clients: against a run of two calls."""
    with built_sessions(bench, CLIENTS) as names:
        runs, calls, load = _raced(
            [run_of(bench, name, build=None, exec="./hello") for name in names],
            [Caller(bench, _twice) for _ in names],
            40,
        )
    row = Row("generator, two no-op calls", runs, calls, "0.5 x of a run", 0.0, load)
    row.budget_ms = row.floor * 0.5
    return row


def _twice(http: Connection) -> None:
    for _ in range(2):
        status, _ = http.call("GET", "/manager/status")
        assert status == 200


def neighbour(bench: Bench) -> Row:
    """Run a built program beside a session that forks all the time: against the same alone."""
    alone, beside = [], []
    with built_sessions(bench, 1) as (name,):
        busy = bench.session("bash")
        for number in range(ROUNDS):
            alone += [once(lambda: bench.run(name, build=None, exec="./hello")) for _ in range(60)]
            with _running(bench, busy, f"forks{number}", FORKS):
                beside += [
                    once(lambda: bench.run(name, build=None, exec="./hello")) for _ in range(60)
                ]
        bench.destroy(busy)
    # Its share of two cores beside one that may use a whole one: as much again, and no more.
    row = Row("exec beside a fork-heavy run", alone, beside, "2 x", 0.0, os.getloadavg()[0])
    row.budget_ms = row.floor * 2
    return row


@contextlib.contextmanager
def _running(bench: Bench, name: str, run_id: str, command: str) -> Iterator[None]:
    """Have a program run in a session for the length of a block."""
    path = f"/session/{name}"
    call = {"mode": "batch", "code": "", "runId": run_id, "options": {"exec": command}}
    bench.http.json("POST", path, call)
    yield
    bench.http.json("POST", f"{path}/interrupt")
    follow = {"mode": "continue", "code": "", "runId": run_id}
    while bench.http.json("POST", path, follow)["result"]["status"] != "finished":
        pass


def idle_exec(bench: Bench) -> Row:
    """Run a built program beside a thousand idle sessions: against the same with one session."""
    del bench  # a server of its own, whose sessions all count
    with running() as one, running() as many:
        names = []
        for each in (one, many):
            names.append(each.session())
            each.upload(names[-1], {"hello.c": HELLO})
            assert each.run(names[-1], build="gcc -o hello hello.c", exec=None) == 0
        for _ in range(IDLE):
            many.session("bash")
        floor, retort, load = in_turns(
            lambda: one.run(names[0], build=None, exec="./hello"),
            lambda: many.run(names[1], build=None, exec="./hello"),
            rounds=200,
        )
    row = Row("exec beside 1000 sessions", floor, retort, "1.2 x of one", 0.0, load)
    row.budget_ms = row.floor * 1.2
    return row


def idle_memory(bench: Bench) -> Row:
    """Hold a thousand idle sessions: memory of all processes, a session (MiB, not ms)."""
    del bench
    with running(RETORT_POOL_SIZE="0") as many:
        before = _memory(many.pid)
        for _ in range(IDLE):
            many.session("bash")
        each = (_memory(many.pid) - before) / IDLE
    return Row("idle session, MiB each", [1.5], [each], "1.5 MiB", 1.5, os.getloadavg()[0], "MiB")


def server_memory(bench: Bench) -> Row:
    """Weigh the server idle, and after ten thousand runs (MiB, not ms)."""
    del bench
    with running() as fresh, built_sessions(fresh, 1) as (name,):
        for _ in range(500):  # caches fill
            fresh.run(name, build=None, exec="./hello")
        idle = _resident(fresh.pid)
        for _ in range(RUNS):
            fresh.run(name, build=None, exec="./hello")
        after = _resident(fresh.pid)
    row = Row("server after 10 000 runs, MiB", [idle], [after], "100 MiB", 0.0, unit="MiB")
    row.budget_ms = min(100.0, idle * 1.05)  # 5 %: what an allocator does, no growth
    return row


def _memory(pid: int) -> float:
    """Give the memory of a process and all below it in MiB, shared pages in parts."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                parents.setdefault(int(parent), []).append(int(entry.name))
    total, wave = 0.0, [pid]
    while wave:
        total += sum(_proportional(one) for one in wave)
        wave = [child for one in wave for child in parents.get(one, ())]
    return total


def _proportional(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / MIB
    return 0.0


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


LOAD_ROWS: dict[str, Callable[[Bench], Row]] = {
    "throughput": throughput_exec,
    "throughput-gcc": throughput_build,
    "generator": generator,
    "neighbour": neighbour,
    "idle-exec": idle_exec,
    "idle-memory": idle_memory,
    "memory": server_memory,
}
