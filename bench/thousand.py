"""`python -m bench.thousand`: a thousand sessions, fifty of them busy, outlive their server.

Prints what an idle session costs, how long a run takes with one session and with all, and, after
SIGKILL and a new start, how long until every session answers and how long a run takes then. The
busy ones' output must come whole over both lives. Exit code 1: a session or a byte was lost.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench import floors
from bench.http import Connection, multipart
from bench.leftovers import held, settled
from bench.measure import once
from bench.server import Bench, Server

UID_COUNT = 65_536
AT_ONCE = 8
RUNS = 300  # measured each time, in turns with as many bare spawns
END_S = 120.0
MEMORY = "64m"


@dataclasses.dataclass(slots=True, eq=False)
class Busy:
    """A session whose program prints numbered lines until a file `stop` is there."""

    name: str
    run_id: str
    printed: str = ""
    exit_code: int | None = None

    def start(self, http: Connection) -> None:
        """Start the program."""
        command = f"i=0; until [ -e stop ]; do i=$((i + 1)); echo {self.name} $i; sleep 0.2; done"
        self._call(http, "batch", {"build": None, "exec": f"{command}; exit 7"})

    def follow(self, http: Connection) -> None:
        """Take one more answer."""
        self._call(http, "continue", None)

    def end(self, http: Connection) -> bool:
        """Have it end and take the rest; says whether all came, in order, once."""
        body, kind = multipart({"stop": b""})
        status, text = http.call("POST", f"/session/{self.name}/upload", body, kind)
        assert status == 204, text
        until = time.monotonic() + END_S
        while self.exit_code is None and time.monotonic() < until:
            self.follow(http)
        lines = self.printed.splitlines()
        wanted = [f"{self.name} {number}" for number in range(1, len(lines) + 1)]
        return self.exit_code == 7 and lines == wanted

    def _call(self, http: Connection, mode: str, options: Any) -> None:
        body = {"mode": mode, "code": "", "runId": self.run_id, "options": options}
        result = http.json("POST", f"/session/{self.name}", body)["result"]
        self.printed += "".join(text for _, text in result["console"])
        self.exit_code = result["exitCode"] if result["status"] == "finished" else None


def main() -> int:
    """Run; exit 0 when no session and no byte was lost."""
    parser = argparse.ArgumentParser(prog="python -m bench.thousand", description=__doc__)
    parser.add_argument("--sessions", type=int, default=1050, help="alive at once [1050]")
    parser.add_argument("--busy", type=int, default=50, help="of them running a program [50]")
    options = parser.parse_args()
    print(
        f"host: {platform.release()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f};"
        f" {options.sessions} sessions, {options.busy} of them busy",
        flush=True,
    )
    first_uid = 1_000_000_000 + random.randrange(10_000) * UID_COUNT
    uids = range(first_uid, first_uid + UID_COUNT)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"RETORT_SANDBOX_HOST_UID_FIRST": str(first_uid)}
        settings["RETORT_POOL_SIZE"] = "0"  # what the pool holds would look like something left
        server = Server(folder, settings=settings)
        assert server.start()
        try:
            return Thousand(server, uids, options.sessions, options.busy).run()
        finally:
            server.stop()


class Thousand:
    """One run of this bench."""

    def __init__(self, server: Server, uids: range, count: int, busy: int) -> None:
        self._server = server
        self._uids = uids
        self._names = [f"many-{number:05}" for number in range(count)]
        self._busy = [Busy(name, f"run-{name}") for name in self._names[:busy]]
        self._ids: list[str] = []
        self._lost: list[str] = []

    def run(self) -> int:
        """Do everything; gives the exit code."""
        bench = self._server.bench()
        bench.destroy(bench.session("bash"))  # the first one opens the writer of the database
        before = held(bench, self._uids, (), is_alone=False)
        idle_bytes, free_bytes = self._memory(), free()
        self._each(self._names[:1], self._create)
        self._runs("one session", self._names[:1])
        began_at = time.monotonic()
        self._each(self._names[1:], self._create)
        took_s = time.monotonic() - began_at
        print(f"{len(self._names)} sessions made in {took_s:.1f} s, {AT_ONCE} at a time")
        each = len(self._names) << 10
        print(
            f"an idle session, all processes: {(self._memory() - idle_bytes) / each:.0f} KiB Pss;"
            f" of the host's memory {(free_bytes - free()) / each:.0f} KiB",
            flush=True,
        )
        idle = self._names[len(self._busy) :]
        self._runs("all, none busy", idle)
        self._each(self._busy, lambda http, busy: busy.start(http))
        self._runs(f"all, {len(self._busy)} busy", idle)
        bench.http.close()
        self._restart()
        if self._lost:
            return self._verdict("not looked for")
        self._runs(f"restarted, {len(self._busy)} busy", idle)
        self._each(self._busy, self._end)
        self._each(self._names, self._destroy)
        after, left = settled(self._server.bench(), self._uids, self._ids, before, is_alone=False)
        print(f"server: {before.server_bytes >> 20} MiB before, {after.server_bytes >> 20} after")
        return self._verdict(left)

    def _verdict(self, left: str) -> int:
        for lost in self._lost:
            print(f"LOST {lost}")
        print(f"{len(self._lost)} lost, left: {left or 'nothing'}")
        return 1 if self._lost or left else 0

    def _restart(self) -> None:
        self._server.kill()
        began_at = time.monotonic()
        assert self._server.start()
        listens_s = time.monotonic() - began_at
        self._each(self._names, self._look)
        answers_s = time.monotonic() - began_at
        print(
            f"killed and started again: listens after {listens_s:.2f} s, every session has"
            f" answered after {answers_s:.2f} s",
            flush=True,
        )

    def _create(self, http: Connection, name: str) -> None:
        config = {"resources": {"cpu": 1, "mem": MEMORY}}
        made = http.json("POST", "/session", {"name": name, "image": "gcc", "config": config})
        self._ids.append(made["sessionId"])

    def _look(self, http: Connection, name: str) -> None:
        status, answer = http.call("GET", f"/session/{name}/files")
        if status != 200:
            self._lost.append(f"{name}: {status} {answer[:200]!r}")

    def _end(self, http: Connection, busy: Busy) -> None:
        if not busy.end(http):
            self._lost.append(f"output of {busy.name}: exit {busy.exit_code}, {busy.printed[-80:]}")

    def _destroy(self, http: Connection, name: str) -> None:
        status, answer = http.call("DELETE", f"/session/{name}")
        if status != 200:
            self._lost.append(f"{name} at its end: {status} {answer[:200]!r}")

    def _each(self, what: Iterable[Any], act: Callable[[Connection, Any], None]) -> None:
        """Do something with each, several at a time."""

        def work(share: list[Any]) -> None:
            with contextlib.closing(Connection(self._server.url, self._server.token)) as http:
                for one in share:
                    try:
                        act(http, one)
                    except (AssertionError, OSError) as exc:
                        self._lost.append(f"{one}: {exc!r}"[:300])

        everything = list(what)
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(work, (everything[start::AT_ONCE] for start in range(AT_ONCE))))

    def _runs(self, title: str, names: list[str]) -> None:
        """Measure a trivial run, each in another session, in turns with a bare spawn."""
        bench: Bench = self._server.bench()
        runs, spawns = [], []
        for number in range(RUNS):
            name = names[number * len(names) // RUNS]
            spawns.append(once(lambda: floors.spawn("/bin/bash", "-c", "true")))
            runs.append(once(functools.partial(bench.run, name, build=None, exec="true")))
        bench.http.close()
        p99 = statistics.quantiles(runs, n=100)[98]
        print(
            f"a run, {title:22} p50 {statistics.median(runs):6.2f} ms, p99 {p99:6.2f} ms;"
            f" bare spawn p50 {statistics.median(spawns):.2f} ms, load {os.getloadavg()[0]:.2f}",
            flush=True,
        )

    def _memory(self) -> int:
        """Give the Pss of the server and of every process of its sessions."""
        found = 0
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    found += self._memory_of(entry.path)
        return found

    def _memory_of(self, folder: str) -> int:
        words = Path(folder, "cmdline").read_bytes()
        status = Path(folder, "status").read_text().splitlines()
        uid = int(next(line for line in status if line.startswith("Uid:")).split()[1])
        if uid not in self._uids and self._server.state.encode() not in words:
            return 0
        lines = Path(folder, "smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) << 10


def free() -> int:
    """Give the host's available memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) << 10


if __name__ == "__main__":
    sys.exit(main())
