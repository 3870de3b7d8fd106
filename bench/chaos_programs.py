"""What the clients of bench.chaos run: programs whose every byte and whose end is known.

Each build and each exec also adds its name to a file of the run's own, so that a step which ran
twice, or never, is seen.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """One run.

    Attributes:
        mark: the file that each step adds its name to.
        stdout, stderr: all that it prints.
        lines: what it must be given, one line each time that it waits.
        steps: what must stand in `mark` at its end.
        may_be_cut: its time may be up before it printed or did anything.
    """

    mark: str
    command: str
    stdout: str = ""
    stderr: str = ""
    build: str = ""
    build_prints: str = ""
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    lines: tuple[str, ...] = ()
    status: str = "finished"
    outcome: str = "exited"
    exit_code: int | None = 0
    steps: str = "build exec "
    may_be_cut: bool = False

    @property
    def options(self) -> dict[str, object]:
        """Give the batch options."""
        build = f"printf 'build ' >> {self.mark}; {self.build or ':'}"
        command = f"printf 'exec ' >> {self.mark}\n{self.command}"
        return {"build": build, "exec": command, "limits": dict(self.limits)}


def _counted(tag: str, count: int) -> str:
    return "".join(f"{tag} {number}\n" for number in range(1, count + 1))


def _short(rng: random.Random, tag: str) -> Program:
    code = rng.randrange(256)
    return Program(tag, f"echo {tag}; exit {code}", f"{tag}\n", exit_code=code)


def _built(_: random.Random, tag: str) -> Program:
    source = "int puts(const char *); int main(int n, char **v) { puts(v[1]); return 9; }"
    return Program(
        tag,
        f"./{tag}.bin {tag}",
        f"{tag}\n",
        build=f"echo '{source}' > {tag}.c && gcc -o {tag}.bin {tag}.c && echo built {tag}",
        build_prints=f"built {tag}\n",
        exit_code=9,
    )


def _long(rng: random.Random, tag: str) -> Program:
    count, pause = rng.randrange(10, 40), rng.choice(("0.05", "0.1", "0.2"))
    loop = f"for i in $(seq {count}); do echo {tag} $i; sleep {pause}; done; exit 3"
    return Program(tag, loop, _counted(tag, count), exit_code=3)


def _much(rng: random.Random, tag: str) -> Program:
    """Print some hundred kilobytes: more than a pipe holds, less than an answer may."""
    count = rng.randrange(5_000, 12_000)
    return Program(tag, f"seq -f '{tag} %.0f' {count}", _counted(tag, count))


def _spread(rng: random.Random, tag: str) -> Program:
    """Print much over a while, in letters that a careless reader would cut."""
    count, word = rng.randrange(10, 30), "π漢字😀" * rng.randrange(100, 900)
    return Program(
        tag,
        f"for i in $(seq {count}); do printf '%s {tag} %d\\n' {word} $i; sleep 0.05; done",
        "".join(f"{word} {tag} {number}\n" for number in range(1, count + 1)),
    )


def _both(rng: random.Random, tag: str) -> Program:
    count = rng.randrange(5, 20)
    loop = f"for i in $(seq {count}); do echo {tag} $i; echo {tag} $i >&2; sleep 0.03; done"
    return Program(tag, loop, _counted(tag, count), _counted(tag, count))


def _asks(rng: random.Random, tag: str) -> Program:
    lines = tuple(f"{tag} line {number}" for number in range(1, rng.randrange(2, 6)))
    loop = f'for i in $(seq {len(lines)}); do read -r line; echo "got $line"; done; exit 5'
    return Program(tag, loop, "".join(f"got {line}\n" for line in lines), lines=lines, exit_code=5)


def _unbuilt(_: random.Random, tag: str) -> Program:
    return Program(
        tag,
        "echo never",
        build=f"echo no {tag}; exit 2",
        build_prints=f"no {tag}\n",
        exit_code=127,
        steps="build ",
    )


def _late(rng: random.Random, tag: str) -> Program:
    return Program(
        tag,
        f"echo before {tag}; exec sleep 600",
        f"before {tag}\n",
        limits={"wallSeconds": rng.choice((2.0, 3.0))},
        status="exec-timeout",
        outcome="timed-out",
        exit_code=None,
        may_be_cut=True,
    )


def _killed(_: random.Random, tag: str) -> Program:
    return Program(
        tag, f"echo {tag}; kill -SEGV $$", f"{tag}\n", outcome="signalled", exit_code=139
    )


KINDS: dict[str, Callable[[random.Random, str], Program]] = {
    "short": _short,
    "built": _built,
    "long": _long,
    "much": _much,
    "spread": _spread,
    "both": _both,
    "asks": _asks,
    "unbuilt": _unbuilt,
    "late": _late,
    "killed": _killed,
}
