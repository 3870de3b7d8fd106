"""Files of a session: upload names, listings, downloads (specification 6.1, 6.3 to 6.5)."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import msgspec

from retort.core.files import FileEntry
from retort.errors import InvalidRequest, TooManyFiles
from retort.wire.params import Params
from retort.wire.percent import decode_valid, to_bytes

HOME = "/home/work"
MAX_UPLOADS = 20
MAX_UPLOAD_BYTES = 1_048_576  #: a file of exactly this size is allowed (D13)
MAX_DOWNLOADS = 5

_BATCH = 1000  # entries that are encoded at once: 1 ms
_LONGEST_PATH = 4096  #: bytes, as PATH_MAX
_DISPOSITION = re.compile(
    r";\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^\s;\"]*)\s*(?=;|$)", re.DOTALL
)
_EXTENDED = re.compile(r"([A-Za-z0-9-]+)'[A-Za-z0-9-]*'(.*)", re.DOTALL)
_CHARSETS = frozenset({"utf-8", "us-ascii", "iso-8859-1"})
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_BOUNDARY = re.compile(r"[0-9A-Za-z_-]{1,70}")
_encode = msgspec.json.Encoder().encode


def upload_name(disposition: bytes | str | None) -> str:
    """Read the file name of an upload's part from its Content-Disposition (specification 6.1).

    Returns:
        str: as a path of the file system: bytes that are not UTF-8 stay as surrogate escapes.

    Raises:
        InvalidRequest: no name, an empty, overlong or impossible one.
    """
    if disposition is None:
        raise _refused("has no file name")
    if isinstance(disposition, bytes):
        disposition = disposition.decode("utf-8", "surrogateescape")
    fields = _fields(disposition)
    if "filename*" in fields:
        name = _extended(fields["filename*"])
    elif "filename" in fields:
        name = decode_valid(_unquoted(fields["filename"]))
    else:
        raise _refused("has no file name")
    return _checked(name)


def _refused(problem: str) -> InvalidRequest:
    return InvalidRequest.field("filename", problem)


def _checked(name: str) -> str:
    if not name:
        raise _refused("is empty")
    if "\0" in name:
        raise _refused("has a null character")
    if len(to_bytes(name)) > _LONGEST_PATH:
        raise _refused("is too long")
    return name


def _fields(disposition: str) -> dict[str, str]:
    """Split the parameters; a header that is anything but parameters is refused, not guessed."""
    _, semicolon, _ = disposition.partition(";")
    at = disposition.find(";")
    fields: dict[str, str] = {}
    while semicolon and at < len(disposition):
        match = _DISPOSITION.match(disposition, at)
        if match is None:
            if disposition[at:].strip(" \t;"):
                raise _refused("cannot be read")
            break
        key = match[1].lower()
        if key in fields:
            raise _refused("is given twice")
        fields[key] = match[2]
        at = match.end()
    return fields


def _unquoted(value: str) -> str:
    return _QUOTED_PAIR.sub(r"\1", value[1:-1]) if value.startswith('"') else value


def _extended(value: str) -> str:
    """Decode RFC 5987: ``UTF-8''na%C3%AFve.c``."""
    match = _EXTENDED.fullmatch(_unquoted(value))
    if match is None or match[1].lower() not in _CHARSETS:
        raise _refused("is not as RFC 5987 says")
    try:
        return unquote_to_bytes(to_bytes(match[2])).decode(match[1])
    except UnicodeDecodeError as exc:
        raise _refused("is not in its character set") from exc


class _Listed(msgspec.Struct, frozen=True):
    mode: str
    size: int
    ctime: float
    mtime: float
    atime: float
    filename: str


def listing_answer(
    entries: Sequence[FileEntry], folder: str, *, is_truncated: bool = False
) -> bytes:
    """Answer a listing; its `files` is JSON within JSON (specification 6.3).

    Some 0.15 s for 100 000 entries, in which other threads get their turns.

    Bytes of a name that are not UTF-8 are shown as U+FFFD: JSON has no other way, and such a name
    cannot be asked for by it.

    Args:
        entries: without ``.`` and ``..``.
        folder: normalised absolute path.
        is_truncated: entries were left out; adds a key that older clients ignore.
    """
    batches = [_batch(entries[n : n + _BATCH]) for n in range(0, len(entries), _BATCH)]
    where = _encode(to_bytes(folder).decode("utf-8", "replace"))
    return b'{"files":"[%s]","errors":"","folder_path":%s,"abspath":%s%s}' % (
        b",".join(batches),
        where,
        where,
        b',"truncated":true' if is_truncated else b"",
    )


def _batch(entries: Sequence[FileEntry]) -> bytes:
    """Encode some entries, without the brackets, as they stand within a string of JSON."""
    files = [
        _Listed(
            stat.filemode(entry.mode),
            entry.size,
            entry.ctime,
            entry.mtime,
            entry.atime,
            entry.name.decode("utf-8", "replace"),
        )
        for entry in entries
    ]
    return _encode(_encode(files)[1:-1].decode())[1:-1]


def parse_listing(params: Params) -> str:
    """Read the path to list (specification 6.3); the home without one."""
    return _path(params, "path", params.string("path") or HOME)


def parse_download(params: Params) -> tuple[str, ...]:
    """Read the paths to download, 1 to 5 (specification 6.4).

    Raises:
        TooManyFiles: more.
        InvalidRequest: none, or not strings.
    """
    files = params.string_list("files")
    if not files:
        raise params.refuse("files", "is required")
    if len(files) > MAX_DOWNLOADS:
        raise TooManyFiles
    return tuple(_path(params, "files", path) for path in files)


def parse_download_single(params: Params) -> str:
    """Read the path of the one file to download (specification 6.5)."""
    return _path(params, "file", params.required("file"))


def _path(params: Params, field: str, path: str) -> str:
    if not path or "\0" in path or len(to_bytes(path)) > _LONGEST_PATH:
        raise params.refuse(field, "is not a path")
    return path


@dataclass(frozen=True, slots=True)
class TarParts:
    """Framing of a download: multipart/mixed, one tar per part (specification 6.4).

    The body is ``head(n) + tar + TAIL`` per part, then `closing`.

    Args:
        boundary: unguessable, so that no archive contains it.
    """

    boundary: str

    TAIL = b"\r\n"  #: ends the part's bytes

    def __post_init__(self) -> None:
        if _BOUNDARY.fullmatch(self.boundary) is None:
            raise ValueError(f"not a boundary: {self.boundary!r}")

    @property
    def content_type(self) -> str:
        """The answer's Content-Type."""
        return f"multipart/mixed; boundary={self.boundary}"

    def head(self, length: int) -> bytes:
        """Begin a part whose tar has `length` bytes."""
        return (
            f"--{self.boundary}\r\n"
            "Content-Encoding: identity\r\n"
            "Content-Type: application/x-tar\r\n"
            f"Content-Length: {length}\r\n"
            "\r\n"
        ).encode()

    @property
    def closing(self) -> bytes:
        """End the body."""
        return f"--{self.boundary}--\r\n".encode()

    def total(self, lengths: Iterable[int]) -> int:
        """Count the bytes of the whole body, for its Content-Length."""
        parts = sum(len(self.head(length)) + length + len(self.TAIL) for length in lengths)
        return parts + len(self.closing)
