"""Write the seed corpus: one honest series of acts per file (see fuzz_init.c for the format).

PYTHONPATH=src python init/fuzz/make_seeds.py
"""
# ruff: noqa: D103  the names of the acts are fuzz_init.c's, which describes them

import os
import struct
from pathlib import Path

from retort.sandbox import protocol as p
from retort.sandbox.protocol import Type

HERE = Path(__file__).parent / "corpus"
GREETED = 1 | 2 | 8  # openat2, pid 1, HELLO said
TMPFILE, FOLDER, PIPE, NULL = range(4)


def datagram(message: bytes, fds: int = 0, kind: int = NULL) -> bytes:
    return struct.pack("<BHB", 0, len(message), fds | kind << 3) + message


def execute(
    number: int, *, fds: int = 3, flags: int = 0, standby: int = 0, limits: int = 0
) -> bytes:
    head = p.EXEC.pack(Type.EXEC, number, number, flags, standby, limits, 3, 2, 1)
    rest = p.LIMIT.pack(0, 0, 1, 2) * limits + b"tag/home\0/bin/sh\0-c\0A=1\0"
    return datagram(head + rest, fds)


def child(index: int, outcome: int) -> bytes:
    return bytes([4, index, outcome])


def end(index: int, status: int) -> bytes:
    return struct.pack("<BBH", 5, index, status)


STALL = b"\x06"
RECONNECT = b"\x07"
HELLO = datagram(p.HELLO.pack(Type.HELLO, 1, p.VERSION, 0))
PREPARE = datagram(p.PREPARE.pack(Type.PREPARE, 2, 0, 0))
LIST = datagram(p.LIST.pack(Type.LIST, 3, 0, 0))
RELEASE = datagram(p.RELEASE.pack(Type.RELEASE, 4, 7))
DROP = datagram(p.DROP.pack(Type.DROP, 5, 7, 3, 0))
WAITING = datagram(p.WAITING.pack(Type.WAITING, 6, 7))
FEED = datagram(p.FEED.pack(Type.FEED, 13, 7) + b"a line\n")
OPEN = datagram(p.OPEN.pack(Type.OPEN, 7, os.O_RDWR | os.O_CREAT, 0o600, 0) + b"a/./b\0")
READ = datagram(p.OPEN.pack(Type.OPEN, 7, 0, 0, 5) + b"a/b\0")
MKDIRS = datagram(p.MKDIRS.pack(Type.MKDIRS, 8, 0o755, 0, 0) + b"a//c/d\0")
LINK = datagram(p.LINK.pack(Type.LINK, 9, 0) + b"a/l\0", 1, TMPFILE)
RENAME = datagram(p.RENAME.pack(Type.RENAME, 10, 0, 0, 1) + b"a/b\0a/e\0")
UNLINK = datagram(p.UNLINK.pack(Type.UNLINK, 11, 0, 0, 0) + b"a/e\0")
RMDIR = datagram(p.UNLINK.pack(Type.UNLINK, 11, 0x200, 0, 0) + b"a/c/d\0")


def kill(number: int, signal: int, scope: int) -> bytes:
    return datagram(p.KILL.pack(Type.KILL, 12, number, signal, scope))


SEEDS = {
    "files": MKDIRS + OPEN + READ + LINK + RENAME + UNLINK + RMDIR,
    "cycle": PREPARE + execute(7) + child(0, 0) + WAITING + end(0, 0x300) + LIST + RELEASE,
    "held": execute(7, fds=6) + child(0, 0) + RECONNECT + HELLO + LIST + DROP + LIST + end(0, 9),
    "fed": execute(7, fds=6) + FEED + child(0, 0) + FEED + RECONNECT + HELLO + LIST + FEED + DROP
        + FEED + end(0, 0) + FEED,
    "failed": execute(7, limits=2) + child(0, 1) + execute(8) + child(0, 2) + LIST,
    "killed": execute(7) + kill(7, 9, 1) + execute(8) + child(0, 128) + kill(8, 15, 2)
        + kill(0, 9, 3),
    "two": execute(7) + execute(8, flags=1) + child(0, 0) + child(1, 0) + end(1, 0) + end(0, 0),
    "standby": PREPARE + end(128, 9) + execute(7, standby=1000) + PREPARE
        + execute(7, standby=1001),
    "cgroup": datagram(p.PREPARE.pack(Type.PREPARE, 2, 0, 0), 1, FOLDER) * 2 + end(128, 9)
        + execute(7),
    "stalled": STALL + LIST * 12 + execute(7) + child(0, 0) + end(0, 0) + OPEN * 4 + STALL + LIST,
    "background": execute(7, flags=1) + child(0, 0) + end(0, 0) + RELEASE + execute(8)
        + child(0, 0),
    "reconnect": execute(7) + RECONNECT + child(0, 1) + HELLO + execute(8) + child(0, 0)
        + RECONNECT,
    "full": b"".join(execute(i) + child(i, 0) for i in range(1, 18)) + STALL + end(1, 0)
        + end(2, 0),
    "nonsense": datagram(b"\1") + datagram(b"\xff" * 40, 7) + datagram(p.HEADER.pack(77, 9)),
}  # fmt: skip


def main() -> None:
    HERE.mkdir(exist_ok=True)
    for name, acts in SEEDS.items():
        (HERE / name).write_bytes(bytes([GREETED]) + acts)
    (HERE / "files-walk").write_bytes(bytes([GREETED & ~1]) + SEEDS["files"])
    (HERE / "ungreeted").write_bytes(bytes([1]) + LIST + HELLO + SEEDS["cycle"])


if __name__ == "__main__":
    main()
