"""HTTP by hand: bytes on a socket, and what every problem object must have."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import hashlib
import hmac
import http.client
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from retort.wire.errors import TITLES, TYPE_PREFIX
from tests.e2e.conftest import Server, environment

PATIENCE_S = 60  # far more than anything takes on a busy machine


@dataclasses.dataclass
class Answer:
    """A response that was read whole."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(api: aiohttp.ClientSession, method: str, path: str, **more: Any) -> Answer:
    """Make one call and read its answer whole."""
    async with asyncio.timeout(PATIENCE_S), api.request(method, path, **more) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


def check_problem(
    answer: Answer,
    status: int,
    kind: str,
    *,
    msg: str | None = None,
    data: object = ...,
    thing: str = "",
) -> dict[str, Any]:
    """Check everything that a failure must have (spec 4.1, 4.2); give the document."""
    assert answer.status == status, (answer.status, answer.body)
    assert answer.headers["Content-Type"] == "application/problem+json"
    check_common_headers(answer)
    document: dict[str, Any] = answer.json
    assert document["type"] == TYPE_PREFIX + kind
    assert document["title"] == TITLES[kind].format(thing=thing)
    assert isinstance(document["msg"], str)
    if msg is not None:
        assert document["msg"] == msg
    if data is not ...:
        assert document.get("data") == data
    return document


def check_common_headers(answer: Answer) -> None:
    assert answer.headers["Server"] == "BackendAI"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["Access-Control-Expose-Headers"] == "*"


def check_rate_headers(answer: Answer, limit: int = 30_000) -> None:
    assert answer.headers["X-RateLimit-Limit"] == str(limit)
    assert 0 <= int(answer.headers["X-RateLimit-Remaining"]) < limit
    assert answer.headers["X-RateLimit-Window"] == "900"


def signed(
    server: Server,
    method: str,
    target: str,
    *,
    content_type: str | None = "application/json",
    body: bytes = b"",
    version: str = "v7.20230615",
    prefix: str = "X-BackendAI",
    scheme: str = "BackendAI",
    date_header: str = "Date",
    when: dt.datetime | None = None,
    hash_body: bool = False,
) -> dict[str, str]:
    """Sign as spec 3.2 says, written down a second time and apart from retort.wire."""

    def mac(key: bytes, text: str) -> hmac.HMAC:
        return hmac.new(key, text.encode(), hashlib.sha256)

    when = when or dt.datetime.now(dt.UTC)
    host = urlsplit(server.url).netloc
    digest = hashlib.sha256(body if hash_body else b"").hexdigest()
    text = "\n".join(
        (
            *(method, target, when.isoformat(), f"host:{host}"),
            f"content-type:{content_type or 'application/octet-stream'}",
            f"{prefix.lower()}-version:{version}",
            digest,
        )
    )
    key = mac(server.secret_key.encode(), when.strftime("%Y%m%d")).digest()
    signature = mac(mac(key, host).digest(), text).hexdigest()
    headers = {
        date_header: when.isoformat(),
        f"{prefix}-Version": version,
        "Authorization": f"{scheme} signMethod=HMAC-SHA256, "
        f"credential={server.access_key}:{signature}",
    }
    return headers | ({"Content-Type": content_type} if content_type else {})


class Connection:
    """A socket to the server; what is sent is sent as it stands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode("latin-1") if isinstance(data, str) else data)
        await self.writer.drain()

    async def answer(self, *, is_head: bool = False) -> Answer:
        """Read one response, whose body has a length."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.rstrip("\r\n").split("\r\n")
            headers = {
                name.title().replace("Ratelimit", "RateLimit"): value.strip()
                for name, _, value in (line.partition(":") for line in lines)
            }
            length = 0 if is_head else int(headers.get("Content-Length", "0"))
            return Answer(int(status.split()[1]), headers, await self.reader.readexactly(length))

    async def is_closed(self, within_s: float = PATIENCE_S) -> bool:
        """Tell whether the server closes, or breaks, the connection and sends nothing more."""
        try:
            async with asyncio.timeout(within_s):
                return await self.reader.read(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


@contextlib.asynccontextmanager
async def connection(server: Server) -> AsyncIterator[Connection]:
    """Open a socket to the server."""
    parts = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def head(server: Server, method: str, path: str, *more: str, token: str | None = None) -> str:
    """Write the head of a request with the bearer token of the server's key."""
    lines = (
        f"{method} {path} HTTP/1.1",
        f"Host: {urlsplit(server.url).netloc}",
        f"Authorization: Bearer {token or server.token}",
        *more,
    )
    return "\r\n".join(lines) + "\r\n\r\n"


@contextlib.contextmanager
def made_session(server: Server, image: str = "gcc") -> Iterator[str]:
    """Make a session for many tests; it ends with the block."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    headers = {"Authorization": f"Bearer {server.token}"}
    parts = urlsplit(server.url)
    for method, path, body in (
        ("POST", "/session", json.dumps({"name": name, "image": image})),
        ("DELETE", f"/session/{name}", None),
    ):
        client = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        client.request(method, parts.path + path, body, headers)
        answer = client.getresponse()
        assert answer.status in (200, 201), answer.read()
        client.close()
        if method == "POST":
            yield name


def key_of_policy(server: Server, **settings: str) -> dict[str, str]:
    """Make a key under RETORT_ settings, beside the running server."""
    command = [sys.executable, "-m", "retort.cli.main", "keys", "create", "--json"]
    done = subprocess.run(
        [*command, "--state", str(server.state)],
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=True,
    )
    key: dict[str, str] = json.loads(done.stdout)
    return key


def rss_kib(pid: int) -> int:
    """Give the resident memory of a process in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def complaints(server: Server) -> list[str]:
    """Give the lines of the server's log that speak of its own failures."""
    words = ("Traceback", "request.failed", "connection.failed", "Unhandled", "Error handling")
    return [line for line in server.log.read_text().splitlines() if any(w in line for w in words)]


async def names_in(api: aiohttp.ClientSession, session: str, path: str = "/home/work") -> set[str]:
    """List the names in a session's folder."""
    answer = await ask(api, "GET", f"/session/{session}/files", json={"path": path})
    assert answer.status == 200, answer.body
    return {entry["filename"] for entry in json.loads(answer.json["files"])}
