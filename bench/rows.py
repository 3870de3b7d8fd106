"""The rows of DESIGN 10 that have their parts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import floors
from bench.http import multipart
from bench.load import HELLO, LOAD_ROWS
from bench.measure import Row, in_turns, once
from bench.server import Bench, running

CYCLE = {
    "main.c": b"#include <stdio.h>\nint add(int, int);\n"
    b'int main(void) { printf("%d\\n", add(2, 3)); return 0; }\n',
    "util.c": b"int add(int a, int b) { return a + b; }\n",
}
MEGABYTE = bytes(range(256)) * 4096
WARM = 43  # sessions made from a pool


def exec_back_to_back(bench: Bench) -> Row:
    """Run a built program in a warm session, one after the other."""
    return _exec(bench, "exec, back to back", rounds=300, pause_s=0.0, extra_ms=1.5)


def exec_after_pause(bench: Bench) -> Row:
    """The same with 200 ms of idleness before each call."""
    return _exec(bench, "exec, 200 ms idle before", rounds=40, pause_s=0.2, extra_ms=2.0)


def _exec(bench: Bench, title: str, *, rounds: int, pause_s: float, extra_ms: float) -> Row:
    name = bench.session()
    bench.upload(name, {"hello.c": HELLO})
    assert bench.run(name, build="gcc -o hello hello.c", exec=None) == 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        (Path(folder) / "hello.c").write_bytes(HELLO)
        hello = f"{folder}/hello"
        floors.spawn("/usr/bin/gcc", "-o", hello, f"{folder}/hello.c")
        floor, retort, load = in_turns(
            lambda: floors.spawn("/bin/bash", "-c", hello),
            lambda: bench.run(name, build=None, exec="./hello"),
            rounds=rounds,
            pause_s=pause_s,
        )
    bench.destroy(name)
    row = Row(title, floor, retort, f"floor + {extra_ms:g} ms", 0.0, load)
    row.budget_ms = row.floor + extra_ms
    if not pause_s:
        row.budget += ", p99 + 3 ms"
        row.p99_budget_ms = row.floor_p99 + 3.0
    return row


def cycle(bench: Bench) -> Row:
    """Create, upload, build, run, list, download, destroy: against the same gcc and program."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for file, content in CYCLE.items():
            (Path(folder) / file).write_bytes(content)
        floor, retort, load = in_turns(
            lambda: floors.compile_and_run(Path(folder)), lambda: _whole_cycle(bench), rounds=30
        )
    row = Row("whole C cycle", floor, retort, "1.15 x", 0.0, load)
    row.budget_ms = row.floor * 1.15
    return row


def _whole_cycle(bench: Bench) -> None:
    name = bench.session()
    bench.upload(name, CYCLE)
    assert bench.run(name, build="gcc -o main main.c util.c", exec="./main") == 0
    bench.http.json("GET", f"/session/{name}/files")
    status, _ = bench.http.call("GET", f"/session/{name}/download?files=main")
    assert status == 200
    bench.destroy(name)


def create_warm(bench: Bench) -> Row:
    """Make a session where one waits, one after the other."""
    del bench  # a server with as many waiting as are asked for
    most = WARM + 8
    with running(
        RETORT_POOL_SIZE=str(most),
        RETORT_POOL_READY=str(most),
        RETORT_POOL_MEMORY_BYTES=f"{4 * most}m",
    ) as warm:
        made: list[str] = []
        warm.until_ahead(most)
        floor, retort, load = in_turns(
            floors.bwrap, lambda: made.append(warm.session("bash")), rounds=WARM - 3
        )
        for name in made:
            warm.destroy(name)
    return Row("create a session, warm", floor, retort, "2 ms", 2.0, load)


def create_after_pause(bench: Bench) -> Row:
    """The same with 200 ms of idleness before each call, from a pool as it is by default."""
    made: list[str] = []
    floor, retort, load = in_turns(
        floors.bwrap, lambda: made.append(bench.session("bash")), rounds=30, pause_s=0.2
    )
    for name in made:
        bench.destroy(name)
    row = Row("create, 200 ms idle before", floor, retort, "0.44 x", 0.0, load)
    row.budget_ms = row.floor * 2 / 4.5  # DESIGN 10: 2 ms where the floor takes 4 to 5
    return row


def create(bench: Bench) -> Row:
    """Make a session, cold: against a bubblewrap sandbox made by hand."""
    del bench  # a server without a pool
    with running(RETORT_POOL_SIZE="0") as cold:
        made: list[str] = []
        floor, retort, load = in_turns(
            floors.bwrap, lambda: made.append(cold.session("bash")), rounds=40
        )
        for name in made:
            cold.destroy(name)
    row = Row("create a session, cold", floor, retort, "2 x", 0.0, load)
    row.budget_ms = row.floor * 2
    return row


def upload(bench: Bench) -> Row:
    """Upload 20 files of 1 MiB."""
    files = {f"file{number:02}": MEGABYTE for number in range(20)}
    name = bench.session("bash")
    body, kind = multipart(files)  # 20 MiB put together is the load generator's affair
    floor, retort, load = in_turns(
        floors.CopyThroughSocket(files), lambda: bench.send(name, body, kind), rounds=15
    )
    bench.destroy(name)
    row = Row("upload 20 x 1 MiB", floor, retort, "2 x", 0.0, load)
    row.budget_ms = row.floor * 2
    return row


def download(bench: Bench) -> Row:
    """Download a folder of 20 files of 1 MiB."""
    files = {f"file{number:02}": MEGABYTE for number in range(20)}
    name = bench.session("bash")
    bench.upload(name, {f"d/{file}": content for file, content in files.items()})

    def fetch() -> None:
        status, body = bench.http.call("GET", f"/session/{name}/download?files=d")
        assert status == 200
        assert len(body) > 20 * len(MEGABYTE)

    floor, retort, load = in_turns(floors.CopyThroughSocket(files), fetch, rounds=15)
    bench.destroy(name)
    row = Row("download 20 x 1 MiB", floor, retort, "2 x", 0.0, load)
    row.budget_ms = row.floor * 2
    return row


def listing(bench: Bench) -> Row:
    """List a folder of 10 000 files: against scandir and stat."""
    name = bench.session("bash")
    assert bench.run(name, build=None, exec="mkdir many; cd many; touch {1..10000}") == 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for number in range(10_000):
            (Path(folder) / str(number)).touch()

        def scan() -> None:
            with os.scandir(folder) as entries:
                for entry in entries:
                    entry.stat(follow_symlinks=False)

        floor, retort, load = in_turns(
            scan, lambda: bench.http.json("GET", f"/session/{name}/files?path=many"), rounds=15
        )
    bench.destroy(name)
    row = Row("list 10 000 files", floor, retort, "2 x", 0.0, load)
    row.budget_ms = row.floor * 2
    return row


def walls_back_to_back(bench: Bench) -> Row:
    """Run a built program behind all walls, against the same server without them."""
    return _walls(bench, "walls, back to back", rounds=400, pause_s=0.0, extra_ms=0.3)


def walls_after_pause(bench: Bench) -> Row:
    """The same with 200 ms of idleness before each call."""
    return _walls(bench, "walls, 200 ms idle before", rounds=40, pause_s=0.2, extra_ms=0.5)


def _walls(bench: Bench, title: str, *, rounds: int, pause_s: float, extra_ms: float) -> Row:
    with running("bench.bare_server") as bare:
        names = []
        for each in (bare, bench):
            names.append(each.session())
            each.upload(names[-1], {"hello.c": HELLO})
            assert each.run(names[-1], build="gcc -o hello hello.c", exec=None) == 0
        floor, retort, load = in_turns(
            lambda: bare.run(names[0], build=None, exec="./hello"),
            lambda: bench.run(names[1], build=None, exec="./hello"),
            rounds=rounds,
            pause_s=pause_s,
        )
        bench.destroy(names[1])
    row = Row(title, floor, retort, f"no walls + {extra_ms:g} ms", 0.0, load)
    row.budget_ms = row.floor + extra_ms
    return row


HEAVY = b"#include <bits/stdc++.h>\nint main() { std::cout << %d << std::endl; }\n"


def cached_build(bench: Bench) -> Row:
    """Build the same C++ file again, in a new session, from the cache; floor: without it."""
    return _cached(bench, "second identical C++ build", is_hit=True)


def missed_build(bench: Bench) -> Row:
    """Build a C++ file that was never built, with the cache, against the same without it."""
    return _cached(bench, "C++ build that misses the cache", is_hit=False)


def _cached(bench: Bench, title: str, *, is_hit: bool) -> Row:
    names = [bench.session("cpp") for _ in range(3)]
    numbers = iter(range(1_000_000))
    build = "g++ -o main main.cpp"

    def run(name: str, *, caches: bool, number: int) -> float:
        bench.run(name, build=None, exec="rm -f main")
        bench.upload(name, {"main.cpp": HEAVY % number})
        return once(lambda: bench.run(name, build=build, exec=None, cache=caches))  # type: ignore[arg-type]

    if is_hit:
        run(names[0], caches=True, number=0)
    floor, retort = [], []
    for _ in range(6):
        floor.append(run(names[1], caches=False, number=next(numbers) + 1))
        retort.append(run(names[2], caches=True, number=0 if is_hit else next(numbers) + 1))
    for name in names:
        bench.destroy(name)
    row = Row(title, floor, retort, "20 ms" if is_hit else "1.02 x", 20.0, os.getloadavg()[0])
    if not is_hit:
        row.budget_ms = max(row.floor * 1.02, row.floor + 2)
    return row


ROWS: dict[str, Callable[[Bench], Row]] = {
    "exec": exec_back_to_back,
    "exec-idle": exec_after_pause,
    "walls": walls_back_to_back,
    "walls-idle": walls_after_pause,
    "cycle": cycle,
    "cached-build": cached_build,
    "missed-build": missed_build,
    "create": create_warm,
    "create-idle": create_after_pause,
    "create-cold": create,
    "upload": upload,
    "download": download,
    "listing": listing,
    **LOAD_ROWS,
}
