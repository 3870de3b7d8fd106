"""What an upload of several files is about to do, written down for the next server.

A note is written before the first file gets into its place and removed when all are there. So a
note that a later server finds tells of an upload that nobody was told of, and which it takes back.

Source: docs/decisions/0005-uploads-by-link-and-exchange.md.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import msgspec

from retort.hostfs.beneath import (
    RENAME_EXCHANGE,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    BeneathPath,
    TreeOpener,
)

RESOLVE = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS
PREFIX = "upload-"  #: of the names of notes, in the session's folder of the state folder


class Swap(msgspec.Struct, frozen=True, array_like=True):
    """One file on its way into its place.

    Attributes:
        target: where it goes, from the root of the tree.
        spare: its temporary name before, and afterwards that of what it replaced.
        device, inode: of the file itself.
    """

    target: bytes
    spare: bytes
    device: int
    inode: int


class Note(msgspec.Struct, frozen=True, array_like=True):
    """An upload on its way into its place.

    Attributes:
        made: folders that were made for it, those above before those below.
    """

    swaps: list[Swap]
    made: list[bytes]


class Notebook:
    """The notes of one session.

    Args:
        folder: of the host, the session's own; None: nothing is written, so nothing taken back.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def write(self, note: Note) -> Path | None:
        """Write a note; one file of one write, so that a kill leaves all of it or nothing to obey.

        Returns:
            Its place, for `remove`.

        Raises:
            OSError: it cannot be kept; nothing of it is left.
        """
        if self._folder is None:
            return None
        place = self._folder / f"{PREFIX}{secrets.token_hex(8)}"
        try:
            place.write_bytes(msgspec.msgpack.encode(note))
        except OSError:
            self.remove(place)
            raise
        return place

    def remove(self, place: Path | None) -> None:
        """Remove a note: its upload is in place, or taken back."""
        if place is not None:
            with contextlib.suppress(OSError):
                place.unlink()

    def left(self) -> list[tuple[Path, Note | None]]:
        """Give what an earlier server left; None for one that it had not written whole."""
        found: list[tuple[Path, Note | None]] = []
        for place in sorted(self._folder.glob(f"{PREFIX}*")) if self._folder else []:
            try:
                note = msgspec.msgpack.decode(place.read_bytes(), type=Note)
            except (OSError, msgspec.MsgspecError):
                note = None
            found.append((place, note))
        return found


async def take_back(
    tree: TreeOpener, target: BeneathPath, spare: BeneathPath | None, ours: tuple[int, int]
) -> None:
    """Undo one swap if it happened: only a target that is our own file is touched.

    Raises:
        OSError, SandboxFault: it could not be looked at or undone; done again, it may be.
    """
    if await identity_of(tree, target) != ours:
        return
    if spare is None or await identity_of(tree, spare) is None:
        await tree.unlink(bytes(target), directory=False, resolve=RESOLVE)
    else:
        await tree.rename(bytes(spare), bytes(target), RENAME_EXCHANGE, RESOLVE)


async def identity_of(tree: TreeOpener, path: BeneathPath) -> tuple[int, int] | None:
    """Give device and inode of what has a name, without following a link; None: nothing has it."""
    try:
        fd = await tree.open(bytes(path), os.O_PATH | os.O_NOFOLLOW, 0, RESOLVE)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    return status.st_dev, status.st_ino


async def take_back_left(tree: TreeOpener, notebook: Notebook) -> None:
    """Take back every upload that an earlier server left half done. Raises SandboxFault."""
    for place, note in notebook.left():
        for swap in note.swaps if note else ():
            with contextlib.suppress(OSError):  # a program may forbid what it likes in its folder
                await take_back(
                    tree, _path(swap.target), _path(swap.spare), (swap.device, swap.inode)
                )
        for folder in reversed(note.made) if note else ():
            with contextlib.suppress(OSError):  # something else is in it by now
                await tree.unlink(folder, directory=True, resolve=RESOLVE)
        notebook.remove(place)


def _path(raw: bytes) -> BeneathPath:
    return BeneathPath(tuple(raw.split(b"/")))
