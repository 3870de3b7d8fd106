"""Unpacking what a server sent, which is a stranger's archive.

Only regular files and folders are made, all of them named as they were asked for or below that.
Nothing is written through a link: neither one of the archive nor one that lies here already.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from retort.client.errors import UnsafeArchive


def extract(archive: IO[bytes], name: str, into: Path) -> tuple[list[Path], list[str]]:
    """Unpack one tar archive.

    Args:
        archive: plain tar, at its beginning.
        name: base name of what was asked for; every member is this or lies below it.
        into: existing folder.

    Returns:
        The files made, and the names of members left out because they are links or devices.

    Raises:
        UnsafeArchive: a member has another name, or its place here is behind a link.
        OSError: it cannot be written.
    """
    made: list[Path] = []
    left_out: list[str] = []
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for member in tar:
                place = _place(member.name, name, into)
                if member.isdir():
                    _make_folder(place, into)
                elif member.isreg():
                    content = tar.extractfile(member)
                    assert content is not None
                    _make_folder(place.parent, into)
                    _write(content, place, is_program=bool(member.mode & stat.S_IXUSR))
                    made.append(place)
                else:
                    left_out.append(member.name)
    except tarfile.TarError as exc:
        raise UnsafeArchive(f"{name}: the archive cannot be read: {exc}") from exc
    return made, left_out


def _place(member: str, name: str, into: Path) -> Path:
    parts = member.rstrip("/").split("/")
    if parts[0] != name or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise UnsafeArchive(f"{name}: the archive holds {member!r}")
    return into.joinpath(*parts)


def _make_folder(folder: Path, into: Path) -> None:
    if folder == into:
        return
    _make_folder(folder.parent, into)
    try:
        folder.mkdir()
    except FileExistsError:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise UnsafeArchive(f"{folder}: not a folder here") from None


def _write(content: IO[bytes], place: Path, *, is_program: bool) -> None:
    """Write beside the place and rename: a link that lies there is replaced, not followed."""
    fd, temporary = tempfile.mkstemp(prefix=".retort-", dir=place.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            shutil.copyfileobj(content, file)
            os.fchmod(file.fileno(), (0o777 if is_program else 0o666) & ~_umask())
        Path(temporary).replace(place)
    except BaseException as exc:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(exc, IsADirectoryError):
            raise UnsafeArchive(f"{place}: a folder here") from exc
        raise


def _umask() -> int:
    # Read, not set and set back: that would change it for a moment for every thread (proc(5)).
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077
