"""How programs end (attacks.md, A10): each is reported as the host kernel tells it."""

# ruff: noqa: ASYNC221 - a test may block

from __future__ import annotations

import signal
import subprocess

import pytest

from .box import Box, outside_c

pytestmark = pytest.mark.slow


async def test_every_exit_code_is_reported_exactly(box: Box) -> None:
    for code in range(256):
        ended = await box.sh(f"exit {code}")
        assert ended.told == ("exited", code, None)


ZOO = {
    "SIGSEGV": "*(volatile int *)0 = 1;",
    "SIGABRT": "abort();",
    "SIGFPE": "volatile int zero = 0; return 7 / zero;",
    "SIGILL": "__builtin_trap();",
    "SIGBUS": 'int fd = open("b", O_RDWR | O_CREAT, 0600); char *at = mmap(0, 4096, 3, MAP_SHARED,'
    " fd, 0); return *(volatile char *)at;",
    "SIGSYS": "raise(SIGSYS);",
    "SIGXFSZ": 'int fd = open("x", O_RDWR | O_CREAT, 0600); ftruncate(fd, 1L << 40);',
    "SIGXCPU": "struct rlimit one = { 1, 2 }; setrlimit(RLIMIT_CPU, &one); for (;;);",
    "SIGTRAP": "raise(SIGTRAP);",
    "SIGPIPE": 'int ends[2]; pipe(ends); close(ends[0]); write(ends[1], "x", 1);',
    "SIGALRM": "alarm(1); pause();",
    "SIGKILL": "raise(SIGKILL);",
    "SIG40": "raise(40);",
    "SIGRTMAX": "raise(64);",
}
ZOO_C = """
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
int main(void) { %s return 3; }
"""


@pytest.mark.parametrize("name", ZOO)
async def test_every_fatal_signal_is_reported_exactly(box: Box, name: str) -> None:
    number = 40 if name == "SIG40" else signal.Signals[name].value
    code = ZOO_C % ZOO[name]
    # The host has no limit of file sizes: nothing happens there.
    assert outside_c(code).returncode == (3 if name == "SIGXFSZ" else -number)
    ended = await box.c(code)
    assert ended.told == ("signalled", 128 + number, name), ended
    # A shell's way of saying it is an exit code like any other.
    assert (await box.sh(f"exit {128 + number}")).told == ("exited", 128 + number, None)


async def test_a_code_that_a_shell_gives_to_a_signal_is_told_from_the_signal(box: Box) -> None:
    ways = ("exit 137", "kill -KILL $$")
    naive = [
        subprocess.run(["/bin/bash", "-c", f"bash -c '{way}'; echo $?"], capture_output=True,
                       text=True, check=True).stdout
        for way in ways
    ]  # fmt: skip
    assert naive == ["137\n", "137\n"]  # control: who asks a shell cannot tell
    told = [(await box.sh(way)).told for way in ways]
    assert told == [("exited", 137, None), ("signalled", 137, "SIGKILL")]


INCLUDES = """
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
"""
ENDS = {
    "a thread ends it": (
        "static void *go(void *x) { exit(5); }\n"
        "int main(void) { pthread_t t; pthread_create(&t, 0, go, 0); pause(); return 6; }",
        5,
    ),
    "the last thread leaves": (
        "static void *go(void *x) { usleep(100000); exit(9); }\n"
        "int main(void) { pthread_t t; pthread_create(&t, 0, go, 0); pthread_exit(0); }",
        9,
    ),
    "a code beyond a byte": ("int main(void) { _exit(0x1ff); }", 255),
    "a negative code": ("int main(void) { return -2; }", 254),
    "another program": ('int main(void) { execl("/bin/sh", "sh", "-c", "exit 4", (char *)0); }', 4),
    "a child's signal": ("int main(void) { if (!fork()) raise(SIGKILL); wait(0); return 8; }", 8),
}


@pytest.mark.parametrize("way", ENDS)
async def test_every_way_to_end_is_reported_as_wait_tells_it(box: Box, way: str) -> None:
    code, wanted = ENDS[way]
    code = INCLUDES + code
    assert outside_c(code).returncode == wanted
    assert (await box.c(code)).told == ("exited", wanted, None)
