"""Uploads: multipart from the socket to files, a chunk at a time (spec 6.1)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import quopri
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar, cast

from aiohttp import BodyPartReader, MultipartReader, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError
from multidict import CIMultiDict, CIMultiDictProxy

from retort.api.call import BodyLimits
from retort.core.files import FileUpload
from retort.errors import BadHttp, BodyTooSlow, FileTooLarge, InvalidRequest, TooManyFiles
from retort.wire.files import upload_name

CHUNK_BYTES = 65_536
MAX_HEADER_LINE_BYTES = 16 * 1024  # a quoted name of 4096 bytes takes 12 KiB
MAX_HEADERS = 16
MAX_HEAD_BYTES = 128 * 1024  # of one part's head, and of all that stands before the first part
LINE_COST_BYTES = 512  # what a line counts at least: empty ones take time too
ENCODED_LINE_BYTES = 1024  # RFC 2045 allows 76

T = TypeVar("T")


class UploadReader:
    """The files of one upload request, as they come.

    Args:
        max_files: one more is refused.
        max_file_bytes: a file may have so many, and not one more.
    """

    def __init__(
        self, request: web.BaseRequest, limits: BodyLimits, *, max_files: int, max_file_bytes: int
    ) -> None:
        self._content = request.content
        self._limits = limits
        self._max_files = max_files
        self._max_file_bytes = max_file_bytes
        self._began_at = asyncio.get_running_loop().time()
        if not request.content_type.startswith("multipart/"):
            raise InvalidRequest("The body must be multipart/form-data")
        try:
            self._lines = _Lines(request.content)
            self._reader = _Parts(
                request.headers,
                cast(StreamReader, self._lines),
                max_field_size=MAX_HEADER_LINE_BYTES,
                max_headers=MAX_HEADERS,
            )
        except (ValueError, AssertionError) as exc:
            raise BadHttp("The body has no usable multipart boundary") from exc

    async def files(self) -> AsyncIterator[FileUpload]:
        """Give the files in their order; each must be read before the next is asked for.

        Raises:
            TooManyFiles, FileTooLarge, InvalidRequest, BadHttp, BodyTooSlow: as spec 6.1 says.
        """
        count = 0
        while True:
            self._lines.left = MAX_HEAD_BYTES
            part = await self._timely(self._reader.next())
            if part is None:
                break
            count += 1
            if count > self._max_files:
                raise TooManyFiles
            if not isinstance(part, BodyPartReader):
                raise InvalidRequest("A multipart body must not hold another one")
            name = upload_name(self._reader.disposition)
            yield FileUpload(name, self._capped(self._chunks(part)))
        if not count:
            raise InvalidRequest("The request has no file")

    async def _capped(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > self._max_file_bytes:
                raise FileTooLarge
            yield chunk

    async def _chunks(self, part: BodyPartReader) -> AsyncIterator[bytes]:
        decode = _decoder(part)
        while chunk := await self._timely(part.read_chunk(CHUNK_BYTES)):
            if data := decode(bytes(chunk)):
                yield data
        if data := decode(b""):
            yield data

    async def _timely(self, step: Awaitable[T]) -> T:
        """Await the next bit of the body, unless the whole comes too slowly or makes no sense."""
        allowed_s = self._limits.allowed_s(self._content.total_bytes)
        try:
            async with asyncio.timeout_at(self._began_at + allowed_s):
                return await step
        except TimeoutError as exc:
            raise BodyTooSlow from exc
        except _UNREADABLE as exc:
            raise BadHttp(f"The multipart body cannot be read: {type(exc).__name__}") from exc


# All that aiohttp raises at a body that is none, or that breaks off.
_UNREADABLE = (
    *(ValueError, AssertionError, LookupError, EOFError, RuntimeError),
    *(HttpProcessingError, RequestPayloadError),
)


class _Parts(MultipartReader):
    """aiohttp's reader, but every part is a file, also one of the field name `_charset_`.

    Attributes:
        disposition: of the part that `next` gave last. aiohttp, which does not find it in the
            part's headers, cannot act on it.
    """

    disposition: str | None = None

    async def fetch_next_part(self) -> MultipartReader | BodyPartReader:
        """Read a part's head."""
        part = await super().fetch_next_part()
        headers = CIMultiDict(part.headers)
        self.disposition = headers.pop("Content-Disposition", None)
        part.headers = CIMultiDictProxy(headers)
        return part


class _Lines:
    """The body as aiohttp's reader uses it, with a limit to what it reads by lines.

    By lines it reads heads, and what stands before the first part: it would skip that for ever.

    Attributes:
        left: bytes that may still be read as lines.
    """

    def __init__(self, content: StreamReader) -> None:
        self._content = content
        self.left = MAX_HEAD_BYTES
        self.read = content.read
        self.at_eof = content.at_eof
        self.unread_data = content.unread_data

    async def readline(self, *, max_line_length: int | None = None) -> bytes:
        """Read a line, cut at the end of the body. Raises BadHttp when it is one too many."""
        line = await self._content.readline(max_line_length=max_line_length)
        self.left -= max(len(line), LINE_COST_BYTES)
        if self.left < 0:
            raise BadHttp("The multipart body has too much besides its files")
        return line


def _decoder(part: BodyPartReader) -> Callable[[bytes], bytes]:
    """Give what undoes the part's Content-Transfer-Encoding, called with b"" at its end."""
    encoding = part.headers.get("Content-Transfer-Encoding", "binary").strip().lower()
    if encoding in ("binary", "8bit", "7bit"):
        return bytes
    if encoding == "base64":
        return _Base64()
    if encoding == "quoted-printable":
        return _QuotedPrintable()
    raise InvalidRequest(f"Content-Transfer-Encoding {encoding[:40]!r} is not supported")


class _Base64:
    """Decode base64 that is cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def __call__(self, chunk: bytes) -> bytes:
        text = self._rest + b"".join(chunk.split())
        whole = len(text) - len(text) % 4
        if not chunk and whole != len(text):
            raise InvalidRequest("A part's base64 is cut short")
        self._rest = text[whole:]
        try:
            return base64.b64decode(text[:whole], validate=True)
        except binascii.Error as exc:
            raise InvalidRequest("A part's base64 cannot be decoded") from exc


class _QuotedPrintable:
    """Decode quoted-printable line by line: no escape is ever split."""

    def __init__(self) -> None:
        self._rest = b""

    def __call__(self, chunk: bytes) -> bytes:
        text = self._rest + chunk
        whole = text.rfind(b"\n") + 1 if chunk else len(text)
        self._rest = text[whole:]
        if len(self._rest) > ENCODED_LINE_BYTES:
            raise InvalidRequest("A part's quoted-printable has overlong lines")
        return quopri.decodestring(text[:whole])
