"""What the tests of a session's files share."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from retort.node.files import FileLimits

LIMITS = FileLimits(
    max_upload_file_bytes=1 << 20,
    max_listed_entries=500,
    max_archive_entries=500,
    max_part_bytes=1 << 20,
)
SECRET = b"a secret of the host"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a name, no path


def planted(root: Path) -> dict[str, Callable[[], str]]:
    """Ways to make an upload leave the root or hit what is no file; each gives the path to use."""
    out = root.parent

    def link(name: str, target: str | Path, path: str) -> str:
        (root / name).symlink_to(target)
        return path

    def chain() -> str:
        link("y", out / "secret", "")
        return link("x", "y", "x")

    def loop() -> str:
        link("y", "x", "")
        return link("x", "y", "x")

    def fifo() -> str:
        os.mkfifo(root / "x")
        return "x"

    def folder() -> str:
        (root / "x").mkdir()
        return "x"

    def file_as_folder() -> str:
        (root / "x").write_text("a file")
        return "x/y"

    def sock() -> str:
        with socket.socket(socket.AF_UNIX) as bound:
            fd = os.open(root, os.O_PATH)
            bound.bind(f"/proc/self/fd/{fd}/x")
            os.close(fd)
        return "x"

    return {
        "link to a host file": lambda: link("x", out / "secret", "x"),
        "link to a relative host file": lambda: link("x", "../secret", "x"),
        "link to a new host file": lambda: link("x", out / "new", "x"),
        "parent link": lambda: link("d", out, "d/secret"),
        "parent link, new file": lambda: link("d", out, "d/new"),
        "parent link, new folder": lambda: link("d", out, "d/new/file"),
        "parent link inside": lambda: (root / "real").mkdir() or link("d", "real", "d/file"),
        "chain": chain,
        "loop": loop,
        "dangling": lambda: link("x", "nowhere", "x"),
        "/proc/self/root": lambda: link("d", f"/proc/self/root{out}", "d/secret"),
        "/proc/self/cwd": lambda: link("d", "/proc/self/cwd", "d/new"),
        "FIFO": fifo,
        "folder": folder,
        "file as folder": file_as_folder,
        "socket": sock,
    }
