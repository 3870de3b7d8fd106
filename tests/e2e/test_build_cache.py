"""Builds answered from the cache, over HTTP, on real sandboxes."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import NewSession, Server, printed, run_to_end, running_server, upload

Calls = aiohttp.ClientSession

MAIN = '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n'
BUILD = "date +%s%N > built; echo built; echo warned >&2; gcc -o main main.c"


async def built(api: Calls, name: str, **options: Any) -> dict[str, Any]:
    """Run a build with the cache and give the answer that ended it."""
    answers = await run_to_end(api, name, **{"build": BUILD, "cache": True} | options)
    return next(a for a in answers if a["status"] == "build-finished")


async def read(api: Calls, name: str, command: str) -> str:
    return printed(await run_to_end(api, name, exec=command))


async def test_second_build_gives_the_same_files_console_and_code(
    api: Calls, new_session: NewSession
) -> None:
    first, second = await new_session(), await new_session()
    seen = []
    for name in (first, second):
        await upload(api, name, main__c=MAIN)
        seen.append((await built(api, name), await read(api, name, "cat built; ./main")))
    (miss, files), (hit, same_files) = seen
    assert (miss["cached"], hit["cached"]) == (False, True)
    assert miss["uncacheable"] is hit["uncacheable"] is None
    assert miss["cacheKey"] == hit["cacheKey"]
    assert len(hit["cacheKey"]) == 64
    assert same_files == files  # to the nanosecond that the build wrote down
    assert files.endswith("hello\n")
    same = ("exitCode", "console", "usage", "outcome", "walls")
    assert [hit[key] for key in same] == [miss[key] for key in same]
    assert sorted(hit["console"]) == [["stderr", "warned\n"], ["stdout", "built\n"]]


async def test_build_is_not_looked_up_unless_asked(api: Calls, new_session: NewSession) -> None:
    for _ in range(2):
        name = await new_session()
        await upload(api, name, main__c=MAIN)
        answer = await built(api, name, cache=False)
        assert "cached" not in answer
        assert "cacheKey" not in answer


@pytest.mark.parametrize("change", ["content", "name", "extra", "mode", "command", "env", "limit"])
async def test_each_changed_input_misses(api: Calls, new_session: NewSession, change: str) -> None:
    mark = uuid.uuid4().hex  # a build of this test alone
    keys = []
    for is_changed in (False, True):
        changed = change if is_changed else ""
        more = {"config": {"environ": {"X": "1"}}} if changed == "env" else {}
        name = await new_session("bash", **more)
        files = {"a": mark + "!" * (changed == "content")}
        files |= {"c" if changed == "name" else "b": "same"}
        files |= {"d": ""} if changed == "extra" else {}
        await upload(api, name, **files)
        await read(api, name, "chmod 600 a" if changed == "mode" else "true")
        options: dict[str, Any] = {"build": "true" + " " * (changed == "command")}
        options |= {"limits": {"cpuSeconds": 7}} if changed == "limit" else {}
        answer = await built(api, name, **options)
        assert answer["cached"] is False
        assert answer["uncacheable"] is None
        keys.append(answer["cacheKey"])
    assert keys[0] != keys[1]


async def test_make_finds_nothing_to_do_after_a_hit(api: Calls, new_session: NewSession) -> None:
    makefile = "main: main.o\n\tcp main.o main\nmain.o: main.c\n\tcp main.c main.o; sleep 0.02\n"
    for is_hit in (False, True):
        name = await new_session()
        await upload(api, name, Makefile=makefile, main__c=MAIN)
        assert (await built(api, name, build="make"))["cached"] is is_hit
        assert "up to date" in await read(api, name, "make main.o main")
        assert "cp main.c" in await read(api, name, "touch main.c && make")


async def test_files_that_a_build_removes_are_removed_by_a_hit(
    api: Calls, new_session: NewSession
) -> None:
    build = "rm old; mkdir -p d/e && mv keep d/e/kept; chmod 500 d/e; rm -r gone; echo x >> a"
    trees = []
    for is_hit in (False, True):
        name = await new_session("bash")
        await upload(api, name, old="1", keep="2", a="3")
        await read(api, name, "mkdir gone && touch gone/file; touch -d @1700000000 gone/file *")
        answer = await built(api, name, build=build)
        assert answer["cached"] is is_hit, answer
        trees.append(await read(api, name, "find . -printf '%p %m %y %s\\n' | sort; cat a"))
    assert trees[0] == trees[1]
    assert "./d/e 500 d" in trees[0]
    assert "old" not in trees[0]


async def test_failed_build_runs_again(api: Calls, new_session: NewSession) -> None:
    for _ in range(2):
        name = await new_session("bash")
        answer = await built(api, name, build="echo no; exit 3")
        assert answer["exitCode"] == 3
        assert answer["cached"] is False
        assert "failed" in answer["uncacheable"]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        ("ln -s /etc/passwd main", "symbolic link"),
        ("ln -s ../../.. up", "symbolic link"),
        ("echo x > one; ln one two", "hard link"),
        ("mkfifo main", "FIFO"),
        ("echo x > /tmp/left", "/tmp is not empty"),
        ("echo x > /dev/shm/left", "/dev/shm is not empty"),
        ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")'", "socket"),
        ("touch s; chmod u+s s", "set-id"),
        ("chmod 700 .", "mode of /home/work"),
        ("head -c 600000 /dev/zero", "printed too much"),
        ("mkdir many; cd many; touch {1..600}", "more than 512 files"),
    ],
)
async def test_build_that_cannot_be_put_back_exactly_is_not_kept(
    api: Calls, new_session: NewSession, build: str, reason: str
) -> None:
    for _ in range(2):
        answer = await built(api, await new_session("bash"), build=build)
        assert answer["exitCode"] == 0
        assert answer["cached"] is False
        assert reason in answer["uncacheable"]


async def test_daemon_of_a_build_changes_nothing_of_what_is_kept(
    api: Calls, new_session: NewSession
) -> None:
    daemon = "(setsid bash -c 'while :; do echo evil > main; done' &)\n"
    build = daemon + "until [ -e main ]; do sleep 0.01; done; mv main x; echo good > out"
    first, second = await new_session("bash"), await new_session("bash")
    assert (await built(api, first, build=build))["cached"] is False
    left = await read(api, first, "head main out x; pgrep -c bash")
    assert (await built(api, second, build=build))["cached"] is True
    assert await read(api, second, "head main out x; pgrep -c bash") == left


async def test_build_beside_a_background_process_is_not_cached(
    api: Calls, new_session: NewSession
) -> None:
    name = await new_session("bash")
    await run_to_end(api, name, exec="sleep 60 & disown", keepBackground=True)
    answer = await built(api, name, build="echo x > out")
    assert (answer["cached"], answer["cacheKey"]) == (False, None)
    assert "background" in answer["uncacheable"]


async def test_builds_of_one_key_at_once_run_once(api: Calls, new_session: NewSession) -> None:
    names = [await new_session("bash") for _ in range(3)]
    build = "sleep 0.3; date +%s%N > out"
    answers = await asyncio.gather(*(built(api, name, build=build) for name in names))
    assert sorted(answer["cached"] for answer in answers) == [False, True, True]
    assert len({await read(api, name, "cat out") for name in names}) == 1


async def appears(api: Calls, name: str, file: str) -> None:
    """Wait until a running build has made a file."""
    async with asyncio.timeout(30):
        while True:
            async with api.get(f"/session/{name}/files") as answer:
                if file in await answer.text():
                    return


async def test_waiter_builds_when_the_builder_is_destroyed(
    api: Calls, new_session: NewSession
) -> None:
    first, second = await new_session("bash"), await new_session("bash")
    build = "touch begun; sleep 2"
    builder = asyncio.ensure_future(built(api, first, build=build))
    await appears(api, first, "begun")
    waiter = asyncio.ensure_future(built(api, second, build=build))
    async with api.delete(f"/session/{first}") as gone:
        assert gone.status == 200
    answer = await waiter
    assert (answer["cached"], answer["uncacheable"], answer["exitCode"]) == (False, None, 0)
    await asyncio.gather(builder, return_exceptions=True)


async def test_upload_during_a_build_keeps_it_out(api: Calls, new_session: NewSession) -> None:
    name = await new_session("bash")
    build = "touch begun; until [ -e go ]; do sleep 0.01; done"
    builder = asyncio.ensure_future(built(api, name, build=build))
    await appears(api, name, "begun")
    await upload(api, name, go="now")
    assert "uploaded meanwhile" in (await builder)["uncacheable"]


@pytest.fixture
async def other(server: Server) -> AsyncIterator[Calls]:
    key = server.new_key()
    headers = {"Authorization": f"Bearer {key['token']}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as session:
        for _ in range(100):  # the running server hears of a new key within seconds
            async with session.get("/session/none") as answer:
                if answer.status != 401:
                    break
            await asyncio.sleep(0.1)
        yield session


async def make_session(api: Calls) -> str:
    name = f"cache-{uuid.uuid4().hex[:12]}"
    async with api.post("/session", json={"name": name, "image": "bash"}) as answer:
        assert answer.status == 201
    return name


async def test_build_of_one_owner_never_serves_another(
    api: Calls, other: Calls, new_session: NewSession
) -> None:
    build = "echo secret of one owner > out"
    mine = await built(api, await new_session("bash"), build=build)
    name = await make_session(other)
    theirs = await built(other, name, build=build)
    assert mine["cached"] is theirs["cached"] is False
    assert mine["cacheKey"] != theirs["cacheKey"]
    async with other.delete(f"/session/{name}"):
        pass


async def restarted(place: Path, **settings: str) -> AsyncIterator[Calls]:
    with running_server(place, **settings) as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        async with aiohttp.ClientSession(server.url, headers=headers) as api:
            yield api


async def test_kept_builds_survive_a_restart_and_damage_costs_a_build(tmp_path: Path) -> None:
    build = "date +%s%N > out"
    # Each start of this server makes a key, and so has an owner of its own.
    settings = {"RETORT_CACHE_BUILDS": "always", "RETORT_CACHE_SHARING": "all"}
    outs = []
    for turn in ("first", "again", "damaged", "healed"):
        if turn == "damaged":
            [pack] = (tmp_path / "builds").glob("*.pack")
            content = bytearray(pack.read_bytes())
            content[0] ^= 1
            pack.write_bytes(content)
        async for api in restarted(tmp_path, **settings):
            name = await make_session(api)
            answers = await run_to_end(api, name, build=build, exec="cat out")
            ended = next(a for a in answers if a["status"] == "build-finished")
            outs.append((ended["cached"], printed(answers)))
    assert [is_hit for is_hit, _ in outs] == [False, True, False, True]
    assert outs[0] == (False, outs[1][1])
    assert outs[1][1] != outs[2][1] == outs[3][1]


async def test_keys_that_trust_each_other_may_share_builds(tmp_path: Path) -> None:
    with running_server(tmp_path, RETORT_CACHE_SHARING="all") as server:
        seen = []
        for token in (server.token, server.new_key()["token"]):
            headers = {"Authorization": f"Bearer {token}"}
            async with aiohttp.ClientSession(server.url, headers=headers) as api:
                for _ in range(100):
                    async with api.get("/session/none") as answer:
                        if answer.status != 401:
                            break
                    await asyncio.sleep(0.1)
                seen.append(await built(api, await make_session(api), build="echo x > out"))
        assert [answer["cached"] for answer in seen] == [False, True], json.dumps(seen)
