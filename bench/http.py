"""A load generator that is not the bottleneck: one blocking keep-alive connection.

Nothing is parsed beyond the status line and Content-Length.
"""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

LARGE_BYTES = 64 * 1024


class Connection:
    """One HTTP/1.1 connection to the server."""

    def __init__(self, url: str, token: str, timeout_s: float | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._head = (
            f" HTTP/1.1\r\nHost: {parts.hostname}:{parts.port}\r\nAuthorization: Bearer {token}\r\n"
        ).encode()

    def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        kind: str = "application/json",
        headers: str = "",
    ) -> tuple[int, bytes]:
        """Make one request; give status and body. More `headers` end with CR LF each."""
        head = f"{method} {path}".encode() + self._head
        tail = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode()
        if len(body) > LARGE_BYTES:  # not worth a copy
            self._socket.sendall(head + tail)
            self._socket.sendall(body)
        else:
            self._socket.sendall(head + tail + body)
        return self._answer()

    def json(self, method: str, path: str, document: Any = None) -> Any:
        """Make one call with JSON in and out; fail on anything but 2xx."""
        status, body = self.call(method, path, json.dumps(document).encode() if document else b"")
        assert 200 <= status < 300, (status, body)
        return json.loads(body) if body else None

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _answer(self) -> tuple[int, bytes]:
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        head = data[:end].lower()
        status = int(head[9:12])
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        parts, have = [data[end + 4 :]], len(data) - end - 4
        while have < length:
            parts.append(self._more())
            have += len(parts[-1])
        body = b"".join(parts)
        self._rest = body[length:]
        return status, body[:length]

    def _more(self) -> bytes:
        data = self._socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server hung up")
        return data


def multipart(files: dict[str, bytes]) -> tuple[bytes, str]:
    """Make an upload's body and its content type."""
    boundary = "benchboundary7d1f"
    parts = []
    for name, content in files.items():
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="src"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        parts += [head.encode(), content, b"\r\n"]
    parts.append(f"--{boundary}--\r\n".encode())
    return b"".join(parts), f"multipart/form-data; boundary={boundary}"
