"""What the file tests share: uploads from a dict, trees as values, unpackers, a tree that fails."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

from retort.core.files import Download, FileUpload
from retort.hostfs.beneath import TreeOpener
from retort.node.files import SessionFiles

T = TypeVar("T")
Tree = dict[bytes, tuple[int, bytes]]


async def chunks_of(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def each(*files: tuple[str, bytes]) -> AsyncIterator[FileUpload]:
    for path, content in files:
        yield FileUpload(path, chunks_of(content))


async def store(files: SessionFiles, *named: tuple[str, bytes]) -> None:
    await files.upload(each(*named))


async def collect(download: Download) -> bytes:
    """Read a download to its end and close it; its size must be what it said."""
    try:
        content = b"".join([chunk async for chunk in download.chunks()])
    finally:
        await download.close()
    assert len(content) == download.size
    return content


def tree_of(root: Path | bytes) -> Tree:
    """Read a tree without following links: path to (mode, content, link's target or nothing)."""
    found: Tree = {}

    def visit(fd: int, prefix: bytes) -> None:
        for name in sorted(os.fsencode(entry) for entry in os.listdir(fd)):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            content = b""
            if stat.S_ISREG(status.st_mode):
                file = os.open(name, os.O_RDONLY, dir_fd=fd)
                content = os.read(file, 1 << 26)
                os.close(file)
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(name, dir_fd=fd)
            found[prefix + name] = status.st_mode, content
            if stat.S_ISDIR(status.st_mode):
                child = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
                visit(child, prefix + name + b"/")
                os.close(child)

    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    visit(top, b"")
    os.close(top)
    return found


def members_of(archive: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return opened.getmembers()


def names_of(archive: bytes) -> list[str]:
    return [member.name for member in members_of(archive)]


def by_filter(name: str) -> dict[str, Any]:
    """The argument of `extractall`, where it has one: Python 3.11 since 3.11.4."""
    return {"filter": name} if hasattr(tarfile, f"{name}_filter") else {}


def unpack(archive: bytes, by: str, into: Path) -> Path:
    """Unpack with "python" (filter data, where it has it) or "gnu" tar."""
    into.mkdir()
    if by == "python":
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            opened.extractall(into, **by_filter("data"))
    else:
        command = ["tar", "-x", "--no-same-owner", "-C", str(into), "-f", "-"]
        done = subprocess.run(command, input=archive, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    return into


class FailingTree:
    """A TreeOpener whose n-th call raises, before or after it was carried out."""

    def __init__(self, inner: TreeOpener, fail_at: int, error: Exception, when: str) -> None:
        self._inner = inner
        self._fail_at = fail_at
        self._error = error
        self._when = when
        self.calls = 0

    async def _do(self, work: Awaitable[T]) -> T:
        self.calls += 1
        if self.calls != self._fail_at:
            return await work
        if self._when == "after":
            await work
        else:
            work.close()  # type: ignore[attr-defined]
        raise self._error

    async def open(self, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
        return await self._do(self._inner.open(path, flags, mode, resolve))

    async def mkdirs(self, path: bytes, mode: int, resolve: int = 0) -> int:
        return await self._do(self._inner.mkdirs(path, mode, resolve))

    async def link(self, fd: int, path: bytes, resolve: int = 0) -> None:
        await self._do(self._inner.link(fd, path, resolve))

    async def rename(self, src: bytes, dst: bytes, flags: int = 0, resolve: int = 0) -> None:
        await self._do(self._inner.rename(src, dst, flags, resolve))

    async def unlink(self, path: bytes, *, directory: bool = False, resolve: int = 0) -> None:
        await self._do(self._inner.unlink(path, directory=directory, resolve=resolve))
