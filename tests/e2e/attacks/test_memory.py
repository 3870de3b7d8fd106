"""Attacks on memory (attacks.md, B): all that holds memory counts, and the verdict says so."""

# ruff: noqa: ASYNC221 - a test may block

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.running import wait_for

from .box import MEMORY, MIB, SMALL_TMP, Box, outside, outside_c
from .conftest import AHEAD, NewBox, group_tag, groups_of, host_of

pytestmark = pytest.mark.slow

BEYOND = MEMORY // MIB + 80  # MiB


HOGS = {
    "at once": f"held = bytearray({BEYOND} << 20)",
    "a slow leak": f"held = []\nfor _ in range({BEYOND}):\n"
    "    held.append(b'x' * (1 << 20))\n    time.sleep(0.001)",
    "mapped": f"import mmap\nheld = mmap.mmap(-1, {BEYOND} << 20)\n"
    f"for at in range(0, {BEYOND} << 20, 4096): held[at] = 1",
    "spread over children": f"for _ in range(4):\n  if os.fork() == 0:\n"
    f"    held = b'x' * ({BEYOND // 4} << 20)\n    time.sleep(3)\n    os._exit(0)\n"
    "codes = [os.wait()[1] for _ in range(4)]\nsys.exit(any(codes))",
    "memfd": f"held = []\nfor _ in range({BEYOND}):\n"
    "    held.append(os.memfd_create('held'))\n"
    "    assert os.write(held[-1], bytes(1 << 20)) == 1 << 20",
    "System V": f"key = libc.shmget(0, ctypes.c_size_t({BEYOND} << 20), 0o1600)\n"
    "assert key >= 0\nlibc.shmat.restype = ctypes.c_void_p\nat = libc.shmat(key, None, 0)\n"
    "libc.shmctl(key, 0, None)\n"
    f"ctypes.memset(at, 1, {BEYOND} << 20)",
}


@pytest.mark.parametrize("way", HOGS)
async def test_memory_beyond_the_limit_is_out_of_memory(box: Box, way: str) -> None:
    box.needs_groups()
    assert outside(HOGS[way]).returncode == 0, "control"
    ended = await box.python(HOGS[way])
    assert ended.answer["outcome"] == "out-of-memory", ended
    assert ended.usage["peakMemoryBytes"] <= MEMORY
    assert ended.answer["retrySafe"] is False


# Buffers of the host kernel, which no process owns: (what to hold, how much it would come to).
BUFFERS = {
    "pipes": "import fcntl\n"
    "def one():\n"
    "    ends = os.pipe()\n"
    "    fcntl.fcntl(ends[1], 1031, 1 << 20)\n"
    "    os.set_blocking(ends[1], False)\n"
    "    return lambda data: os.write(ends[1], data)\n",
    "unix sockets": "keep = []\n"
    "def one():\n"
    "    ends = socket.socketpair()\n"
    "    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)\n"
    "    ends[0].setblocking(False)\n"
    "    keep.append(ends)\n"
    "    return ends[0].send\n",
    "tcp sockets": "keep = [socket.create_server(('127.0.0.1', 0), backlog=4000)]\n"
    "def one():\n"
    "    end = socket.create_connection(keep[0].getsockname())\n"
    "    keep.append((end, keep[0].accept()))\n"
    "    end.setblocking(False)\n"
    "    return end.send\n",
    "udp sockets": "keep = [socket.socket(type=socket.SOCK_DGRAM)]\n"
    "def one():\n"
    "    end = socket.socket(type=socket.SOCK_DGRAM)\n"
    "    end.bind(('127.0.0.1', 0))\n"
    "    end.setblocking(False)\n"
    "    keep.append(end)\n"
    "    left = [3]  # more is dropped: the default receive buffer is 208 KiB\n"
    "    def send(data):\n"
    "        left[0] -= 1\n"
    "        if left[0] < 0: raise BlockingIOError\n"
    "        return keep[0].sendto(data[:60000], end.getsockname())\n"
    "    return send\n"
    "def really_held(sent):\n"
    "    held = 0\n"
    "    for end in keep[1:]:\n"
    "        try:\n"
    "            while True: held += len(end.recv(65536))\n"
    "        except BlockingIOError: pass\n"
    "    return held\n",
}
FILL = """
sent, data = 0, bytes(1 << 16)
try:
    for _ in range(1900):
        send = one()
        while sent < {bytes}:
            try:
                sent += send(data)
            except BlockingIOError:
                break
        if sent >= {bytes}:
            break
except OSError as error:
    print(error.errno, end=" ")
print(really_held(sent) // (1 << 20), flush=True)
time.sleep(0.2)
"""


@pytest.mark.parametrize("kind", BUFFERS)
async def test_buffers_of_the_host_kernel_count_as_memory(box: Box, kind: str) -> None:
    box.needs_groups()
    code = "really_held = int\n" + BUFFERS[kind] + FILL.format(bytes=BEYOND * MIB)
    control = outside("import resource\nresource.setrlimit(7, (4096, 4096))\n" + code)
    held = int(control.stdout.split()[-1])
    if held <= MEMORY // MIB:
        print(f"the host itself allows only {held} MiB")
    ended = await box.python(code)
    is_capped = not ended.out or int(ended.out.split()[-1]) < MEMORY // MIB
    assert ended.answer["outcome"] == "out-of-memory" or is_capped, ended


async def test_a_message_queue_is_capped(box: Box) -> None:
    code = """
rt = ctypes.CDLL("librt.so.1", use_errno=True)
made = 0
class Attributes(ctypes.Structure):
    _fields_ = [(n, ctypes.c_long) for n in ("flags", "most", "size", "now", "a", "b", "c", "d")]
while made < 200:
    fd = rt.mq_open(b"/q%d" % made, os.O_CREAT | os.O_RDWR, 0o600,
                    ctypes.byref(Attributes(0, 10, 8192)))
    if fd < 0:
        break
    made += 1
print(made)
for n in range(made): rt.mq_unlink(b"/q%d" % n)
"""
    unlimited = (
        "import contextlib, resource\n"
        "with contextlib.suppress(ValueError):\n"  # without CAP_SYS_RESOURCE
        "    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (-1, -1))\n"
        "    print('raised')\n"
    )
    *was_raised, made = outside(unlimited + code).stdout.split()
    assert int(made) == 200 or not was_raised  # control, where the host lets us have one
    ended = await box.python(code)
    assert int(ended.out) < 200  # RLIMIT_MSGQUEUE, 800 KiB


@pytest.mark.parametrize("place", ["/tmp", "/var/tmp", "/dev/shm"])
async def test_memory_file_systems_are_full_at_their_size(
    box: Box, tmp_path: Path, place: str
) -> None:
    fill = f"head -c {8 * SMALL_TMP} /dev/zero >fill"
    subprocess.run(["/bin/bash", "-c", fill], cwd=tmp_path, check=True)  # control
    ended = await box.sh(f"head -c 64M /dev/zero >{place}/fill; echo $?; stat -c %s {place}/fill")
    assert ended.out == f"1\n{SMALL_TMP}\n"
    assert "No space left" in ended.err
    assert (await box.sh(f"rm {place}/fill")).told == ("exited", 0, None)


async def test_a_sessions_files_leave_memory_for_its_programs(new_box: NewBox) -> None:
    box = await new_box(mem=40 * MIB)
    box.needs_groups()
    ended = await box.sh("for n in 1 2; do head -c 30M /dev/zero >fill$n || exit 1; done")
    assert ended.told == ("disk-full", 1, None), ended
    await box.works()
    assert (await box.sh("rm fill*")).told == ("exited", 0, None)
    await box.works()


RECURSE = """
#include <string.h>
static int deeper(int n) {
    volatile char frame[4096];
    memset((char *)frame, n, sizeof(frame));
    return deeper(n + 1) + frame[n & 4095];
}
int main(void) { return deeper(0); }
"""
UNTOUCHED = """
#include <stdio.h>
#include <sys/mman.h>
int main(void) {
    char *at = mmap(0, 1UL << 40, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return 1;
    at[0] = at[(1UL << 40) - 1] = 1;
    return 0;
}
"""


async def test_a_stack_without_end_is_a_segmentation_fault(box: Box) -> None:
    assert outside_c(RECURSE).returncode == -11
    ended = await box.c(RECURSE)
    assert ended.told == ("signalled", 139, "SIGSEGV")


async def test_a_terabyte_that_is_not_touched_is_allowed(box: Box) -> None:
    # JVMs, Go and sanitizers reserve so much: a limit of addresses would break them.
    assert outside_c(UNTOUCHED).returncode == 0
    assert (await box.c(UNTOUCHED)).told == ("exited", 0, None)


def swap_of(group: Path, names: tuple[str, ...]) -> str:
    """Give what the host kernel lets a group have of swap; "" if it counts none."""
    return "".join((group / n).read_text().strip() for n in names if (group / n).exists())


async def test_a_session_has_no_swap(box: Box, server: Server) -> None:
    box.needs_groups()
    # v1 limits memory and swap together, v2 swap alone.
    names = ("memory.memsw.limit_in_bytes", "memory.swap.max")

    async def are_made() -> bool:  # a group half made has no limit yet
        return bool(host_of(server)["ahead"] == AHEAD)

    await wait_for(are_made)
    groups = [group for group in groups_of(group_tag(server)) if swap_of(group, names)]
    if not groups:
        pytest.skip("this host kernel counts no swap, so that there is no limit to read")
    control = min(groups, key=lambda group: len(group.parts)).with_name("without-a-limit")
    control.mkdir()
    try:  # control: a group beside the sessions' has no limit before somebody sets one
        limit = swap_of(control, names)
        assert limit == "max" or int(limit) > 1 << 60
    finally:
        control.rmdir()
    assert {swap_of(group, names) for group in groups} <= {"0", str(MEMORY)}


# One counter for two programs: the way of a parent that asks for its children's peak.
ONE_COUNTER = """
import resource
for size in (100 << 20, 0):
    if os.fork() == 0:
        held = b"x" * size
        os._exit(0)
    os.wait()
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
"""


async def test_the_peak_of_a_run_is_not_that_of_the_one_before(box: Box) -> None:
    box.needs_groups()
    first, second = map(int, outside(ONE_COUNTER).stdout.split())
    assert second == first > 100 * MIB  # control: the small program seems as large
    large = await box.python("held = b'x' * (100 << 20)")
    small = await box.sh("true")
    assert large.usage["peakMemoryBytes"] > 100 * MIB
    assert small.usage["peakMemoryBytes"] < 60 * MIB


async def test_a_child_that_ran_out_of_memory_is_its_parents_business(box: Box) -> None:
    box.needs_groups()
    hog = HOGS["at once"]
    await box.put(hog__py=hog)
    # A limit is the verdict on a program that failed; this one went on.
    ended = await box.sh("python3 -IS hog.py; echo $?; exit 0")
    assert (*ended.told, ended.out) == ("exited", 0, None, "137\n")
    ended = await box.sh("python3 -IS hog.py; exit 3")
    assert ended.told == ("out-of-memory", 3, None)
