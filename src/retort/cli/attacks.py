"""The attacks of `retort selftest`: what each tries, and the verdict that it must get."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from retort.cli import attack_probes as probes
from retort.cli import attack_programs as programs

EXITED, OUT_OF_MEMORY, DISK_FULL = "exited", "out-of-memory", "disk-full"
PIDS, TIMED_OUT, OUTPUT = "pids-limit", "timed-out", "output-limit"


@dataclasses.dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Attributes:
        row: its name in the list of attacks, such as "A1".
        name: what it tries.
        program: Python, after the prelude.
        outcomes: those that a standing wall leads to.
        limit: the limit that must have ended it.
        wall: of `walls`; where it is "none" the attack is not made.
        by_rlimit: outcome where that wall is only "rlimit"; None: that is not enough.
        exit_code: None: whatever it is.
        is_told: the program must say `held`.
        limits: of the run.
        memory: of the session.
        then: what is checked from outside afterwards.
    """

    row: str
    name: str
    program: str
    outcomes: tuple[str, ...] = (EXITED,)
    limit: str | None = None
    wall: str = "namespaces"
    by_rlimit: str | None = None
    exit_code: int | None = None
    is_told: bool = True
    limits: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"wallSeconds": 10})
    memory: str = "128m"
    then: str = ""


def _killed(row: str, name: str, program: str, outcome: str, **more: Any) -> Attack:
    return Attack(row, name, program, (outcome,), is_told=False, **more)


ATTACKS: tuple[Attack, ...] = (
    Attack("A1", "fork bomb", programs.FORK_BOMB, (PIDS,), wall="processes", by_rlimit=EXITED,
           exit_code=7),
    Attack("A1b", "thread bomb", programs.THREAD_BOMB, (PIDS,), wall="processes",
           by_rlimit=EXITED, exit_code=7),
    Attack("A2", "daemons that outlive the program", programs.DAEMON, exit_code=0),
    Attack("A3", "children that keep the output open", programs.OPEN_OUTPUT, exit_code=0),
    _killed("A4", "ignores every signal, stops itself", programs.STUBBORN, TIMED_OUT,
            limit="wall", limits={"wallSeconds": 0.5}),
    _killed("A5", "CPU time over four processes", programs.SPIN, TIMED_OUT, limit="cpu",
            wall="cpuTime", limits={"cpuSeconds": 0.5, "wallSeconds": 20}),
    _killed("A6", "sleeps for ever", programs.SLEEP, TIMED_OUT, limit="wall",
            limits={"wallSeconds": 0.5, "cpuSeconds": 5}),
    Attack("A7", "orphans by the hundred", programs.ZOMBIES, exit_code=0),
    Attack("A8", "kill -1, ptrace, prlimit of pid 1", programs.STRIKE, exit_code=0,
           wall="seccomp"),
    Attack("A9", "raises its own limits", programs.RAISE, exit_code=0),
    _killed("B1", "memory beyond the limit", programs.MEMORY, OUT_OF_MEMORY, wall="memory",
            memory="64m"),
    Attack("B2", "fills /dev/shm, /tmp and what is read-only", programs.TMPFS, exit_code=0),
    _killed("B3", "memory in nameless files", programs.SHARED_MEMORY, OUT_OF_MEMORY,
            wall="memory", memory="64m"),
    Attack("B6", "peak memory is of the run alone", programs.PEAK, wall="memory", then="peak"),
    Attack("C1", "fills the disk, sparse file of 1 TiB", programs.DISK, (DISK_FULL,),
           exit_code=1, memory="256m"),
    Attack("C2", "200 000 empty files", programs.INODES, (DISK_FULL, OUT_OF_MEMORY),
           wall="inodes", is_told=False, memory="64m"),
    Attack("C5", "core dump", programs.CORE, exit_code=0),
    Attack("C6", "setuid, capabilities, devices", programs.PRIVILEGE, exit_code=0),
    Attack("C7", "mount, pivot_root, chroot", programs.MOUNTS, exit_code=0),
    Attack("D2", "downloads through planted links", probes.LINKS, exit_code=0, then="links"),
    Attack("D5", "downloads of FIFO, socket and folder", probes.FIFOS, exit_code=0,
           then="fifos"),
    Attack("E1", "new namespaces", probes.NAMESPACES, exit_code=0, wall="seccomp"),
    Attack("E2", "system calls of the deny-list", probes.CALLS, exit_code=0, wall="seccomp"),
    Attack("E3", "families of sockets", probes.SOCKETS, exit_code=0, wall="seccomp"),
    Attack("E4", "types into a terminal", probes.TERMINAL, exit_code=0, wall="seccomp"),
    Attack("E5", "reads /proc and secrets of the server", probes.READING, exit_code=0),
    Attack("E7", "inherited descriptors", probes.DESCRIPTORS, exit_code=0),
    Attack("E8", "sets host name and clock", probes.HOSTNAME, exit_code=0),
    Attack("F1", "reaches the server and beyond", probes.NETWORK, exit_code=0, wall="network"),
    Attack("H1", "32 MiB of output", probes.FLOOD, exit_code=0, is_told=False, then="output"),
    _killed("H1b", "endless output", probes.ENDLESS, OUTPUT, limit="output",
            limits={"outputBytes": 100_000, "wallSeconds": 10}),
)  # fmt: skip
