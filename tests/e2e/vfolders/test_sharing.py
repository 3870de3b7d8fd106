"""Virtual folders that several people have (spec 10.6)."""

from __future__ import annotations

import uuid

import pytest

from tests.e2e.plain_http import check_problem
from tests.e2e.vfolder_user import User, fetch, no_folder, share

pytestmark = pytest.mark.slow


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
