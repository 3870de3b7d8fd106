"""Sending files by descriptor: ranges, and from the page cache to the socket without a copy here.

uvloop has no `sendfile` of its own and guards the descriptors of its transports, so the system call
is made on a duplicate of the socket's, in a thread, because the disk may be slow.
"""

from __future__ import annotations

import asyncio
import os
import time
from email.utils import formatdate
from typing import cast
from urllib.parse import quote

from aiohttp import web

from retort.api.call import Call
from retort.core.files import OpenFile
from retort.wire.ranges import parse_range

_PIECE = 8 * 1024 * 1024  # bytes of one system call at most
_READ = 256 * 1024  # bytes of one read where the kernel cannot copy by itself
_SETTLED_S = 2.0  # a date has whole seconds: a younger file may change under the same one


async def send_file(call: Call, file: OpenFile) -> web.StreamResponse:
    """Answer with a file, or with the part of it that was asked for; closes it.

    Raises:
        ConnectionError: the client left, or the file became shorter than was promised.
    """
    try:
        return await _send(call, file)
    finally:
        os.close(file.fd)


async def _send(call: Call, file: OpenFile) -> web.StreamResponse:
    headers = call.request.headers
    modified = formatdate(int(file.modified_at), usegmt=True)
    condition = headers.get("If-Range")
    is_same = condition == modified and time.time() - file.modified_at > _SETTLED_S
    wanted = None
    if condition is None or is_same:
        wanted = parse_range(headers.get("Range"), file.size)
    response = web.StreamResponse(headers=download_headers(file.name))
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["Last-Modified"] = modified
    start, count = 0, file.size
    if wanted is not None:
        start, count = wanted.start, len(wanted)
        said = f"{start}-{wanted.stop - 1}" if count else "*"
        response.headers["Content-Range"] = f"bytes {said}/{file.size}"
        response.set_status(206 if count else 416)
    response.content_length = count
    await call.prepare(response)
    if count and call.request.method != "HEAD":
        await _send_bytes(call.request, response, file.fd, start, count)
    await response.write_eof()
    return response


def download_headers(name: str) -> dict[str, str]:
    """Give the headers of something to be saved under a name, never to be shown as a page."""
    quoted = quote(name.encode("utf-8", "surrogateescape"), safe="")
    return {
        "Content-Type": "application/octet-stream",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quoted}",
    }


async def _send_bytes(
    request: web.BaseRequest, response: web.StreamResponse, fd: int, start: int, count: int
) -> None:
    # uvloop's transports are asyncio's by what they do, not by their class.
    transport = cast("asyncio.WriteTransport | None", request.transport)
    if transport is None:
        raise ConnectionError("the client left")
    socket = transport.get_extra_info("socket")
    if socket is None or transport.get_extra_info("sslcontext") is not None:
        await _copy(response, fd, start, count)
        return
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(0)  # so that `drain` waits until all is out
    try:
        request.writer.send_headers()
        await request.writer.drain()
        while transport.get_write_buffer_size():  # noqa: ASYNC110 - nobody tells more exactly
            await asyncio.sleep(0)
    finally:
        transport.set_write_buffer_limits(high, low)
    out = os.dup(socket.fileno())
    try:
        await _copy_in_kernel(out, fd, start, count)
    finally:
        os.close(out)


async def _copy_in_kernel(out: int, fd: int, start: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    end = start + count
    while start < end:
        piece = min(end - start, _PIECE)
        sending = loop.run_in_executor(None, _sendfile, out, fd, start, piece)
        try:
            sent = await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait([sending])  # it uses descriptors that are about to be closed
            raise
        if sent is None:
            await _writable(loop, out)
            continue
        if not sent:
            raise ConnectionError("the file became shorter")
        start += sent


def _sendfile(out: int, fd: int, start: int, count: int) -> int | None:
    """Send some bytes; None when the socket takes none at the moment."""
    try:
        return os.sendfile(out, fd, start, count)
    except BlockingIOError:
        return None


async def _writable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(fd, wake)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


async def _copy(response: web.StreamResponse, fd: int, start: int, count: int) -> None:
    end = start + count
    while start < end:
        data = await asyncio.to_thread(os.pread, fd, min(end - start, _READ), start)
        if not data:
            raise ConnectionError("the file became shorter")
        await response.write(data)
        start += len(data)
