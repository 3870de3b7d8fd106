"""GraphQL: what the public client's commands list (spec 8)."""

from __future__ import annotations

from collections.abc import AsyncIterator

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
