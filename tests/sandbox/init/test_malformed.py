"""Datagrams that make no sense are refused one by one; init lives on."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct

import pytest
from tests.sandbox.init.box import Box, open_descriptors

from retort.sandbox import protocol
from retort.sandbox.init import InitClient
from retort.sandbox.protocol import Phase, Type

HELLO = protocol.HELLO.pack(Type.HELLO, 1, protocol.VERSION, 0)


def exec_head(**change: int) -> bytes:
    fields = {"number": 1, "flags": 0, "standby": 0, "limits": 0, "tag": 0, "argv": 1, "envp": 0}
    return protocol.EXEC.pack(Type.EXEC, 9, *{**fields, **change}.values())


BODY = b"/\0/bin/true\0"
DESCRIPTORS = {Type.EXEC: 3, Type.LINK: 1}
MALFORMED: dict[str, tuple[bytes, int]] = {
    "one byte": (b"\1", 0),
    "half a header": (struct.pack("=I", Type.OPEN), 0),
    "unknown type": (protocol.HEADER.pack(77, 9), 0),
    "type zero": (protocol.HEADER.pack(0, 9), 0),
    "huge type": (protocol.HEADER.pack(0xFFFFFFFF, 9), 0),
    "an answer's type": (protocol.DONE.pack(Type.DONE, 9, 0, 0), 0),
    "too long by one": (protocol.OPEN.pack(Type.OPEN, 9, 0, 0, 0) + b"x" * 65536 + b"\0", 0),
    "hello, reserved set": (protocol.HELLO.pack(Type.HELLO, 9, protocol.VERSION, 1), 0),
    "hello, too long": (protocol.HELLO.pack(Type.HELLO, 9, protocol.VERSION, 0) + b"\0", 0),
    "hello, descriptor": (protocol.HELLO.pack(Type.HELLO, 9, protocol.VERSION, 0), 1),
    "prepare, two descriptors": (protocol.PREPARE.pack(Type.PREPARE, 9, 0, 0), 2),
    "prepare, flags": (protocol.PREPARE.pack(Type.PREPARE, 9, 1, 0), 0),
    "link, no descriptor": (protocol.LINK.pack(Type.LINK, 9, 0) + b"x\0", 0),
    "link, two descriptors": (protocol.LINK.pack(Type.LINK, 9, 0) + b"x\0", 2),
    "open, no path": (protocol.OPEN.pack(Type.OPEN, 9, 0, 0, 0), 0),
    "open, path without end": (protocol.OPEN.pack(Type.OPEN, 9, 0, 0, 0) + b"x", 0),
    "open, two paths": (protocol.OPEN.pack(Type.OPEN, 9, 0, 0, 0) + b"x\0y\0", 0),
    "open, descriptor": (protocol.OPEN.pack(Type.OPEN, 9, 0, 0, 0) + b"x\0", 1),
    "open, unknown flag": (protocol.OPEN.pack(Type.OPEN, 9, 1 << 31, 0, 0) + b"x\0", 0),
    "open, O_ASYNC": (protocol.OPEN.pack(Type.OPEN, 9, os.O_ASYNC, 0, 0) + b"x\0", 0),
    "open, mode": (protocol.OPEN.pack(Type.OPEN, 9, os.O_CREAT, 0o10000, 0) + b"x\0", 0),
    "open, resolve": (protocol.OPEN.pack(Type.OPEN, 9, 0, 0, 0x10) + b"x\0", 0),
    "open, resolve high": (protocol.OPEN.pack(Type.OPEN, 9, 0, 0, 1 << 63) + b"x\0", 0),
    "rename, one path": (protocol.RENAME.pack(Type.RENAME, 9, 0, 0, 0) + b"x\0", 0),
    "rename, three paths": (protocol.RENAME.pack(Type.RENAME, 9, 0, 0, 0) + b"x\0y\0z\0", 0),
    "unlink, flags": (protocol.UNLINK.pack(Type.UNLINK, 9, 1, 0, 0) + b"x\0", 0),
    "mkdirs, reserved": (protocol.MKDIRS.pack(Type.MKDIRS, 9, 0o700, 5, 0) + b"x\0", 0),
    "exec, step zero": (exec_head(number=0) + BODY, 3),
    "exec, unknown flag": (exec_head(flags=4) + BODY, 3),
    "exec, negative standby": (exec_head(standby=-1) + BODY, 3),
    "exec, no argv": (exec_head(argv=0) + b"/\0", 3),
    "exec, fewer strings": (exec_head(argv=2) + BODY, 3),
    "exec, more strings": (exec_head() + BODY + b"x\0", 3),
    "exec, string without end": (exec_head() + BODY[:-1], 3),
    "exec, more limits than bytes": (exec_head(limits=16) + BODY, 3),
    "exec, seventeen limits": (exec_head(limits=17) + bytes(17 * 24) + BODY, 3),
    "exec, longer tag than bytes": (exec_head(tag=8192) + BODY, 3),
    "exec, tag of 8193": (exec_head(tag=8193) + bytes(8193) + BODY, 3),
    "exec, counts that overflow": (exec_head(argv=0xFFFFFFFF, envp=2) + BODY, 3),
    "exec, limits that overflow": (exec_head(limits=0x0AAAAAAB) + BODY, 3),
    "exec, two descriptors": (exec_head() + BODY, 2),
    "exec, seven descriptors": (exec_head() + BODY, 7),
    "exec, two hundred descriptors": (exec_head() + BODY, 200),
    "kill, negative signal": (protocol.KILL.pack(Type.KILL, 9, 1, -9, 1), 0),
    "kill, scope zero": (protocol.KILL.pack(Type.KILL, 9, 1, 9, 0), 0),
    "kill, of nobody": (protocol.KILL.pack(Type.KILL, 9, 0, 9, 1), 0),
}


def ask(sock: socket.socket, message: bytes, descriptors: int = 0) -> tuple[int, ...]:
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        socket.send_fds(sock, [message], [null] * descriptors)
    finally:
        os.close(null)
    answer, fds, flags, _ = socket.recv_fds(sock, 20000, 8)
    for fd in fds:
        os.close(fd)
    assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    if struct.unpack_from("=I", answer)[0] == Type.FAILED:
        return protocol.FAILED.unpack(answer)
    return struct.unpack_from("=II", answer)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_datagram_is_refused(box: Box, name: str) -> None:
    message, descriptors = MALFORMED[name]
    with box.raw() as sock:
        assert ask(sock, HELLO)[0] == Type.WELCOME
        type_, id_, phase, error = ask(sock, message, descriptors)
        assert (type_, phase, error) == (Type.FAILED, Phase.PROTOCOL, errno.EINVAL)
        assert id_ == (9 if len(message) >= 8 else 0)
        assert ask(sock, HELLO)[0] == Type.WELCOME


def test_nothing_is_done_before_hello(box: Box) -> None:
    with box.raw() as sock:
        answer = ask(sock, protocol.LIST.pack(Type.LIST, 5, 0, 0))
        assert answer == (Type.FAILED, 5, Phase.PROTOCOL, errno.EPROTO)
        wrong = protocol.HELLO.pack(Type.HELLO, 6, protocol.VERSION + 1, 0)
        assert ask(sock, wrong) == (Type.FAILED, 6, Phase.PROTOCOL, errno.EPROTONOSUPPORT)
        answer = ask(sock, exec_head() + BODY, 3)
        assert answer == (Type.FAILED, 9, Phase.PROTOCOL, errno.EPROTO)
        assert ask(sock, HELLO)[0] == Type.WELCOME


async def test_empty_datagram_closes_the_connection_only(box: Box) -> None:
    with box.raw() as sock:
        sock.send(b"")
        assert sock.recv(10) == b""
    client = await box.connect()
    assert await client.steps() == []
    client.close()


async def test_descriptors_of_refused_requests_are_closed(box: Box, client: InitClient) -> None:
    await client.steps()  # init has let go of what it answered before
    before = open_descriptors(box.pid(client))
    client.close()
    with box.raw() as sock:
        assert ask(sock, HELLO)[0] == Type.WELCOME
        for message, descriptors in MALFORMED.values():
            ask(sock, message, descriptors)
    again = await box.connect()
    assert await again.steps() == []
    assert open_descriptors(box.pid(again)) == before
    again.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_noise_by_the_thousand_ends_nothing(box: Box, seed: int) -> None:
    # Random bytes, and honest messages with some bytes changed. KILL of everything and EXEC are
    # harmless here; the files that are made are in the box's own home.
    rng = random.Random(seed)
    honest = [
        exec_head() + BODY,
        protocol.OPEN.pack(Type.OPEN, 9, os.O_RDWR | os.O_CREAT, 0o600, 0) + b"file\0",
        protocol.MKDIRS.pack(Type.MKDIRS, 9, 0o700, 0, 0) + b"a/b/c\0",
        protocol.RENAME.pack(Type.RENAME, 9, 0, 0, 0) + b"a/b\0a/d\0",
        protocol.UNLINK.pack(Type.UNLINK, 9, 0, 0, 0) + b"file\0",
        protocol.LIST.pack(Type.LIST, 9, 0, 0),
        protocol.PREPARE.pack(Type.PREPARE, 9, 0, 0),
        protocol.WAITING.pack(Type.WAITING, 9, 1),
        protocol.RELEASE.pack(Type.RELEASE, 9, 1),
        protocol.DROP.pack(Type.DROP, 9, 1, 7, 0),
        protocol.KILL.pack(Type.KILL, 9, 1, 9, 1),
        protocol.LINK.pack(Type.LINK, 9, 0) + b"linked\0",
    ]
    null = os.open("/dev/null", os.O_RDWR)
    with box.raw() as sock:
        assert ask(sock, HELLO)[0] == Type.WELCOME
        for _ in range(1000):
            message = bytearray(rng.choice([*honest, rng.randbytes(rng.randint(1, 300))]))
            for _ in range(rng.randint(0, 3)):
                message[rng.randrange(len(message))] = rng.randrange(256)
            socket.send_fds(sock, [message], [null] * rng.choice([0, 0, 1, 3, 3, 6]))
            while True:
                answer, fds, _, _ = socket.recv_fds(sock, 20000, 8)
                for fd in fds:
                    os.close(fd)
                type_ = struct.unpack_from("=I", answer)[0]
                if type_ != Type.EXITED:
                    break
            assert 65 <= type_ <= 72
    os.close(null)
    client = await box.connect()
    assert await client.mkdirs(b"still/here") == 2
    client.close()
