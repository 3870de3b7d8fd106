"""GraphQL: what the public client's commands list (spec 8)."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.e2e.conftest import Server
from tests.e2e.plain_http import check_problem
from tests.e2e.vfolder_user import User, share, user_of

pytestmark = pytest.mark.slow


@pytest.fixture
async def ann(server: Server) -> AsyncIterator[User]:
    async with user_of(server) as user:
        yield user


@pytest.fixture
async def bob(server: Server) -> AsyncIterator[User]:
    async with user_of(server) as user:
        yield user


@pytest.fixture
async def admin(server: Server) -> AsyncIterator[User]:
    async with user_of(server, admin=True) as user:
        yield user


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


INFO = (  # as the public client's `session info` asks
    "query($id: UUID!) { compute_session(id: $id) { name id main_kernel_id image tag created_at "
    "terminated_at status status_info status_data occupying_slots idle_checks mounts containers { "
    "id cluster_role cluster_idx cluster_hostname session_id image registry status status_info "
    "status_data status_changed agent container_id resource_opts occupied_slots preopen_ports "
    "live_stat last_stat id } dependencies { name id } } }"
)
LIST = (
    "query($limit: Int!, $offset: Int!, $ak: String, $status: String, $filter: String, "
    "$order: String) { compute_session_list(limit: $limit, offset: $offset, access_key: $ak, "
    "status: $status, filter: $filter, order: $order) "
    "{ items { name status mounts result } total_count } }"
)


async def listed(user: User, **asked: Any) -> dict[str, Any]:
    asked = {"limit": 10, "offset": 0} | asked
    answer = await user.ok("POST", "/admin/gql", query=LIST, variables=asked)
    assert "errors" not in answer, answer
    found: dict[str, Any] = answer["data"]["compute_session_list"]
    return found


async def test_sessions_are_listed_with_their_mounts(ann: User, bob: User, admin: User) -> None:
    folder = await ann.make()
    names = [f"{word}-{uuid.uuid4().hex[:8]}" for word in ("one", "two")]
    for name, config in zip(names, ({}, {"mounts": [folder]}), strict=True):
        await ann.ok("POST", "/session", 201, name=name, image="gcc", config=config)
    await ann.ok("DELETE", f"/session/{names[0]}")

    assert await listed(ann, status="PENDING,PULLING,RUNNING") == {
        "items": [
            {"name": names[1], "status": "RUNNING", "mounts": [folder], "result": "UNDEFINED"}
        ],
        "total_count": 1,
    }
    dead = await listed(ann, status="CANCELLED,TERMINATED")
    assert [item["name"] for item in dead["items"]] == [names[0]]
    assert [item["name"] for item in (await listed(ann))["items"]] == names[::-1]
    assert (await listed(ann, limit=1, offset=1))["total_count"] == 2
    ordered = await listed(ann, order="-name", filter=f'name != "{names[0]}"')
    assert [item["name"] for item in ordered["items"]] == [names[1]]

    assert (await listed(bob))["items"] == []
    key = (await ann.ok("POST", "/admin/gql", query="{ keypair { access_key } }"))["data"]
    theirs = {"ak": key["keypair"]["access_key"]}
    assert (await listed(admin, **theirs))["total_count"] == 2
    assert names[1] in {i["name"] for i in (await listed(admin, limit=1000))["items"]}
    body = {"query": LIST, "variables": {"limit": 1, "offset": 0} | theirs}
    refused = await bob.ok("POST", "/admin/gql", **body)
    assert refused["errors"][0]["path"] == ["compute_session_list"]
    body["variables"] = {"limit": 1, "offset": 0, "status": "RUNNING,ASLEEP"}
    refused = await ann.ok("POST", "/admin/gql", **body)
    assert "ASLEEP" in refused["errors"][0]["message"]
    await ann.ok("DELETE", f"/session/{names[1]}")


async def test_a_session_is_told_of_alive_and_ended(ann: User, bob: User) -> None:
    name = f"told-{uuid.uuid4().hex[:8]}"
    made = await ann.ok("POST", "/session", 201, name=name, image="gcc", tag="t")
    body = {"query": INFO, "variables": {"id": made["sessionId"]}}

    alive = (await ann.ok("POST", "/admin/gql", **body))["data"]["compute_session"]
    assert (alive["id"], alive["name"], alive["tag"]) == (made["sessionId"], name, "t")
    assert (alive["status"], alive["terminated_at"], alive["mounts"]) == ("RUNNING", None, [])
    assert set(json.loads(alive["occupying_slots"])) <= {"cpu", "mem"}
    (container,) = alive["containers"]
    assert (container["session_id"], container["last_stat"]) == (made["sessionId"], None)
    assert "cpu_used" in json.loads(container["live_stat"])

    assert (await bob.ok("POST", "/admin/gql", **body))["data"] == {"compute_session": None}
    await ann.ok("DELETE", f"/session/{name}")
    ended = (await ann.ok("POST", "/admin/gql", **body))["data"]["compute_session"]
    assert (ended["status"], ended["status_info"]) == ("TERMINATED", "user-requested")
    assert ended["terminated_at"] > ended["created_at"]
    assert "cpu_used" in json.loads(ended["containers"][0]["last_stat"])

    body["variables"] = {"id": "no-uuid"}
    assert "id" in (await ann.ok("POST", "/admin/gql", **body))["errors"][0]["message"]
