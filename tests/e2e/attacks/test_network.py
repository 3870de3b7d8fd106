"""Attacks through the network (attacks.md, F): there is none but a session's own loopback."""

# ruff: noqa: ASYNC240 - a test may block

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import Server

from .box import Box, outside
from .conftest import NewBox

pytestmark = pytest.mark.slow

CONNECT = """
for target in {targets}:
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    end = socket.socket(family)
    end.settimeout(2)
    try:
        end.connect(target)
        print("met", target)
    except OSError as error:
        print(errno.errorcode.get(error.errno, error))
"""


async def test_the_server_is_out_of_reach(box: Box, server: Server) -> None:
    port = urlsplit(server.url).port
    code = CONNECT.format(targets=[("127.0.0.1", port)])
    assert outside(code).stdout.startswith("met")  # control
    assert (await box.python(code)).out == "ECONNREFUSED\n"


async def test_no_address_beyond_loopback_can_be_reached(box: Box) -> None:
    addresses = ["192.0.2.1", "10.0.0.1", "169.254.169.254", "8.8.8.8", "2001:db8::1", "fe80::1"]
    ended = await box.python(CONNECT.format(targets=[(address, 80) for address in addresses]))
    assert set(ended.out.split()) <= {"ENETUNREACH", "EADDRNOTAVAIL", "EINVAL"}, ended
    interfaces = await box.sh("tail -n +3 /proc/net/dev | cut -d: -f1; tail -n +2 /proc/net/route")
    assert interfaces.out.split() == ["lo"]


async def test_names_are_not_resolved_by_anybody(box: Box) -> None:
    code = (
        "try: print(socket.getaddrinfo('example.com', 80))\nexcept OSError: print('nothing')\n"
        "end = socket.socket(type=socket.SOCK_DGRAM)\n"
        "try: end.sendto(b'x', ('8.8.8.8', 53)); print('sent')\nexcept OSError: print('nothing')\n"
    )
    assert (await box.python(code)).out == "nothing\nnothing\n"


async def test_unix_sockets_of_the_host_are_out_of_reach(box: Box) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = f"{folder}/socket"
        listener.bind(path)
        listener.listen()
        Path(folder).chmod(0o777)
        Path(path).chmod(0o777)
        code = (
            f"end = socket.socket(socket.AF_UNIX)\ntry: end.connect({path!r}); print('met')\n"
            "except OSError as error: print(errno.errorcode[error.errno])\n"
        )
        assert outside(code).stdout == "met\n"  # control
        assert (await box.python(code)).out == "ENOENT\n"
    assert (await box.sh("find / -xdev -type s 2>/dev/null; ls -A /run")).out == ""


LISTEN = """
end = socket.create_server(("127.0.0.1", 8099))
if os.fork() == 0:
    os.setsid()
    time.sleep(1000)
os._exit(0)
"""


async def test_a_listener_left_behind_holds_no_port(box: Box, new_box: NewBox) -> None:
    for _ in range(2):  # the second finds the port free
        assert (await box.python(LISTEN)).told == ("exited", 0, None)
    assert (await box.sh("tail -n +2 /proc/net/tcp | grep -c ' 0A '")).out == "0\n"
    # A port that is kept on purpose is one session's own.
    kept = await box.python(LISTEN, keepBackground=True)
    assert kept.told == ("exited", 0, None)
    other = await new_box()
    assert (await other.python(LISTEN)).told == ("exited", 0, None)
    meet = CONNECT.format(targets=[("127.0.0.1", 8099)])
    assert (await box.python(meet)).out.startswith("met")  # control
    assert (await other.python(meet)).out == "ECONNREFUSED\n"
    async with box.api.patch(f"/session/{box.name}") as answer:
        assert answer.status == 204
