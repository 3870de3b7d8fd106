"""A minute of random requests at every route: no failure of our own, and the server lives on.

The seed is printed; RANDOM_BYTES_SEED repeats a run's requests in their order.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import random
import string
import time
from unittest import mock
from urllib.parse import quote_from_bytes, urlsplit

import aiohttp
import pytest

from retort.api.app import table_of
from tests.e2e.conftest import Server, printed, run_to_end, running_server
from tests.e2e.plain_http import ask, complaints, connection, key_of_policy

MINUTE_S = 60
WORKERS = 8
ANSWER_S = 60
HASTE = {  # what is cut short shall not be waited for
    "RETORT_HTTP_BODY_GRACE_S": "200ms",
    "RETORT_HTTP_HEADER_S": "200ms",
    "RETORT_RUNS_POLL_S": "100ms",
}

ROUTES = [(method, pattern) for method, pattern, _ in table_of(mock.MagicMock())]
WORDS: list[object] = [
    *(
        "mode",
        "type",
        "batch",
        "query",
        "continue",
        "input",
        "complete",
        "code",
        "runId",
        "options",
    ),
    *("clean", "build", "exec", "buildLog", "image", "lang", "name", "config", "resources", "cpu"),
    *("mem", "environ", "mounts", "path", "files", "file", "id", "forced", "recursive", "row"),
    *("*", "", "true", "gcc", "/home/work", "..", "\0", "é", "\u202e", "x" * 300, "r1"),
    *(None, True, False, 0, -1, 1.5, 2**63, 2**70, 1e308, [], {}),
]
BODIES: list[dict[str, object]] = [
    {"mode": "batch", "code": "", "runId": "r1", "options": {"build": None, "exec": "true"}},
    {"mode": "continue", "code": "", "runId": "r1", "options": None},
    {"mode": "input", "code": "x", "runId": "r1"},
    {"mode": "complete", "code": "", "options": {"row": 1, "col": 2, "line": "", "post": ""}},
    {"image": "python", "name": "random-1", "config": {"environ": {"A": "b"}, "resources": {}}},
    {"path": "."},
    {"files": ["x", "y"]},
    {"file": "x"},
    {"name": "random-1"},
    {"id": "random"},
    {"echo": "x"},
]
PART = (
    b'--b\r\nContent-Type: text/plain\r\nContent-Disposition: form-data; name="src"; '
    b'filename="src%2Fx.c"\r\n\r\nint main;\r\n--b\r\nContent-Disposition: form-data; '
    b'filename="y"\r\nContent-Transfer-Encoding: base64\r\n\r\nYWJj\r\n--b--\r\n'
)


class Requests:
    """Draws requests.

    Args:
        session: one that is there, so that requests get further than to its absence.
    """

    def __init__(self, seed: int, host: str, tokens: list[str], session: str) -> None:
        self._random = random.Random(seed)
        self._host = host
        self._tokens = tokens
        self._session = session

    def draw(self) -> bytes:
        """Give the bytes of one request, or of something that looks a bit like one."""
        draw = self._random
        if draw.random() < 0.03:
            return draw.randbytes(draw.randrange(1, 2000))
        method, pattern = draw.choice(ROUTES)
        if draw.random() < 0.1:
            method = draw.choice(["GET", "POST", "PUT", "PATCH", "HEAD", "OPTIONS", "REPORT", "X"])
        if method in ("DELETE", "PATCH") and pattern == "/session/*":
            pattern = "/session/nobody"  # not the session that the others are using
        body = self._body(is_upload=pattern.endswith("/upload"))
        lines = [f"{method} {self._target(pattern)} HTTP/1.1", *self._headers(pattern, body)]
        request = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body
        return self._mutated(request) if draw.random() < 0.05 else request

    def _target(self, pattern: str) -> str:
        draw = self._random
        path = draw.choice(["", "", "", "/v2", "/v4", "/v7", "/v9"])
        for segment in pattern.split("/")[1:]:
            path += "/" + (self._segment() if segment == "*" else segment)
        if draw.random() < 0.1:
            path += "/" + self._segment()
        query = ""
        if draw.random() < 0.3:
            fields = (f"{self._segment()}={self._segment()}" for _ in range(draw.randrange(1, 5)))
            query = "?" + "&".join(fields)
        return path + query

    def _segment(self) -> str:
        draw = self._random
        if draw.random() < 0.6:
            return self._session
        if draw.random() < 0.5:
            return quote_from_bytes(str(draw.choice(WORDS)).encode("utf-8", "replace"), safe="")
        return quote_from_bytes(draw.randbytes(draw.randrange(1, 30)), safe="")

    def _headers(self, pattern: str, body: bytes) -> list[str]:
        draw = self._random
        media = "application/json"
        if pattern.endswith("/upload"):
            media = "multipart/form-data; boundary=b"
        if draw.random() < 0.1:
            media = draw.choice(
                ["", "text/plain", "multipart/mixed; boundary=b", "multipart/x", "/"]
            )
        lines = [
            f"Host: {self._host}",
            f"Authorization: Bearer {draw.choice(self._tokens)}",
            f"Content-Type: {media}",
        ]
        if draw.random() < 0.05:
            lines[1] = "Authorization: BackendAI " + self._text()
            lines.append("Date: " + self._text())
        if draw.random() < 0.97:
            lines.append(f"Content-Length: {len(body)}")
        if draw.random() < 0.1:
            name = draw.choice(
                [
                    *("X-Method-Override", "X-BackendAI-Version", "X-Sorna-Version", "Expect"),
                    *("Content-Encoding", "Upgrade", "Connection", "Accept-Encoding", "Range"),
                    *("If-None-Match", "If-Modified-Since", "Cookie", "X-Forwarded-For", "TE"),
                    *("Sec-WebSocket-Key", "Sec-WebSocket-Version", "Transfer-Encoding"),
                ]
            )
            words = ["websocket", "Upgrade", "100-continue", "gzip", "chunked", "13", "GET"]
            lines.append(f"{name}: {draw.choice([*words, self._text()])}")
        return lines

    def _text(self) -> str:
        draw = self._random
        alphabet = string.printable.replace("\r", "").replace("\n", "") + "é\xff"
        return "".join(draw.choices(alphabet, k=draw.randrange(0, 60)))

    def _body(self, *, is_upload: bool) -> bytes:
        draw = self._random
        kind = draw.random()
        if kind < 0.1:
            return draw.randbytes(draw.randrange(0, 3000))
        if is_upload:
            return self._mutated(PART) if kind < 0.8 else PART
        document = self._changed(json.loads(json.dumps(draw.choice(BODIES))))
        text = json.dumps(document).encode()
        return self._mutated(text) if kind < 0.3 else text

    def _changed(self, document: dict[str, object]) -> dict[str, object]:
        draw = self._random
        for _ in range(draw.randrange(0, 3)):
            key = draw.choice([*document, str(draw.choice(WORDS))])
            value = copy.copy(draw.choice(WORDS))
            if draw.random() < 0.3:
                value = [value, copy.copy(draw.choice(WORDS))]
            elif draw.random() < 0.3:
                value = {str(draw.choice(WORDS)): value}
            inner = document.get(key)
            if isinstance(inner, dict) and draw.random() < 0.7:
                inner[str(draw.choice([*inner, draw.choice(WORDS)]))] = value
            else:
                document[key] = value
        return document

    def _mutated(self, data: bytes) -> bytes:
        draw = self._random
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(changed) + 1)
            match draw.randrange(4):
                case 0:
                    changed[at:at] = draw.randbytes(draw.randrange(1, 4))
                case 1:
                    del changed[at : at + draw.randrange(1, 20)]
                case 2:
                    changed[at : at + 1] = draw.randbytes(1)
                case _:
                    changed[at:at] = changed[at : at + draw.randrange(1, 200)]
        return bytes(changed)


async def bombard(server: Server, requests: Requests, until: float, seen: dict[int, int]) -> None:
    """Send requests one after another until a time; count what comes back."""
    while time.monotonic() < until:
        sent = requests.draw()
        async with connection(server) as wire:
            with contextlib.suppress(ConnectionError):
                await wire.send(sent)
            answer = b""
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    answer = await wire.reader.read(64 * 1024)
            status = int(answer[9:12]) if answer.startswith(b"HTTP/1.") else 0
            seen[status] = seen.get(status, 0) + 1
            assert status < 500 or status == 503, (sent, answer)


@pytest.mark.slow
async def test_a_minute_of_random_requests_is_survived(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    seed = int(os.environ.get("RANDOM_BYTES_SEED") or random.SystemRandom().randrange(2**32))
    print("seed", seed)
    with running_server(tmp_path_factory.mktemp("random") / "state", **HASTE) as server:
        made = await asyncio.to_thread(key_of_policy, server, RETORT_KEYS_RATE_LIMIT="100000000")
        headers = {"Authorization": f"Bearer {made['token']}"}
        host = urlsplit(server.url).netloc
        seen: dict[int, int] = {}
        async with aiohttp.ClientSession(server.url, headers=headers) as api:
            target = {"name": "random-target", "image": "python"}
            until = time.monotonic() + MINUTE_S
            while time.monotonic() < until:
                answer = await ask(api, "POST", "/session", json=target)  # may be gone by now
                assert answer.status in (200, 201), (seed, answer.body)
                slice_end = min(until, time.monotonic() + 5)
                seed += WORKERS
                async with asyncio.TaskGroup() as group:
                    for n in range(WORKERS):
                        requests = Requests(seed + n, host, [made["token"]], "random-target")
                        group.create_task(bombard(server, requests, slice_end, seen))
                await end_sessions(api, but="random-target")
            print("answers by status", seen)
            assert not complaints(server), seed
            assert server.process.poll() is None
            assert seen[200] > 100  # they are not all nonsense
            await end_sessions(api)
            answer = await ask(api, "POST", "/session", json={"name": "after", "image": "python"})
            assert answer.status == 201, answer.body
            answers = await run_to_end(api, "after", exec="echo alive")
            assert printed(answers) == "alive\n"


async def end_sessions(api: aiohttp.ClientSession, *, but: str = "") -> None:
    """End the sessions that luck has made."""
    for digit in string.hexdigits[:16]:
        found = await ask(api, "GET", f"/session/_/match?id={digit}")
        for match in found.json["matches"]:
            if match["name"] != but:
                await ask(api, "DELETE", f"/session/{match['id']}")
