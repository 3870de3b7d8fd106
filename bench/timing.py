"""`python -m bench.timing`: does the time of a 404 tell whether a session is another key's?

A stranger asks, in turns drawn by lot, for a session that another key has and for one that nobody
has, by name and by id, on the routes that answer both alike. Printed are both medians, and how
often a call about the other key's session was the slower one of a pair: 0.5 is what a coin says.
Exit code 1: further from it than four standard deviations of a coin, so that many calls do tell.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import uuid
from typing import Any

from bench.http import Connection
from bench.server import ROOT, Bench, running

TOLD = 4.0  # standard deviations
KEY_S = 10.0  # until a running server knows a new key

ROUTES: dict[str, tuple[str, str, Any]] = {
    "info": ("GET", "/session/{}", None),
    "files": ("GET", "/session/{}/files", None),
    "execute": ("POST", "/session/{}", {"mode": "batch", "code": "", "options": {"exec": "true"}}),
    "interrupt": ("POST", "/session/{}/interrupt", None),
    "destroy": ("DELETE", "/session/{}", None),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What the times of one route tell."""

    theirs_us: float
    nobodys_us: float
    slower: float
    deviations: float


def main() -> int:
    """Measure every route; exit 0 when none tells."""
    parser = argparse.ArgumentParser(prog="python -m bench.timing", description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="calls of each kind [4000]")
    options = parser.parse_args()
    print(
        f"host: {platform.release()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f};"
        f" {options.count} calls of each kind"
    )
    print(f"{'route':10} {'by':5} {'theirs':>9} {'nobody':>9} {'slower':>7} {'deviations':>11}")
    tells = 0
    with running() as bench:
        stranger = Connection(bench.url, _second_key(bench))
        name = f"theirs-{uuid.uuid4().hex[:12]}"
        made = bench.http.json("POST", "/session", {"name": name, "image": "bash"})
        ids = {"name": name, "id": made["sessionId"]}
        for route, (method, path, body) in ROUTES.items():
            for by, theirs in ids.items():
                found = _compared(stranger, method, path, body, theirs, by, options.count)
                tells += abs(found.deviations) > TOLD
                print(
                    f"{route:10} {by:5} {found.theirs_us:7.0f}us {found.nobodys_us:7.0f}us"
                    f" {found.slower:7.3f} {found.deviations:11.1f}",
                    flush=True,
                )
        bench.destroy(name)
    print(f"{tells} of {len(ROUTES) * 2} tell")
    return 1 if tells else 0


def _second_key(bench: Bench) -> str:
    """Make a key beside the running server, and wait until it is known."""
    command = [sys.executable, "-m", "retort.cli.main", "keys", "create", "--json"]
    environ = os.environ | {"PYTHONPATH": str(ROOT / "src"), "RETORT_KEYS_RATE_LIMIT": "100000000"}
    made = subprocess.run(
        [*command, "--state", bench.state], env=environ, capture_output=True, check=True
    )
    token: str = json.loads(made.stdout)["token"]
    until = time.monotonic() + KEY_S
    while time.monotonic() < until:
        probe = Connection(bench.url, token)
        status, _ = probe.call("GET", "/session/nobodys")
        probe.close()
        if status == 404:
            return token
        time.sleep(0.1)
    raise RuntimeError("the server does not learn of the key")


def _compared(
    stranger: Connection, method: str, path: str, body: Any, theirs: str, by: str, count: int
) -> Told:
    data = json.dumps(body).encode() if body else b""
    order = ["theirs", "nobodys"] * count
    random.shuffle(order)
    times: dict[str, list[int]] = {"theirs": [], "nobodys": []}
    # As long and as odd as theirs, and the same in every call, as theirs is: what is kept by
    # address (a parsed path saves 2 us) is kept of both, as it is when a stranger tries a guess.
    other = str(uuid.uuid4()) if by == "id" else f"theirs-{uuid.uuid4().hex[:12]}"
    for whose in order:
        asked = path.format(theirs if whose == "theirs" else other)
        began_ns = time.perf_counter_ns()
        status, text = stranger.call(method, asked, data)
        times[whose].append(time.perf_counter_ns() - began_ns)
        assert status == 404, (asked, status, text)
    slower = _slower(times["theirs"], times["nobodys"])
    return Told(
        statistics.median(times["theirs"]) / 1000,
        statistics.median(times["nobodys"]) / 1000,
        slower,
        (slower - 0.5) * math.sqrt(12 * count * count / (2 * count + 1)),  # Mann and Whitney
    )


def _slower(ones: list[int], others: list[int]) -> float:
    """Give the share of pairs in which one is slower than another; ties count half."""
    others = sorted(others)
    wins = sum(
        (bisect.bisect_left(others, one) + bisect.bisect_right(others, one)) / 2 for one in ones
    )
    return wins / (len(ones) * len(others))


if __name__ == "__main__":
    raise SystemExit(main())
