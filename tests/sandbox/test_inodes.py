"""Files are capped by number and devices keep their times; nothing inside gains a power by it."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.sandbox.conftest import BWRAP, Box, Start
from tests.sandbox.init.box import BINARY

from retort.errors import SandboxFault
from retort.sandbox.host_uids import HostUids
from retort.sandbox.inodes import cap_inodes, why_uncapped
from retort.sandbox.launcher import Launcher
from retort.sandbox.rootfs import Base
from retort.sandbox.view import SandboxSpec

CAPS = {"/home/work": 200, "/tmp": 50, "/var/tmp": 50, "/dev/shm": 50}


@pytest.fixture
async def launcher(base: Base) -> AsyncIterator[Launcher]:
    assert BWRAP is not None
    made = Launcher(Path(BWRAP), base, helper=BINARY)
    yield made
    made.close()


Capped = Callable[[], Awaitable[tuple[Box, SandboxSpec]]]


@pytest.fixture
async def capped(
    launcher: Launcher, host_uids: HostUids | None, place: Path
) -> AsyncIterator[Capped]:
    """Start sandboxes and cap them."""
    boxes: list[Box] = []
    numbers = itertools.count()

    async def one() -> tuple[Box, SandboxSpec]:
        uid = host_uids.acquire() if host_uids else None
        spec = SandboxSpec("box", 8 << 20, 2 << 20, 1 << 20, 200, 50, host_uid=uid)
        folder = Path(tempfile.mkdtemp(prefix=f"capped-{next(numbers)}-", dir=place))
        boxes.append(Box(await launcher.start(spec, folder)))
        await cap_inodes(launcher, boxes[-1].sandbox, spec)
        return boxes[-1], spec

    yield one
    for box in boxes:
        await launcher.kill(box.sandbox)
        if host_uids and box.sandbox.host_uid:
            host_uids.release(box.sandbox.host_uid)


@pytest.mark.parametrize("point", CAPS)
async def test_a_place_takes_its_number_of_files_and_no_more(capped: Capped, point: str) -> None:
    box, _ = await capped()
    done = await box.sh(f"cd {point}; for n in {{1..300}}; do : >$n || break; done; ls | wc -l")
    assert int(done.out) == CAPS[point] - 1  # the folder itself is one
    assert "No space left on device" in done.err
    assert (await box.sh(f"cd {point}; rm 1; : >1; mkdir d")).code != 0
    assert (await box.sh(f"cd {point}; rm 1 2; mkdir d; : >d/1")).code == 0


async def test_without_a_cap_there_is_room_for_more(start) -> None:  # type: ignore[no-untyped-def]
    done = await (await start()).sh("for n in {1..300}; do : >$n || break; done; ls | wc -l")
    assert done.out == "300\n"  # control


async def test_sizes_and_flags_of_the_places_stay_as_they_were(capped: Capped) -> None:
    box, spec = await capped()
    lines = (await box.run("/bin/cat", "/proc/self/mounts")).out.splitlines()
    told = {line.split()[1]: set(line.split()[3].split(",")) for line in lines}
    sizes = [spec.scratch_bytes, spec.tmp_bytes, spec.tmp_bytes, spec.shm_bytes]
    for point, size in zip(CAPS, sizes, strict=True):
        wanted = {"rw", "nosuid", "nodev", f"size={size // 1024}k", f"nr_inodes={CAPS[point]}"}
        assert wanted <= told[point], told[point]
    done = await box.sh("stat -c '%U %a' /home/work /tmp /var/tmp /dev/shm")
    assert done.out.split("\n")[:4] == ["work 755", "work 1777", "work 1777", "work 1777"]
    assert (await box.sh("touch /usr/x /etc/x /x /dev/x")).code != 0


async def test_nothing_inside_has_a_capability_or_can_lift_the_cap(capped: Capped) -> None:
    box, _ = await capped()
    done = await box.sh("cat /proc/self/status /proc/1/status")
    sets = re.findall(r"Cap(?:Inh|Prm|Eff|Bnd|Amb):\t(\w+)", done.out)
    assert len(sets) == 10
    assert set(sets) == {"0" * 16}
    done = await box.sh("mount -o remount,nr_inodes=1000 /tmp")
    assert done.code != 0
    helper = "import ctypes, os; c = ctypes.CDLL(None, use_errno=True)\n" + (
        "print(c.mount(None, b'/tmp', None, 32 | 6, b'nr_inodes=1000'), ctypes.get_errno())\n"
        "fd = os.open('/proc/self/ns/mnt', 0)\n"
        "print(c.ioctl(fd, 0xb701), ctypes.get_errno())\n"  # NS_GET_USERNS: out of its scope
    )
    done = await box.run("/usr/bin/python3", "-IS", "-c", helper)
    assert done.out == "-1 1\n-1 1\n"


DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
TOUCH = f"""
import errno, os
for name in {DEVICES}:
    try:
        os.utime(f"/dev/{{name}}")
        print("set")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def times_of_devices() -> dict[str, tuple[int, int]]:
    found = {name: Path("/dev", name).stat() for name in DEVICES}
    return {name: (status.st_mtime_ns, status.st_ctime_ns) for name, status in found.items()}


async def test_times_of_the_hosts_devices_cannot_be_set(capped: Capped, start: Start) -> None:
    before = times_of_devices()
    done = await (await start()).run("/usr/bin/python3", "-IS", "-c", TOUCH)
    assert done.out.split() == ["set"] * len(DEVICES)  # control
    touched = times_of_devices()
    assert all(touched[name] != before[name] for name in DEVICES)
    box, _ = await capped()
    done = await box.run("/usr/bin/python3", "-IS", "-c", TOUCH)
    assert done.out.split() == ["EROFS"] * len(DEVICES)


async def test_devices_work_as_before(capped: Capped) -> None:
    box, _ = await capped()
    done = await box.sh(
        "echo x >/dev/null && : >>/dev/null && head -c 4 /dev/zero /dev/random /dev/urandom | wc -c"
        " && { echo x >/dev/full; } 2>&1; script -qc 'echo y >/dev/tty' /dev/null"
    )
    assert int(done.out.split()[0]) > 12
    assert "No space left on device" in done.out
    assert done.out.endswith("y\r\n")


async def test_no_process_is_left_of_it_and_none_is_seen_inside(capped: Capped) -> None:
    box, _ = await capped()
    assert int((await box.sh("ls /proc | grep -c '^[0-9]'")).out) <= 4
    running = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]  # noqa: ASYNC240
    lines = []
    for entry in running:
        try:
            lines.append((entry / "cmdline").read_bytes())
        except OSError:
            continue
    # With its pid: others start sandboxes at the same time.
    helper = f"--cap-inodes\0{box.sandbox.pid}\0".encode()
    assert not any(helper in line and b"retort-init" in line for line in lines)


async def test_a_sandbox_that_has_ended_cannot_be_capped(
    capped: Capped, launcher: Launcher
) -> None:
    box, spec = await capped()
    os.kill(box.sandbox.pid, 9)
    await launcher.kill(box.sandbox)
    with pytest.raises(SandboxFault, match="inodes"):
        await cap_inodes(launcher, box.sandbox, spec)


async def test_another_uid_cannot_cap_a_sandbox(capped: Capped, launcher: Launcher) -> None:
    box, spec = await capped()
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    object.__setattr__(box.sandbox, "host_uid", spec.host_uid + 1000)  # type: ignore[operator]
    try:
        with pytest.raises(SandboxFault, match=r"namespaces of the sandbox: Permission denied"):
            await cap_inodes(launcher, box.sandbox, spec)
    finally:
        object.__setattr__(box.sandbox, "host_uid", spec.host_uid)


async def test_whether_a_host_can_is_found_by_trying(
    launcher: Launcher, base: Base, host_uids: HostUids | None, place: Path
) -> None:
    uid = host_uids.acquire() if host_uids else None
    assert await why_uncapped(launcher, place / "trial", uid) is None
    assert BWRAP is not None
    ignorant = place / "ignorant"  # a helper that starts sandboxes and knows nothing else
    ignorant.write_text(f'#!/bin/sh\n[ "$1" = --as ] && exec {BINARY} "$@"; exit 1\n')
    ignorant.chmod(0o755)
    broken = Launcher(Path(BWRAP), base, helper=ignorant)
    assert await why_uncapped(broken, place / "trial", uid)
    broken.close()
    assert not (place / "trial").exists()
    if host_uids and uid:
        host_uids.release(uid)


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["1", "2"], ["1", "2", "3"], ["1", "2", "3", "/tmp"], ["1", "2", "3", "tmp", "5"],
        ["1", "2", "3", "/tmp", "0"], ["1", "2", "3", "/tmp", "5,size=1g"],
        ["1", "2", "-1", "/tmp", "5"], ["1", "2", "3", "/tmp", "5", "/home"],
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    done = subprocess.run([BINARY, "--cap-inodes", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "retort-init: --cap-inodes: Invalid argument\n",
    )
