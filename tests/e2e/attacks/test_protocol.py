"""Attacks on output, protocol and API (attacks.md, H) that no other test of tests/e2e makes."""

# ruff: noqa: ASYNC220 - a test may block

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
import uuid
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import Server, execute, printed, run_to_end, running_server

from .box import MIB, Box, outside_sh
from .conftest import NewBox

pytestmark = pytest.mark.slow


def memory_of(server: Server) -> int:
    """Give the server's resident bytes."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024


FLOODS = {
    "no newline": "head -c 64M /dev/zero | tr '\\0' x",
    "stderr only": "yes >&2 | head -c 64M >&2",
    "NULs": "head -c 64M /dev/zero",
    "no text": "head -c 64M /dev/urandom",
    "alternating": "for n in {1..30000}; do echo o; echo e >&2; done",
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_ends_by_itself_and_leaves_the_memory_flat(
    box: Box, server: Server, tmp_path: Path, kind: str
) -> None:
    command = FLOODS[kind].replace("yes >&2 | head -c 64M >&2", "yes | head -c 64M >&2")
    control = outside_sh(command, tmp_path)  # who reads all, has all of it
    size = 120_000 if kind == "alternating" else 64 * MIB
    assert len(control.stdout) + len(control.stderr) == size
    before = memory_of(server)
    ended = await box.sh(command, limits={"wallSeconds": 50})
    assert ended.told == ("exited", 0, None), ended.answer
    if kind == "alternating":
        assert (ended.out, ended.err) == ("o\n" * 30_000, "e\n" * 30_000)
    else:
        assert ended.usage["cutChars"] > 0
    assert memory_of(server) - before < 48 * MIB


async def test_output_without_end_is_drained_until_the_limit(box: Box, server: Server) -> None:
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as control:
        assert control.stdout is not None
        taken = sum(len(control.stdout.read(MIB)) for _ in range(64))
        assert (taken, control.poll()) == (64 * MIB, None)  # it does not end by itself
        control.kill()
    before = memory_of(server)
    ended = await box.sh("exec yes", limits={"wallSeconds": 2})
    assert (ended.answer["status"], ended.answer["limit"]) == ("exec-timeout", "wall")
    assert ended.usage["cutChars"] > MIB
    assert memory_of(server) - before < 48 * MIB


async def test_run_ids_without_end_take_no_memory(box: Box, server: Server) -> None:
    for _ in range(300):  # more than a session keeps
        await execute(
            box.api, box.name, mode="batch", code="", runId=uuid.uuid4().hex * 4,
            options={"build": None, "exec": "exit 0"},
        )  # fmt: skip
    before = memory_of(server)
    ids = [uuid.uuid4().hex for _ in range(2000)]
    for run_id in ids:  # of nothing
        body = {"mode": "continue", "code": "", "runId": run_id}
        async with box.api.post(f"/session/{box.name}", json=body) as answer:
            assert answer.status == 404
    assert memory_of(server) - before < 16 * MIB


async def test_a_run_belongs_to_its_session(box: Box, new_box: NewBox) -> None:
    other = await new_box()
    run_id = "shared-name"
    await execute(
        box.api, box.name, mode="batch", code="", runId=run_id,
        options={"build": None, "exec": "sleep 0.5; echo mine"},
    )  # fmt: skip
    for mode in ("continue", "input"):
        body = {"mode": mode, "code": "", "runId": run_id}
        async with other.api.post(f"/session/{other.name}", json=body) as answer:
            assert answer.status == 404
    # Control: the same call of its own session is answered, and nothing of it was taken away.
    mine = [await execute(box.api, box.name, mode="continue", code="", runId=run_id)]
    while mine[-1]["status"] != "finished":
        mine.append(await execute(box.api, box.name, mode="continue", code="", runId=run_id))
    assert printed(mine) == "mine\n"
    # The same id in another session is another run.
    answers = await run_to_end(other.api, other.name, build=None, exec="echo theirs")
    assert printed(answers) == "theirs\n"


BODIES = {
    "deep arrays": b"[" * 500_000,
    "deep objects": b'{"a":' * 100_000,
    "deep in a field": b'{"mode":"batch","code":"","options":' + b'{"a":' * 90_000,
    "deep and closed": b'{"options":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "NaN": b'{"mode":"batch","code":"","options":{"limits":{"wallSeconds":NaN}}}',
    "infinity": b'{"mode":"batch","code":"","options":{"limits":{"wallSeconds":Infinity}}}',
    "a number too large": b'{"mode":"batch","code":"","options":{"limits":{"wallSeconds":1e999}}}',
    "a million digits": b'{"mode":"batch","code":"","options":{"limits":{"outputBytes":'
    + b"9" * 900_000
    + b"}}}",
    "options of a wrong type": b'{"mode":"batch","code":"","options":[1,2]}',
    "a command of a wrong type": b'{"mode":"batch","code":"","options":{"exec":{"a":1}}}',
    "no JSON": b"\xff\xfe\x00",
    "a zero byte": b'{"mode":"batch","code":"\\u0000","options":{"exec":"echo \\u0000"}}',
}


def naive(body: bytes) -> str:
    """What becomes of a body where nothing is looked at before json.loads."""
    try:
        return f"read: {json.loads(body)}"
    except (RecursionError, ValueError) as error:
        return type(error).__name__


NAIVE = {  # by how the kind begins
    "deep": "RecursionError",
    "NaN": "nan",
    "infinity": "inf",
    "a number too large": "inf",
    "options of a wrong type": "[1, 2]",
    "a command of a wrong type": "{'a': 1}",
    "a zero byte": "\\x00",
    "a million digits": "ValueError",
    "no JSON": "UnicodeDecodeError",
}


@pytest.mark.parametrize("kind", BODIES)
async def test_a_body_that_is_a_trap_is_a_bad_request(box: Box, kind: str) -> None:
    (falls,) = (falls for name, falls in NAIVE.items() if kind.startswith(name))
    assert falls in naive(BODIES[kind])  # control
    headers = {"Content-Type": "application/json"}
    async with box.api.post(f"/session/{box.name}", data=BODIES[kind], headers=headers) as answer:
        assert answer.status == 400, await answer.text()


async def test_a_key_given_twice_is_refused(box: Box) -> None:
    body = b'{"mode":"query","mode":"batch","code":"","options":{"exec":"echo a","exec":"echo b"}}'
    # Control: it depends on the reader what such a body says.
    first = json.loads(body, object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert (first["mode"], json.loads(body)["mode"]) == ("query", "batch")
    headers = {"Content-Type": "application/json"}
    async with box.api.post(f"/session/{box.name}", data=body, headers=headers) as answer:
        assert answer.status == 400, await answer.text()


EVIL = "x\n2026-01-01 level=error event=forged \x1b[2J\x1b]0;owned\x07\u202e"


async def test_what_callers_write_forges_no_line_of_the_log(box: Box, server: Server) -> None:
    naive = logging.Formatter("%(levelname)s %(message)s").format(
        logging.makeLogRecord({"levelname": "INFO", "msg": "no session %s", "args": (EVIL,)})
    )  # control: what a plain log would hold
    assert naive.splitlines()[1].startswith("2026-01-01 level=error")
    assert "\x1b" in naive
    async with box.api.post("/session", json={"name": EVIL, "image": EVIL}) as answer:
        assert answer.status in (400, 404)
    async with box.api.get(f"/session/{EVIL}") as answer:
        assert answer.status == 404
    body = {"mode": "batch", "code": EVIL, "runId": EVIL, "options": {"exec": f"echo '{EVIL}'"}}
    async with box.api.post(f"/session/{box.name}", json=body) as answer:
        assert answer.status in (200, 400)
        is_running = answer.status == 200
    if is_running:
        body = {"mode": "continue", "code": "", "runId": EVIL}
        async with box.api.post(f"/session/{box.name}", json=body) as answer:
            await answer.read()
    await box.sh("touch $'a\\x1b[2Jb'")
    async with box.api.get(f"/session/{box.name}/files", params={"path": EVIL}) as answer:
        assert answer.status in (400, 404)
    headers = {"Authorization": "Bearer \u202e[2J", "User-Agent": "a%1b[2J \u202e"}
    with pytest.raises((aiohttp.ClientError, ValueError)):
        await box.api.get("/session/x", headers={"X-Evil": "a\r\nb: c"})
    async with box.api.get("/session/x", headers=headers) as answer:
        assert answer.status in (400, 401)
    async with asyncio.timeout(60):  # a line may wait a moment for others
        while b"forged" not in (log := server.log.read_bytes()):  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
    # It was logged, and harmless.
    assert b"\x1b" not in log
    assert not [line for line in log.splitlines() if line.startswith(b"2026-01-01")]


async def test_many_callers_at_once_stay_within_the_limits_of_a_key(
    box: Box, server: Server
) -> None:
    names = [f"burst-{n}-{uuid.uuid4().hex[:6]}" for n in range(100)]

    async def create(name: str) -> int:
        async with box.api.post("/session", json={"name": name, "image": "gcc"}) as answer:
            return answer.status

    statuses = await asyncio.gather(*map(create, names))
    try:
        assert set(statuses) == {201, 412}
        assert statuses.count(201) <= 30
    finally:
        for name, status in zip(names, statuses, strict=True):
            if status == 201:
                async with box.api.delete(f"/session/{name}") as answer:
                    assert answer.status == 200


async def test_a_server_out_of_descriptors_says_so_and_recovers(tmp_path: Path) -> None:
    command = ("prlimit", "--nofile=96:96", sys.executable)
    with running_server(tmp_path / "few", command=command) as few:
        headers = {"Authorization": f"Bearer {few.token}"}
        async with aiohttp.ClientSession(few.url, headers=headers) as api:
            names, refused = [], 0
            for n in range(29):
                async with api.post("/session", json={"name": f"few-{n}", "image": "gcc"}) as made:
                    if made.status == 201:
                        names.append(f"few-{n}")
                    else:
                        assert made.status == 503, await made.text()
                        assert int(made.headers["Retry-After"]) > 0
                        refused += 1
            assert refused, "control: there were descriptors enough"
            assert few.process.poll() is None
            for name in names:
                async with api.delete(f"/session/{name}") as answer:
                    assert answer.status == 200, await answer.text()
            status, ends_at = 503, time.monotonic() + 60
            while status == 503:  # the dead give their descriptors back after the answers
                assert time.monotonic() < ends_at
                async with api.post("/session", json={"name": "again", "image": "gcc"}) as made:
                    status = made.status
            assert status == 201
            await Box(api, "again").works()
