"""Uploads: multipart from the socket to files, a chunk at a time (spec 6.1)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import quopri
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import multipart  # type: ignore[import-untyped]
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from retort.api.call import BodyLimits
from retort.core.files import FileUpload
from retort.errors import BadHttp, BodyTooSlow, FileTooLarge, InvalidRequest, TooManyFiles
from retort.wire.files import upload_name

MAX_HEADER_LINE_BYTES = 16 * 1024  # a quoted name of 4096 bytes takes 12 KiB
MAX_HEADERS = 16
MAX_BESIDE_BYTES = 128 * 1024  # before the first part with its head, and after the last one
ENCODED_LINE_BYTES = 1024  # RFC 2045 allows 76

MAX_BOUNDARY = 70  # characters (RFC 2046, 5.1.1)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NOTHING = object()  # the parser needs more
_UNREADABLE = (multipart.MultipartError, HttpProcessingError, RequestPayloadError)


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
        kind, options = multipart.parse_options_header(request.headers.get("Content-Type", ""))
        if not kind.startswith("multipart/"):
            raise InvalidRequest("The body must be multipart/form-data")
        try:
            self._parser = _Parser(
                options.get("boundary", ""),
                max_header_size=MAX_HEADER_LINE_BYTES,
                max_header_count=MAX_HEADERS,
                header_charset="latin-1",  # each byte is one character: names are read in wire
            )
        except (multipart.MultipartError, UnicodeEncodeError) as exc:
            raise BadHttp("The body has no usable multipart boundary") from exc
        if not 0 < len(options["boundary"]) <= MAX_BOUNDARY:
            raise BadHttp("The body has no usable multipart boundary")
        self._events: Iterator[Any] = iter(())
        self._has_begun = False
        self._unparsed = b""
        self._idle_bytes = 0  # parsed since the last event

    async def files(self) -> AsyncIterator[FileUpload]:
        """Give the files in their order; each must be read before the next is asked for.

        Raises:
            TooManyFiles, FileTooLarge, InvalidRequest, BadHttp, BodyTooSlow: as spec 6.1 says.
        """
        count = 0
        while (part := await self._next()) is not None:
            count += 1
            if count > self._max_files:
                raise TooManyFiles
            headers = {name.lower(): value for name, value in part.headerlist}
            if headers.get("content-type", "").lower().startswith("multipart/"):
                raise InvalidRequest("A multipart body must not hold another one")
            disposition = headers.get("content-disposition")
            name = upload_name(disposition and disposition.encode("latin-1"))
            decode = _decoder(headers.get("content-transfer-encoding", "binary"))
            yield FileUpload(name, self._capped(self._chunks(decode)))
        if not count:
            raise InvalidRequest("The request has no file")

    async def _capped(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > self._max_file_bytes:
                raise FileTooLarge
            yield chunk

    async def _chunks(self, decode: Callable[[bytes], bytes]) -> AsyncIterator[bytes]:
        while (chunk := await self._next()) is not None:
            if data := decode(chunk):
                yield data
        if data := decode(b""):
            yield data

    async def _next(self) -> Any:
        """Give what the parser finds next: a part's head, bytes of it, its end (None).

        None is the body's end as well, where a part's head could be.
        """
        try:
            while (event := next(self._events, _NOTHING)) is _NOTHING:
                if self._parser.closed:
                    return None
                if self._idle_bytes > MAX_BESIDE_BYTES:
                    raise BadHttp("The multipart body has too much besides its files")
                chunk = self._unparsed or await self._read()
                # What may precede the first part must not depend on how it was cut on its way.
                cut = len(chunk) if self._has_begun else MAX_BESIDE_BYTES + 1
                chunk, self._unparsed = chunk[:cut], chunk[cut:]
                self._idle_bytes += len(chunk)
                self._events = self._parser.parse(chunk)
        except _UNREADABLE as exc:
            raise BadHttp(f"The multipart body cannot be read: {exc}") from exc
        self._has_begun = True
        self._idle_bytes = 0
        return event

    async def _read(self) -> bytes:
        """Read what has come, b"" at the end, unless the whole comes too slowly."""
        allowed_s = self._limits.allowed_s(self._content.total_bytes)
        try:
            async with asyncio.timeout_at(self._began_at + allowed_s):
                while True:
                    chunk, _ = await self._content.readchunk()
                    if chunk or self._content.at_eof():
                        return chunk
        except TimeoutError as exc:
            raise BodyTooSlow from exc


class _Parser(multipart.PushMultipartParser):  # type: ignore[misc]
    """The library's, for parts of any disposition, and stricter about their heads."""

    def _on_segment_headerline(self, line: bytes) -> None:
        name = line.partition(b":")[0]
        if _CONTROL.search(line) or name != name.strip():
            raise multipart.ParserError("a header with spaces or control characters")
        super()._on_segment_headerline(line)

    def _create_segment(self, headerlist: list[tuple[str, str]]) -> multipart.MultipartSegment:
        return multipart.MultipartSegment(headerlist)


def _decoder(encoding: str) -> Callable[[bytes], bytes]:
    """Give what undoes a Content-Transfer-Encoding, called with b"" at a part's end."""
    encoding = encoding.strip().lower()
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
