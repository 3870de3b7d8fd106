"""Virtual folders over HTTP: every call of spec 10 with its refusals."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import os
import subprocess
import sys
import uuid
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Server, environment, retort, running_server
from tests.e2e.plain_http import Answer, ask, check_problem

pytestmark = pytest.mark.slow

HOST = "local:volume1"


@dataclasses.dataclass
class User:
    """One key and its calls."""

    api: aiohttp.ClientSession
    email: str

    async def ok(self, method: str, path: str, status: int = 200, /, **body: Any) -> Any:
        answer = await self.ask(method, path, **body)
        assert answer.status == status, (answer.status, answer.body)
        return answer.json if answer.body else None

    async def ask(self, method: str, path: str, /, **body: Any) -> Answer:
        return await ask(self.api, method, path, json=body)

    async def make(self, **body: Any) -> str:
        name = f"f-{uuid.uuid4().hex[:10]}"
        await self.ok("POST", "/folders", 201, name=name, **body)
        return name

    async def put(self, folder: str, path: str, content: bytes) -> None:
        given = await self.ok(
            "POST", f"/folders/{folder}/request-upload", path=path, size=len(content)
        )
        if content:
            answer = await patch(self.api, given, 0, content)
            assert answer.status == 204, answer.body
            assert answer.headers["Upload-Offset"] == str(len(content))

    async def names(self, folder: str, path: str = ".") -> list[str]:
        found = await self.ok("GET", f"/folders/{folder}/files", path=path)
        listed = [entry["filename"] for entry in json.loads(found["files"])]
        assert listed == [item["name"] for item in found["items"]]
        return listed


def new_user(server: Server, *, admin: bool = False) -> tuple[str, str]:
    email = f"{uuid.uuid4().hex[:12]}@example.org"
    more = ["--admin"] if admin else []
    made = retort("keys", "create", "--state", str(server.state), "--json", "--email", email, *more)
    return email, json.loads(made)["token"]


def calls(server: Server, token: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(server.url, headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
async def ann(server: Server) -> AsyncIterator[User]:
    email, token = new_user(server)
    async with calls(server, token) as api:
        yield User(api, email)


@pytest.fixture
async def bob(server: Server) -> AsyncIterator[User]:
    email, token = new_user(server)
    async with calls(server, token) as api:
        yield User(api, email)


@pytest.fixture
async def admin(server: Server) -> AsyncIterator[User]:
    email, token = new_user(server, admin=True)
    async with calls(server, token) as api:
        yield User(api, email)


def address(given: dict[str, str]) -> str:
    return f"/storage/{given['url'].rpartition('/')[2]}?token={given['token']}"


async def patch(
    api: aiohttp.ClientSession, given: dict[str, str], offset: int, content: bytes
) -> Answer:
    """Send a chunk as the client does: with a token and without a key."""
    headers = {
        "Upload-Offset": str(offset),
        "Tus-Resumable": "1.0.0",
        "Content-Type": "application/offset+octet-stream",
        "Authorization": "",
    }
    return await ask(api, "PATCH", address(given), data=io.BytesIO(content), headers=headers)


async def fetch(user: User, folder: str, path: str, **headers: str) -> Answer:
    given = await user.ok("POST", f"/folders/{folder}/request-download", path=path)
    return await ask(user.api, "GET", address(given), headers={"Authorization": "", **headers})


def no_folder(answer: Answer) -> None:
    check_problem(answer, 404, "object-not-found", thing="virtual folder")


# --- folders ------------------------------------------------------------------------------------


async def test_a_folder_is_made_listed_told_of_and_deleted(ann: User) -> None:
    made = await ann.ok("POST", "/folders", 201, name="data", quota="1g", usage_mode="model")
    assert uuid.UUID(made["id"]).hex == made["id"]
    assert (made["name"], made["host"], made["status"]) == ("data", HOST, "ready")
    assert (made["creator"], made["ownership_type"], made["group"]) == (ann.email, "user", None)
    assert (made["quota_scope_id"], made["max_size"]) == (f"user:{made['user']}", 2**30)
    assert (made["permission"], made["usage_mode"], made["cloneable"]) == ("rw", "model", False)

    (listed,) = await ann.ok("GET", "/folders")
    assert (listed["name"], listed["is_owner"], listed["id"]) == ("data", True, made["id"])
    for ref in ("data", made["id"], str(uuid.UUID(made["id"]))):
        told = await ann.ok("GET", f"/folders/{ref}")
        assert (told["numFiles"], told["type"], told["permission"]) == (0, "user", "rw")

    await ann.ok("DELETE", "/folders/data", 204)
    no_folder(await ann.ask("GET", "/folders/data"))
    no_folder(await ann.ask("DELETE", "/folders/data"))
    assert await ann.ok("GET", "/folders") == []


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({}, 400, "invalid-api-params"),
        ({"name": "a/b"}, 400, "invalid-api-params"),
        ({"name": ".bashrc"}, 400, "invalid-api-params"),
        ({"name": "x", "host": "other:place"}, 400, "invalid-api-params"),
        ({"name": "x", "permission": "rwx"}, 400, "invalid-api-params"),
        ({"name": "x", "usage_mode": "fun"}, 400, "invalid-api-params"),
        ({"name": "x", "quota": "lots"}, 400, "invalid-api-params"),
        ({"name": "x", "group": "unknown"}, 400, "invalid-api-params"),
        ({"name": "x", "group": "default"}, 403, "insufficient-privilege"),
        ({"name": "x", "unmanaged_path": "/etc"}, 403, "insufficient-privilege"),
    ],
)
async def test_what_cannot_be_made_is_refused(
    ann: User, body: dict[str, Any], status: int, kind: str
) -> None:
    check_problem(await ann.ask("POST", "/folders", **body), status, kind)
    assert await ann.ok("GET", "/folders") == []


async def test_a_name_is_taken_once(ann: User, bob: User) -> None:
    name = await ann.make()
    check_problem(await ann.ask("POST", "/folders", name=name), 400, "vfolder-already-exists")
    await bob.ok("POST", "/folders", 201, name=name)


async def test_a_key_may_have_so_many_folders(tmp_path: Path) -> None:
    with running_server(
        tmp_path / "s", RETORT_KEYS_MAX_VFOLDERS="2", RETORT_KEYS_MAX_VFOLDER_BYTES="1000"
    ) as server:
        # The server's own key was made before these settings; its sister has them.
        made = retort_with(server, RETORT_KEYS_MAX_VFOLDERS="2", RETORT_KEYS_MAX_VFOLDER_BYTES="1k")
        async with calls(server, made["token"]) as api:
            user = User(api, "")
            first = await user.make(quota="1g")
            await user.make()
            check_problem(await user.ask("POST", "/folders", name="third"), 412, "quota-exceeded")
            told = await user.ok("GET", f"/folders/{first}")
            assert told["max_size"] == 1024
            answer = await user.ask(
                "POST", f"/folders/{first}/request-upload", path="big", size=1025
            )
            check_problem(answer, 412, "quota-exceeded")
            await user.ok("DELETE", f"/folders/{first}", 204)
            await user.make()


def retort_with(server: Server, *more: str, **settings: str) -> dict[str, Any]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "retort.cli.main"),
            *("keys", "create", "--state", str(server.state), "--json", *more),
        ],
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=True,
    )
    made: dict[str, Any] = json.loads(done.stdout)
    return made


async def test_another_users_folder_looks_missing_on_every_call(ann: User, bob: User) -> None:
    name = await ann.make()
    await ann.put(name, "file", b"x")
    for method, call, body in (
        ("GET", "", {}),
        ("DELETE", "", {}),
        ("POST", "/rename", {"new_name": "mine"}),
        ("POST", "/update-options", {"cloneable": True}),
        ("POST", "/clone", {"target_name": "mine"}),
        ("POST", "/leave", {}),
        ("POST", "/invite", {"emails": [bob.email], "perm": "rw"}),
        ("GET", "/files", {}),
        ("POST", "/mkdir", {"path": "x"}),
        ("POST", "/rename-file", {"target_path": "file", "new_name": "x"}),
        ("POST", "/move-file", {"src": "file", "dst": "x"}),
        ("DELETE", "/delete-files", {"files": ["file"]}),
        ("POST", "/request-upload", {"path": "x", "size": 1}),
        ("POST", "/request-download", {"path": "file"}),
    ):
        no_folder(await bob.ask(method, f"/folders/{name}{call}", **body))
    assert await bob.ok("GET", "/folders") == []
    assert await ann.names(name) == ["file"]


async def test_rename(ann: User) -> None:
    name, other = await ann.make(), await ann.make()
    await ann.ok("POST", f"/folders/{name}/rename", 201, new_name="fresh")
    await ann.ok("GET", "/folders/fresh")
    no_folder(await ann.ask("GET", f"/folders/{name}"))
    answer = await ann.ask("POST", "/folders/fresh/rename", new_name=other)
    check_problem(answer, 400, "vfolder-already-exists")
    answer = await ann.ask("POST", "/folders/fresh/rename", new_name="a b")
    check_problem(answer, 400, "invalid-api-params")
    no_folder(await ann.ask("POST", "/folders/none/rename", new_name="x"))


async def test_hosts_and_types(ann: User) -> None:
    for call in ("hosts", "all_hosts", "all-hosts"):
        told = await ann.ok("GET", f"/folders/_/{call}")
        assert (told["default"], told["allowed"]) == (HOST, [HOST])
        assert set(told["volume_info"][HOST]) == {
            *("backend", "capabilities", "usage", "sftp_scaling_groups"),
        }
    for call in ("allowed_types", "allowed-types"):
        assert await ann.ok("GET", f"/folders/_/{call}") == ["user", "group"]


async def test_administrators_see_and_delete_all(ann: User, admin: User) -> None:
    name = await ann.make()
    folder_id = (await ann.ok("GET", f"/folders/{name}"))["id"]
    everything = await admin.ok("GET", "/folders", all=True)
    assert name in [item["name"] for item in everything]
    mine = await admin.ok("GET", "/folders", owner_user_email=ann.email)
    assert [item["name"] for item in mine] == [name]
    no_folder(await admin.ask("GET", f"/folders/{name}"))
    check_problem(await ann.ask("GET", "/folders", all=True), 403, "generic-forbidden")
    check_problem(
        await ann.ask("GET", "/folders", owner_user_email=admin.email), 403, "generic-forbidden"
    )
    check_problem(await ann.ask("DELETE", "/folders", id=folder_id), 403, "insufficient-privilege")
    await admin.ok("DELETE", "/folders", 204, id=folder_id)
    no_folder(await admin.ask("DELETE", "/folders", id=folder_id))
    no_folder(await ann.ask("GET", f"/folders/{name}"))


# --- copies -------------------------------------------------------------------------------------


async def test_a_small_clone_is_there_at_once(ann: User) -> None:
    name = await ann.make()
    await ann.put(name, "sub/file", b"content")
    answer = await ann.ok("POST", f"/folders/{name}/clone", 201, target_name="copy-1")
    assert (answer["name"], answer["bgtask_id"], answer["status"]) == ("copy-1", None, "ready")
    assert (await fetch(ann, "copy-1", "sub/file")).body == b"content"
    answer = await ann.ask("POST", f"/folders/{name}/clone", target_name="copy-1")
    check_problem(answer, 400, "vfolder-already-exists")


async def test_others_clone_what_the_owner_allows(ann: User, bob: User) -> None:
    name = await ann.make()
    await share(ann, bob, name, "ro")
    answer = await bob.ask("POST", f"/folders/{name}/clone", target_name="mine")
    check_problem(answer, 403, "generic-forbidden")
    await ann.ok("POST", f"/folders/{name}/update-options", 201, cloneable=True, permission=None)
    await bob.ok("POST", f"/folders/{name}/clone", 201, target_name="mine")
    assert (await bob.ok("GET", "/folders/mine"))["is_owner"] is True


async def test_a_large_clone_tells_how_far_it_is(ann: User, bob: User, server: Server) -> None:
    name = await ann.make()
    folder_id = (await ann.ok("GET", f"/folders/{name}"))["id"]
    data = server.state / "folders" / folder_id / "data"
    for number in range(6_000):
        (data / str(number)).touch()
    answer = await ann.ok("POST", f"/folders/{name}/clone", 201, target_name="large-copy")
    task = answer["bgtask_id"]
    assert task is not None
    assert answer["status"] == "cloning"
    check_problem(
        await ann.ask("GET", "/folders/large-copy/files"), 400, "vfolder-operation-failed"
    )
    check_problem(
        await bob.ask("GET", f"/events/background-task?task_id={task}"),
        404,
        "object-not-found",
        thing="background task",
    )
    told = await ask(ann.api, "GET", f"/events/background-task?task_id={task}")
    assert told.headers["Content-Type"] == "text/event-stream"
    events = [
        dict(line.split(": ", 1) for line in event.splitlines())
        for event in told.body.decode().split("\r\n\r\n")
        if event
    ]
    names = [event["event"] for event in events]
    assert set(names[:-2]) == {"bgtask_updated"}
    assert names[-2:] == ["bgtask_done", "server_close"]
    assert events[-1]["data"] == "{}"
    first = json.loads(events[0]["data"])
    assert set(first) == {"task_id", "message", "current_progress", "total_progress"}
    assert len(await ann.names("large-copy")) == 6_000
    unknown = await ann.ask("GET", f"/events/background-task?task_id={uuid.uuid4()}")
    check_problem(unknown, 404, "object-not-found", thing="background task")


# --- files --------------------------------------------------------------------------------------


async def test_files_are_listed_made_moved_and_deleted(ann: User) -> None:
    name = await ann.make()
    await ann.ok("POST", f"/folders/{name}/mkdir", 201, path="a/b")
    await ann.put(name, "a/b/file", b"12345")
    found = await ann.ok("GET", f"/folders/{name}/files", path="a/b")
    (item,) = found["items"]
    assert (item["name"], item["type"], item["size"], item["mode"]) == ("file", "FILE", 5, "644")
    (entry,) = json.loads(found["files"])
    assert (entry["filename"], entry["mode"], entry["size"]) == ("file", "-rw-r--r--", 5)
    rename = {"target_path": "a/b/file", "new_name": "other"}
    assert await ann.ok("POST", f"/folders/{name}/rename-file", **rename) == {}
    assert await ann.ok("POST", f"/folders/{name}/move-file", src="a/b/other", dst=".") == {}
    assert await ann.names(name) == ["a", "other"]
    answer = await ann.ask("DELETE", f"/folders/{name}/delete-files", files=["a", "other"])
    check_problem(answer, 400, "vfolder-operation-failed")
    assert await ann.names(name) == ["a", "other"]
    await ann.ok("DELETE", f"/folders/{name}/delete-files", files=["a", "other"], recursive=True)
    assert await ann.names(name) == []


@pytest.mark.parametrize(
    ("method", "call", "body", "status", "kind"),
    [
        ("GET", "files", {"path": "none"}, 404, "object-not-found"),
        ("GET", "files", {"path": "file"}, 400, "vfolder-operation-failed"),
        ("GET", "files", {"path": "../x"}, 400, "invalid-api-params"),
        ("GET", "files", {"path": "/etc"}, 400, "invalid-api-params"),
        ("POST", "mkdir", {"path": "file"}, 400, "vfolder-operation-failed"),
        ("POST", "mkdir", {"path": "x/y", "parents": False}, 400, "vfolder-operation-failed"),
        ("POST", "mkdir", {}, 400, "invalid-api-params"),
        ("POST", "rename-file", {"target_path": "none", "new_name": "x"}, 404, "object-not-found"),
        (
            *("POST", "rename-file", {"target_path": "file", "new_name": "a/b"}),
            *(400, "vfolder-operation-failed"),
        ),
        ("POST", "move-file", {"src": "none", "dst": "x"}, 404, "object-not-found"),
        ("POST", "move-file", {"src": "file", "dst": "../x"}, 400, "invalid-api-params"),
        ("DELETE", "delete-files", {"files": ["none"]}, 404, "object-not-found"),
        ("DELETE", "delete-files", {"files": []}, 400, "invalid-api-params"),
        ("POST", "request-upload", {"path": "x"}, 400, "invalid-api-params"),
        ("POST", "request-upload", {"path": "x", "size": -1}, 400, "invalid-api-params"),
        ("POST", "request-upload", {"path": "../x", "size": 1}, 400, "invalid-api-params"),
        ("POST", "request-upload", {"path": "x", "size": 2**60}, 400, "invalid-api-params"),
        ("POST", "request-download", {"path": "none"}, 404, "object-not-found"),
        ("POST", "request-download", {"path": "."}, 400, "vfolder-operation-failed"),
    ],
)
async def test_what_files_cannot_do(
    ann: User, method: str, call: str, body: dict[str, Any], status: int, kind: str
) -> None:
    name = await ann.make()
    await ann.put(name, "file", b"x")
    answer = await ann.ask(method, f"/folders/{name}/{call}", **body)
    check_problem(answer, status, kind, thing="file or directory" if status == 404 else "")
    assert await ann.names(name) == ["file"]


async def test_a_reader_reads_and_no_more(ann: User, bob: User) -> None:
    name = await ann.make()
    await ann.put(name, "file", b"x")
    await share(ann, bob, name, "ro")
    assert await bob.names(name) == ["file"]
    assert (await fetch(bob, name, "file")).body == b"x"
    for method, call, body in (
        ("POST", "mkdir", {"path": "x"}),
        ("POST", "rename-file", {"target_path": "file", "new_name": "x"}),
        ("POST", "move-file", {"src": "file", "dst": "x"}),
        ("DELETE", "delete-files", {"files": ["file"]}),
        ("POST", "request-upload", {"path": "x", "size": 1}),
    ):
        no_folder(await bob.ask(method, f"/folders/{name}/{call}", **body))
    answer = await bob.ask("DELETE", f"/folders/{name}")
    check_problem(answer, 400, "vfolder-operation-failed")
    assert await ann.names(name) == ["file"]


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


# --- sharing ------------------------------------------------------------------------------------


async def share(owner: User, other: User, name: str, permission: str) -> None:
    body = {"emails": [other.email], "perm": permission}
    await owner.ok("POST", f"/folders/{name}/invite", 201, **body)
    found = (await other.ok("GET", "/folders/invitations/list"))["invitations"]
    mine = next(made for made in found if made["vfolder_name"] == name)
    assert await other.ok("POST", "/folders/invitations/accept", inv_id=mine["id"]) == {}


async def test_an_invitation_is_sent_changed_and_accepted(ann: User, bob: User) -> None:
    name = await ann.make()
    body = {"user_ids": [bob.email.upper(), "nobody@example.org"], "perm": "ro"}
    answer = await ann.ok("POST", f"/folders/{name}/invite", 201, **body)
    assert answer == {"invited_ids": [bob.email]}
    no_folder(await bob.ask("GET", f"/folders/{name}"))
    again = await ann.ask("POST", f"/folders/{name}/invite", emails=[bob.email], perm="rw")
    check_problem(again, 400, "vfolder-already-exists")

    (made,) = (await bob.ok("GET", "/folders/invitations/list"))["invitations"]
    assert (made["inviter"], made["invitee"], made["perm"]) == (ann.email, bob.email, "ro")
    assert (made["state"], made["vfolder_name"]) == ("pending", name)
    for call in ("list-sent", "list_sent"):
        assert (await ann.ok("GET", f"/folders/invitations/{call}"))["invitations"] == [made]
    assert (await ann.ok("GET", "/folders/invitations/list"))["invitations"] == []

    update = f"/folders/invitations/update/{made['id']}"
    check_problem(
        await bob.ask("POST", update, perm="wd"),
        404,
        "object-not-found",
        thing="vfolder invitation",
    )
    await ann.ok("POST", update, perm="rw")
    await bob.ok("POST", "/folders/invitations/accept", inv_id=made["id"])
    await bob.put(name, "from-bob", b"x")
    assert await ann.names(name) == ["from-bob"]
    (seen,) = await bob.ok("GET", "/folders")
    assert (seen["is_owner"], seen["permission"]) == (False, "rw")


async def test_invitations_that_cannot_be(ann: User, bob: User) -> None:
    name = await ann.make()
    for emails in (["nobody@example.org"], [ann.email]):
        answer = await ann.ask("POST", f"/folders/{name}/invite", emails=emails, perm="ro")
        check_problem(answer, 404, "object-not-found", thing="vfolder invitation")
    answer = await ann.ask("POST", f"/folders/{name}/invite", emails=[], perm="ro")
    check_problem(answer, 400, "invalid-api-params")
    for method, call in (("POST", "accept"), ("DELETE", "delete")):
        for inv_id in (str(uuid.uuid4()), "x"):
            answer = await ann.ask(method, f"/folders/invitations/{call}", inv_id=inv_id)
            check_problem(answer, 404, "object-not-found", thing="vfolder invitation")
    await bob.ok("POST", "/folders", 201, name=name)
    await ann.ok("POST", f"/folders/{name}/invite", 201, emails=[bob.email], perm="ro")
    (made,) = (await bob.ok("GET", "/folders/invitations/list"))["invitations"]
    answer = await bob.ask("POST", "/folders/invitations/accept", inv_id=made["id"])
    check_problem(answer, 400, "vfolder-already-exists")
    answer = await ann.ask("POST", "/folders/invitations/accept", inv_id=made["id"])
    check_problem(answer, 404, "object-not-found", thing="vfolder invitation")
    await bob.ok("DELETE", "/folders/invitations/delete", inv_id=made["id"])
    assert (await ann.ok("GET", "/folders/invitations/list-sent"))["invitations"] == []


async def test_a_guest_leaves_and_an_owner_does_not(ann: User, bob: User) -> None:
    name = await ann.make()
    await share(ann, bob, name, "ro")
    check_problem(await ann.ask("POST", f"/folders/{name}/leave"), 400, "vfolder-operation-failed")
    await bob.ok("POST", f"/folders/{name}/leave", shared_user_uuid=None)
    no_folder(await bob.ask("GET", f"/folders/{name}"))
    await ann.ok("GET", f"/folders/{name}")


async def test_shares_are_listed_and_changed(ann: User, bob: User) -> None:
    name = await ann.make()
    await share(ann, bob, name, "ro")
    folder_id = (await ann.ok("GET", f"/folders/{name}"))["id"]
    (one,) = (await ann.ok("GET", "/folders/_/shared", vfolder_id=folder_id))["shared"]
    assert (one["vfolder_name"], one["owner"], one["perm"]) == (name, ann.email, "ro")
    assert one["shared_to"]["email"] == bob.email
    user = one["shared_to"]["uuid"]
    no_folder(await bob.ask("GET", "/folders/_/shared", vfolder_id=folder_id))
    await ann.ok("POST", "/folders/_/shared", vfolder=folder_id, user=user, perm="wd")
    assert (await ann.ok("GET", "/folders/_/shared"))["shared"][0]["perm"] == "wd"
    await bob.ok("DELETE", f"/folders/{name}", 204)
    no_folder(await ann.ask("GET", f"/folders/{name}"))


async def test_group_folders_are_everybodys_as_far_as_they_say(
    ann: User, bob: User, admin: User
) -> None:
    name = f"g-{uuid.uuid4().hex[:10]}"
    made = await admin.ok("POST", "/folders", 201, name=name, group="default", permission="ro")
    assert (made["ownership_type"], made["user"]) == ("group", None)
    await admin.put(name, "file", b"for all")
    try:
        assert (await fetch(ann, name, "file")).body == b"for all"
        no_folder(await ann.ask("POST", f"/folders/{name}/mkdir", path="x"))
        body = {"permission": "rw", "emails": [ann.email]}
        answer = await ann.ask("POST", f"/folders/{name}/share", **body)
        check_problem(answer, 403, "insufficient-privilege")
        answer = await admin.ok("POST", f"/folders/{name}/share", 201, **body)
        assert answer == {"shared_emails": [ann.email]}
        await ann.ok("POST", f"/folders/{name}/mkdir", 201, path="x")
        no_folder(await bob.ask("POST", f"/folders/{name}/mkdir", path="y"))
        answer = await admin.ok("DELETE", f"/folders/{name}/unshare", emails=[ann.email])
        assert answer == {"unshared_emails": [ann.email]}
        no_folder(await ann.ask("POST", f"/folders/{name}/mkdir", path="z"))
        answer = await ann.ask("POST", f"/folders/{name}/leave")
        check_problem(answer, 400, "vfolder-operation-failed")
        answer = await ann.ask("DELETE", f"/folders/{name}")
        check_problem(answer, 400, "vfolder-operation-failed")
    finally:
        await admin.ok("DELETE", f"/folders/{name}", 204)


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


async def test_a_killed_server_leaves_nothing_half_made_or_half_deleted(tmp_path: Path) -> None:
    """Killed in the midst of makings and deletions, again and again: records and folders agree."""
    state = tmp_path / "s"
    token = ""
    for round_number in range(4):
        with running_server(state) as server:
            token = token or server.token
            folders = state / "folders"
            async with calls(server, token) as api:
                user = User(api, "")
                listed = {item["id"] for item in await user.ok("GET", "/folders")}
                on_disk = {path.name for path in folders.iterdir()} - {"making", "trash"}
                assert (on_disk - listed, listed - on_disk) == (set(), set())
                for folder_id in listed:
                    assert await user.names(folder_id) in ([], ["file"])
                    await user.ok("DELETE", f"/folders/{folder_id}", 204)

                async def busy(number: int, user: User = user, part: int = round_number) -> None:
                    name = f"busy-{part}-{number}"
                    while True:
                        await user.ask("POST", "/folders", name=name)
                        await user.ask(
                            "POST", f"/folders/{name}/request-upload", path="file", size=0
                        )
                        await user.ask("POST", f"/folders/{name}/clone", target_name=f"{name}-c")
                        await user.ask("DELETE", f"/folders/{name}")
                        await user.ask("DELETE", f"/folders/{name}-c")

                work = [asyncio.ensure_future(busy(number)) for number in range(4)]
                await asyncio.wait(work, timeout=0.3 + 0.1 * round_number)
                server.process.kill()
                server.process.wait()
                await asyncio.wait(work)
                for task in work:
                    task.exception()
    with running_server(state):
        pass  # ends what the last death left


# --- GraphQL ------------------------------------------------------------------------------------


async def test_lists_are_queried(ann: User, bob: User, admin: User) -> None:
    name, second = await ann.make(), await ann.make()
    await share(ann, bob, name, "ro")
    query = "query { %s(limit: 10, offset: 0) { items { name permission } total_count } }"
    for root, caller, names in (
        ("vfolder_own_list", ann, {name, second}),
        ("vfolder_own_list", bob, set()),
        ("vfolder_invited_list", bob, {name}),
        ("vfolder_list", bob, {name}),
    ):
        answer = await caller.ok("POST", "/admin/gql", query=query % root, variables={})
        items = answer["data"][root]["items"]
        assert {item["name"] for item in items if not item["name"].startswith("g")} == names
        assert "errors" not in answer

    keys = "query($key: String) { keypair(access_key: $key) { access_key is_admin user_id } }"
    mine = (await ann.ok("POST", "/admin/gql", query=keys))["data"]["keypair"]
    assert (mine["user_id"], mine["is_admin"]) == (ann.email, False)
    body = {"query": keys, "variables": {"key": mine["access_key"]}}
    assert (await bob.ok("POST", "/admin/gql", **body))["errors"][0]["path"] == ["keypair"]
    assert (await admin.ok("POST", "/admin/gql", **body))["data"]["keypair"] == mine
    bare = await ann.ok("POST", "/admin/graphql", query=keys)
    assert bare["keypair"] == mine
    wrong = await ann.ask("POST", "/admin/graphql", query="{ nothing }")
    document = check_problem(wrong, 400, "graphql-error")
    assert document["data"][0]["message"]
