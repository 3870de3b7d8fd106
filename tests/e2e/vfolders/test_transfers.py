"""Uploads into virtual folders and downloads out of them (spec 10.4, 10.5)."""

from __future__ import annotations

import asyncio
import io
import os
import zipfile
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import Server, retort, running_server
from tests.e2e.plain_http import ask, check_problem
from tests.e2e.vfolder_user import User, address, calls, fetch, no_folder, patch, share

pytestmark = pytest.mark.slow

# --- uploads ------------------------------------------------------------------------------------


async def test_an_upload_goes_on_where_it_stands(ann: User) -> None:
    name = await ann.make()
    content = bytes(range(256)) * 5000
    given = await ann.ok(
        "POST", f"/folders/{name}/request-upload", path="deep/er/file", size=len(content)
    )
    first = await patch(ann.api, given, 0, content[:700_000])
    assert (first.status, first.headers["Upload-Offset"]) == (204, "700000")
    assert first.headers["Upload-Length"] == str(len(content))
    assert first.headers["Tus-Resumable"] == "1.0.0"
    assert first.headers["Cache-Control"] == "no-store"
    assert await ann.names(name) == []
    wrong = await patch(ann.api, given, 0, content)
    assert wrong.status == 409
    head = await ask(ann.api, "HEAD", address(given))
    assert (head.status, head.headers["Upload-Offset"]) == (200, "700000")
    last = await patch(ann.api, given, 700_000, content[700_000:])
    assert (last.status, last.headers["Upload-Offset"]) == (204, str(len(content)))
    assert (await fetch(ann, name, "deep/er/file")).body == content
    head = await ask(ann.api, "HEAD", address(given))
    assert head.headers["Upload-Offset"] == str(len(content))


async def test_an_empty_file_needs_no_chunk(ann: User) -> None:
    name = await ann.make()
    await ann.ok("POST", f"/folders/{name}/request-upload", path="a/empty", size=0)
    assert await ann.names(name, "a") == ["empty"]


async def test_uploads_tell_what_they_can(ann: User) -> None:
    answer = await ask(ann.api, "OPTIONS", "/storage/upload")
    assert answer.status == 204
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert answer.headers["Tus-Max-Size"] == str(2**40)


async def test_more_than_was_said_is_refused(ann: User) -> None:
    name = await ann.make()
    given = await ann.ok("POST", f"/folders/{name}/request-upload", path="file", size=3)
    answer = await patch(ann.api, given, 0, b"1234")
    check_problem(answer, 400, "invalid-api-params")
    assert (await patch(ann.api, given, 0, b"123")).status == 204


async def test_tokens_are_for_what_they_say(ann: User) -> None:
    name = await ann.make()
    await ann.put(name, "file", b"content")
    up = await ann.ok("POST", f"/folders/{name}/request-upload", path="other", size=3)
    down = await ann.ok("POST", f"/folders/{name}/request-download", path="file")
    said, _, mac = down["token"].partition(".")
    forged = said[:-4] + ("AAAA" if said[-4:] != "AAAA" else "BBBB")
    for token in (up["token"], "", "x", f"{forged}.{mac}", f"{said}.{mac[:-1]}", said):
        answer = await ask(ann.api, "GET", f"/storage/download?token={token}")
        check_problem(answer, 403, "generic-forbidden")
    answer = await ask(
        ann.api, "PATCH", f"/storage/upload?token={down['token']}", headers={"Upload-Offset": "0"}
    )
    check_problem(answer, 403, "generic-forbidden")
    answer = await ask(ann.api, "PATCH", address(up), data=b"123")
    check_problem(answer, 400, "invalid-api-params")  # without an offset


async def test_a_token_ends_with_its_folder_and_with_the_right_to_it(ann: User, bob: User) -> None:
    name = await ann.make()
    await ann.put(name, "file", b"content")
    await share(ann, bob, name, "rw")
    given = await bob.ok("POST", f"/folders/{name}/request-download", path="file")
    assert (await ask(bob.api, "GET", address(given))).body == b"content"
    await ann.ok("POST", "/folders/_/shared", vfolder=name, user=bob.email, perm=None)
    no_folder(await ask(bob.api, "GET", address(given)))
    given = await ann.ok("POST", f"/folders/{name}/request-download", path="file")
    await ann.ok("DELETE", f"/folders/{name}", 204)
    no_folder(await ask(ann.api, "GET", address(given)))


@pytest.mark.parametrize("command", ["disable", "remove"])
async def test_tokens_end_with_the_key_they_were_given_to(server: Server, command: str) -> None:
    key = server.new_key()
    async with calls(server, key["token"]) as api:
        user = User(api, "")
        name = await user.make()
        await user.put(name, "file", b"content")
        down = await user.ok("POST", f"/folders/{name}/request-download", path="file")
        up = await user.ok("POST", f"/folders/{name}/request-upload", path="new", size=4)
        assert (await patch(api, up, 0, b"ab")).status == 204
        assert (await ask(api, "GET", address(down))).status == 200

        retort("keys", command, key["accessKey"], "--state", str(server.state))
        async with asyncio.timeout(30):  # a running server follows within seconds
            while (refused := await ask(api, "GET", address(down))).status == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        check_problem(refused, 403, "generic-forbidden")
        check_problem(await patch(api, up, 2, b"cd"), 403, "generic-forbidden")
        head = await ask(api, "HEAD", address(up))
        assert head.status == 403


# --- downloads ----------------------------------------------------------------------------------


async def test_a_download_has_its_length_date_and_ranges(ann: User, server: Server) -> None:
    name = await ann.make()
    content = bytes(range(256)) * 4000
    await ann.put(name, "ünï.bin", content)
    folder_id = (await ann.ok("GET", f"/folders/{name}"))["id"]
    path = server.state / "folders" / folder_id / "data" / "ünï.bin"
    os.utime(path, (1_700_000_000, 1_700_000_000))  # not within the second of this test

    whole = await fetch(ann, name, "ünï.bin")
    assert (whole.status, whole.body) == (200, content)
    assert whole.headers["Content-Length"] == str(len(content))
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert whole.headers["Content-Disposition"].startswith("attachment")
    date = whole.headers["Last-Modified"]

    for asked, start, stop in (("bytes=5-9", 5, 10), ("bytes=1000000-", 1_000_000, len(content))):
        part = await fetch(ann, name, "ünï.bin", Range=asked, **{"If-Range": date})
        assert (part.status, part.body) == (206, content[start:stop])
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(content)}"
    last = await fetch(ann, name, "ünï.bin", Range="bytes=-3")
    assert (last.status, last.body) == (206, content[-3:])
    other = "Tue, 01 Jan 2019 00:00:00 GMT"
    stale = await fetch(ann, name, "ünï.bin", Range="bytes=5-9", **{"If-Range": other})
    assert (stale.status, stale.body) == (200, content)
    beyond = await fetch(ann, name, "ünï.bin", Range="bytes=9999999-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{len(content)}")


async def test_a_directory_is_sent_as_a_zip_when_asked(ann: User) -> None:
    name = await ann.make()
    await ann.put(name, "sub/a", b"1" * 300_000)
    await ann.put(name, "sub/b", b"2")
    given = await ann.ok("POST", f"/folders/{name}/request-download", path="sub", archive=True)
    answer = await ask(ann.api, "GET", address(given))
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/zip")
    assert answer.headers["Content-Length"] == str(len(answer.body))
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["sub/", "sub/a", "sub/b"]


async def test_a_file_that_shrinks_on_its_way_breaks_the_download_off(
    ann: User, server: Server
) -> None:
    name = await ann.make()
    folder_id = (await ann.ok("GET", f"/folders/{name}"))["id"]
    path = server.state / "folders" / folder_id / "data" / "hole"
    with path.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    given = await ann.ok("POST", f"/folders/{name}/request-download", path="hole")
    async with ann.api.get(address(given)) as answer:
        await answer.content.readexactly(1000)
        with path.open("r+b") as file:
            file.truncate(0)
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    # And the next call is answered as ever.
    assert (await ann.ok("GET", f"/folders/{name}"))["numFiles"] == 1


# --- a server that is killed ---------------------------------------------------------------------


async def test_an_upload_survives_a_killed_server(tmp_path: Path) -> None:
    content = bytes(range(256)) * 2000
    state = tmp_path / "s"
    with running_server(state) as server:
        async with calls(server, server.token) as api:
            user = User(api, "")
            await user.ok("POST", "/folders", 201, name="data")
            given = await user.ok(
                "POST", "/folders/data/request-upload", path="file", size=len(content)
            )
            assert (await patch(api, given, 0, content[:300_000])).status == 204
        server.process.kill()
        server.process.wait()
    with running_server(state) as again:
        async with calls(again, server.token) as api:  # the first server's key
            head = await ask(api, "HEAD", address(given))
            assert head.headers["Upload-Offset"] == "300000"
            assert (await patch(api, given, 300_000, content[300_000:])).status == 204
            assert (await fetch(User(api, ""), "data", "file")).body == content
