"""The host's clock is set hours ahead and back: nothing ends, is refused or is lost for that.

What depends on the wall clock by its nature is the window of signatures, and it follows the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import ROOT, Server, printed, running_server, upload
from tests.e2e.plain_http import signed
from tests.e2e.running import create, go_on, sh, start, until, wait_for_file
from tests.e2e.vfolder_user import User, calls, fetch, patch

pytestmark = pytest.mark.slow
HOUR = 3600
JUMPS = [(0, 6 * HOUR), (0, -6 * HOUR), (0, -400 * 24 * HOUR), (6 * HOUR, 0)]  # off, then off

#: Runs before the server: its clock is off by what a file says.
SITE = """
import datetime, os, time
_real = time.time
def _offset():
    try:
        with open(os.environ["CLOCK_FILE"]) as file:
            return float(file.read() or 0)
    except OSError:
        return 0.0
time.time = lambda: _real() + _offset()
time.time_ns = lambda: int(time.time() * 1e9)
from retort.wiring import store
store.SystemClock.now = lambda self: datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clock") / "offset"


@contextlib.contextmanager
def server_on(clock: Path, state: Path) -> Iterator[Server]:
    site = clock.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE)
    with running_server(
        state,
        PYTHONPATH=f"{site}:{ROOT / 'src'}",
        CLOCK_FILE=str(clock),
        RETORT_RUNS_WALL_S="600",
        RETORT_SESSIONS_IDLE_S="900",
        RETORT_SESSIONS_LIFE_S="1800",
        RETORT_RUNS_FORGET_S="900",
        RETORT_KEYS_RATE_LIMIT="1000",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def server(clock: Path) -> Iterator[Server]:
    with server_on(clock, clock.parent / "state") as running:
        yield running


@pytest.fixture
async def api(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {server.token}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as session:
        yield session


@pytest.fixture(autouse=True)
def _true_time_afterwards(clock: Path) -> Iterator[None]:
    yield
    clock.write_text("0")


def jump(clock: Path, offset: int) -> None:
    fresh = clock.with_suffix(".new")
    fresh.write_text(str(offset))
    fresh.rename(clock)


async def test_the_server_s_clock_does_jump(api: aiohttp.ClientSession, clock: Path) -> None:
    """A control: a session made after the jump is as many hours younger or older."""
    made = []
    for offset in (6 * HOUR, -6 * HOUR):
        jump(clock, offset)
        name = await create(api)
        async with api.get(f"/session/{name}") as answer:
            made.append((await answer.json())["creationTime"])
    assert made[0][:13] > made[1][:13]


@pytest.mark.parametrize(("before", "after"), JUMPS)
async def test_sessions_runs_and_their_ends_outlive_a_jump(
    api: aiohttp.ClientSession, clock: Path, before: int, after: int
) -> None:
    jump(clock, before)
    name = await create(api)
    command = "mkdir .output; touch begun; until [ -e go ]; do sleep 0.02; done; echo out > .output/f; exit 5"  # noqa: E501
    answers = [await start(api, name, "r", exec=command)]
    await wait_for_file(api, name, "begun")
    ended = await start(api, name, "waits", exec="echo later")
    jump(clock, after)
    await asyncio.sleep(2.5)  # longer than the reaper needs to look
    async with api.get(f"/session/{name}") as answer:
        assert answer.status == 200
        assert (await answer.json())["age"] >= 0
    await upload(api, name, go="")
    answers += await until(api, name, await go_on(api, name, "r"), "finished")
    assert (answers[-1]["exitCode"], answers[-1]["outcome"]) == (5, "exited")
    assert answers[-1]["usage"]["wallUs"] < 120e6
    later = await until(api, name, await go_on(api, name, ended["runId"]), "finished")
    assert printed(later) == "later\n"
    assert [file["name"] for file in answers[-1]["files"]] == ["f"]
    assert await sh(api, name, "echo after") == (0, "after\n")


@pytest.mark.parametrize(("before", "after"), JUMPS)
async def test_a_request_is_repeated_by_its_token_and_counted_over_a_jump(
    api: aiohttp.ClientSession, clock: Path, before: int, after: int
) -> None:
    jump(clock, before)
    name = await create(api)
    token = {"X-BackendAI-Client-Token": uuid.uuid4().hex}
    body = {"mode": "batch", "code": "", "options": {"exec": "echo x >> made; echo $RANDOM"}}
    first = await _told(api, name, body, token)
    jump(clock, after)
    again = await _told(api, name, body, token)
    assert again[0] == first[0]
    assert first[1] - 3 <= again[1] < first[1]  # of the window; it neither ends nor fills


@pytest.mark.parametrize(("before", "after"), [(0, 60 * 24 * HOUR), (0, -400 * 24 * HOUR)])
async def test_an_upload_goes_on_over_a_jump_and_a_new_server(
    clock: Path, tmp_path: Path, before: int, after: int
) -> None:
    """Days later by the clock its token is good, and the sweep of the start leaves it alone."""
    jump(clock, before)
    state = tmp_path / "s"
    with server_on(clock, state) as first:
        async with calls(first, first.token) as api:
            user = User(api, "")
            name = await user.make()
            body = {"path": "file", "size": 6}
            given = await user.ok("POST", f"/folders/{name}/request-upload", **body)
            assert (await patch(api, given, 0, b"abc")).status == 204
    jump(clock, after)
    with server_on(clock, state) as server:
        async with calls(server, first.token) as api:
            user = User(api, "")
            await asyncio.sleep(0.5)  # longer than the sweep takes to begin
            assert (await patch(api, given, 3, b"def")).status == 204
            assert (await fetch(user, name, "file")).body == b"abcdef"


async def _told(
    api: aiohttp.ClientSession, name: str, body: dict[str, Any], token: dict[str, str]
) -> tuple[Any, int]:
    async with api.post(f"/session/{name}", json=body, headers=token) as answer:
        assert answer.status == 200
        return await answer.json(), int(answer.headers["X-RateLimit-Remaining"])


async def test_signatures_follow_the_clock_and_a_clock_set_right_accepts_them_again(
    server: Server, clock: Path
) -> None:
    """The protocol has it so (spec 3.3); a bearer token asks no clock."""
    now = dt.datetime.now(dt.UTC)

    async def status(when: dt.datetime) -> int:
        headers = signed(server, "GET", "/session/none", when=when)
        async with (
            aiohttp.ClientSession(server.url) as anyone,
            anyone.get("/session/none", headers=headers) as answer,
        ):
            return answer.status

    for offset in (6 * HOUR, -6 * HOUR):
        jump(clock, offset)
        assert await status(now) == 400
        assert await status(now + dt.timedelta(seconds=offset)) == 404
        jump(clock, 0)
        assert await status(now) == 404
