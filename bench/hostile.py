"""`python -m bench.hostile`: a thousand hostile programs, each verdict checked, nothing left.

The programs are drawn with a printed seed and run 8 at a time over HTTP against a real server, each
in a session of its own, most of them in sandboxes made ahead. Of these the same number waits before
and after. Exit code 1: a wrong verdict, or something of a program is left. 2: this host lacks a
wall, and nothing was run.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import platform
import queue
import random
import statistics
import sys
import threading
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from bench.http import Connection, multipart
from bench.leftovers import SETTLE_S, Held, held, settled
from bench.programs import KINDS, Program
from bench.server import Bench, running

AHEAD = 8  # sandboxes that wait; a fixed number, or what waits would look like something left
SETTINGS = {
    "RETORT_POOL_SIZE": str(AHEAD),
    "RETORT_POOL_READY": str(AHEAD),
    "RETORT_SANDBOX_MEMORY_BYTES": "128m",  # what most programs get: they take what is made ahead
    "RETORT_SANDBOX_SCRATCH_BYTES": "67108864",
    "RETORT_SANDBOX_TMP_BYTES": "16777216",
    "RETORT_SANDBOX_SHM_BYTES": "16777216",
    "RETORT_SANDBOX_FILE_BYTES": "67108864",
    "RETORT_SANDBOX_PROCESSES": "128",
}
UID_COUNT = 65_536


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What became of one program.

    Attributes:
        problem: "" when all was as it must be.
        was_ahead: it ran in a sandbox that had been made before anybody asked.
    """

    kind: str
    outcome: str
    problem: str
    seconds: float
    session: str
    was_ahead: bool = False


def main() -> int:
    """Run the programs; exit 0 when every verdict was right and nothing is left."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="programs [1000]")
    parser.add_argument("--at-once", type=int, default=8, help="of them at the same time [8]")
    parser.add_argument("--seed", type=int, default=None, help="draws the same programs again")
    parser.add_argument("--only", action="append", metavar="KIND", help=f"of {', '.join(KINDS)}")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    rng = random.Random(seed)
    kinds = options.only or list(KINDS)
    first_uid = 1_000_000_000 + rng.randrange(10_000) * UID_COUNT
    print(
        f"host: {platform.release()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f};"
        f" {options.count} programs of {len(kinds)} kinds, {options.at_once} at once, seed {seed}",
        flush=True,
    )
    orders: queue.SimpleQueue[tuple[str, Program]] = queue.SimpleQueue()
    for _ in range(options.count):
        kind = rng.choice(kinds)
        orders.put((kind, KINDS[kind](rng)))
    uids = range(first_uid, first_uid + UID_COUNT)
    with running(**SETTINGS, RETORT_SANDBOX_HOST_UID_FIRST=str(first_uid)) as bench:
        if lacking := warm_up(bench, options.at_once):
            print(f"this host has no wall for {lacking}: some programs would hit it")
            return 2
        before = all_wait(bench, uids)
        began_at = time.monotonic()
        results = _all(bench, orders, options.at_once)
        took_s = time.monotonic() - began_at
        after, left = settled(bench, uids, {result.session for result in results}, before)
    show(results)
    return _verdict(results, before, after, left, took_s)


def warm_up(bench: Bench, count: int) -> str:
    """Let the server open what it keeps open; gives the names of walls that are missing."""
    walls: dict[str, str] = {}
    for _ in range(count):
        name = bench.session("python")
        bench.upload(name, {"x": b"x"})
        answer = run(bench.http, name, Program("true", ()))
        assert answer is not None
        walls = answer["walls"]
        bench.destroy(name)
    return ", ".join(name for name, means in walls.items() if means in ("none", "rlimit"))


def all_wait(bench: Bench, uids: range) -> Held:
    """Wait until all sandboxes that are made ahead stand ready; gives what is held then."""
    until = time.monotonic() + SETTLE_S
    while True:
        before = held(bench, uids, ())
        time.sleep(1)
        now = held(bench, uids, ())
        # Ready is what no longer changes: none is being made, and none of the warm-up ends.
        same = (now.processes, now.descriptors) == (before.processes, before.descriptors)
        if (same and now.files == AHEAD) or time.monotonic() > until:
            return now


def _all(
    bench: Bench, orders: queue.SimpleQueue[tuple[str, Program]], at_once: int
) -> list[Result]:
    results: list[Result] = []

    def work() -> None:
        http = Connection(bench.url, bench.token)
        while True:
            try:
                kind, program = orders.get_nowait()
            except queue.Empty:
                http.close()
                return
            try:
                results.append(_checked(bench, http, kind, program))
            except (AssertionError, OSError) as exc:
                results.append(Result(kind, "no answer", f"{exc!r}"[:300], 0.0, ""))
                http.close()
                http = Connection(bench.url, bench.token)

    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _checked(bench: Bench, http: Connection, kind: str, program: Program) -> Result:
    name = f"hostile-{uuid.uuid4().hex[:12]}"
    environ = {
        "SELFTEST_TOKEN": bench.token[::-1],  # what must be nowhere inside
        "SELFTEST_PORT": str(urlsplit(bench.url).port),
    }
    config = {"resources": {"cpu": 1, "mem": program.memory}, "environ": environ}
    made = http.json(
        "POST", "/session", {"name": name, "image": program.image, "config": config}
    )  # fmt: skip
    was_ahead = bench.was_ahead(made["sessionId"])
    began_at = time.monotonic()
    try:
        if program.files:
            body, kind_of_body = multipart(dict(program.files))
            status, text = http.call("POST", f"/session/{name}/upload", body, kind_of_body)
            assert status == 204, text
        answer = run(http, name, program)
        took_s = time.monotonic() - began_at
        problem = "" if answer is None else _problem(program, answer)
        if answer is not None and not problem:
            problem = _files_problem(http, name, program)
    finally:
        http.json("DELETE", f"/session/{name}")
    outcome = "destroyed" if answer is None else str(answer.get("outcome"))
    return Result(kind, outcome, problem, took_s, made["sessionId"], was_ahead)


def run(http: Connection, name: str, program: Program) -> dict[str, Any] | None:
    """Run it to its end; gives the last answer with all `text`, None when it was abandoned."""
    options = {
        "build": program.build,
        "exec": program.command,
        "limits": dict(program.limits),
    }
    path = f"/session/{name}"
    body: dict[str, Any] = {"mode": "batch", "code": "", "options": options}
    texts: list[str] = []
    while True:
        result: dict[str, Any] = http.json("POST", path, body)["result"]
        texts += [text for _, text in result["console"]]
        if program.is_abandoned:
            return None
        if result["status"] in ("finished", "exec-timeout"):
            return result | {"text": "".join(texts)}
        body = {"mode": "continue", "code": "", "runId": result["runId"]}


def _problem(program: Program, answer: dict[str, Any]) -> str:
    told = {key: answer.get(key) for key in ("status", "outcome", "exitCode", "limit", "signal")}
    text = answer["text"]
    last = (text.strip().splitlines() or [""])[-1][-200:]
    if not any(
        (told["status"], told["outcome"], told["limit"]) == (want.status, want.outcome, want.limit)
        and want.exit_code in (None, told["exitCode"])
        and want.signal in (None, told["signal"])
        for want in program.expected
    ):
        return f"{told}: {last!r}"
    if not last.startswith(program.says):
        return f"said {last!r}"
    seen = len(text) + answer["usage"]["cutChars"]
    if program.output is not None and seen != program.output:
        return f"{seen} characters of {program.output}"
    return ""


def _files_problem(http: Connection, name: str, program: Program) -> str:
    """Check that listing works whatever lies there, and that downloads are refused."""
    status, _ = http.call("GET", f"/session/{name}/files")
    if status != 200:
        return f"listing: status {status}"
    for path in (*program.refused, *(program.files if program.refused else ())):
        body = json.dumps({"file": path}).encode()
        status, _ = http.call("GET", f"/session/{name}/download_single", body)
        if status != 200 if path in program.files else not 400 <= status < 500:
            return f"download of {path}: status {status}"
    return ""


def show(results: list[Result]) -> None:
    """Print a line per kind."""
    print(f"{'kind':48} {'runs':>5} {'wrong':>5} {'p50':>8}  outcomes")
    for kind in sorted({result.kind for result in results}):
        mine = [result for result in results if result.kind == kind]
        counts = collections.Counter(result.outcome for result in mine)
        told = ", ".join(f"{outcome} {count}" for outcome, count in counts.most_common())
        p50 = statistics.median(result.seconds for result in mine)
        wrong = sum(bool(result.problem) for result in mine)
        print(f"{kind:48} {len(mine):5} {wrong:5} {p50 * 1000:6.0f}ms  {told}")
    for result in results:
        if result.problem:
            print(f"WRONG {result.kind}: {result.problem}")


def _verdict(results: list[Result], before: Held, after: Held, left: str, took_s: float) -> int:
    wrong = sum(bool(result.problem) for result in results)
    for name, value in dataclasses.asdict(after).items():
        unit, by = (" MiB", 20) if name.endswith("bytes") else ("", 0)
        print(f"{name:14} {getattr(before, name) >> by}{unit} before, {value >> by}{unit} after")
    ahead = sum(result.was_ahead for result in results)
    print(
        f"{len(results)} programs in {took_s:.0f} s, {ahead} of them in sandboxes made ahead:"
        f" {wrong} wrong, left: {left or 'nothing'}"
    )
    return 1 if wrong or left else 0


if __name__ == "__main__":
    sys.exit(main())
