"""Programs share init's uid; still they cannot hurt it or look into it.

Each attack is first shown to work on a victim that is as init would be without its walls.
"""
# ruff: noqa: ASYNC240  what is polled and read here is procfs and other processes

from __future__ import annotations

import os
import resource
import signal
import socket
from pathlib import Path

from tests.sandbox.init.box import Box, open_descriptors
from tests.sandbox.init.conftest import only_pid1

from retort.sandbox.init import InitClient

pytestmark = only_pid1


async def test_no_signal_from_inside_hurts_pid_1(box: Box, client: InitClient) -> None:
    script = """
import os, signal, time
victim = os.fork()
if victim == 0:
    time.sleep(600)
os.kill(victim, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]))
for number in range(1, 65):
    if number not in (32, 33):
        for _ in range(3):
            os.kill(1, number)
"""
    ran = await box.py(client, script)
    assert ran.text == f"{-signal.SIGTERM}\n"
    assert (await box.sh(client, "echo alive")).text == "alive\n"
    pending = Path(f"/proc/{box.pid(client)}/status").read_text()
    assert "SigQ:\t0/" in pending or "ShdPnd:\t0000000000000000" in pending


async def test_kill_minus_one_spares_init_only(box: Box, client: InitClient) -> None:
    ran = await box.sh(client, "sleep 600 & kill -9 -1; wait $!; echo $?")
    assert ran.exit.exit_code == 0 or ran.exit.signal == signal.SIGKILL
    assert (await box.sh(client, "echo alive")).text == "alive\n"


async def test_init_cannot_be_read_or_traced(box: Box, client: InitClient) -> None:
    script = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, pid):
    try:
        if what == "attach":
            ctypes.set_errno(0)
            if libc.ptrace(16, pid, 0, 0):
                raise OSError(ctypes.get_errno(), "")
            os.waitpid(pid, 0)
            libc.ptrace(17, pid, 0, 0)
        elif what in ("fd", "root", "cwd"):
            os.listdir(f"/proc/{pid}/{what}")
        else:
            open(f"/proc/{pid}/{what}", "rb").read(1)
        return "open"
    except PermissionError:
        return "refused"
victim = os.fork()
if victim == 0:
    time.sleep(600)
for what in ("environ", "fd", "maps", "root", "cwd", "mem", "attach"):
    print(what, attempt(what, victim) if what != "mem" else "open", attempt(what, 1))
"""
    ran = await box.py(client, script)
    names = ("environ", "fd", "maps", "root", "cwd", "mem", "attach")
    assert ran.text.splitlines() == [f"{name} open refused" for name in names]


async def test_standby_cannot_be_read(box: Box, client: InitClient) -> None:
    script = "read pid; for p in $$ $pid; do cat /proc/$p/environ > /dev/null 2>&1; echo $?; done"
    stdin_read, stdin_write = os.pipe()
    with await box.start(client, "/bin/bash", "-c", script, stdin=stdin_read) as running:
        standby = await client.prepare()
        os.close(standby.pidfd)
        os.write(stdin_write, f"{standby.pid_inside}\n".encode())
        await running.ended()
        assert await running.read_all() == b"0\n1\n"
    os.close(stdin_read)
    os.close(stdin_write)


async def test_control_socket_is_out_of_reach(box: Box, client: InitClient) -> None:
    # Outside anybody with the path can connect; inside there is no path, and no abstract name.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as outside:
        outside.connect(str(box.socket_path))
    ran = await box.sh(client, f"cat /proc/net/unix; ls {box.socket_path.parent} 2>&1")
    assert "init.sock" not in ran.text
    assert "cannot access" in ran.text


async def test_init_has_only_the_descriptors_it_needs(box: Box, client: InitClient) -> None:
    await client.steps()  # init has let go of what it answered before
    assert open_descriptors(box.pid(client))  # skips where only root may look
    links = sorted(Path(f"/proc/{box.pid(client)}/fd").iterdir(), key=lambda link: int(link.name))
    kinds = [str(link.readlink()).split(":")[0] for link in links]
    # standard streams, then signalfd, home, score, listener and the connection in some order
    assert kinds[0] == "/dev/null"
    assert sorted(kinds[3:]) == [
        "/home/work", "/proc/1/oom_score_adj", "anon_inode", "socket", "socket"
    ]  # fmt: skip


async def test_programs_go_before_init_when_memory_is_short(box: Box, client: InitClient) -> None:
    here = int(Path("/proc/self/oom_score_adj").read_text())
    for _ in range(2):  # of the first standby child, and of one made after a step
        ran = await box.sh(client, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj")
        assert [int(word) for word in ran.text.split()] == [here, min(here + 200, 1000)]


async def test_system_v_objects_end_with_their_step(box: Box, client: InitClient) -> None:
    make = """
import ctypes
libc = ctypes.CDLL(None)
for mode in (0o1600, 0o1000):  # also what nobody may read
    assert libc.shmget(0, 4096, mode) >= 0
    assert libc.semget(0, 3, mode) >= 0
    assert libc.msgget(0, mode) >= 0
"""
    look = "tail -qn +2 /proc/sysvipc/{shm,sem,msg} | wc -l"
    ran = await box.sh(client, f"python3 -c '{make}' && {look}")
    assert ran.text == "6\n"  # the control
    assert (await box.sh(client, look)).text == "0\n"


async def test_descriptors_in_flight_of_a_program_do_not_stop_inits(
    box: Box, client: InitClient
) -> None:
    # The host kernel counts descriptors in flight per user and compares with the sender's limit.
    script = """
import os, socket, time
pairs, sent = [], 0
while sent < 4000:
    pairs.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    pairs[-1][0].setblocking(False)
    try:
        for _ in range(1000):
            socket.send_fds(pairs[-1][0], [b"x"], [0] * 200)
            sent += 200
    except BlockingIOError: pass
    except OSError as e: print(os.strerror(e.errno), flush=True); break
time.sleep(600)
"""
    rlimits = [(resource.RLIMIT_NOFILE, 256, 256)]
    with await box.start(client, "/usr/bin/python3", "-c", script, rlimits=rlimits) as running:
        assert await running.line() == "Too many references: cannot splice"
        os.close(await client.open(b".", os.O_RDONLY))
        os.close((await client.prepare()).pidfd)
        await client.kill(running.number, signal.SIGKILL)
        await running.ended()
