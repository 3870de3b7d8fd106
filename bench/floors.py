"""The same work without Retort, by bare spawns on the same host."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

DEVNULL = os.open("/dev/null", os.O_RDWR)


def spawn(*argv: str) -> bytes:
    """Run a program to its end and read what it prints, with as little around it as possible."""
    read, write = os.pipe()
    actions = [
        (os.POSIX_SPAWN_DUP2, DEVNULL, 0),
        (os.POSIX_SPAWN_DUP2, write, 1),
        (os.POSIX_SPAWN_DUP2, write, 2),
    ]
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
    os.close(write)
    output = b""
    while data := os.read(read, 65_536):
        output += data
    os.close(read)
    _, status = os.waitpid(pid, 0)
    assert status == 0, (argv, status, output)
    return output


def bwrap() -> None:
    """Make one sandbox by hand."""
    path = shutil.which("bwrap")
    assert path is not None
    spawn(
        *(path, "--unshare-all", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib"),
        *("--symlink", "usr/lib64", "/lib64", "--symlink", "usr/bin", "/bin"),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "/bin/true"),
    )


class CopyThroughSocket:
    """Copy bytes through a loopback connection into files: what an upload cannot go below."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def __call__(self) -> None:
        """Send every file; the other side writes them to a tmpfs."""
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        ):
            receiver = threading.Thread(target=self._receive, args=(listener, Path(folder)))
            receiver.start()
            with socket.create_connection(listener.getsockname()) as sender:
                for content in self._files.values():
                    sender.sendall(content)
            receiver.join()

    def _receive(self, listener: socket.socket, folder: Path) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb", buffering=1 << 18) as stream:
            for name, content in self._files.items():
                left = len(content)
                with (folder / name).open("wb", buffering=0) as file:
                    while left:
                        data = stream.read(min(left, 1 << 18))
                        file.write(data)
                        left -= len(data)


def compile_and_run(folder: Path) -> None:
    """Build and run the C project of the cycle, by the same commands."""
    subprocess.run(["/bin/sh", "-c", "rm -f main"], cwd=folder, check=True)
    spawn("/bin/bash", "-c", f"cd {folder} && gcc -o main main.c util.c")
    spawn("/bin/bash", "-c", f"cd {folder} && ./main")
