"""`owner_access_key`: an administrator acts for another owner, nobody else does (spec 1)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import NewSession, Server, retort

pytestmark = pytest.mark.slow


@pytest.fixture
async def admin(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    key = json.loads(retort("keys", "create", "--admin", "--state", str(server.state), "--json"))
    headers = {"Authorization": f"Bearer {key['token']}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as session:
        yield session


@pytest.fixture
def other(server: Server) -> dict[str, str]:
    return server.new_key()


async def status(call: Any) -> tuple[int, dict[str, Any]]:
    async with call as answer:
        return answer.status, await answer.json() if answer.status != 204 else {}


async def test_an_administrator_reaches_the_session_of_a_named_owner(
    server: Server, admin: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("bash")
    assert (await status(admin.get(f"/session/{name}")))[0] == 404
    by_query = admin.get(f"/session/{name}", params={"owner_access_key": server.access_key})
    assert (await status(by_query))[0] == 200
    body = {"mode": "batch", "options": {}, "owner_access_key": server.access_key}
    code, answer = await status(admin.post(f"/session/{name}", json=body))
    assert (code, answer["result"]["status"]) == (200, "build-finished")


async def test_an_administrator_makes_a_session_for_a_named_owner(
    server: Server, api: aiohttp.ClientSession, admin: aiohttp.ClientSession
) -> None:
    body = {"name": "for-another", "image": "bash", "owner_access_key": server.access_key}
    assert (await status(admin.post("/session", json=body)))[0] == 201
    assert (await status(api.get("/session/for-another")))[0] == 200
    assert (await status(api.delete("/session/for-another")))[0] == 200


@pytest.mark.parametrize("where", ["query", "body"])
async def test_everybody_else_is_forbidden(
    api: aiohttp.ClientSession, other: dict[str, str], where: str
) -> None:
    asked = {"owner_access_key": other["accessKey"]}
    call = (
        api.get("/session/any", params=asked)
        if where == "query"
        else api.post("/session", json={"image": "bash", **asked})
    )
    code, problem = await status(call)
    assert (code, problem["type"].split("/")[-1]) == (403, "generic-forbidden")


async def test_an_unknown_owner_is_a_wrong_parameter(admin: aiohttp.ClientSession) -> None:
    call = admin.get("/session/any", params={"owner_access_key": "AKNOBODY"})
    code, problem = await status(call)
    assert (code, problem["type"].split("/")[-1]) == (400, "invalid-api-params")
    assert "owner_access_key" in problem["data"]


async def test_ones_own_key_may_be_named_by_anybody(
    server: Server, api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("bash")
    call = api.get(f"/session/{name}", params={"owner_access_key": server.access_key})
    assert (await status(call))[0] == 200


async def test_null_names_nobody(api: aiohttp.ClientSession) -> None:
    body = {"name": "null-owner", "image": "bash", "owner_access_key": None}
    assert (await status(api.post("/session", json=body)))[0] == 201
    assert (await status(api.delete("/session/null-owner")))[0] == 200
