"""What goes to retort-init and comes back from it about steps, as values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retort.errors import SandboxFault
from retort.sandbox.protocol import ExecFlags, Phase, State


class StepNotStarted(SandboxFault):
    """A step's program did not begin; nothing of it ran."""

    def __init__(self, phase: Phase, error: int) -> None:
        super().__init__(phase.name.lower(), os.strerror(error))
        self.step_phase = phase
        self.errno = error


@dataclass(frozen=True, slots=True)
class Standby:
    """The child that waits for the next step; its pidfd belongs to the receiver."""

    pid_inside: int
    pidfd: int

    @property
    def host_pid(self) -> int:
        """What to write into a cgroup's ``cgroup.procs``; -1: it is dead (pidfd_open(2)).

        Raises:
            ValueError: the descriptor is no pidfd.
        """
        with open(f"/proc/self/fdinfo/{self.pidfd}", "rb") as info:  # noqa: PTH123  procfs
            for line in info:
                if line.startswith(b"Pid:"):
                    return int(line[4:])
        raise ValueError("a descriptor that is no pidfd")


@dataclass(frozen=True, slots=True)
class Started:
    """A program is running; its pid inside is also its process group and session."""

    number: int
    pid_inside: int


@dataclass(frozen=True, slots=True)
class ExecStep:
    """What to run.

    Args:
        number: chosen by the server, unique among unreleased steps, 1 to 2**64 - 1.
        argv: the first is the path to execute; ``PATH`` is not searched.
        env: the whole environment.
        cwd: a path inside the sandbox.
        rlimits: (resource, soft, hard) of setrlimit(2), -1 for no limit; none given: as init's.
        tag: returned by ``steps()``, at most 8 KiB.
        stdio: descriptors of the program's stdin, stdout, stderr; they stay the caller's.
        held: up to three descriptors that init duplicates and gives to the next server.
        keep_background: do not kill what outlives the main process.
        standby: ``Standby.pid_inside`` of the child that was put into the step's cgroups; the step
            runs in it or not at all. 0: any child, and a new one if there is none.
        tty: stdin is a terminal, make it the controlling one.
    """

    number: int
    argv: Sequence[bytes | str]
    env: Mapping[str, str]
    cwd: bytes
    stdio: tuple[int, int, int]
    rlimits: Sequence[tuple[int, int, int]] = ()
    tag: bytes = b""
    held: tuple[int, ...] = ()
    keep_background: bool = False
    standby: int = 0
    tty: bool = False


@dataclass(frozen=True, slots=True)
class StepUsage:
    """getrusage(2) of a step's main process and the children that it waited for."""

    user_us: int
    system_us: int
    max_rss_kib: int
    minor_faults: int
    major_faults: int
    in_blocks: int
    out_blocks: int
    voluntary_switches: int
    involuntary_switches: int


@dataclass(frozen=True, slots=True)
class StepExit:
    """How a step ended; everything that it left behind is dead.

    Times are CLOCK_MONOTONIC of the host: just before execve, and when the main process was reaped.
    """

    number: int
    wait_status: int
    usage: StepUsage
    started_ns: int
    ended_ns: int

    @property
    def exit_code(self) -> int | None:
        """0 to 255, or None when a signal ended it."""
        return os.WEXITSTATUS(self.wait_status) if os.WIFEXITED(self.wait_status) else None

    @property
    def signal(self) -> int | None:
        """The signal that ended it, or None when it exited."""
        return os.WTERMSIG(self.wait_status) if os.WIFSIGNALED(self.wait_status) else None

    @property
    def user_us(self) -> int:
        """User CPU time in microseconds."""
        return self.usage.user_us

    @property
    def system_us(self) -> int:
        """System CPU time in microseconds."""
        return self.usage.system_us

    @property
    def max_rss_kib(self) -> int:
        """Largest resident set of one process in KiB."""
        return self.usage.max_rss_kib


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step that init knows, for a server that did not start it.

    ``held`` has the descriptors in the order of ``ExecStep.held`` (None: dropped or never given);
    they belong to the receiver. ``exit`` is set once the step has ended. ``fed`` is how many bytes
    of input were written for it, by whichever server.
    """

    number: int
    state: State
    pid_inside: int
    flags: ExecFlags
    tag: bytes
    held: tuple[int | None, int | None, int | None]
    exit: StepExit | None
    fed: int = 0
