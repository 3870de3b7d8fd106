"""How virtual folders come, change and go over HTTP (spec 10.2)."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server, running_server
from tests.e2e.plain_http import ask, check_problem
from tests.e2e.vfolder_user import HOST, User, calls, fetch, no_folder, retort_with, share

pytestmark = pytest.mark.slow


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


CREATED = (  # spec 10.2, as are the others
    "id name quota_scope_id host usage_mode permission max_size creator ownership_type user group "
    "cloneable status"
)
LISTED = (
    "name id quota_scope_id host status usage_mode created_at is_owner permission user group "
    "creator user_email group_name ownership_type type unmanaged_path cloneable "
    "max_files max_size cur_size"
)
TOLD = (
    "name id host quota_scope_id status numFiles num_files used_bytes created created_at last_used "
    "user group type is_owner permission usage_mode cloneable max_size cur_size"
)


async def test_answers_have_every_field_of_the_specification(ann: User, bob: User) -> None:
    name = f"f-{uuid.uuid4().hex[:10]}"
    made = await ann.ok("POST", "/folders", 201, name=name, cloneable=True)
    assert set(CREATED.split()) == made.keys()
    assert made["max_size"] is None
    (listed,) = await ann.ok("GET", "/folders")
    assert set(LISTED.split()) <= listed.keys()
    assert set(TOLD.split()) <= (await ann.ok("GET", f"/folders/{name}")).keys()
    copy = await ann.ok("POST", f"/folders/{name}/clone", 201, target_name=f"{name}-c")
    assert {*CREATED.split(), "bgtask_id"} == copy.keys()

    await ann.put(name, "file", b"x")
    found = await ann.ok("GET", f"/folders/{name}/files", path=".")
    assert {"name", "type", "size", "mode", "created", "modified"} <= found["items"][0].keys()
    (entry,) = json.loads(found["files"])
    assert {"filename", "size", "mode", "ctime", "atime", "mtime"} <= entry.keys()

    await ann.ok("POST", f"/folders/{name}/invite", 201, emails=[bob.email], perm="ro")
    (sent,) = (await ann.ok("GET", "/folders/invitations/list-sent"))["invitations"]
    fields = "id inviter invitee perm state created_at modified_at vfolder_id vfolder_name"
    assert set(fields.split()) == sent.keys()
    await bob.ok("POST", "/folders/invitations/accept", inv_id=sent["id"])
    (shared,) = (await ann.ok("GET", "/folders/_/shared"))["shared"]
    fields = "vfolder_id vfolder_name status owner type shared_to perm"
    assert set(fields.split()) == shared.keys()
    assert shared["shared_to"].keys() == {"uuid", "email"}


async def test_only_its_owner_changes_a_folder(ann: User, bob: User) -> None:
    name = await ann.make()
    await share(ann, bob, name, "wd")
    for call, body in (("rename", {"new_name": "x"}), ("update-options", {"permission": "ro"})):
        answer = await bob.ask("POST", f"/folders/{name}/{call}", **body)
        check_problem(answer, 400, "vfolder-operation-failed")
    answer = await ann.ask("POST", f"/folders/{name}/update-options", permission="all")
    check_problem(answer, 400, "invalid-api-params")
    no_folder(await ann.ask("POST", "/folders/none/update-options", permission="ro"))
    await ann.ok("POST", f"/folders/{name}/update-options", 201, cloneable=True, permission=None)
    told = await ann.ok("GET", f"/folders/{name}")
    assert (told["cloneable"], told["permission"]) == (True, "rw")


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


LARGE = 30_000  # files whose copy takes a second: one of 0.2 s has no task


async def test_a_large_clone_tells_how_far_it_is(ann: User, bob: User, server: Server) -> None:
    name = await ann.make()
    folder_id = (await ann.ok("GET", f"/folders/{name}"))["id"]
    data = server.state / "folders" / folder_id / "data"
    for number in range(LARGE):
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
    assert len(await ann.names("large-copy")) == LARGE
    unknown = await ann.ask("GET", f"/events/background-task?task_id={uuid.uuid4()}")
    check_problem(unknown, 404, "object-not-found", thing="background task")


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
