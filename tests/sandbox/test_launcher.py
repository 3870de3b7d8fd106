"""Starting and ending real sandboxes."""

# ruff: noqa: ASYNC220, ASYNC240, PTH115, PTH208 - a test may block, and looks at /proc by name

from __future__ import annotations

import asyncio
import os
import secrets
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retort.errors import SandboxFault
from retort.sandbox import launcher as module
from retort.sandbox.launcher import Identity, Launcher, wait_ended
from retort.sandbox.rootfs import Base, build
from retort.sandbox.view import Mount, SandboxSpec

from .conftest import BWRAP, run_inside

REAL_INIT = Path(module.__file__).parents[1] / "_bin/retort-init"

is_root = os.geteuid() == 0


def our_processes(mark: Path | str) -> list[int]:
    """Host processes whose command line holds a folder or a word of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.fsencode(mark) in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


async def test_a_command_runs_as_work_in_its_home(start) -> None:
    box = await start(hostname="alembic")
    done = await box.sh("id -un; id -u; id -g; pwd; hostname; echo $$")
    assert done.out.split()[:5] == ["work", "1000", "1000", "/home/work", "alembic"]


async def test_kill_returns_when_nothing_of_the_sandbox_is_left(start, launcher, place) -> None:
    box = await start()
    await box.sh("for i in 1 2; do setsid sleep 1000 >/dev/null 2>&1 & done")
    everything = [p for p in Path("/proc").iterdir() if p.name.isdigit()]
    inside = {
        int(p.name)
        for p in everything
        if _pid_namespace(p) == _pid_namespace(Path(f"/proc/{box.sandbox.pid}"))
    }
    assert len(inside) >= 3  # init and two sleepers
    monitor = box.sandbox.monitor
    await launcher.kill(box.sandbox)
    assert not [pid for pid in inside if Path(f"/proc/{pid}").exists()]
    assert monitor.returncode is not None
    await launcher.kill(box.sandbox)  # again: no error


def _pid_namespace(process: Path) -> str | None:
    try:
        return os.readlink(process / "ns/pid")
    except OSError:
        return None


async def test_two_kills_at_once_are_one(start, launcher) -> None:
    box = await start()
    await asyncio.gather(*(launcher.kill(box.sandbox) for _ in range(5)))
    assert not box.sandbox.is_alive


async def test_the_end_of_init_is_seen_by_every_waiter(start, launcher) -> None:
    box = await start()
    waiting = [asyncio.ensure_future(wait_ended(box.sandbox)) for _ in range(3)]
    await asyncio.sleep(0)
    signal.pidfd_send_signal(box.sandbox.pidfd, signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    await launcher.reap(box.sandbox)
    assert box.sandbox.monitor.returncode is not None


async def test_descriptors_do_not_pile_up(start, launcher) -> None:
    await launcher.kill((await start()).sandbox)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await launcher.kill((await start()).sandbox)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_long_folder_name_is_no_obstacle(launcher, host_uids, place) -> None:
    folder = place / ("long" * 30) / ("longer" * 20)
    spec = SandboxSpec("box", host_uid=host_uids and host_uids.acquire())
    sandbox = await launcher.start(spec, folder)
    try:
        assert (folder.stat().st_mode & 0o777) == 0o700
        done = await asyncio.to_thread(run_inside, sandbox.socket_path, "/bin/echo", "hello")
        assert done.out == "hello\n"
    finally:
        await launcher.kill(sandbox)


async def test_a_failing_mount_is_a_fault_with_the_message_of_bubblewrap(start, place) -> None:
    missing = place / "no such folder"
    with pytest.raises(SandboxFault, match=r"launch: .*/proc/no such folder.*No such file"):
        await start(mounts=(Mount(missing, "/proc/no such folder"),))
    assert our_processes(missing) == []


async def test_a_missing_bubblewrap_is_a_fault(base, host_uids, place) -> None:
    launcher = Launcher(place / "nothing", base, helper=REAL_INIT)
    with pytest.raises(SandboxFault, match=r"launch: .*nothing"):
        await launcher.start(
            SandboxSpec("x", host_uid=host_uids and host_uids.acquire()), place / "f"
        )
    launcher.close()


async def test_an_init_that_cannot_run_is_a_fault(base, host_uids, place) -> None:
    folder = place / "bad-base"
    (folder / "etc").mkdir(parents=True)
    (folder / "empty").touch()
    (folder / "retort-init").touch(0o644)
    launcher = Launcher(Path(BWRAP), Base(folder, "0"), helper=REAL_INIT)
    spec = SandboxSpec("x", host_uid=host_uids and host_uids.acquire())
    with pytest.raises(SandboxFault, match=r"launch: .*/.retort/init.*Permission"):
        await launcher.start(spec, place / "f")
    launcher.close()


async def test_a_cancelled_start_leaves_no_process(launcher, host_uids, place) -> None:
    mark = secrets.token_hex(12)  # no other command line of this machine can have it
    for turn in range(4):  # cancelled at various points of the way
        folder = place / f"cancelled-{turn}"
        spec = SandboxSpec(f"{mark}{turn}", host_uid=host_uids and host_uids.acquire())
        started = asyncio.ensure_future(launcher.start(spec, folder))
        for _ in range(turn * 2 + 1):
            await asyncio.sleep(0)
        started.cancel()
        with pytest.raises(asyncio.CancelledError):
            await started
    launcher.close()  # waits for the spawner
    await asyncio.sleep(0)  # lets its results arrive
    await asyncio.sleep(0)
    async with asyncio.timeout(10):  # what was killed above is not our child: it may still be dying
        while our_processes(mark):  # noqa: ASYNC110  nobody tells of it
            await asyncio.sleep(0.01)


async def test_a_sandbox_that_does_not_come_up_is_ended(
    base, host_uids, place, monkeypatch
) -> None:
    slow = place / "slow-bwrap"
    slow.write_text("#!/bin/sh\nexec sleep 1000\n")
    slow.chmod(0o755)
    monkeypatch.setattr(module, "START_S", 0.05)
    launcher = Launcher(slow, base, helper=REAL_INIT)
    spec = SandboxSpec("x", host_uid=host_uids and host_uids.acquire())
    with pytest.raises(SandboxFault, match="not up after"):
        await launcher.start(spec, place / "slow")
    launcher.close()


LAUNCH_AND_WAIT = """
import asyncio, sys
from pathlib import Path
from retort.sandbox.launcher import Launcher
from retort.sandbox.rootfs import Base, build
from retort.sandbox.view import SandboxSpec

async def main():
    bwrap, base, folder, uid, helper = sys.argv[1:]
    launcher = Launcher(Path(bwrap), Base(Path(base), "x"), helper=Path(helper))
    spec = SandboxSpec("survivor", host_uid=int(uid) or None)
    sandbox = await launcher.start(spec, Path(folder))
    print(*sandbox.identity, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_sandbox_survives_the_death_of_its_server(base, launcher, host_uids, place) -> None:
    uid = host_uids.acquire() if host_uids else None
    folder = place / "survivor"
    source = str(Path(module.__file__).parents[2])
    server = subprocess.Popen(
        [
            *(sys.executable, "-c", LAUNCH_AND_WAIT, BWRAP, base.path, folder),
            *(str(uid or 0), REAL_INIT),
        ],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": source},
    )
    assert server.stdout is not None
    select.select([server.stdout], [], [], 30)
    identity = Identity(*map(int, server.stdout.readline().split()))
    server.send_signal(signal.SIGKILL)
    await asyncio.to_thread(server.wait)
    server.stdout.close()

    assert launcher.adopt(Identity(identity.pid, identity.start_ticks + 1), folder) is None
    sandbox = launcher.adopt(identity, folder, host_uid=uid)
    assert sandbox is not None
    done = await asyncio.to_thread(run_inside, sandbox.socket_path, "/bin/hostname")
    assert done.out == "survivor\n"
    await launcher.kill(sandbox)
    assert launcher.adopt(identity, folder) is None


@pytest.mark.skipif(not is_root, reason="only root gives uids")
async def test_two_sandboxes_of_root_have_different_host_uids(start) -> None:
    one, two = await start(), await start()
    status = [Path(f"/proc/{b.sandbox.pid}/status").read_text() for b in (one, two)]
    real = {line.split()[1] for s in status for line in s.splitlines() if line.startswith("Uid")}
    groups = {line for s in status for line in s.splitlines() if line.startswith("Groups")}
    assert real == {str(one.sandbox.host_uid), str(two.sandbox.host_uid)}
    assert len(real) == 2
    assert "0" not in real
    assert {g.split(":")[1].strip() for g in groups} == {""}


@pytest.mark.parametrize(
    "arguments",
    [[], ["1000"], ["0", "/bin/true"], ["-1", "/bin/true"], ["4294967295", "/bin/true"],
     ["1x", "/bin/true"], ["", "/bin/true"]],
)  # fmt: skip
@pytest.mark.skipif(not REAL_INIT.exists(), reason="retort-init is not built")
def test_init_becomes_no_other_uid_by_arguments_that_make_no_sense(arguments: list[str]) -> None:
    done = subprocess.run([REAL_INIT, "--as", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "retort-init: --as: Invalid argument\n")


@pytest.mark.skipif(not REAL_INIT.exists(), reason="retort-init is not built")
def test_init_that_may_not_become_another_uid_runs_nothing() -> None:
    own = os.geteuid()
    argv = [str(REAL_INIT), "--as", str(own + 77_000), "/bin/echo", "ran"]
    if is_root:  # a user namespace of one uid has no other
        argv = ["unshare", "--user", "--map-root-user", *argv]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("retort-init: uid: ")


@pytest.mark.skipif(not is_root, reason="about root")
async def test_root_without_a_host_uid_is_refused(launcher, place) -> None:
    with pytest.raises(SandboxFault, match="host uid"):
        await launcher.start(SandboxSpec("x"), place / "refused")


@pytest.mark.skipif(is_root, reason="about others than root")
async def test_a_plain_user_cannot_choose_a_uid(launcher, place) -> None:
    with pytest.raises(SandboxFault, match="only root"):
        await launcher.start(SandboxSpec("x", host_uid=os.geteuid() + 1), place / "refused")


@pytest.mark.skipif(not REAL_INIT.exists(), reason="retort-init is not built")
async def test_the_real_init_comes_up_and_keeps_only_its_socket(host_uids, place) -> None:
    launcher = Launcher(Path(BWRAP), build(place / "real", REAL_INIT))
    spec = SandboxSpec("real", host_uid=host_uids and host_uids.acquire())
    sandbox = await launcher.start(spec, place / "real-box")
    try:
        assert sandbox.is_alive
        if is_root:  # others may not look: it is not dumpable
            links = [os.readlink(fd) for fd in Path(f"/proc/{sandbox.pid}/fd").iterdir()]
            known = ("/dev/null", "/home/work", "/proc/1/oom_score_adj")  # its own, inside
            assert not [text for text in links if text[0] == "/" and text not in known]
    finally:
        await launcher.kill(sandbox)
        launcher.close()


async def test_many_starts_at_once_all_come_up_on_their_own_socket(start) -> None:
    boxes = await asyncio.gather(*(start(hostname=f"box{n}") for n in range(6)))
    names = [(await box.run("/bin/hostname")).out for box in boxes]
    assert names == [f"box{n}\n" for n in range(6)]


def test_it_works_under_uvloop_too(base, host_uids, place) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def once() -> str:
        launcher = Launcher(Path(BWRAP), base, helper=REAL_INIT)
        spec = SandboxSpec("uv", host_uid=host_uids and host_uids.acquire())
        sandbox = await launcher.start(spec, place / "uv")
        done = await asyncio.to_thread(run_inside, sandbox.socket_path, "/bin/hostname")
        await launcher.kill(sandbox)
        launcher.close()
        assert sandbox.monitor.returncode is not None
        return done.out

    assert uvloop.run(once()) == "uv\n"
