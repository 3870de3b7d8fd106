"""Attacks on init by want of memory (attacks.md, B3): the program goes, its session stays."""

from __future__ import annotations

import platform
import subprocess
import tempfile

import pytest

from .box import MEMORY, MIB, Box

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
