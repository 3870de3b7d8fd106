"""Limits that are asked for, and usage that was measured."""

from __future__ import annotations

import dataclasses

MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a session and each of its steps may use. Zero never means "no limit".

    Attributes:
        scratch_bytes: `/home/work`, a tmpfs.
        tmp_bytes: `/tmp` and `/var/tmp`, each.
        shm_bytes: `/dev/shm`.
        scratch_inodes: files and folders in `/home/work`.
        tmp_inodes: in each of `/tmp`, `/var/tmp` and `/dev/shm`.
        memory_bytes, cpus: the session's slots (spec 5.9).
        processes: and threads, of all steps together (RLIMIT_NPROC where nothing counts them).
        open_files: RLIMIT_NOFILE of a step.
        file_bytes: RLIMIT_FSIZE of a step.
        stack_bytes: RLIMIT_STACK of a step.
    """

    scratch_bytes: int = 512 * MIB
    tmp_bytes: int = 64 * MIB
    shm_bytes: int = 64 * MIB
    scratch_inodes: int = 131_072
    tmp_inodes: int = 16_384
    memory_bytes: int = 2048 * MIB
    cpus: float = 1.0
    processes: int = 1024
    open_files: int = 4096
    file_bytes: int = 512 * MIB
    stack_bytes: int = 64 * MIB


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """What was measured, for one step or summed over a session.

    Attributes:
        wall_ns: from the program's start to its end, by the monotonic clock.
        user_us, system_us: CPU time of the main process and the children it waited for.
        max_rss_bytes: the largest resident set of any one of them (getrusage(2), ru_maxrss).
        memory_peak_bytes: of all processes and files of the session together, where a control
            group counts it; else 0.
        processes_peak: at the same time, where a control group counts them; else 0.
        read_bytes, written_bytes: block input and output; 0 on a tmpfs.
        cut_chars: characters of output dropped over the cap of spec R10.
        host_cpu_wait_us: of that time, how long some task of the host waited for a processor; None
            where the host kernel does not tell.
    """

    wall_ns: int = 0
    user_us: int = 0
    system_us: int = 0
    max_rss_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    cut_chars: int = 0
    memory_peak_bytes: int = 0
    processes_peak: int = 0
    host_cpu_wait_us: int | None = None

    def plus(self, other: Usage) -> Usage:
        """Add two usages: times and bytes add up, peaks take the larger."""
        return Usage(
            wall_ns=self.wall_ns + other.wall_ns,
            user_us=self.user_us + other.user_us,
            system_us=self.system_us + other.system_us,
            max_rss_bytes=max(self.max_rss_bytes, other.max_rss_bytes),
            read_bytes=self.read_bytes + other.read_bytes,
            written_bytes=self.written_bytes + other.written_bytes,
            cut_chars=self.cut_chars + other.cut_chars,
            memory_peak_bytes=max(self.memory_peak_bytes, other.memory_peak_bytes),
            processes_peak=max(self.processes_peak, other.processes_peak),
            host_cpu_wait_us=_sum(self.host_cpu_wait_us, other.host_cpu_wait_us),
        )


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else one + other
