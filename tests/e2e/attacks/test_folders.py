"""D1-D12 and C6 on virtual folders: two sessions share one, and reach nothing else by it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.e2e.conftest import NewSession, Server, printed, run_to_end
from tests.e2e.plain_http import ask

from .box import PRELUDE

pytestmark = pytest.mark.slow


@pytest.fixture
async def pair(
    host_is_unchanged: None, api: aiohttp.ClientSession, new_session: NewSession
) -> AsyncIterator[tuple[str, str, str]]:
    """Two sessions, each with a host uid of its own as root, and the folder in both."""
    folder = f"shared-{uuid.uuid4().hex[:8]}"
    assert (await ask(api, "POST", "/folders", json={"name": folder})).status == 201
    config = {"mounts": [f"{folder}:f"], "resources": {"cpu": 1, "mem": str(192 << 20)}}
    yield (
        await new_session("gcc", config=config),
        await new_session("gcc", config=config),
        folder,
    )
    await ask(api, "DELETE", f"/folders/{folder}")


async def sh(api: aiohttp.ClientSession, name: str, command: str) -> str:
    answers = await run_to_end(api, name, exec=f"{{ {command}\n}} 2>&1")
    return printed(answers)


async def test_c6_no_file_of_a_folder_gives_power(
    api: aiohttp.ClientSession, pair: tuple[str, str, str]
) -> None:
    one, other, _ = pair
    told = await sh(api, one, "cp /usr/bin/id f/id; chmod 6755 f/id; mknod f/n c 1 3; "
                    "mknod f/b b 8 0; stat -c %a f/id")  # fmt: skip
    assert told.count("Operation not permitted") == 2
    assert told.endswith("6755\n")  # the bits are there; they mean nothing
    told = await sh(api, other, "f/id -ru; f/id -u; grep ' /home/work/f ' /proc/self/mounts")
    assert told.startswith("1000\n1000\n")
    assert "nosuid,nodev" in told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device as a control")
async def test_c6_a_device_that_lies_in_a_folder_does_not_open(
    api: aiohttp.ClientSession, pair: tuple[str, str, str], server: Server
) -> None:
    one, _, folder = pair
    found = await ask(api, "GET", f"/folders/{folder}")
    node = server.state / "folders" / found.json["id"].replace("-", "") / "data" / "null"
    subprocess.run(["mknod", "-m", "666", node, "c", "1", "3"], check=True)  # noqa: ASYNC221
    with node.open("wb") as control:
        assert control.write(b"x") == 1
    assert "Permission denied" in await sh(api, one, "echo x >f/null")


async def test_d2_links_in_a_folder_lead_only_to_what_the_session_sees(
    api: aiohttp.ClientSession, pair: tuple[str, str, str], server: Server
) -> None:
    one, other, folder = pair
    secret = server.state / "secret"
    assert secret.exists()  # control: it is there, on the host
    await sh(api, one, f"ln -s {secret} f/secret; ln -s / f/root; ln -s ../../../../.. f/up; "
             "ln -s /proc/1/root f/init; echo mine >own; ln -s /home/work/own f/own")  # fmt: skip
    told = await sh(api, other, f"cat f/secret f/root{secret} f/up{secret} f/own; ls f/init/")
    assert told.count("No such file") == 4
    for path in ("secret", "root/etc/passwd", "up/etc/passwd", "init"):
        given = await ask(api, "POST", f"/folders/{folder}/request-download", json={"path": path})
        assert given.status in (400, 404), path
        listed = await ask(api, "GET", f"/folders/{folder}/files", json={"path": path})
        assert listed.status in (400, 404), path


async def test_d4_a_file_of_a_folder_cannot_be_linked_into_another_place(
    api: aiohttp.ClientSession, pair: tuple[str, str, str]
) -> None:
    one, _, _ = pair
    told = await sh(api, one, "echo x >f/x; ln f/x f/y && echo control; ln f/x x; ln own f/own; "
                    "ln /usr/bin/su f/su")  # fmt: skip
    assert told.startswith("control\n")
    assert told.count("ln: failed") == 3


async def test_d5_a_fifo_or_socket_in_a_folder_blocks_neither_server_nor_others(
    api: aiohttp.ClientSession, pair: tuple[str, str, str]
) -> None:
    one, _, folder = pair
    await sh(api, one, "mkfifo f/fifo; python3 -c 'import socket; "
             'socket.socket(socket.AF_UNIX).bind("f/sock")\'; ls f')  # fmt: skip
    async with asyncio.timeout(30):
        for path in ("fifo", "sock"):
            body = {"path": path}
            given = await ask(api, "POST", f"/folders/{folder}/request-download", json=body)
            assert given.status in (400, 404)
        for path in ("f/fifo", "f/sock"):
            async with api.get(f"/session/{one}/download_single", params={"file": path}) as answer:
                assert answer.status == 400
        listed = await ask(api, "GET", f"/folders/{folder}/files", json={"path": "."})
        assert listed.status == 200


async def test_d6_a_file_that_is_locked_or_grows_is_still_read(
    api: aiohttp.ClientSession, pair: tuple[str, str, str]
) -> None:
    one, _, _ = pair
    script = (
        "python3 - <<'E' &\nimport fcntl, time\nf = open('f/log', 'wb', 0)\n"
        "fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX)\n"
        "open('f/ready', 'w').close()\n"
        "while True: f.write(b'x' * 4096); time.sleep(0.001)\nE\n"
        "until [ -e f/ready ]; do :; done"
    )
    answers = await run_to_end(api, one, exec=script, keepBackground=True)
    assert answers[-1]["exitCode"] == 0, printed(answers, "stderr")
    async with asyncio.timeout(30):
        async with api.get(f"/session/{one}/download_single", params={"file": "f/log"}) as answer:
            body = await answer.read()
    assert answer.status == 200
    assert set(body) <= {ord("x")}
    assert len(body) % 4096 == 0


async def test_d11_a_race_at_a_folder_in_a_folder_never_mounts_another_place(
    api: aiohttp.ClientSession, pair: tuple[str, str, str], new_session: NewSession
) -> None:
    one, _, folder = pair
    await sh(api, one, "mkdir f/sub f/dir; echo inside >f/sub/mark; cp f/sub/mark f/dir; "
             "ln -s /etc f/link")  # fmt: skip
    swap = PRELUDE + (
        "os.chdir('f')\n"
        "while True: libc.renameat2(-100, b'sub', -100, b'link', 2)\n"  # RENAME_EXCHANGE
    )
    assert (await ask(api, "GET", f"/folders/{folder}")).status == 200
    quoted = swap.replace("'", "'\\''")
    await run_to_end(api, one, exec=f"python3 -c '{quoted}' &", keepBackground=True)
    seen = set()
    for _ in range(20):
        body = {"image": "bash", "config": {"mounts": [f"{folder}/sub:x"]}}
        made = await ask(api, "POST", "/session", json=body)
        if made.status == 201:
            name = made.json["sessionName"]
            seen.add(await sh(api, name, "ls x"))
            await ask(api, "DELETE", f"/session/{name}")
        else:
            seen.add(str(made.status))
    assert seen <= {"mark\n", "400"}, seen  # also when swapped between the look and the mount


async def test_d12_sharing_a_folder_opens_no_other_session(
    api: aiohttp.ClientSession, pair: tuple[str, str, str]
) -> None:
    one, other, _ = pair
    await sh(api, one, "echo secret >own; mkdir private; echo $$ >f/pid; ls -di . >f/inode")
    told = await sh(api, other, "cat f/../own own /proc/$(cat f/pid)/root/home/work/own; "
                    "find / -name own 2>/dev/null")  # fmt: skip
    assert "secret" not in told
