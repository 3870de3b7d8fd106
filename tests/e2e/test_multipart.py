"""Uploads that are wrong, huge, slow or strangely written (spec 6.1, attacks H6, D1, D10)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import quopri
import time
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

import aiohttp
import pytest

from tests.e2e.conftest import NewSession, Server, run_to_end, running_server
from tests.e2e.plain_http import (
    Answer,
    ask,
    check_problem,
    complaints,
    connection,
    head,
    made_session,
    names_in,
    rss_kib,
)

KIB, MIB = 1024, 1024 * 1024
MEDIA = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits a second where others wait half a minute."""
    folder = tmp_path_factory.mktemp("hasty") / "state"
    with running_server(
        folder, RETORT_HTTP_BODY_GRACE_S="1", RETORT_HTTP_DRAIN_BYTES="8m"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def session(hasty: Server) -> Iterator[str]:
    with made_session(hasty) as name:
        yield name


@pytest.fixture
async def api(hasty: Server) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {hasty.token}"}
    async with aiohttp.ClientSession(hasty.url, headers=headers) as client:
        yield client


@pytest.fixture(autouse=True)
async def nothing_is_our_failure(hasty: Server) -> AsyncIterator[None]:
    """No test of this file makes the server complain of itself."""
    before = complaints(hasty)
    yield
    assert complaints(hasty) == before


def part(name: str | None, data: bytes = b"x", *more: str, quoted: bool = True) -> bytes:
    """Write one part, with its boundary before it."""
    lines = ["--b"]
    if name is not None:
        said = f'"{name}"' if quoted else name
        lines.append(f'Content-Disposition: form-data; name="src"; filename={said}')
    return "\r\n".join((*lines, *more, "", "")).encode("utf-8", "surrogateescape") + data + b"\r\n"


END = b"--b--\r\n"


async def send(api: aiohttp.ClientSession, session: str, body: bytes, media: str = MEDIA) -> Answer:
    return await ask(
        api,
        "POST",
        f"/session/{session}/upload",
        data=io.BytesIO(body),
        headers={"Content-Type": media},
    )


async def content(api: aiohttp.ClientSession, session: str, path: str) -> bytes:
    answer = await ask(api, "GET", f"/session/{session}/download_single", json={"file": path})
    assert answer.status == 200, answer.body
    return answer.body


# --- refused as a whole -----------------------------------------------------------------------

GOOD = part("stray.txt")
LONG = "X-Long: " + "x" * MIB
REFUSED = {
    "no boundary": ("multipart/form-data", GOOD + END),
    "empty boundary": ("multipart/form-data; boundary=", GOOD + END),
    "long boundary": ("multipart/form-data; boundary=" + "b" * 71, GOOD + END),
    "odd boundary": ("multipart/form-data; boundary=\xff", GOOD + END),
    "another boundary": ("multipart/form-data; boundary=c", GOOD + END),
    "not multipart": ("application/json", b"{}"),
    "form": ("application/x-www-form-urlencoded", b"src=x"),
    "no file": (MEDIA, END),
    "empty": (MEDIA, b""),
    "nested": (MEDIA, GOOD + part("a", b"", "Content-Type: multipart/mixed; boundary=c") + END),
    "nested without boundary": (
        MEDIA,
        GOOD + part("a", b"", "Content-Type: multipart/mixed") + END,
    ),
    "no closing boundary": (MEDIA, GOOD + part("b.txt")),
    "cut in data": (MEDIA, GOOD + part("b.txt")[:-2]),
    "cut in head": (MEDIA, GOOD + b"--b\r\nContent-Disp"),
    "cut after boundary": (MEDIA, GOOD + b"--b"),
    "nothing after head": (MEDIA, GOOD + b"--b\r\n\r\n"),
    "junk in place of a boundary": (MEDIA, GOOD + b"--bb\r\n" + END),
    "long header": (MEDIA, GOOD + part("a", b"x", LONG) + END),
    "many headers": (MEDIA, GOOD + part("a", b"x", *(["X: y"] * 10_000)) + END),
    "header without colon": (MEDIA, GOOD + part("a", b"x", "nonsense") + END),
    "header of spaces": (MEDIA, GOOD + part("a", b"x", "X : y") + END),
    "control in header": (MEDIA, GOOD + part("a", b"x", "X: \x01") + END),
    "no file name": (MEDIA, GOOD + part(None) + END),
    "field only": (
        MEDIA,
        GOOD + part(None, b"x", 'Content-Disposition: form-data; name="src"') + END,
    ),
    "empty file name": (MEDIA, GOOD + part("") + END),
    "two file names": (MEDIA, GOOD + part('a"; filename="b') + END),
    "unknown encoding": (MEDIA, GOOD + part("a", b"x", "Content-Transfer-Encoding: gzip") + END),
    "cut base64": (MEDIA, GOOD + part("a", b"YWJ", "Content-Transfer-Encoding: base64") + END),
    "no base64": (MEDIA, GOOD + part("a", b"!!!!", "Content-Transfer-Encoding: base64") + END),
    "overlong quoted-printable line": (
        MEDIA,
        GOOD + part("a", b"x" * 100_000, "Content-Transfer-Encoding: quoted-printable") + END,
    ),
    "charset that is none": (
        MEDIA,
        GOOD + part(None, b"x" * 100, 'Content-Disposition: form-data; name="_charset_"') + END,
    ),
    "long preamble": (MEDIA, b"junk\r\n" * 100_000 + GOOD + END),
    "empty lines before": (MEDIA, b"\r\n" * 100_000 + GOOD + END),
    "endless line before": (MEDIA, b"x" * MIB + GOOD + END),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_wrong_upload_is_refused_and_nothing_of_it_stored(
    api: aiohttp.ClientSession, session: str, case: str
) -> None:
    media, body = REFUSED[case]
    before = await names_in(api, session)
    answer = await send(api, session, body, media)
    assert answer.status == 400, answer.body
    check_problem(answer, 400, answer.json["type"].rpartition("/")[2])
    assert await names_in(api, session) == before


async def test_a_file_of_the_field_name_charset_is_a_file(
    api: aiohttp.ClientSession, session: str
) -> None:
    body = part(None, b"utf-8", 'Content-Disposition: form-data; name="_charset_"; filename="cs"')
    assert (await send(api, session, body + END)).status == 204
    assert await content(api, session, "cs") == b"utf-8"


async def test_twenty_files_of_a_mebibyte_are_stored(
    api: aiohttp.ClientSession, session: str
) -> None:
    data = bytes(range(256)) * 4096
    body = b"".join(part(f"full/{n}", data) for n in range(20)) + END
    assert (await send(api, session, body)).status == 204
    assert await names_in(api, session, "full") == {str(n) for n in range(20)}
    assert await content(api, session, "full/19") == data


@pytest.mark.parametrize("count", [21, 10_000])
async def test_a_twenty_first_file_is_one_too_many(
    api: aiohttp.ClientSession, session: str, count: int
) -> None:
    before = await names_in(api, session)
    answer = await send(api, session, b"".join(part(f"many-{n}") for n in range(count)) + END)
    check_problem(answer, 400, "invalid-api-params", msg="Too many files")
    assert await names_in(api, session) == before


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB])
async def test_a_file_may_have_any_size_up_to_a_mebibyte(
    api: aiohttp.ClientSession, session: str, size: int
) -> None:
    data = b"\r\n--c" * (size // 5) + b"\r" * (size % 5)
    assert (await send(api, session, part("sized", data) + END)).status == 204
    assert await content(api, session, "sized") == data


@pytest.mark.parametrize("encoding", ["binary", "base64", "quoted-printable"])
async def test_one_byte_more_is_too_large_and_nothing_is_stored(
    api: aiohttp.ClientSession, session: str, encoding: str
) -> None:
    data = b"=3D" * 10 + b"x" * (MIB + 1) if encoding == "binary" else b"x" * (MIB + 1)
    if encoding == "base64":
        data = base64.encodebytes(data)
    elif encoding == "quoted-printable":
        data = quopri.encodestring(data)
    before = await names_in(api, session)
    large = part("large", data, f"Content-Transfer-Encoding: {encoding}")
    answer = await send(api, session, part("first") + large + part("last") + END)
    check_problem(answer, 400, "invalid-api-params", msg="Too large file")
    assert await names_in(api, session) == before


# --- encodings, cut anywhere --------------------------------------------------------------------

TEXT = bytes(range(256)) * 3 + "=\r\n --b ä=C3\n".encode() * 20


async def test_encoded_parts_are_decoded_wherever_they_are_cut(
    hasty: Server, api: aiohttp.ClientSession, session: str
) -> None:
    encoded = {
        "base64": base64.encodebytes(TEXT),
        "Base64": base64.b64encode(TEXT),
        "quoted-printable": binascii.b2a_qp(TEXT, istext=False),
        "8bit": TEXT,
    }
    body = b"".join(
        part(f"coded-{n}", data, f"Content-Transfer-Encoding: {name}")
        for n, (name, data) in enumerate(encoded.items())
    )
    body += END
    for step in (1, 7, 61, 1000):
        async with connection(hasty) as wire:
            lines = ("Transfer-Encoding: chunked", f"Content-Type: {MEDIA}")
            await wire.send(head(hasty, "POST", f"/session/{session}/upload", *lines))
            chunks = (body[at : at + step] for at in range(0, len(body), step))
            framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
            for at in range(0, len(framed), 4000):
                await wire.send(framed[at : at + 4000])
                await asyncio.sleep(0)
            await wire.send(b"0\r\n\r\n")
            answer = await wire.answer()
            assert answer.status == 204, answer.body
        for n in range(len(encoded)):
            assert await content(api, session, f"coded-{n}") == TEXT


async def test_a_body_that_comes_byte_by_byte_is_stored(
    hasty: Server, api: aiohttp.ClientSession, session: str
) -> None:
    body = part("bytewise", b"a\r\n--b\r\r\n") + END
    # "\r\n--b" ends the file, wherever the cut is; what follows is no boundary: refused whole.
    for data, status in ((part("bytewise", b"a\r\n--\r\nb") + END, 204), (body, 400)):
        async with connection(hasty) as wire:
            lines = (f"Content-Length: {len(data)}", f"Content-Type: {MEDIA}")
            await wire.send(head(hasty, "POST", f"/session/{session}/upload", *lines))
            for byte in data:
                await wire.send(bytes([byte]))
            assert (await wire.answer()).status == status
    assert await content(api, session, "bytewise") == b"a\r\n--\r\nb"


# --- names (D1) -----------------------------------------------------------------------------------

OUTSIDE = [
    "..",
    ".",
    "../x",
    "a/../../x",
    "/x",
    "/etc/x",
    "//etc/x",
    "/home/work",
    "/home/work/",
    "/home/work/.",
    "/home/work/../x",
    "/home/workx/y",
    "/home",
    "/tmp/x",
    "/proc/self/x",
    "%2e%2e/x",
    "%2E%2E%2Fx",
    "%2Fetc%2Fx",
    "a%2f..%2f..%2fx",
    "a%00b",
    "%00",
    "x" * 5000,
    "x" * 256,
    "/".join(["d" * 200] * 25),
    quote("../x", safe=""),
]
STORED = {
    "plain.txt": "plain.txt",
    "./dot.txt": "dot.txt",
    "n//doubled.txt": "n/doubled.txt",
    "n/../up.txt": "up.txt",
    "/home/work/absolute.txt": "absolute.txt",
    "//home//work//slashes.txt": "slashes.txt",
    "n%2Fescaped.txt": "n/escaped.txt",
    "%252e%252e": "%2e%2e",  # decoded once
    "100%": "100%",
    "%zz": "%zz",
    "%C3%A4.txt": "ä.txt",
    "%E2%80%AE.txt": "\u202e.txt",
    "\uff0e\uff0e": "\uff0e\uff0e",  # full-width dots are no dots
    "...": "...",
    "..x": "..x",
    " ": " ",
    "-rf": "-rf",
    "a\\\\b": "a\\b",
    'q\\"q': 'q"q',
    "%0A": "\n",
    "$(id)": "$(id)",
}


@pytest.mark.parametrize("name", OUTSIDE, ids=[str(n) for n in range(len(OUTSIDE))])
async def test_a_name_that_is_not_beneath_home_is_refused(
    api: aiohttp.ClientSession, session: str, name: str
) -> None:
    before = await names_in(api, session)
    answer = await send(api, session, part("beside.txt") + part(name) + END)
    check_problem(answer, 400, "invalid-api-params")
    assert await names_in(api, session) == before


async def test_a_null_character_in_a_header_is_refused(
    api: aiohttp.ClientSession, session: str
) -> None:
    answer = await send(api, session, part("a\0b") + END)
    assert answer.status == 400


@pytest.mark.parametrize("name", STORED)
async def test_a_strange_name_is_stored_as_it_is(
    api: aiohttp.ClientSession, session: str, name: str
) -> None:
    data = name.encode()
    assert (await send(api, session, part(name, data) + END)).status == 204
    assert await content(api, session, STORED[name]) == data


@pytest.mark.parametrize("name", ["trailing/", "trailing%2F"])
async def test_a_trailing_slash_makes_no_folder(
    api: aiohttp.ClientSession, session: str, name: str
) -> None:
    assert (await send(api, session, part(name, b"file") + part("folder/x") + END)).status == 204
    assert await content(api, session, "trailing") == b"file"
    check_problem(await send(api, session, part("folder/") + END), 400, "invalid-api-params")


async def test_bytes_that_are_no_text_are_a_name_too(
    api: aiohttp.ClientSession, session: str
) -> None:
    assert (await send(api, session, part("raw-\udcff") + part("esc-%FF") + END)).status == 204
    assert {"raw-\ufffd", "esc-%FF"} <= await names_in(api, session)


async def test_the_extended_name_counts_before_the_plain_one(
    api: aiohttp.ClientSession, session: str
) -> None:
    body = part("plain\"; filename*=UTF-8''%C3%BC.txt; x=\"y", b"1") + END
    assert (await send(api, session, body)).status == 204
    assert await content(api, session, "ü.txt") == b"1"
    for bad in ("UTF-8''%FF", "KOI8''x", "x", "UTF-8''..%2Fx", "UTF-8''%00"):
        body = part(f'plain"; filename*={bad}; x="y', b"1") + END
        check_problem(await send(api, session, body), 400, "invalid-api-params")


async def test_of_the_same_name_twice_the_last_stays(
    api: aiohttp.ClientSession, session: str
) -> None:
    body = part("twice", b"first") + part("./twice", b"second") + END
    assert (await send(api, session, body)).status == 204
    assert await content(api, session, "twice") == b"second"


@pytest.mark.slow
async def test_a_file_replaces_files_and_nothing_else(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    session = await new_session("gcc")
    commands = (
        "mkdir d && mkfifo pipe && ln -s /etc/passwd leak && ln -s /etc out;"
        "echo old > run.sh; chmod 755 run.sh; cp /bin/sleep busy; (./busy 100 &) ; echo $?"
    )
    answers = await run_to_end(api, session, exec=commands)
    assert answers[-1]["exitCode"] == 0, answers
    for name in ("d", "out/x", "run.sh/x", "leak/x"):
        answer = await send(api, session, part("beside") + part(name) + END)
        check_problem(answer, 400, "invalid-api-params")
    assert "beside" not in await names_in(api, session)
    for name in ("run.sh", "busy", "d/x"):
        answer = await send(api, session, part(name, b"new") + END)
        assert answer.status == 204, (name, answer.body)
        assert await content(api, session, name) == b"new"
    await send(api, session, part("leak", b"mine") + part("pipe", b"mine") + END)
    answers = await run_to_end(api, session, exec="grep -q root /etc/passwd && ls -l run.sh")
    assert answers[-1]["exitCode"] == 0, answers


# --- slow, endless, wrongly measured ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent",
    [b"", b"--b\r\n", part("a"), part("a", b"x" * 100)[:-2], part("a") + b"--b", part("a") + END],
    ids=["nothing", "boundary", "file", "half a file", "before the end", "after the end"],
)
async def test_an_upload_that_stops_is_a_time_out_and_stores_nothing(
    hasty: Server, api: aiohttp.ClientSession, session: str, sent: bytes
) -> None:
    before, began = await names_in(api, session), time.monotonic()
    async with connection(hasty) as wire:
        lines = ("Content-Length: 100000", f"Content-Type: {MEDIA}")
        await wire.send(head(hasty, "POST", f"/session/{session}/upload", *lines))
        await wire.send(sent)
        check_problem(await wire.answer(), 408, "generic-bad-request")
        assert await wire.is_closed()
    assert time.monotonic() - began < 25
    assert await names_in(api, session) == before


@pytest.mark.slow
async def test_an_upload_that_drips_is_a_time_out(hasty: Server, session: str) -> None:
    began = time.monotonic()
    async with connection(hasty) as wire:
        lines = ("Content-Length: 100000", f"Content-Type: {MEDIA}")
        await wire.send(head(hasty, "POST", f"/session/{session}/upload", *lines))

        async def drip() -> None:
            for byte in part("drip") + b"x" * 1000:
                await wire.send(bytes([byte]))
                await asyncio.sleep(0.2)  # what is tested is slowness

        task = asyncio.ensure_future(drip())
        check_problem(await wire.answer(), 408, "generic-bad-request")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert time.monotonic() - began < 25


async def test_a_length_that_is_too_short_stores_nothing(
    hasty: Server, api: aiohttp.ClientSession, session: str
) -> None:
    before = await names_in(api, session)
    body = part("short.txt", b"x" * 1000) + END
    for length in (0, 1, 50, len(body) - 100, len(body) - 2):
        async with connection(hasty) as wire:
            lines = (f"Content-Length: {length}", f"Content-Type: {MEDIA}")
            await wire.send(head(hasty, "POST", f"/session/{session}/upload", *lines))
            await wire.send(body)
            answer = await wire.answer()
            assert answer.status == (204 if length == len(body) - 2 else 400), length
        if length < len(body) - 2:  # with the boundary all is there, but for a line break
            assert await names_in(api, session) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "junk"),
    [
        (b"", b"x" * 1023 + b"\n"),
        (b"", b"\n" * 1024),
        (b"", b"x" * 1024),
        (part("large", b"")[:-2], b"x" * 1024),
        (part("head", b"")[:-4], b"X: " + b"y" * 1019 + b"\r\n"),
        (b"", part("many")),
        (part("good") + END, b"epilogue" * 128),
    ],
    ids=["lines", "empty lines", "one line", "one file", "headers", "parts", "epilogue"],
)
async def test_half_a_gibibyte_of_junk_fills_no_memory(
    hasty: Server, session: str, start: bytes, junk: bytes
) -> None:
    before = highest = rss_kib(hasty.process.pid)
    block = junk * (MIB // len(junk))
    async with connection(hasty) as wire:
        lines = (f"Content-Length: {512 * MIB}", f"Content-Type: {MEDIA}")
        await wire.send(head(hasty, "POST", f"/session/{session}/upload", *lines).encode() + start)
        try:
            async with asyncio.timeout(120):
                for _ in range(512):
                    await wire.send(block)
                    highest = max(highest, rss_kib(hasty.process.pid))
        except ConnectionError:
            pass  # it had enough
        else:
            raise AssertionError("the server read it all")
    assert highest - before < 40 * KIB
