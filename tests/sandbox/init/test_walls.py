"""Programs share init's uid; still they cannot hurt it or look into it.

Each attack is first shown to work on a victim that is as init would be without its walls.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from tests.sandbox.init.box import Box
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


async def test_standby_cannot_be_read_or_traced(box: Box, client: InitClient) -> None:
    await box.sh(client, "setsid sleep 600 >/dev/null 2>&1 & exit", keep_background=True)
    script = """
for victim in $(pgrep -x sleep) %d; do
    cat /proc/$victim/environ > /dev/null 2>&1; echo $?
done
"""
    first, second = await client.prepare(), None
    os.close(first.pidfd)
    # The program that looks runs in the first; the second stands by meanwhile.
    with await box.start(client, "/bin/bash", "-c", "read pid; " + script.replace("%d", "$pid"),
                         stdin=(pipe := os.pipe())[0]) as running:  # fmt: skip
        second = await client.prepare()
        os.close(second.pidfd)
        os.write(pipe[1], f"{second.pid_inside}\n".encode())
        await running.ended()
        assert await running.read_all() == b"0\n1\n"
    os.close(pipe[0])
    os.close(pipe[1])


async def test_control_socket_is_out_of_reach(box: Box, client: InitClient) -> None:
    # Outside anybody with the path can connect; inside there is no path, and no abstract name.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as outside:
        outside.connect(str(box.socket_path))
    ran = await box.sh(client, f"cat /proc/net/unix; ls {box.socket_path.parent} 2>&1")
    assert "init.sock" not in ran.text
    assert "cannot access" in ran.text


async def test_init_has_only_the_descriptors_it_needs(box: Box, client: InitClient) -> None:
    links = sorted(Path(f"/proc/{box.pid(client)}/fd").iterdir(), key=lambda link: int(link.name))
    kinds = [str(link.readlink()).split(":")[0] for link in links]
    # standard streams, then signalfd, home, listener and the connection in some order
    assert kinds[0] == "/dev/null"
    assert sorted(kinds[3:]) == ["/home/work", "anon_inode", "socket", "socket"]
