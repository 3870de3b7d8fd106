"""Paths from outside, and the one way to open what they name.

Here: the lexical rules (no I/O), the Protocol of whoever opens files beneath a root, and what its
errors mean to a caller. Not here: opening itself (folders.py for trees of the server's own, the
sandbox's init for session files). Follows spec/attacks.md, section D.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterable
from typing import Protocol

from retort.errors import (
    FileTooLarge,
    PathRefused,
    RequestError,
    RetortError,
    SandboxFault,
    ScratchFull,
    VFolderFull,
    VFolderOperation,
)

#: include/uapi/linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

#: include/uapi/linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

HOME = (b"home", b"work")
PATH_BYTES = 4095  #: PATH_MAX without its NUL
NAME_BYTES = 255  #: NAME_MAX


class TreeOpener(Protocol):
    """Opens and changes files beneath one root, wherever a program moves things meanwhile.

    Paths are relative to the root. Nothing resolves to a place outside; changes follow no symbolic
    link at all. Every method raises OSError with the kernel's errno: EXDEV for a path that leads
    out (or into another mount, under RESOLVE_NO_XDEV), ELOOP for a link where none is allowed,
    EAGAIN when a rename made the kernel unsure. An implementation may raise SandboxFault too.
    """

    async def open(self, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
        """Open a file; the descriptor is close-on-exec and never blocks. The caller closes it."""
        ...

    async def mkdirs(self, path: bytes, mode: int, resolve: int = 0) -> int:
        """Make a directory and its parents; give how many were made, 0 if all were there.

        What was made before a failure is removed again.
        """
        ...

    async def link(self, fd: int, path: bytes, resolve: int = 0) -> None:
        """Give an unnamed file (O_TMPFILE) a name; EEXIST when it is taken."""
        ...

    async def rename(self, src: bytes, dst: bytes, flags: int = 0, resolve: int = 0) -> None:
        """Rename as renameat2(2), with RENAME_NOREPLACE or RENAME_EXCHANGE."""
        ...

    async def unlink(self, path: bytes, *, directory: bool = False, resolve: int = 0) -> None:
        """Remove a name: of an empty directory if `directory`, else of anything but one."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class BeneathPath:
    """A path that lexically cannot leave its root.

    Attributes:
        parts: names below the root, none empty, `.`, `..` or with a slash or NUL; () is the root.
    """

    parts: tuple[bytes, ...]

    def __bytes__(self) -> bytes:
        """Give the path relative to the root; the root itself is ``b"."``."""
        return b"/".join(self.parts) or b"."

    @property
    def absolute(self) -> str:
        """The path as a session's programs see it, e.g. "/home/work/src"."""
        return os.fsdecode(b"/" + b"/".join(HOME + self.parts))

    @property
    def name(self) -> bytes:
        """The last component; of the root, that of the home folder."""
        return self.parts[-1] if self.parts else HOME[-1]

    def parents(self) -> list[BeneathPath]:
        """List the folders above, from the root's child down to the parent."""
        return [BeneathPath(self.parts[:end]) for end in range(1, len(self.parts))]


def folder_path(text: str, *, may_be_root: bool = False) -> BeneathPath:
    """Read a path within a virtual folder: relative to its root, by letter as `session_path`.

    Raises:
        PathRefused: empty, absolute, with a NUL, too long, not encodable, above the root; the
            root itself, unless it may be.

    Source: spec 10.1.
    """
    raw = _raw(text)
    if raw.startswith(b"/"):
        raise PathRefused("The path must be relative to the folder.")
    parts: list[bytes] = []
    for part in raw.split(b"/"):
        if part == b"..":
            if not parts:
                raise PathRefused("The path is outside the folder.")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    if not parts and not may_be_root:
        raise PathRefused("The path is the folder itself.")
    _check_names(parts)
    return BeneathPath(tuple(parts))


def session_path(text: str, *, may_be_home: bool = False) -> BeneathPath:
    """Read a path of the API: relative to /home/work, or absolute below it.

    `.`, `..`, doubled and trailing slashes are resolved by letter. A backslash, a percent sign and
    look-alikes are ordinary characters. Bytes that are no UTF-8 stand as surrogates (PEP 383).

    Args:
        text: what the client sent, percent-decoded.
        may_be_home: /home/work itself is a fine answer (listing, download).

    Raises:
        PathRefused: empty, with a NUL, too long, not encodable, outside; home, unless it may be.

    Source: spec 6.1 and 6.3; attacks D1.
    """
    raw = _raw(text)
    parts: list[bytes] = [] if raw.startswith(b"/") else list(HOME)
    for part in raw.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    below = tuple(parts[len(HOME) :])
    if tuple(parts[: len(HOME)]) != HOME:
        raise PathRefused("The path is outside /home/work.")
    if not below and not may_be_home:
        raise PathRefused("The path is /home/work itself.")
    _check_names(below)
    return BeneathPath(below)


def _raw(text: str) -> bytes:
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise PathRefused("The path is not valid Unicode.") from None
    if not raw:
        raise PathRefused("The path is empty.")
    if b"\0" in raw:
        raise PathRefused("The path has a NUL character.")
    if len(raw) > PATH_BYTES:
        raise PathRefused(f"The path is longer than {PATH_BYTES} bytes.")
    return raw


def _check_names(parts: Iterable[bytes]) -> None:
    if any(len(part) > NAME_BYTES for part in parts):
        raise PathRefused(f"A name in the path is longer than {NAME_BYTES} bytes.")


_REFUSALS = {
    errno.ENOENT: "it vanished meanwhile",
    errno.ENOTDIR: "not a directory",
    errno.EISDIR: "it is a directory",
    errno.EEXIST: "something else is there",
    errno.ENOTEMPTY: "the directory is not empty",
    errno.ELOOP: "a symbolic link is in the way",
    errno.EXDEV: "it leads out of /home/work or into a mounted folder",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "it is read-only",
    errno.ENAMETOOLONG: "a name is too long",
    errno.ENXIO: "not a regular file",
    errno.ENODEV: "not a regular file",
    errno.ETXTBSY: "it is in use",
    errno.EBUSY: "it is a mount point",
    errno.EAGAIN: "it keeps changing",
    errno.ESTALE: "it keeps changing",
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMLINK}


def refusal(
    error: OSError, path: BeneathPath, missing: type[RequestError] | None = None
) -> RetortError:
    """Say what a TreeOpener's error means to the caller.

    Args:
        error: what was raised.
        path: the path of the request it happened for.
        missing: the error for a name that is not there; without it that is a PathRefused too.

    Returns:
        RetortError: PathRefused, ScratchFull or FileTooLarge; SandboxFault for an errno that no
            program can cause from inside.
    """
    return _refusal(error, path.absolute, missing, ScratchFull)


def folder_refusal(
    error: OSError, path: BeneathPath, missing: type[RequestError] | None = None
) -> RetortError:
    """Say the same as `refusal` about a path of a virtual folder.

    Returns:
        RetortError: VFolderOperation in place of PathRefused, VFolderFull in place of ScratchFull.
    """
    found = _refusal(error, os.fsdecode(bytes(path)), missing, VFolderFull)
    return VFolderOperation(found.message) if isinstance(found, PathRefused) else found


def _refusal(
    error: OSError, shown: str, missing: type[RequestError] | None, full: type[RequestError]
) -> RetortError:
    code = error.errno
    if code == errno.ENOENT and missing is not None:
        return missing()
    if code in _FULL:
        return full()
    if code == errno.EFBIG:
        return FileTooLarge()
    if code in _REFUSALS:
        return PathRefused(f"{shown}: {_REFUSALS[code]}")
    return SandboxFault("files", f"{shown}: {error}")
