"""Virtual folders in sessions: what was asked for is there, lasts, and is shared (spec 10.7)."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.clients import client as client_of
from tests.e2e.conftest import NewSession, Server, retort, run_to_end, running_server, upload
from tests.e2e.plain_http import ask
from tests.e2e.running import sh, wait_for

pytestmark = pytest.mark.slow

NewFolder = Callable[..., Awaitable[str]]


@pytest.fixture
async def new_folder(api: aiohttp.ClientSession) -> AsyncIterator[NewFolder]:
    """Make folders; they end with the test."""
    names: list[str] = []

    async def make(name: str = "", **body: Any) -> str:
        name = name or f"f-{uuid.uuid4().hex[:10]}"
        answer = await ask(api, "POST", "/folders", json={"name": name, **body})
        assert answer.status == 201, answer.body
        names.append(name)
        return name

    yield make
    for name in names:
        await ask(api, "DELETE", f"/folders/{name}")


async def refusal(api: aiohttp.ClientSession, **config: Any) -> tuple[int, str]:
    answer = await ask(api, "POST", "/session", json={"image": "bash", "config": config})
    assert answer.status >= 400, answer.body
    return answer.status, answer.json["type"].rpartition("/")[2]


async def listed(api: aiohttp.ClientSession, folder: str, path: str = ".") -> list[str]:
    answer = await ask(api, "GET", f"/folders/{folder}/files", json={"path": path})
    return [item["name"] for item in answer.json["items"]]


async def test_what_one_session_makes_is_there_for_the_next_one_and_for_the_api(
    api: aiohttp.ClientSession, new_folder: NewFolder, new_session: NewSession
) -> None:
    folder = await new_folder()
    one = await new_session("bash", config={"mounts": [folder]})
    done = await sh(
        api, one, f"umask 077; mkdir {folder}/d; echo hello >{folder}/d/f; stat -c %U ."
    )
    assert done == (0, "work\n")
    other = await new_session("bash", config={"mounts": [f"{folder}:in/side"]})
    assert await sh(api, other, "cat in/side/d/f; echo 2 >>in/side/d/f") == (0, "hello\n")
    await ask(api, "DELETE", f"/session/{one}")
    assert await listed(api, folder, "d") == ["f"]
    gone = await ask(api, "DELETE", f"/folders/{folder}/delete-files",
                     json={"files": ["d"], "recursive": True})  # fmt: skip
    assert gone.status == 200, gone.body
    assert await sh(api, other, "ls in/side") == (0, "")


async def test_places_come_from_the_map_and_parents_are_made(
    api: aiohttp.ClientSession, new_folder: NewFolder, new_session: NewSession
) -> None:
    one, two = await new_folder(), await new_folder()
    answer = await ask(api, "GET", f"/folders/{two}")
    config = {
        "mounts": [one, answer.json["id"]],
        "mount_map": {one: "/data/sets/one", answer.json["id"]: "a/b"},
    }
    name = await new_session("bash", config=config)
    assert await sh(api, name, "touch /data/sets/one/x a/b/y") == (0, "")
    assert (await listed(api, one), await listed(api, two)) == (["x"], ["y"])
    code, text = await sh(api, name, "echo of the session >a/own; touch /data/x || echo refused")
    assert (code, text) == (0, "refused\n")


async def test_a_folder_in_a_folder_is_mounted_alone_and_only_if_it_is_one(
    api: aiohttp.ClientSession, new_folder: NewFolder, new_session: NewSession
) -> None:
    folder = await new_folder()
    first = await new_session("bash", config={"mounts": [folder]})
    script = f"cd {folder}; mkdir -p a/b; touch a/b/in out; ln -s / link; ln -s a alias"
    assert await sh(api, first, script) == (0, "")
    name = await new_session("bash", config={"mounts": [f"{folder}/a/b:x"]})
    assert await sh(api, name, "ls -A x; ls x/..") == (0, "in\nx\n")
    for below in ("out", "link", "link/etc", "alias", "alias/b", "no", "..", "a/../a"):
        refused = await refusal(api, mounts=[f"{folder}/{below}"])
        assert refused == (400, "invalid-api-params"), below


async def test_a_read_only_folder_is_read_only_for_every_program(
    api: aiohttp.ClientSession, new_folder: NewFolder, new_session: NewSession
) -> None:
    folder = await new_folder(permission="ro")
    name = await new_session("bash", config={"mounts": [folder]})
    code, text = await sh(api, name, f"touch {folder}/x; chmod 777 {folder}; mkdir {folder}/d")
    assert (code, text) == (1, "")
    assert await listed(api, folder) == []


async def test_mounts_that_cannot_be_are_refused_and_leave_no_session(
    api: aiohttp.ClientSession, new_folder: NewFolder
) -> None:
    one, two = await new_folder(), await new_folder()
    bad = (400, "invalid-api-params")
    before = await ask(api, "GET", "/session/_/match?id=session-")
    assert await refusal(api, mounts=["no-such-folder"]) == (404, "object-not-found")
    assert await refusal(api, mounts=[one, two], mount_map={one: "x", two: "x"}) == bad
    assert await refusal(api, mounts=[one], mount_map={one: ""}) == bad
    assert await refusal(api, mounts=[one], mount_map={one: "/etc/x"}) == bad
    assert await refusal(api, mounts=[one], mount_map={one: "/home/work"}) == bad
    assert await refusal(api, mounts=[one, two], mount_map={one: two, two: "x"}) == bad
    assert await refusal(api, mounts=[one, f"{one}/sub:x"]) == bad
    assert await refusal(api, mounts=[one] * 6) == bad
    after = await ask(api, "GET", "/session/_/match?id=session-")
    assert before.json == after.json


async def test_five_folders_can_be_mounted_and_not_six(
    api: aiohttp.ClientSession, new_folder: NewFolder, new_session: NewSession
) -> None:
    names = [await new_folder() for _ in range(6)]
    name = await new_session("bash", config={"mounts": names[:5]})
    assert (await sh(api, name, "ls"))[1].split() == sorted(names[:5])
    assert await refusal(api, mounts=names) == (400, "invalid-api-params")


async def test_dot_folders_are_there_without_being_asked_for(
    api: aiohttp.ClientSession, new_folder: NewFolder, new_session: NewSession
) -> None:
    folder = await new_folder(".cache")
    name = await new_session("bash")
    assert await sh(api, name, "echo x >.cache/f && ls -A .cache") == (0, "f\n")
    assert await listed(api, folder) == ["f"]


async def test_uploads_into_a_mounted_folder_are_refused_also_through_a_link(
    api: aiohttp.ClientSession, new_folder: NewFolder, new_session: NewSession
) -> None:
    folder = await new_folder()
    name = await new_session("bash", config={"mounts": [folder]})
    assert await sh(api, name, f"mkdir {folder}/d; ln -s {folder} link; ln -s {folder}/d deep") == (
        0, "",
    )  # fmt: skip
    for path in (f"{folder}/x", f"{folder}/d/x", "link/x", "deep/x", folder, "./link/d/new/x"):
        form = aiohttp.FormData()
        form.add_field("src", b"fine", filename="fine", content_type="application/octet-stream")
        form.add_field("src", b"x", filename=path, content_type="application/octet-stream")
        async with api.post(f"/session/{name}/upload", data=form) as answer:
            assert answer.status == 400, path
    assert (await listed(api, folder), await listed(api, folder, "d")) == (["d"], [])
    assert await sh(api, name, "ls") == (0, f"deep\n{folder}\nlink\n")
    form = aiohttp.FormData()  # control: beside the mount it works
    form.add_field("src", b"x", filename="x", content_type="application/octet-stream")
    async with api.post(f"/session/{name}/upload", data=form) as answer:
        assert answer.status == 204


async def test_a_folder_can_be_deleted_while_it_is_mounted_and_its_session_goes_on(
    api: aiohttp.ClientSession, new_folder: NewFolder, new_session: NewSession, server: Server
) -> None:
    folder = await new_folder()
    name = await new_session("bash", config={"mounts": [folder]})
    await sh(api, name, f"echo x >{folder}/f")
    assert (await ask(api, "DELETE", f"/folders/{folder}")).status == 204
    trash = server.state / "folders" / "trash"

    async def is_empty() -> bool:
        return not list(trash.iterdir())

    await wait_for(is_empty)
    assert await sh(api, name, f"ls {folder}; echo y >own; cat own") == (0, "y\n")
    assert (await sh(api, name, f"echo x >{folder}/new"))[0] != 0
    assert await refusal(api, mounts=[folder]) == (404, "object-not-found")


async def test_a_guest_mounts_by_the_permission_of_the_invitation(
    api: aiohttp.ClientSession, new_folder: NewFolder, new_session: NewSession, server: Server
) -> None:
    folder = await new_folder()
    await sh(api, await new_session("bash", config={"mounts": [folder]}), f"echo hi >{folder}/f")
    email = f"{uuid.uuid4().hex[:12]}@example.org"
    made = json.loads(
        retort("keys", "create", "--state", str(server.state), "--json", "--email", email)
    )
    headers = {"Authorization": f"Bearer {made['token']}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as guest:

        async def is_known() -> bool:
            return await refusal(guest, mounts=[folder]) == (404, "object-not-found")

        await wait_for(is_known)
        invited = await ask(
            api, "POST", f"/folders/{folder}/invite", json={"perm": "ro", "emails": [email]}
        )
        assert invited.status == 201, invited.body
        (offer,) = (await ask(guest, "GET", "/folders/invitations/list")).json["invitations"]
        accepted = await ask(
            guest, "POST", "/folders/invitations/accept", json={"inv_id": offer["id"]}
        )
        assert accepted.status == 200
        created = await ask(
            guest, "POST", "/session", json={"image": "bash", "config": {"mounts": [folder]}}
        )
        assert created.status == 201, created.body
        name = created.json["sessionName"]
        assert await sh(guest, name, f"cat {folder}/f; echo x >{folder}/g") == (1, "hi\n")
        await ask(guest, "DELETE", f"/session/{name}")


async def test_a_killed_server_leaves_no_mount_and_no_lost_file(tmp_path: Path) -> None:
    with running_server(tmp_path / "state") as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        async with aiohttp.ClientSession(server.url, headers=headers) as api:
            assert (await ask(api, "POST", "/folders", json={"name": "kept"})).status == 201
            body = {"name": "doomed", "image": "bash", "config": {"mounts": ["kept"]}}
            assert (await ask(api, "POST", "/session", json=body)).status == 201
            assert await sh(api, "doomed", "echo x >kept/f") == (0, "")
        server.process.kill()
        server.process.wait()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()  # noqa: ASYNC240
    with running_server(tmp_path / "state") as server:  # with another first key
        async with aiohttp.ClientSession(server.url, headers=headers) as api:
            assert await listed(api, "kept") == ["f"]
            body = {"name": "next-one", "image": "bash", "config": {"mounts": ["kept"]}}
            assert (await ask(api, "POST", "/session", json=body)).status == 201
            assert await sh(api, "next-one", "cat kept/f; rm kept/f") == (0, "x\n")


async def test_ten_sessions_build_with_a_library_of_one_folder(
    api: aiohttp.ClientSession, new_folder: NewFolder, new_session: NewSession
) -> None:
    """The use that docs/folders.md tells, by plain calls."""
    folder = await new_folder(permission="rw")
    builder = await new_session("gcc", config={"mounts": [f"{folder}:lib"]})
    build = (
        "printf 'int twice(int n) { return 2 * n; }' >t.c && gcc -O2 -c t.c && "
        "mkdir -p lib/include lib/lib && ar rcs lib/lib/libtwice.a t.o && "
        "echo 'int twice(int);' >lib/include/twice.h"
    )
    assert (await sh(api, builder, build))[0] == 0
    await ask(api, "DELETE", f"/session/{builder}")
    changed = await ask(api, "POST", f"/folders/{folder}/update-options", json={"permission": "ro"})
    assert changed.status == 201, changed.body

    async def use(number: int) -> str:
        name = await new_session("gcc", config={"mounts": [f"{folder}:lib"]})
        await upload(
            api,
            name,
            m__c="#include <stdio.h>\n#include <twice.h>\n"
            f'int main(void) {{ printf("%d\\n", twice({number})); }}',
        )
        answers = await run_to_end(
            api,
            name,
            build="gcc -Ilib/include m.c -Llib/lib -ltwice -o m",
            exec="./m; touch lib/x 2>&1 | grep -o 'Read-only'",
        )
        await ask(api, "DELETE", f"/session/{name}")
        return "".join(t for a in answers for k, t in a["console"] if k == "stdout")

    told = await asyncio.gather(*(use(number) for number in range(10)))
    assert told == [f"{2 * number}\nRead-only\n" for number in range(10)]


def test_the_public_client_mounts_folders_by_name_and_by_place(
    server: Server, tmp_path: Path
) -> None:
    client = client_of("client", server, tmp_path / "home")
    name = f"lib-{uuid.uuid4().hex[:8]}"
    client.ok("vfolder", "create", name, "local:volume1")
    client.ok("run", "--rm", "-q", "-v", name, "bash", "-c", f"echo made >{name}/f")
    for option in (f"{name}:lib", f"{name}=lib"):
        done = client.ok("run", "--rm", "-q", "-v", option, "bash", "-c", "cat lib/f")
        assert "made" in done.stdout
    refused = client.command("run", "--rm", "-v", "no-such-folder", "bash", "-c", "true")
    assert "No such virtual folder" in refused.stdout + refused.stderr
