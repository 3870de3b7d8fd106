"""The deny-list on a real kernel: each call is first made without it, as a control."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retort.sandbox.seccomp import FORBIDDEN, MISSING, compile_filter

# Makes one raw system call, with the filter given on stdin (none: the control), prints the errno.
CALLER = r"""
import ctypes, json, os, sys
name, number, *arguments = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
program = sys.stdin.buffer.read()
if program:
    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
    loaded = Program(len(program) // 8, program)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(loaded), 0, 0) == 0, ctypes.get_errno()
libc.syscall.restype = ctypes.c_long
result = libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(a) for a in arguments])
print(ctypes.get_errno() if result < 0 else 0)
sys.stdout.flush()
os._exit(0)
"""

BAD = (1 << 64) - 1  # as a descriptor or pointer: no real call succeeds with it

# x86-64 numbers; arguments under which the unfiltered call answers anything but the filter's error.
CALLS = {
    "ptrace": (101, 0x4206, 0, 0, 0),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 99),
    "setns": (308, BAD, 0),
    "open_tree": (428, BAD, 0, 0),
    "fsopen": (430, 0, 0),
    "bpf": (321, 9999, 0, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "userfaultfd": (323, 0xFFFF),
    "keyctl": (250, 9999, 0, 0, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "name_to_handle_at": (303, BAD, 0, 0, 0, 0),
    "pidfd_getfd": (438, BAD, 0, 0),
    "kcmp": (312, 0, 0, 99, 0, 0),
    "io_uring_setup": (425, 0, 0),
    "clone3": (435, 0, 0),
    "unshare": (272, 0x10000000 | 0x80000),
    "clone": (56, 0x10000000 | 0x20000000 | 0x00010000),
    "vsock": (41, 40, 1, 0),
    "vsock behind high bits": (41, 40 | 1 << 32, 1, 0),
    "packet": (41, 17, 3, 0),
    "alg": (41, 38, 5, 0),
    "netlink audit": (41, 16, 3, 9),
    "a family that does not exist yet": (41, 4000, 1, 0),
    "limits of another process": (302, 1, 7, BAD, 0),
    "TIOCSTI": (16, BAD, 0x5412, 0),
    "TIOCSTI behind high bits": (16, BAD, 0x5412 | 1 << 40, 0),
}
ERRORS = {
    "io_uring_setup": errno.ENOSYS,
    "clone3": errno.ENOSYS,
    "vsock": errno.EAFNOSUPPORT,
    "vsock behind high bits": errno.EAFNOSUPPORT,
    "packet": errno.EAFNOSUPPORT,
    "alg": errno.EAFNOSUPPORT,
    "a family that does not exist yet": errno.EAFNOSUPPORT,
    "netlink audit": errno.EPROTONOSUPPORT,
}
# Where this host or a process without privileges gives the same error anyway, no control exists.
SAME_WITHOUT = {"a family that does not exist yet", "vsock", "vsock behind high bits", "alg"}
if os.geteuid() != 0:
    SAME_WITHOUT.add("fsopen")

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers are x86-64's")


def call(name: str, *, filtered: bool) -> int:
    """Make one call in a process of its own and give its errno, 0 for success."""
    done = subprocess.run(
        [sys.executable, "-IS", "-c", CALLER, json.dumps((name, *CALLS[name]))],
        input=compile_filter() if filtered else b"",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, (name, done)
    return int(done.stdout)


@pytest.mark.parametrize("name", CALLS)
def test_a_denied_call_fails_with_its_error(name: str) -> None:
    wanted = ERRORS.get(name, errno.EPERM)
    if name not in SAME_WITHOUT:
        assert call(name, filtered=False) != wanted, "the control fails alike"
    assert call(name, filtered=True) == wanted


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("a unix socket", (41, 1, 1, 0)),
        ("an internet socket", (41, 2, 1, 0)),
        ("an internet socket of version 6", (41, 10, 1, 0)),
        ("a netlink socket about routes", (41, 16, 3, 0)),
        ("getpid", (39,)),
        ("its own limits", (302, 0, 7, 0, 0)),
        ("a private file table", (272, 0x400)),
    ],
)
def test_what_programs_need_still_works(name: str, arguments: tuple[int, ...]) -> None:
    CALLS[name] = arguments
    try:
        assert call(name, filtered=True) == 0
    finally:
        del CALLS[name]


def test_threads_and_children_still_start_under_the_filter() -> None:
    program = compile_filter()
    script = (
        CALLER.split("libc.syscall.restype")[0].replace("name, number, *arguments", "_")
        + "import subprocess, threading\n"
        + "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
        + "print(subprocess.run(['/bin/sh', '-c', 'echo child'], capture_output=True).stdout)\n"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", script, "[]"], input=program, capture_output=True, check=False
    )
    assert done.stdout == b"thread\nb'child\\n'\n", done


I386 = r"""
#include <stdio.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <linux/filter.h>
#include <unistd.h>
int main(void) {
    static struct sock_filter code[4096];
    struct sock_fprog program = { .filter = code };
    ssize_t got = read(0, code, sizeof(code));
    program.len = got / sizeof(code[0]);
    if (program.len && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
                        prctl(PR_SET_SECCOMP, 2, &program)))
        return 1;
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory"); /* i386 getpid */
    printf("i386 %ld\n", result > 0 ? 1 : result);
    __asm__ volatile("syscall" : "=a"(result) : "a"(0x40000000 + 39) : "rcx", "r11", "memory");
    printf("x32 %ld\n", result > 0 ? 1 : result);
    fflush(stdout);
    return 0;
}
"""


@pytest.mark.slow
def test_foreign_entry_points_are_closed(tmp_path: Path) -> None:
    source, binary = tmp_path / "entry.c", tmp_path / "entry"
    source.write_text(I386)
    subprocess.run(["gcc", "-o", binary, source], check=True)
    control = subprocess.run([binary], input=b"", capture_output=True, check=True).stdout
    filtered = subprocess.run([binary], input=compile_filter(), capture_output=True, check=True)
    if b"i386 1" not in control and b"x32 1" not in control:
        pytest.skip("this host kernel has neither entry point")
    assert filtered.stdout == b"i386 -38\nx32 -38\n"


def test_no_name_is_listed_twice() -> None:
    names = [*FORBIDDEN, *MISSING]
    assert sorted(names) == sorted(set(names))
