"""The bytes of virtual folders' files, in and out by token (spec 10.4, 10.5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from retort.api.call import Call
from retort.api.sendfile import download_headers, send_file
from retort.core.files import OpenFile
from retort.errors import BadHttp, BodyTooSlow
from retort.services.vfolder_files import VFolderFiles
from retort.wire import vfolders as wire

_READ = 1024 * 1024  # bytes that may wait here: fewer, larger pieces are much less work


class StorageRoutes:
    """Handlers that need no key, because a token says everything."""

    def __init__(self, files: VFolderFiles) -> None:
        self._files = files

    async def append(self, call: Call) -> web.StreamResponse:
        """Add a chunk to an upload."""
        token = _token(call)
        offset = wire.parse_offset(call.request.headers.get("Upload-Offset"))
        await call.begin_body()
        length = call.request.content_length
        stored, size = await self._files.append(token, offset, _chunks(call), length)
        return web.Response(status=204, headers=wire.upload_headers(stored, size))

    async def offset(self, call: Call) -> web.StreamResponse:
        """Tell where an upload stands."""
        return web.Response(
            headers=wire.upload_headers(*await self._files.upload_offset(_token(call)))
        )

    async def abilities(self, call: Call) -> web.StreamResponse:
        """Tell what uploads can be."""
        return web.Response(status=204, headers=wire.upload_abilities(self._files.max_file_bytes))

    async def download(self, call: Call) -> web.StreamResponse:
        """Send a file or a part of it, or a directory as a zip."""
        found = await self._files.open_download(_token(call))
        if isinstance(found, OpenFile):
            return await send_file(call, found)
        headers = download_headers(found.name) | {"Content-Type": "application/zip"}
        response = web.StreamResponse(headers=headers)
        response.content_length = found.size
        try:
            await call.prepare(response)
            if call.request.method != "HEAD":
                async for chunk in found.chunks():
                    await response.write(chunk)
        finally:
            await found.close()
        await response.write_eof()
        return response


def _token(call: Call) -> str:
    return (call.target.query.get("token") or [""])[0]


async def _chunks(call: Call) -> AsyncIterator[bytes]:
    """Give the body as it comes, unless that is too slow."""
    content, limits = call.request.content, call.limits
    content.set_read_chunk_size(_READ)
    loop = asyncio.get_running_loop()
    began_at, size = loop.time(), 0
    try:
        while True:
            async with asyncio.timeout_at(began_at + limits.allowed_s(size)):
                # Not `readany`: that would copy all pieces into one.
                chunk, is_end_of_part = await content.readchunk()
            if not chunk and not is_end_of_part:
                return
            size += len(chunk)
            yield chunk
    except TimeoutError as exc:
        raise BodyTooSlow from exc
    except (RequestPayloadError, HttpProcessingError) as exc:
        raise BadHttp("The body is not valid HTTP") from exc
