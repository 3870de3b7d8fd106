"""HTTP itself: bodies, methods, prefixes, connections (spec 1 and 2)."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.e2e.conftest import Server, running_server
from tests.e2e.plain_http import (
    PATIENCE_S,
    ask,
    check_common_headers,
    check_problem,
    check_rate_headers,
    complaints,
    connection,
    head,
    made_session,
    names_in,
    rss_kib,
    signed,
)

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def session(server: Server) -> Iterator[str]:
    with made_session(server) as name:
        yield name


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits a second where others wait half a minute, and drains 8 MiB."""
    with running_server(
        tmp_path_factory.mktemp("hasty") / "state",
        RETORT_HTTP_BODY_GRACE_S="1",
        RETORT_HTTP_HEADER_S="1",
        RETORT_HTTP_KEEPALIVE_S="2",
        RETORT_HTTP_DRAIN_BYTES="8m",
        RETORT_HTTP_JSON_BYTES="1000",
        RETORT_SERVER_BASE_PATH="/base",
    ) as running:
        yield running


# --- parameters ---------------------------------------------------------------------------------


async def test_json_bodies_of_get_and_delete_are_read(
    api: aiohttp.ClientSession, session: str
) -> None:
    for path in ("/nothing-there", "/home/work"):
        answer = await ask(api, "GET", f"/session/{session}/files", json={"path": path})
        assert answer.status == (200 if path == "/home/work" else 400)
    answer = await ask(api, "DELETE", f"/session/{session}", json={"forced": "perhaps"})
    check_problem(answer, 400, "invalid-api-params", data={"forced": "must be a boolean"})


async def test_the_body_wins_over_the_query(api: aiohttp.ClientSession, session: str) -> None:
    url = f"/session/{session}/files?path=/etc"
    assert (await ask(api, "GET", url)).status == 400
    assert (await ask(api, "GET", url, json={"path": "."})).status == 200
    assert (await ask(api, "GET", url, json={"path": None})).status == 400
    assert (await ask(api, "GET", url, json={})).status == 400


async def test_a_repeated_query_key_is_a_list(api: aiohttp.ClientSession, session: str) -> None:
    answer = await ask(api, "GET", f"/session/{session}/download?" + "&".join(["files=x"] * 6))
    check_problem(answer, 400, "invalid-api-params", msg="Too many files")
    answer = await ask(api, "GET", f"/session/{session}/files?path=a&path=b")
    check_problem(answer, 400, "invalid-api-params", data={"path": "must be a string"})


@pytest.mark.parametrize("body", [b"", b" ", b"\r\n\t "])
@pytest.mark.parametrize("media", ["text/plain", "application/json"])
async def test_an_empty_body_is_no_error(
    api: aiohttp.ClientSession, session: str, body: bytes, media: str
) -> None:
    headers = {"Content-Type": media}
    answer = await ask(api, "POST", f"/session/{session}/interrupt", data=body, headers=headers)
    assert answer.status == 204, answer.body
    answer = await ask(api, "GET", f"/session/{session}/files", data=body, headers=headers)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("word", ["true", "YES", "1", "y", "On", "false", "no", "0", "N", "off"])
async def test_booleans_in_queries_are_words(api: aiohttp.ClientSession, word: str) -> None:
    answer = await ask(api, "DELETE", f"/session/nothing-there?forced={word}&recursive={word}")
    check_problem(answer, 404, "object-not-found", thing="session")


# --- paths --------------------------------------------------------------------------------------

READS = ["", "/files", "/download_single?file=x", "/download?files=x"]


@pytest.mark.parametrize("prefix", ["", "/v2", "/v3", "/v4", "/v5", "/v6", "/v7"])
@pytest.mark.parametrize("word", ["session", "kernel"])
async def test_every_alias_of_a_path_answers_the_same(
    api: aiohttp.ClientSession, session: str, prefix: str, word: str
) -> None:
    for read in READS:
        path, mark, query = read.partition("?")
        for slash in ("", "/"):
            url = f"{prefix}/{word}/{session}{path}{slash}{mark}{query}"
            answer = await ask(api, "GET", url)
            assert answer.status == (400 if query else 200), (url, answer.body)
    for path in (f"{prefix}/{word}/{session}/interrupt/", f"{prefix}/{word}/{session}/interrupt"):
        assert (await ask(api, "POST", path)).status == 204
    again = {"image": "gcc", "name": session}
    for path in ("", "/", "/create", "/create/", "/_/create", "/_/create/"):
        answer = await ask(api, "POST", f"{prefix}/{word}{path}", json=again)
        assert (answer.status, answer.json["created"]) == (200, False)
    answer = await ask(api, "GET", f"{prefix}/stream/{word}/{session}/execute")
    check_problem(answer, 400, "generic-bad-request")
    answer = await ask(api, "GET", f"{prefix}/etcd/resource-slots")
    assert answer.json == (await ask(api, "GET", "/config/resource-slots/")).json


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/v2", "v2.20170315"),
        ("/v3/", "v3.20170615"),
        ("/v4", "v4.20190615"),
        ("/v5", "v5.20191215"),
        ("/v6", "v6.20230315"),
        ("/v7/", "v7.20230615"),
        ("/", "v7.20230615"),
    ],
)
async def test_versions_are_told_to_anyone(server: Server, path: str, version: str) -> None:
    async with aiohttp.ClientSession(server.url) as client:
        answer = await ask(client, "GET", path, headers={"Authorization": "nonsense"})
        assert (answer.status, answer.json["version"]) == (200, version)
        assert answer.headers["Content-Type"].startswith("application/json")
        check_common_headers(answer)
        check_rate_headers(answer, limit=1000)


@pytest.mark.parametrize("path", ["/v1", "/v8", "/v1/session", "/v8/kernel/x", "/v10", "/v02"])
async def test_other_generations_are_unknown(api: aiohttp.ClientSession, path: str) -> None:
    check_problem(await ask(api, "GET", path), 404, "url-not-found", data=path)


@pytest.mark.parametrize(
    ("prefix", "status", "body"),
    [
        ("/v2/kernel", 200, b"{}"),
        ("/v3/session", 200, b"{}"),
        *((f"/v{n}/session", 204, b"") for n in (4, 5, 6, 7)),
        ("/session", 204, b""),
        ("/kernel", 204, b""),
    ],
)
async def test_an_upload_is_answered_as_its_prefix_says(
    api: aiohttp.ClientSession, session: str, prefix: str, status: int, body: bytes
) -> None:
    form = aiohttp.FormData()
    form.add_field("src", b"x", filename="x.txt")
    answer = await ask(api, "POST", f"{prefix}/{session}/upload", data=form)
    assert (answer.status, answer.body) == (status, body)
    check_common_headers(answer)


async def test_a_session_is_found_by_its_uuid_too(api: aiohttp.ClientSession, session: str) -> None:
    uuid = (await ask(api, "GET", f"/session/{session}")).json["containerId"]
    assert (await ask(api, "GET", f"/v4/kernel/{uuid}/files/")).status == 200


# --- methods ------------------------------------------------------------------------------------


async def test_a_post_may_name_another_method(api: aiohttp.ClientSession, session: str) -> None:
    headers = {"X-Method-Override": "GET"}
    for path in ("", "/files"):
        answer = await ask(api, "POST", f"/session/{session}{path}", headers=headers)
        assert answer.status == 200
    assert (await ask(api, "REPORT", f"/session/{session}")).status == 200
    headers = {"X-Method-Override": "report"}
    assert (await ask(api, "POST", f"/session/{session}", headers=headers)).status == 200
    headers = {"X-Method-Override": "PUT"}
    check_problem(
        await ask(api, "POST", f"/session/{session}", headers=headers), 405, "method-not-allowed"
    )
    headers = {"X-Method-Override": "DELETE"}  # on a GET it means nothing
    assert (await ask(api, "GET", f"/session/{session}", headers=headers)).status == 200


@pytest.mark.parametrize(("sent", "override"), [("POST", "GET"), ("REPORT", None)])
async def test_an_overridden_request_is_signed_with_the_method_sent(
    server: Server, session: str, sent: str, override: str | None
) -> None:
    target = f"/session/{session}"
    more = {"X-Method-Override": override} if override else {}
    async with aiohttp.ClientSession(server.url) as client:
        for method, status in ((sent, 200), ("GET", 401)):
            headers = signed(server, method, target, content_type="text/plain") | more
            answer = await ask(client, sent, target, headers=headers)
            assert answer.status == status, answer.body


async def test_head_has_the_headers_of_get_and_no_body(
    server: Server, api: aiohttp.ClientSession, session: str
) -> None:
    form = aiohttp.FormData()
    form.add_field("src", b"some text", filename="head.txt")
    assert (await ask(api, "POST", f"/session/{session}/upload", data=form)).status == 204
    async with connection(server) as wire:
        for path in (
            "/",
            f"/session/{session}",
            f"/session/{session}/download_single?file=head.txt",
            f"/session/{session}/download?files=head.txt",
            "/nothing",
        ):
            got = await ask(api, "GET", path)
            await wire.send(head(server, "HEAD", path))
            answer = await wire.answer(is_head=True)
            assert answer.status == got.status
            assert (
                answer.headers["Content-Type"].split(";")[0]
                == got.headers["Content-Type"].split(";")[0]
            )
        await wire.send(head(server, "GET", "/"))  # a stray body would be read as this answer
        assert (await wire.answer()).json["version"] == "v7.20230615"


async def test_a_browser_may_ask_what_is_allowed(server: Server) -> None:
    async with aiohttp.ClientSession(server.url) as client:
        answer = await ask(client, "OPTIONS", "/session/x/upload")
    assert answer.status == 204
    check_common_headers(answer)
    assert "PATCH" in answer.headers["Access-Control-Allow-Methods"]
    assert answer.headers["Access-Control-Allow-Headers"] == "*"


# --- bodies that nobody wants -------------------------------------------------------------------

UNWANTED = [
    ("/nothing", {}, 404),
    ("/session/{session}/upload", {"Authorization": "Bearer nothing"}, 401),
    ("/session/{session}/upload", {"X-BackendAI-Version": "v99"}, 400),
    ("/session/nothing-there/upload", {}, 404),
    ("/session/{session}/upload", {"Content-Type": "text/plain"}, 400),
    ("/session/{session}", {"Content-Type": "application/json"}, 400),
    ("/session/{session}/upload", {"Content-Encoding": "gzip"}, 400),
]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "more", "status"), UNWANTED)
async def test_who_sends_30_mib_before_reading_reads_the_refusal(
    server: Server, session: str, path: str, more: dict[str, str], status: int
) -> None:
    def send() -> tuple[int, bytes, int]:
        parts = urlsplit(server.url)
        client = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
        headers = {
            "Authorization": f"Bearer {server.token}",
            "Content-Type": "multipart/form-data; boundary=b",
        }
        client.request("POST", path.format(session=session), bytes(30 * MIB), headers | more)
        answer = client.getresponse()
        body = answer.read()
        client.request("GET", "/")  # and the connection goes on
        second = client.getresponse().status
        client.close()
        return answer.status, body, second

    found, body, second = await asyncio.to_thread(send)
    assert (found, second) == (status, 200), body
    assert json.loads(body)["type"].startswith("https://")


@pytest.mark.slow
async def test_an_endless_unwanted_body_is_cut_off_and_fills_no_memory(hasty: Server) -> None:
    before = rss_kib(hasty.process.pid)
    sent = 0
    async with connection(hasty) as wire:
        await wire.send(head(hasty, "POST", "/base/nothing", f"Content-Length: {2048 * MIB}"))
        answer = await wire.answer()
        check_problem(answer, 404, "url-not-found")
        assert answer.headers["Connection"] == "close"
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                while sent < 1024 * MIB:
                    await wire.send(bytes(MIB))
                    sent += MIB
    assert sent < 64 * MIB  # what fits into the buffers of sockets, besides 8 MiB
    assert rss_kib(hasty.process.pid) - before < 40 * 1024


@pytest.mark.slow
async def test_an_unwanted_body_that_does_not_come_is_not_waited_for(hasty: Server) -> None:
    async with connection(hasty) as wire:
        await wire.send(head(hasty, "POST", "/base/nothing", "Content-Length: 1000"))
        check_problem(await wire.answer(), 404, "url-not-found")
        assert await wire.is_closed()


# --- slow and broken ----------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_json_body_that_stalls_is_a_time_out(hasty: Server) -> None:
    began = time.monotonic()
    async with connection(hasty) as wire:
        await wire.send(head(hasty, "POST", "/base/session", "Content-Length: 100") + "{")
        check_problem(await wire.answer(), 408, "generic-bad-request")
        assert await wire.is_closed()
    assert time.monotonic() - began < 25


async def test_the_size_of_json_bodies_is_a_setting(hasty: Server) -> None:
    headers = {"Authorization": f"Bearer {hasty.token}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        body = b'{"echo": "' + b"x" * 988 + b'"}'
        assert (await ask(client, "POST", f"{hasty.url}/auth", data=body)).status == 200
        answer = await ask(client, "POST", f"{hasty.url}/auth", data=body + b" ")
        check_problem(answer, 400, "generic-bad-request")


@pytest.mark.parametrize("is_whole", [True, False], ids=["with its headers", "after them"])
async def test_a_body_has_the_same_limit_however_it_comes(hasty: Server, is_whole: bool) -> None:
    body = '{"echo": "' + "x" * 988 + '"}'
    for text, status in ((body, 200), (body + " ", 400)):
        async with connection(hasty) as wire:
            start = head(hasty, "POST", "/base/auth", f"Content-Length: {len(text)}")
            parts = (
                [start + text]
                if is_whole
                else [start, *(text[n : n + 300] for n in range(0, 1001, 300))]
            )
            for part in parts:
                await wire.send(part)
                await asyncio.sleep(0.01)  # so that they come apart
            assert (await wire.answer()).status == status


@pytest.mark.slow
@pytest.mark.parametrize("drip", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"x" * 1000])
async def test_a_connection_that_sends_no_request_is_closed(hasty: Server, drip: bytes) -> None:
    began = time.monotonic()
    async with connection(hasty) as wire:

        async def dribble() -> None:
            for byte in drip:
                await wire.send(bytes([byte]))
                await asyncio.sleep(0.05)  # what is tested is slowness

        task = asyncio.ensure_future(dribble())
        assert await wire.is_closed()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert 0.5 < time.monotonic() - began < 25


@pytest.mark.slow
async def test_an_idle_connection_is_closed(hasty: Server) -> None:
    async with connection(hasty) as wire:
        await wire.send(head(hasty, "GET", "/base/"))
        assert (await wire.answer()).status == 200
        await wire.send(b"GET / HT")
        assert await wire.is_closed()


BROKEN = [
    b"nonsense\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
    b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * MIB + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: x\r\n" * 10_000 + b"\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x10\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
]


@pytest.mark.parametrize("data", BROKEN, ids=[str(n) for n in range(len(BROKEN))])
async def test_what_is_not_http_is_refused_as_a_problem(server: Server, data: bytes) -> None:
    before = complaints(server)
    async with connection(server) as wire:
        await wire.send(data)
        check_problem(await wire.answer(), 400, "generic-bad-request")
    assert complaints(server) == before


@pytest.mark.parametrize(
    "chunks",
    [b"zz\r\nab\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n", b"-1\r\n\r\n", b"ffffffffffffffffff\r\n"],
)
async def test_broken_chunks_are_a_bad_request(server: Server, session: str, chunks: bytes) -> None:
    before = complaints(server)
    for path, media in (
        (f"/session/{session}", "application/json"),
        (f"/session/{session}/upload", "multipart/form-data; boundary=b"),
    ):
        async with connection(server) as wire:
            lines = ("Transfer-Encoding: chunked", f"Content-Type: {media}")
            await wire.send(head(server, "POST", path, *lines))
            await wire.send(b"3\r\n--b\r\n")
            await wire.send(chunks)
            check_problem(await wire.answer(), 400, "generic-bad-request")
    assert complaints(server) == before


@pytest.mark.parametrize(
    "more",
    [
        ("Upgrade: \xff",),
        ("Upgrade: websocket", "Connection: \xff"),
        ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: \xff"),
        (
            *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
            "Sec-WebSocket-Key: \xff",
        ),
    ],
)
async def test_a_handshake_of_stray_bytes_is_a_bad_request(
    server: Server, session: str, more: tuple[str, ...]
) -> None:
    before = complaints(server)
    async with connection(server) as wire:
        await wire.send(head(server, "GET", f"/stream/session/{session}/execute", *more))
        check_problem(await wire.answer(), 400, "generic-bad-request")
    assert complaints(server) == before


async def test_a_client_that_leaves_is_nobodys_failure(server: Server, session: str) -> None:
    before = complaints(server)
    for path in (f"/session/{session}", f"/session/{session}/upload", "/nothing"):
        async with connection(server) as wire:
            media = "Content-Type: multipart/form-data; boundary=b"
            await wire.send(head(server, "POST", path, "Content-Length: 9999", media) + "--b\r\n")
    async with connection(server) as wire:  # by now the server has seen them go
        await wire.send(head(server, "GET", "/"))
        assert (await wire.answer()).status == 200
    assert complaints(server) == before


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "identity, gzip", "x"])
async def test_compressed_bodies_are_refused(server: Server, session: str, encoding: str) -> None:
    body = b"\x1f\x8b\x08" + bytes(50)
    more = (f"Content-Length: {len(body)}", f"Content-Encoding: {encoding}")
    async with connection(server) as wire:
        for path in ("", "/upload"):
            await wire.send(
                head(server, "POST", f"/session/{session}{path}", *more).encode() + body
            )
            check_problem(await wire.answer(), 400, "generic-bad-request")
        more = ("Content-Length: 11", "Content-Encoding: identity")
        await wire.send(head(server, "POST", "/auth", *more) + '{"echo": 1}')
        assert (await wire.answer()).json == {"authorized": "yes", "echo": 1}


async def test_answers_are_not_compressed(api: aiohttp.ClientSession, session: str) -> None:
    headers = {"Accept-Encoding": "gzip, deflate"}
    answer = await ask(api, "GET", f"/session/{session}", headers=headers)
    assert "Content-Encoding" not in answer.headers


# --- connections --------------------------------------------------------------------------------


async def test_a_connection_goes_on_after_errors(server: Server, session: str) -> None:
    async with connection(server) as wire:
        for _ in range(3):
            for path, body, status in (
                ("/nothing", b"", 404),
                (f"/session/{session}", b"{", 400),
                (f"/session/{session}", b'{"mode": "complete"}', 200),
                ("/session/nothing-there/upload", b"x" * 100_000, 400),
                ("/auth", b"{}", 200),
            ):
                await wire.send(
                    head(server, "POST", path, f"Content-Length: {len(body)}").encode() + body
                )
                assert (await wire.answer()).status == status


async def test_requests_may_be_sent_before_their_turn(server: Server, session: str) -> None:
    count = 100
    async with connection(server) as wire:
        for n in range(count):
            body = json.dumps({"echo": n})
            await wire.send(head(server, "POST", "/auth", f"Content-Length: {len(body)}") + body)
            await wire.send(head(server, "GET", f"/nothing-{n}"))
        for n in range(count):
            assert (await wire.answer()).json["echo"] == n
            assert (await wire.answer()).json["data"] == f"/nothing-{n}"


async def test_http_1_0_is_answered_and_closed(server: Server) -> None:
    async with connection(server) as wire:
        await wire.send("GET /auth HTTP/1.0\r\nAuthorization: Bearer " + server.token + "\r\n\r\n")
        assert (await wire.answer()).json["authorized"] == "yes"
        assert await wire.is_closed()


async def test_a_target_may_be_a_whole_url(server: Server, session: str) -> None:
    async with connection(server) as wire:
        for target in (server.url + "/", server.url, f"{server.url}/v4/session/{session}"):
            await wire.send(head(server, "GET", target))
            assert (await wire.answer()).status == 200
    for target in ("ftp://x/", "*", "x/y", "http://", "http://[", "//x"):
        async with connection(server) as wire:
            await wire.send(head(server, "GET", target))
            answer = await wire.answer()
            assert answer.status in (400, 404)
            check_problem(answer, answer.status, answer.json["type"].rpartition("/")[2])


@pytest.mark.parametrize(("path", "is_wanted"), [("/auth", True), ("/nothing", False)])
async def test_who_expects_100_continue_gets_it_only_when_the_body_is_wanted(
    server: Server, path: str, is_wanted: bool
) -> None:
    body = b'{"echo": "x"}'
    more = (f"Content-Length: {len(body)}", "Expect: 100-continue")
    async with connection(server) as wire:
        await wire.send(head(server, "POST", path, *more))
        answer = await wire.answer()
        if is_wanted:
            assert answer.status == 100
            await wire.send(body)
            answer = await wire.answer()
            assert answer.json["echo"] == "x"
            check_common_headers(answer)
        else:
            check_problem(answer, 404, "url-not-found")
            assert answer.headers["Connection"] == "close"


async def test_an_upload_that_expects_100_continue_is_stored(
    server: Server, api: aiohttp.ClientSession, session: str
) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="src"; filename="later.txt"\r\n\r\n'
        b"later\r\n--b--\r\n"
    )
    more = (
        f"Content-Length: {len(body)}",
        "Content-Type: multipart/form-data; boundary=b",
        "Expect: 100-continue",
    )
    async with connection(server) as wire:
        await wire.send(head(server, "POST", f"/session/{session}/upload", *more))
        assert (await wire.answer()).status == 100
        await wire.send(body)
        assert (await wire.answer()).status == 204
    assert "later.txt" in await names_in(api, session)


# --- under a base path --------------------------------------------------------------------------


async def test_a_base_path_is_part_of_every_url_and_signed(hasty: Server) -> None:
    root = hasty.url.removesuffix("/base")
    async with aiohttp.ClientSession(root) as client:
        for path in ("/base", "/base/", "/base/v7"):
            assert (await ask(client, "GET", path)).json["version"] == "v7.20230615"
        for path in ("/", "/v7", "/basement", "/auth", "/bas", "/session/base"):
            check_problem(await ask(client, "GET", path), 404, "url-not-found", data=path)
        for target, status in (("/base/auth", 200), ("/auth", 401)):
            headers = signed(hasty, "GET", target)
            assert (await ask(client, "GET", "/base/auth", headers=headers)).status == status
        body = {"image": "python", "name": "based"}
        headers = {"Authorization": f"Bearer {hasty.token}"}
        made = await ask(client, "POST", "/base/v4/kernel/create/", json=body, headers=headers)
        assert made.status == 201
        assert (await ask(client, "DELETE", "/base/session/based", headers=headers)).status == 200
