"""Files of a session: upload, listing, download (spec 6.1, 6.3 to 6.5, 5.4)."""

from __future__ import annotations

import dataclasses
import functools
import secrets
import uuid
from collections.abc import Sequence

from aiohttp import web

from retort.api.answers import answer_listing, json_answer, no_content
from retort.api.call import Call
from retort.api.upload import UploadReader
from retort.core.files import Download
from retort.errors import PathNotFound
from retort.services.files import FileService
from retort.wire import files as wire

FIRST_UPLOADS = frozenset({2, 3})  # generations whose upload answers 200 `{}` (spec 6.6)


@dataclasses.dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one upload may bring: files, and bytes of each."""

    files: int = wire.MAX_UPLOADS
    file_bytes: int = wire.MAX_UPLOAD_BYTES


class FileRoutes:
    """Handlers of files."""

    def __init__(self, files: FileService, uploads: UploadLimits) -> None:
        self._files = files
        self._uploads = uploads

    async def upload(self, call: Call) -> web.StreamResponse:
        """Store files, all or none (spec 6.1)."""
        await call.begin_body()
        reader = UploadReader(
            call.request,
            call.limits,
            max_files=self._uploads.files,
            max_file_bytes=self._uploads.file_bytes,
        )
        await self._files.upload(call.keypair, call.ref, reader.files())
        return json_answer({}) if call.target.generation in FIRST_UPLOADS else no_content()

    async def listing(self, call: Call) -> web.StreamResponse:
        """List a folder (spec 6.3)."""
        path = wire.parse_listing(await call.params())
        listing = await self._files.listing(call.keypair, call.ref, path)
        write = functools.partial(
            wire.listing_answer, listing.entries, listing.path, is_truncated=listing.truncated
        )
        return await answer_listing(write, len(listing.entries))

    async def download(self, call: Call) -> web.StreamResponse:
        """Send files and folders, one tar archive each (spec 6.4)."""
        paths = wire.parse_download(await call.params())
        downloads = await self._files.download(call.keypair, call.ref, paths)
        framing = wire.TarParts(secrets.token_hex(16))
        response = web.StreamResponse(headers={"Content-Type": framing.content_type})
        response.content_length = framing.total(download.size for download in downloads)
        try:
            await call.prepare(response)
            for download in () if is_head(call) else downloads:
                await response.write(framing.head(download.size))
                await _send(response, download)
                await response.write(framing.TAIL)
            if not is_head(call):
                await response.write(framing.closing)
        finally:
            await _close(downloads)
        await response.write_eof()
        return response

    async def download_single(self, call: Call) -> web.StreamResponse:
        """Send one regular file as it is (spec 6.5)."""
        path = wire.parse_download_single(await call.params())
        download = await self._files.download_single(call.keypair, call.ref, path)
        return await _sent(call, download)

    async def output_file(self, call: Call) -> web.StreamResponse:
        """Send a run's result file by its unguessable address (spec 5.4)."""
        session, token, name = call.captured
        try:
            session_id = uuid.UUID(session)
        except ValueError:
            raise PathNotFound from None
        return await _sent(call, await self._files.output_file(session_id, name, token))


def is_head(call: Call) -> bool:
    """Tell whether only the headers are wanted."""
    return call.request.method == "HEAD"


async def _sent(call: Call, download: Download) -> web.StreamResponse:
    headers = {
        "Content-Type": "application/octet-stream",
        "X-Content-Type-Options": "nosniff",  # a program's output is never a page of ours
    }
    response = web.StreamResponse(headers=headers)
    response.content_length = download.size
    try:
        await call.prepare(response)
        if not is_head(call):
            await _send(response, download)
    finally:
        await download.close()
    await response.write_eof()
    return response


async def _send(response: web.StreamResponse, download: Download) -> None:
    async for chunk in download.chunks():
        await response.write(chunk)


async def _close(downloads: Sequence[Download]) -> None:
    for download in downloads:
        await download.close()
