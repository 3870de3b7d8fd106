"""A user of virtual folders over HTTP: one key and its calls."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tests.e2e.conftest import Server, environment, retort
from tests.e2e.plain_http import Answer, ask, check_problem

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


@contextlib.asynccontextmanager
async def user_of(server: Server, *, admin: bool = False) -> AsyncIterator[User]:
    """Make a key, and give its user until the block ends."""
    email, token = new_user(server, admin=admin)
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


async def share(owner: User, other: User, name: str, permission: str) -> None:
    body = {"emails": [other.email], "perm": permission}
    await owner.ok("POST", f"/folders/{name}/invite", 201, **body)
    found = (await other.ok("GET", "/folders/invitations/list"))["invitations"]
    mine = next(made for made in found if made["vfolder_name"] == name)
    assert await other.ok("POST", "/folders/invitations/accept", inv_id=mine["id"]) == {}


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
