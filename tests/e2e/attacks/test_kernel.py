"""Attacks on the host kernel's surface and on side channels (attacks.md, E)."""

# ruff: noqa: ASYNC220, ASYNC240 - a test may block

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.running import wait_for_file

from .box import PRELUDE, SECRET, Box, outside, outside_c
from .conftest import NewBox

pytestmark = pytest.mark.slow

needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers are x86-64's")

# Each is made with arguments that do nothing even where it is allowed: (number, arguments...).
BAD = (1 << 64) - 1
NAMESPACES = {
    "unshare user": (272, 0x10000000),
    "unshare mount": (272, 0x00020000),
    "unshare pid": (272, 0x20000000),
    "unshare net": (272, 0x40000000),
    "unshare ipc": (272, 0x08000000),
    "unshare uts": (272, 0x04000000),
    "unshare cgroup": (272, 0x02000000),
    "unshare time": (272, 0x00000080),
    "clone user": (56, 0x10000000 | 0x20000000 | 0x00010000),
    "setns": (308, BAD, 0),
}
DENIED = {
    "bpf": (321, 9999, 0, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "userfaultfd": (323, 0xFFFF),
    "keyctl": (250, 9999, 0, 0, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "request_key": (249, 0, 0, 0, 0),
    "open_by_handle_at": (304, BAD, 0, 0),
    "name_to_handle_at": (303, BAD, 0, 0, 0, 0),
    "ptrace": (101, 0x4206, 0, 0, 0),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 99),
    "process_vm_writev": (311, 1, 0, 0, 0, 0, 99),
    "pidfd_getfd": (438, BAD, 0, 0),
    "kcmp": (312, 0, 0, 99, 0, 0),
    "fsopen": (430, 0, 0),
    "fsmount": (432, BAD, 0, 0),
    "open_tree": (428, BAD, 0, 0),
    "fanotify_init": (300, BAD, BAD),
    "quotactl": (179, BAD, 0, 0, 0),
    "swapon": (167, 0, 0),
    "swapoff": (168, 0),
    "kexec_load": (246, 0, 9999, 0, BAD),
    "init_module": (175, 0, 0, 0),
    "finit_module": (313, BAD, 0, 0),
    "delete_module": (176, 0, 0),
    "reboot": (169, 0, 0, 0, 0),
    "acct": (163, BAD),
    "settimeofday": (164, BAD, BAD),
    "clock_settime": (227, 0, BAD),
    "adjtimex": (159, BAD),
    "sethostname": (170, BAD, 3),
    "setdomainname": (171, BAD, 3),
    "iopl": (172, 9),
    "ioperm": (173, BAD, 1, 1),
    "syslog": (103, 9999, 0, 0),
}
ABSENT = {
    "io_uring_setup": (425, 0, 0),
    "io_uring_enter": (426, BAD, 0, 0, 0, 0, 0),
    "io_uring_register": (427, BAD, 0, 0, 0),
    "clone3": (435, 0, 0),
}
CALLS = """
for name, arguments in {calls}.items():
    print(f"{{name}}: {{errno.errorcode.get(call(*arguments), 'done')}}", flush=True)
"""


def told(output: str) -> dict[str, str]:
    return dict(line.split(": ") for line in output.splitlines())


@needs_x86
@pytest.mark.parametrize(
    ("calls", "error"),
    [(NAMESPACES, "EPERM"), (DENIED, "EPERM"), (ABSENT, "ENOSYS")],
    ids=["namespaces", "denied", "absent"],
)
async def test_calls_of_the_deny_list_fail_with_their_error(
    box: Box, calls: dict[str, tuple[int, ...]], error: str
) -> None:
    if os.geteuid() == 0:  # without privileges most of them fail alike
        dangerous = ("reboot", "unshare", "clone user")  # they would do it, or start a second one
        harmless = {n: a for n, a in calls.items() if not n.startswith(dangerous)}
        control = told(outside(CALLS.format(calls=harmless)).stdout)
        assert [name for name in harmless if control.get(name) == error] == []
    ended = await box.python(CALLS.format(calls=calls))
    assert ended.told == ("exited", 0, None), ended
    assert {name: e for name, e in told(ended.out).items() if e != error} == {}
    assert set(told(ended.out)) == set(calls)


FOREIGN = """
#include <stdio.h>
int main(void) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
    printf("i386: %ld\\n", result > 0 ? 1 : result);
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(26), "b"(0), "c"(0) : "memory");
    printf("i386 ptrace: %ld\\n", result == -38 ? result : 1);
    __asm__ volatile("syscall" : "=a"(result) : "a"(0x40000000 + 39) : "rcx", "r11", "memory");
    printf("x32: %ld\\n", result > 0 ? 1 : result);
    return 0;
}
"""


@needs_x86
async def test_entry_points_of_other_architectures_are_shut(box: Box) -> None:
    control = told(outside_c(FOREIGN).stdout)
    ended = await box.c(FOREIGN)
    assert ended.told == ("exited", 0, None), ended
    assert set(told(ended.out).values()) == {"-38"}, control


FAMILIES = """
allowed = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
for family in [*range(64), 4000]:
    for kind in (1, 2, 3, 5):
        for call_ in (41, 53):
            pair = (ctypes.c_int * 2)()
            extra = (ctypes.addressof(pair),) if call_ == 53 else ()
            if family not in allowed and (family, kind in (2, 3)) != (16, True):
                if call(call_, family, kind, 0, *extra) == 0:
                    print("open", family, kind, call_)
for protocol in range(1, 32):
    if call(41, 16, 3, protocol) == 0:
        print("netlink", protocol)
for kind, family in ((3, 2), (3, 10)):  # raw sockets
    if call(41, family, kind, 255) == 0:
        print("raw", family)
"""


@needs_x86
async def test_odd_socket_families_are_shut(box: Box) -> None:
    if os.geteuid() == 0:
        assert "open 17" in outside(FAMILIES).stdout  # packet sockets, at least
        assert "netlink" in outside(FAMILIES).stdout
    ended = await box.python(FAMILIES)
    assert (*ended.told, ended.out) == ("exited", 0, None, "")


TERMINAL = """
import fcntl, pty, termios
main, other = pty.openpty()
for name, request, argument in (("TIOCSTI", 0x5412, b"x"), ("TIOCLINUX", 0x541C, b"\\x03")):
    try:
        fcntl.ioctl(other, request, argument)
        print(name + ": done")
    except OSError as error:
        print(name + ":", errno.errorcode[error.errno])
try:
    os.open("/dev/tty", os.O_RDWR)
    print("tty: there")
except OSError as error:
    print("tty:", errno.errorcode[error.errno])
"""


async def test_nothing_can_be_typed_into_a_terminal(box: Box) -> None:
    control = told(outside(TERMINAL).stdout)
    assert control["TIOCLINUX"] != "EPERM"
    ended = await box.python(TERMINAL)
    assert told(ended.out) == {"TIOCSTI": "EPERM", "TIOCLINUX": "EPERM", "tty": "ENXIO"}


async def test_no_secret_of_the_server_is_inside(box: Box, server: Server) -> None:
    environ = Path(f"/proc/{server.process.pid}/environ").read_bytes()
    assert SECRET.encode() in environ  # control
    look = (
        "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/self/mountinfo /proc/self/cgroup"
        " /proc/mounts /etc/* 2>/dev/null | tr '\\0' '\\n'; env; set"
    )
    text = (await box.sh(look)).out
    for secret in (SECRET, server.access_key, server.secret_key, server.token):
        assert secret not in text


async def test_pid_1_tells_nothing(box: Box) -> None:
    ended = await box.sh(
        "for f in environ fd mem maps root cwd exe stack syscall io auxv; do"
        " cat /proc/1/$f >/dev/null 2>&1 && echo $f; done; readlink /proc/1/exe /proc/1/cwd;"
        " ls /proc/1/fd /proc/1/ns /proc/1/map_files 2>/dev/null"
    )
    assert ended.out == "", ended


async def test_files_that_tell_of_the_host_are_empty_or_not_there(box: Box) -> None:
    files = "kcore kallsyms keys key-users modules timer_list sched_debug latency_stats config.gz"
    ended = await box.sh(f"cd /proc; cat {files} 2>/dev/null | wc -c; ls /sys /boot /root; true")
    assert ended.out == "0\n"
    ended = await box.sh(
        "dmesg; for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/vm/drop_caches"
        " /proc/sys/kernel/hostname /proc/sys/kernel/modprobe /proc/sys/fs/binfmt_misc/register"
        " /proc/self/oom_score_adj; do (echo -999 >$f) 2>/dev/null && echo wrote $f; done; true"
    )
    assert ended.out == "", ended


async def test_other_processes_are_not_seen(box: Box) -> None:
    assert len([e for e in Path("/proc").iterdir() if e.name.isdigit()]) > 4  # control
    assert int((await box.sh("ls /proc | grep -c '^[0-9]'")).out) <= 5


ABSTRACT = """
end = socket.socket(socket.AF_UNIX)
try:
    end.connect("\\0retort-attack-{pid}")
    print("met")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


async def test_sessions_do_not_meet_in_abstract_sockets(new_box: NewBox) -> None:
    one, two = await new_box(), await new_box()
    pid = os.getpid()
    listen = (
        f"end = socket.socket(socket.AF_UNIX)\nend.bind('\\0retort-attack-{pid}')\nend.listen()\n"
    )
    until_told = "open('ready', 'w')\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    holding = asyncio.ensure_future(one.python(listen + until_told))
    await wait_for_file(one.api, one.name, "ready")
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + listen + "print(flush=True)\ntime.sleep(60)"],
        stdout=subprocess.PIPE,
    ) as control:
        assert control.stdout is not None
        assert control.stdout.readline() == b"\n"
        assert outside(ABSTRACT.format(pid=pid)).stdout == "met\n"
        assert (await two.python(ABSTRACT.format(pid=pid))).out == "ECONNREFUSED\n"
        assert control.poll() is None
        control.kill()
    assert not holding.done()
    await one.put(go="")
    assert (await holding).told == ("exited", 0, None)


DESCRIPTORS = """
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
int main(void) {
    struct stat st;
    for (int fd = 3; fd < 4096; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            printf("%d is open\\n", fd);
    for (int fd = 0; fd < 3; fd++)
        if (fstat(fd, &st) == 0)
            printf("%d %s\\n", fd, S_ISFIFO(st.st_mode) ? "pipe" : "else");
    return 0;
}
"""


async def test_a_program_starts_with_three_descriptors_and_no_way_to_init(box: Box) -> None:
    ended = await box.c(DESCRIPTORS)
    assert ended.out == "0 pipe\n1 pipe\n2 pipe\n"
    # Neither is the control socket to be found by any name.
    # (Without a name there is the pair of sockets that the next program's child waits at.)
    names = "awk 'NR > 1 && NF > 7 { print $8 }' /proc/net/unix"
    listening = "end = socket.socket(1)\nend.bind('\\0found')\nprint(os.popen(NAMES).read())"
    assert "@found" in outside(listening.replace("NAMES", repr(names))).stdout  # control
    found = await box.sh(f"find / -xdev -type s 2>/dev/null; {names}; ls -A /.retort")
    assert found.out == "init\n"


async def test_time_and_names_of_the_host_stay(box: Box) -> None:
    before = (os.uname().nodename, Path("/proc/sys/kernel/domainname").read_text())
    ended = await box.sh(
        "hostname evil; domainname evil; date -s 2001-01-01; date +%Y; hostname; hwclock -w"
    )
    assert "2001" not in ended.out.split()[-2:]
    assert "evil" not in ended.out
    assert (os.uname().nodename, Path("/proc/sys/kernel/domainname").read_text()) == before
