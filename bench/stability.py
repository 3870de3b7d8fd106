"""`python -m bench.stability`: programs just under and just over each limit, beside other load.

A verdict must not depend on what else the host does: the program under a limit must succeed, the
one over it must get the verdict of that limit, every time. Exit code 1: one did not. Sandboxes are
made ahead by demand, as they are by default.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

from bench.hostile import run
from bench.http import Connection, multipart
from bench.programs import Program, Verdict
from bench.server import Bench, running

FINE = (Verdict("exited"),)
MIB = 1 << 20
SETTINGS = {
    "RETORT_SANDBOX_SCRATCH_BYTES": str(32 * MIB),
    "RETORT_SANDBOX_PROCESSES": "64",
    "RETORT_KEYS_MAX_SESSIONS": "1000",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A limit: a program under it and one over it, and what the margin is."""

    limit: str
    margin: str
    under: Program
    over: Program


def _python(code: str, *expected: Verdict, **more: Any) -> Program:
    code = f"import os, time, threading\n{code}"
    return Program("exec python3 attack.py", expected or FINE, {"attack.py": code.encode()}, **more)


def _bash(command: str, *expected: Verdict, **more: Any) -> Program:
    return Program(command, expected or FINE, image="bash", **more)


def _spin(cpu_s: float) -> str:
    """Use so much CPU time, over two processes, on top of what has been used."""
    return (
        "child = os.fork()\n"
        f"while time.process_time() < {cpu_s / 2}: pass\n"
        "os._exit(0) if child == 0 else os.waitpid(child, 0)\n"
    )


def _fork(count: int) -> str:
    """Have so many processes at once, itself among them; exit code 7 when one is refused."""
    return (
        "try:\n"
        f"    for _ in range({count} - 1):\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(60)\n"
        "except OSError:\n"
        "    os._exit(7)\n"
    )


def _files(count: int) -> str:
    return f"for n in range({count}): os.close(os.open(str(n), os.O_CREAT | os.O_WRONLY))\n"


_LATE = dataclasses.replace(FINE[0], outcome="timed-out", exit_code=None, status="exec-timeout")
_PATIENT = {"wallSeconds": 120}

PAIRS = (
    Pair(
        "memory",
        "64 MiB: a process of 48 MiB, one of 72 MiB",
        _python(f"kept = b'x' * {40 * MIB}\n", memory="64m", limits=_PATIENT),
        _python(
            f"kept = b'x' * {64 * MIB}\n",
            Verdict("out-of-memory", 137), memory="64m", limits=_PATIENT,
        ),
    ),
    Pair(
        "processes",
        "64: 60 and 68",
        _python(_fork(60), limits=_PATIENT),
        _python(_fork(68), Verdict("pids-limit", 7), limits=_PATIENT),
    ),
    Pair(
        "wall",
        "1 s: sleeps for 0.6 s and for 1.1 s",
        _bash("exec sleep 0.6", limits={"wallSeconds": 1}),
        _bash(
            "exec sleep 1.1", dataclasses.replace(_LATE, limit="wall"), limits={"wallSeconds": 1}
        ),
    ),
    Pair(
        "CPU time",
        "0.5 s: 0.4 s and 0.6 s over two processes",
        _python(_spin(0.4), limits={"cpuSeconds": 0.5, **_PATIENT}),
        _python(
            _spin(0.6) + "time.sleep(60)\n",
            dataclasses.replace(_LATE, limit="cpu"), limits={"cpuSeconds": 0.5, **_PATIENT},
        ),
    ),
    Pair(
        "output",
        "100 000 bytes: all of them, and one more",
        _bash("head -c 100000 /dev/zero", limits={"outputBytes": 100_000, **_PATIENT}),
        _bash(
            "head -c 100001 /dev/zero; sleep 60",
            Verdict("output-limit", 137, "output"), limits={"outputBytes": 100_000, **_PATIENT},
        ),
    ),
    Pair(
        "disk",
        "32 MiB: 31 MiB and 33 MiB",
        _bash("head -c 31M /dev/zero > file", limits=_PATIENT),
        _bash("head -c 33M /dev/zero > file", Verdict("disk-full", 1), limits=_PATIENT),
    ),
    Pair(
        "files",
        "8192: 8100 and 8300",
        _python(_files(8100), memory="128m", limits=_PATIENT),
        _python(_files(8300), Verdict("disk-full", 1), memory="128m", limits=_PATIENT),
    ),
)  # fmt: skip


def main() -> int:
    """Run every pair; exit 0 when no verdict was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.stability", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="runs of each program [200]")
    parser.add_argument("--load", type=int, default=2, help="spinning processes beside it [2]")
    parser.add_argument("--at-once", type=int, default=3, help="runs at the same time [3]")
    parser.add_argument("--only", action="append", help=f"of {', '.join(p.limit for p in PAIRS)}")
    options = parser.parse_args()
    print(
        f"host: {platform.release()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f};"
        f" {options.count} runs of each, {options.at_once} at once,"
        f" {options.load} spinning processes beside",
        flush=True,
    )
    print(f"{'limit':10} {'':5} {'runs':>5} {'wrong':>5} {'ahead':>5} {'mean':>8}  verdicts")
    wrong = 0
    with load(options.load), running(**SETTINGS) as bench:
        for pair in PAIRS:
            if options.only and pair.limit not in options.only:
                continue
            print(f"{pair.limit}: {pair.margin}")
            for side, program in (("under", pair.under), ("over", pair.over)):
                wrong += _repeated(bench, side, program, options.count, options.at_once)
    print(f"{wrong} wrong verdicts")
    return 1 if wrong else 0


@contextlib.contextmanager
def load(count: int) -> Iterator[None]:
    """Keep processors busy for the length of a block."""
    spin = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(spin) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _repeated(bench: Bench, side: str, program: Program, count: int, at_once: int) -> int:
    """Run a program again and again, in a session of its own each time; gives the wrong ones."""
    counts: collections.Counter[str] = collections.Counter()
    wrong = ahead = 0
    began_at = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        for told, was_ahead in pool.map(lambda _: _told(bench, program), range(count)):
            ahead += was_ahead
            words = (told.outcome, told.exit_code, told.limit and f"limit {told.limit}")
            counts[" ".join(str(word) for word in words if word is not None)] += 1
            wrong += told not in program.expected
    mean_ms = (time.monotonic() - began_at) / count * at_once * 1000
    verdicts = "; ".join(f"{told} x {number}" for told, number in counts.most_common())
    columns = f"{'':10} {side:5} {count:5} {wrong:5} {ahead:5} {mean_ms:6.0f}ms"
    print(f"{columns}  {verdicts}", flush=True)
    return wrong


def _told(bench: Bench, program: Program) -> tuple[Verdict, bool]:
    """Run it in a new session; gives what was told, and whether its sandbox was made ahead."""
    http = Connection(bench.url, bench.token)
    config = {"resources": {"cpu": 1, "mem": program.memory}}
    name = f"stable-{uuid.uuid4().hex[:12]}"
    made = http.json("POST", "/session", {"name": name, "image": program.image, "config": config})
    was_ahead = bench.was_ahead(made["sessionId"])
    try:
        if program.files:
            body, kind = multipart(dict(program.files))
            status, text = http.call("POST", f"/session/{name}/upload", body, kind)
            assert status == 204, text
        answer = run(http, name, program)
    finally:
        http.json("DELETE", f"/session/{name}")
        http.close()
    assert answer is not None
    told = Verdict(answer["outcome"], answer["exitCode"], answer["limit"], None, answer["status"])
    return told, was_ahead


if __name__ == "__main__":
    sys.exit(main())
