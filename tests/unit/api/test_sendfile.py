"""Files on their way to a socket, on a real one."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from aiohttp import web
from tests.unit.api.test_app import serving, told

from retort.api.call import Call
from retort.api.sendfile import send_file
from retort.core.files import OpenFile


async def test_a_file_goes_to_its_socket_without_passing_through_here(
    tmp_path: Path,
) -> None:
    content = os.urandom(20 << 20)  # more than one call of the kernel's
    path = tmp_path / "file"
    path.write_bytes(content)
    sent: list[int] = []
    sendfile = os.sendfile

    def counted(*given: int) -> int:
        sent.append(sendfile(*given))
        return sent[-1]

    async def send(call: Call) -> web.StreamResponse:
        fd = os.open(path, os.O_RDONLY)
        with mock.patch("os.sendfile", counted), mock.patch("os.pread", side_effect=AssertionError):
            return await send_file(call, OpenFile("file", fd, len(content), 0.0))

    async with serving(send) as port:
        head, _, body = (await told(port)).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(content)}".encode() in head
    assert body == content
    assert sum(sent) == len(content)
