"""Attacks on init by want of memory (attacks.md, B3): the program goes, its session stays."""

from __future__ import annotations

import platform
import subprocess
import tempfile

import pytest

from .box import MEMORY, MIB, Box, outside_c
from .conftest import NewBox

pytestmark = pytest.mark.slow

# Without libc: a few pages, far fewer than init has. What it holds belongs to no process.
TINY = """
static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return result;
}
static _Noreturn void end(int code) { for (;;) call(60, code, 0, 0); }
%s
void _start(void)
{
    for (int made = 0; made < MANY; made++)
        hold_another();
    end(0);
}
"""
IN_FILES = """
static const char bytes[65536];
static void hold_another(void)
{
    long fd = call(319, (long)"held", 0, 0); /* memfd_create */
    for (int part = 0; part < 16; part++)
        if (call(1, fd, (long)bytes, sizeof(bytes)) != sizeof(bytes))
            end(2);
}
"""
IN_SHARED_MEMORY = """
static void hold_another(void)
{
    long id = call(29, 0, 1 << 20, 0600); /* shmget */
    volatile char *at = (void *)call(30, id, 0, 0);
    if (id < 0)
        end(2);
    for (int place = 0; place < 1 << 20; place += 4096)
        at[place] = 1;
    call(67, (long)at, 0, 0); /* shmdt: it stays, and is in nobody's pages */
}
"""
BEYOND = MEMORY // MIB + 80
NEARLY_ALL = MEMORY // MIB - 4


def build(many: int, source: str = "tiny.c") -> str:
    return f"gcc -O1 -static -nostdlib -DMANY={many} -o tiny -x c {source}"


def outside(code: str, many: int) -> int:
    """Run the program without a limit, as a control; its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        # In an IPC namespace of its own: shared memory would stay.
        line = f"{build(many, '-')} && exec unshare --user --ipc ./tiny"
        ended = subprocess.run(["bash", "-c", line], cwd=folder, input=code, text=True, check=False)
    return ended.returncode


X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="written for x86-64")


@X86
@pytest.mark.parametrize("way", [IN_FILES, IN_SHARED_MEMORY], ids=["files", "shared memory"])
async def test_a_program_smaller_than_init_is_killed_before_it(box: Box, way: str) -> None:
    box.needs_groups()
    assert outside(TINY % way, BEYOND) == 0, "control"
    await box.put(tiny__c=TINY % way)
    for _ in range(3):
        ended = await box.sh("exec ./tiny", build=build(BEYOND))
        assert ended.answer["outcome"] == "out-of-memory", ended
        await box.works()


@X86
async def test_shared_memory_that_a_program_left_is_not_in_the_next_ones_way(box: Box) -> None:
    box.needs_groups()
    await box.put(tiny__c=TINY % IN_SHARED_MEMORY)
    for _ in range(3):
        ended = await box.sh("exec ./tiny", build=build(NEARLY_ALL))
        assert ended.told == ("exited", 0, None), ended
        await box.works()


async def test_children_that_each_take_memory_end_as_out_of_memory(box: Box) -> None:
    box.needs_groups()
    code = """
for _ in range(100):
    if os.fork() == 0:
        fd = os.memfd_create("held")
        while True: os.write(fd, bytes(1 << 16))
time.sleep(600)
"""
    for _ in range(2):
        ended = await box.python(code)
        assert ended.answer["outcome"] == "out-of-memory", ended
        await box.works()


FLOOD = """
#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
static char bytes[60000], touched[4 << 20];
static int ends[900];
int main(void)
{
    struct sockaddr_in to = { .sin_family = AF_INET };
    socklen_t size = sizeof(to);
    int from = socket(AF_INET, SOCK_DGRAM, 0);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < 900; i++) {
        to.sin_port = 0;
        ends[i] = socket(AF_INET, SOCK_DGRAM, 0);
        if (ends[i] < 0 || bind(ends[i], (void *)&to, sizeof(to)))
            return 2;
    }
    /* All are open by now: nothing but what arrives is charged until the end. */
    for (int i = 0; i < 900; i++) {
        if (getsockname(ends[i], (void *)&to, &size))
            return 3;
        for (int n = 0; n < 5; n++)
            sendto(from, bytes, sizeof(bytes), MSG_DONTWAIT, (void *)&to, sizeof(to));
    }
    memset(touched, 1, sizeof(touched));
    return 0;
}
"""


async def test_init_outlives_memory_that_comes_back_late(new_box: NewBox) -> None:
    """Buffers of sockets go beyond the limit, and their memory is free after their process."""
    box = await new_box(mem=64 * MIB)
    if box.walls["memory"] != "cgroup-v2":
        pytest.skip("v1 has a limit of its own for them")
    assert outside_c(FLOOD).returncode == 0, "control"
    for _ in range(5):
        ended = await box.c(FLOOD)
        assert ended.answer["outcome"] == "out-of-memory", ended
        await box.works()


# Huge pages are free only when the host kernel already looks for the next process to kill.
HUGE = """
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/mman.h>

int main(void)
{
    const size_t size = 512UL << 20;
    char *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    madvise(bytes, size, MADV_HUGEPAGE);
    for (size_t i = 0; i < size; i += 4096)
        bytes[i] = 1;
    return 0;
}
"""


async def test_init_is_not_taken_while_the_memory_of_another_is_on_its_way_back(
    new_box: NewBox,
) -> None:
    box = await new_box(mem=128 * MIB)
    box.needs_groups()
    assert outside_c(HUGE).returncode == 0, "control"
    for _ in range(20):
        ended = await box.c(HUGE)
        assert ended.answer["outcome"] == "out-of-memory", ended
        await box.works()
