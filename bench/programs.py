"""Kinds of hostile programs: how each is drawn, and the verdict that it must get."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping

from retort.cli.attack_programs import PRELUDE
from retort.cli.attacks import ATTACKS, Attack

MIB = 1 << 20
PATIENT = {"wallSeconds": 120}  # never the verdict of a program that ends otherwise


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a run must be answered; None: not looked at."""

    outcome: str
    exit_code: int | None = 0
    limit: str | None = None
    signal: str | None = None
    status: str = "finished"


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """One hostile program.

    Attributes:
        command: of exec.
        expected: any of these verdicts.
        files: what is uploaded first.
        build: None: not built.
        image, memory, limits: of its session and run.
        says: last line of its output must start with this.
        output: characters that it prints, kept and cut together.
        refused: paths whose download must be refused.
        is_abandoned: its session is destroyed while it runs.
    """

    command: str
    expected: tuple[Verdict, ...]
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    build: str | None = None
    image: str = "python"
    memory: str = "128m"
    limits: Mapping[str, float] = dataclasses.field(default_factory=lambda: PATIENT)
    says: str = ""
    output: int | None = None
    refused: tuple[str, ...] = ()
    is_abandoned: bool = False


Draw = Callable[[random.Random], Program]


def _shell(command: str, *expected: Verdict, **more: object) -> Draw:
    return lambda _: Program(command, expected or (Verdict("exited"),), image="bash", **more)  # type: ignore[arg-type]


def _python(code: str, *expected: Verdict, **more: object) -> Draw:
    return lambda _: Program(
        "exec python3 attack.py",
        expected or (Verdict("exited"),),
        {"attack.py": (PRELUDE + code).encode()},
        **more,  # type: ignore[arg-type]
    )


def _c(code: str, *expected: Verdict, **more: object) -> Draw:
    return lambda _: Program(
        "*", expected, {"attack.c": code.encode()}, build="*", image="gcc", **more  # type: ignore[arg-type]
    )  # fmt: skip


def _exit_code(rng: random.Random) -> Program:
    code = rng.randrange(256)
    return Program(f"exit {code}", (Verdict("exited", code),), image="bash")


def _signal(rng: random.Random) -> Program:
    name, number = rng.choice(
        [("SEGV", 11), ("ABRT", 6), ("FPE", 8), ("BUS", 7), ("ILL", 4), ("SYS", 31),
         ("XCPU", 24), ("XFSZ", 25), ("KILL", 9), ("TERM", 15), ("USR1", 10), ("PIPE", 13)]
    )  # fmt: skip
    verdict = Verdict("signalled", 128 + number, signal=f"SIG{name}")
    return Program(f"kill -{name} $$", (verdict,), image="bash")


def _output(rng: random.Random) -> Program:
    size = rng.randrange(1, 8 * MIB)
    fd = rng.choice((1, 2))
    command = f"head -c {size} /dev/zero | tr '\\0' x >&{fd}"
    return Program(command, (Verdict("exited"),), image="bash", output=size)


def _of_attack(attack: Attack) -> Draw:
    """Make a kind of a row of `retort selftest`."""
    status = "exec-timeout" if attack.outcomes == ("timed-out",) else "finished"
    if attack.outcomes == ("out-of-memory",) or attack.outcomes == ("output-limit",):
        code = 137
    else:
        code = attack.exit_code if attack.exit_code is not None else 0
    expected = tuple(
        Verdict(
            outcome,
            None if status == "exec-timeout" or len(attack.outcomes) > 1 else code,
            attack.limit,
            status=status,
        )
        for outcome in attack.outcomes
    )
    limits = {**attack.limits, "wallSeconds": attack.limits["wallSeconds"]}
    if attack.limit != "wall":
        limits["wallSeconds"] = 120
    return _python(
        attack.program,
        *expected,
        limits=limits,
        memory=attack.memory,
        says="held" if attack.is_told else "",
    )


LEAK = r"""
kept = []
while True:
    kept.append(b"x" * (1 << 18))
    time.sleep(0.0005)
"""

CHILD_OUT_OF_MEMORY = r"""
pid = os.fork()
if pid == 0:
    open("/proc/self/oom_score_adj", "w").write("1000")
    kept = [b"x" * (8 << 20) for _ in range(64)]
    os._exit(0)
os.waitpid(pid, 0)
held()
"""

REFUSED_AND_FINE = r"""
try:
    while True:
        if os.fork() == 0:
            time.sleep(1000)
except OSError:
    held()
"""

DEEP = r"""
for _ in range(3000):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
open("file", "w").write("x")
held()
"""

NAMES = r"""
for name in (b"-rf", b"a\nb", b"'\"`$(x)", b"\xff\xfe", b" ", b"*", b"\x1b[31m", b"n" * 255):
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
os.mkdir("closed", 0)
held()
"""

THREAD_EXIT = r"""
import threading
threading.Thread(target=os._exit, args=(3,)).start()
time.sleep(1000)
"""

LINKS = r"""
os.symlink("/proc/self/environ", "environ")
os.symlink("/etc/passwd", "passwd")
os.symlink("loop", "loop")
os.symlink("/proc/1/root/etc/passwd", "root")
os.mkfifo("fifo")
held()
"""

OVERFLOW = "int f(int x) { char b[4096]; b[x % 4096] = 1; return f(x + 1) + b[0]; }\n" + (
    "int main(void) { return f(0); }\n"
)
NULL = "int main(void) { volatile int *p = 0; return *p; }\n"
ENDLESS_INCLUDE = '#include "/dev/zero"\nint main(void) { return 0; }\n'

_BY_ROW = {attack.row: attack for attack in ATTACKS}

#: Name -> how one is drawn.
KINDS: dict[str, Draw] = {
    "exit code": _exit_code,
    "signal": _signal,
    "output of any size": _output,
    **{
        f"{row} {_BY_ROW[row].name}": _of_attack(_BY_ROW[row])
        for row in ("A1", "A1b", "A2", "A3", "A4", "A5", "A6", "A7", "A8", "A9", "B1", "B2", "B3",
                    "C1", "C2", "C5", "C6", "C7", "E1", "E2", "E3", "E4", "E5", "E7", "E8", "F1",
                    "H1b")
    },
    "fork bomb of bash": _shell(
        ":(){ :|:& };:",
        Verdict("exited"),
        Verdict("pids-limit", 254),  # when the bomb was faster than the shell that set it off
    ),
    "memory leak": _python(LEAK, Verdict("out-of-memory", 137), memory="48m"),
    "child out of memory": _python(CHILD_OUT_OF_MEMORY, says="held"),
    "refused a fork, succeeds": _python(REFUSED_AND_FINE, says="held"),
    "deep tree": _python(DEEP, says="held"),
    "odd names": _python(NAMES, says="held"),
    "exit from a thread": _python(THREAD_EXIT, Verdict("exited", 3)),
    "planted links": _python(
        LINKS, says="held", refused=("environ", "passwd", "loop", "root", "fifo")
    ),
    "stack overflow": _c(OVERFLOW, Verdict("signalled", 139, signal="SIGSEGV")),
    "null pointer": _c(NULL, Verdict("signalled", 139, signal="SIGSEGV")),
    "endless include": _c(ENDLESS_INCLUDE, Verdict("out-of-memory", 127)),
    "kills its parent": _shell("kill -9 $PPID; kill -9 1; echo held", says="held"),
    "destroyed while it runs": _python("while True:\n    os.fork()\n", is_abandoned=True),
}  # fmt: skip
