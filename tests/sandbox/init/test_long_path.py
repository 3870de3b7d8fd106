"""A socket in a folder whose name is longer than a socket's may be."""

from __future__ import annotations

import socket
from pathlib import Path

from retort.sandbox.channel import connect_to


async def test_a_long_path_is_connected_to(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        (tmp_path / "short").symlink_to(folder)
        listener.bind(f"{tmp_path}/short/s")
        listener.listen(1)
        connected = await connect_to(str(folder / "s"))
        connected.close()
    finally:
        listener.close()
