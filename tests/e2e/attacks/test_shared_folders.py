"""C6, D2, D5, D6 by two users: who shares a folder harms neither the other nor the server.

Ann owns the folder, Bob may write to it. Bob plants in his session what Ann and the server meet.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator

import pytest

from tests.e2e.conftest import Server, printed, run_to_end
from tests.e2e.plain_http import ask, complaints
from tests.e2e.vfolder_user import User, address, calls, fetch, new_user

pytestmark = pytest.mark.slow

MIB = 1 << 20


class Sharer(User):
    """A user with a session that has the shared folder at `f`."""

    session: str

    async def enter(self, folder: str) -> None:
        self.session = f"s-{uuid.uuid4().hex[:10]}"
        config = {"mounts": [f"{folder}:f"]}
        await self.ok("POST", "/session", 201, name=self.session, image="gcc", config=config)

    async def sh(self, command: str, *, keeps: bool = False) -> str:
        answers = await run_to_end(
            self.api, self.session, exec=f"{{ {command}\n}} 2>&1", keepBackground=keeps
        )
        return printed(answers)

    async def leave(self) -> None:
        await ask(self.api, "DELETE", f"/session/{self.session}")


Both = tuple[Sharer, Sharer, str]


@pytest.fixture
async def both(host_is_unchanged: None, server: Server) -> AsyncIterator[Both]:
    (email, token), (guest, guest_token) = new_user(server), new_user(server)
    async with calls(server, token) as api, calls(server, guest_token) as guest_api:
        ann, bob = Sharer(api, email), Sharer(guest_api, guest)
        folder = await ann.make()
        await ann.ok("POST", f"/folders/{folder}/invite", 201, emails=[guest], perm="rw")
        (one,) = (await bob.ok("GET", "/folders/invitations/list"))["invitations"]
        await bob.ok("POST", "/folders/invitations/accept", inv_id=one["id"])
        await ann.enter(folder)
        await bob.enter(folder)
        yield ann, bob, folder
        await ann.leave()
        await bob.leave()
        await ann.ok("DELETE", f"/folders/{folder}", 204)


async def test_a_setuid_program_of_another_user_gives_its_caller_nothing(both: Both) -> None:
    ann, bob, _ = both
    told = await bob.sh("cp /usr/bin/id f/id; chmod 6755 f/id; mknod f/null c 1 3; stat -c %a f/id")
    assert "Operation not permitted" in told
    assert told.endswith("6755\n")
    assert await ann.sh("f/id -u; f/id -ru; f/id -g") == "1000\n1000\n1000\n"
    wall = await ann.sh("echo own >private; chmod 600 private; cat private")
    assert wall == "own\n"
    assert "own" not in await bob.sh("cat f/../private private /home/work/private")


async def test_a_link_of_another_user_leads_its_reader_to_the_readers_own_files_only(
    both: Both, server: Server
) -> None:
    ann, bob, folder = both
    secret = server.state / "secret"
    await bob.sh(f"ln -s {secret} f/a; ln -s /proc/1/root{secret} f/b; ln -s ../private f/c; "
                 "ln -s / f/d; ln -s f/d/etc f/e")  # fmt: skip
    await ann.sh("echo anns >private")
    assert await ann.sh("cat f/c") == "anns\n"  # her own, as she would see it anyway
    assert "No such file" in await ann.sh("cat f/a")
    assert "anns" not in await bob.sh("cat f/c")
    for path in ("a", "b", "c", "d", "d/etc/passwd", "e", "e/passwd"):
        for user in (ann, bob):
            given = await user.ask("POST", f"/folders/{folder}/request-download", path=path)
            assert given.status in (400, 404), path
            wanted = {"path": f"{path}/new", "size": 1}
            given = await user.ask("POST", f"/folders/{folder}/request-upload", **wanted)
            if given.status == 200:  # its way is looked at when its bytes are there
                async with ann.api.patch(
                    address(given.json), data=b"x", headers={"Upload-Offset": "0"}
                ) as answer:
                    assert answer.status in (400, 404), path
    listed = await ann.ok("GET", f"/folders/{folder}/files", path=".")
    assert {item["type"] for item in listed["items"]} == {"SYMLINK"}
    await ann.ok("DELETE", f"/folders/{folder}/delete-files", files=["a", "b", "c", "d", "e"])
    assert secret.exists()
    assert await ann.sh("ls /etc/passwd private") == "/etc/passwd\nprivate\n"


async def test_a_fifo_of_another_user_holds_up_neither_server_nor_zip_nor_clone(
    both: Both,
) -> None:
    ann, bob, folder = both
    await bob.sh("mkdir f/d; mkfifo f/d/fifo; echo x >f/d/file; python3 -c 'import socket; "
                 'socket.socket(socket.AF_UNIX).bind("f/d/sock")\'')  # fmt: skip
    async with asyncio.timeout(30):
        for path in ("d/fifo", "d/sock"):
            given = await ann.ask("POST", f"/folders/{folder}/request-download", path=path)
            assert given.status in (400, 404)
        wanted = {"path": "d", "archive": True}
        given = await ann.ok("POST", f"/folders/{folder}/request-download", **wanted)
        zipped = await ask(ann.api, "GET", address(given))
        assert (zipped.status, b"d/file" in zipped.body, b"d/fifo" in zipped.body) == (
            200, True, False,
        )  # fmt: skip
        copy = f"{folder}-c"
        await ann.ok("POST", f"/folders/{folder}/clone", 201, target_name=copy)
        assert await ann.names(copy, "d") == ["file"]
        await ann.ok("DELETE", f"/folders/{copy}", 204)
        await ann.put(folder, "d/fifo", b"now a file")  # replaced, not opened
        assert (await fetch(ann, folder, "d/fifo")).body == b"now a file"


async def test_a_file_that_another_user_locks_and_grows_is_sent_as_promised(both: Both) -> None:
    ann, bob, folder = both
    script = (
        "python3 - <<'E' &\nimport fcntl, time\nf = open('f/log', 'wb', 0)\n"
        "f.write(b'x' * 3000000)\nfcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX)\n"
        "open('f/ready', 'w').close()\n"
        "while True: f.write(b'x' * 4096); time.sleep(0.0001)\n"
        "E\nuntil [ -e f/ready ]; do :; done"
    )
    await bob.sh(script, keeps=True)
    async with asyncio.timeout(60):
        for _ in range(30):
            given = await ann.ok("POST", f"/folders/{folder}/request-download", path="log")
            async with ann.api.get(address(given)) as answer:
                body = await answer.read()
                assert answer.status == 200
                assert len(body) == int(answer.headers["Content-Length"])
                assert set(body) == {ord("x")}
        wanted = {"path": ".", "archive": True}
        given = await ann.ok("POST", f"/folders/{folder}/request-download", **wanted)
        assert (await ask(ann.api, "GET", address(given))).status == 200
        await ann.put(folder, "log", b"ann's")  # his lock binds nobody who replaces the file
        assert (await fetch(ann, folder, "log")).body == b"ann's"


async def test_a_file_that_shrinks_while_it_is_sent_ends_its_connection_and_no_more(
    both: Both, server: Server
) -> None:
    ann, bob, folder = both
    await bob.sh("head -c 64M /dev/zero >f/large")
    given = await ann.ok("POST", f"/folders/{folder}/request-download", path="large")
    async with calls(server, "") as other, other.get(address(given)) as answer:
        await answer.content.readexactly(MIB)
        await bob.sh("truncate -s 2M f/large")
        with pytest.raises(Exception, match=r"payload|closed|reset|not completed"):
            await answer.content.readexactly(63 * MIB)
    assert await ann.names(folder) == ["large"]
    assert not [line for line in complaints(server) if "Traceback" in line]


async def test_names_that_another_user_chose_are_only_names(both: Both) -> None:
    ann, bob, folder = both
    names = [b"-rf", b"a\nb", b"q\"'`$(id)", b"\xff\xfe", b"\x1b[2Jred", b" ", b"*", b"%2e%2e",
             b"..\\x", b"<b>", "\u202eexe.txt".encode(), b"n" * 255]  # fmt: skip
    loop = f"for n in {names!r}: open(b'f/' + n, 'w').close()"
    assert await bob.sh(f"python3 - <<'E'\n{loop}\nE") == ""
    found = await ann.ok("GET", f"/folders/{folder}/files", path=".")
    listed = [entry["filename"] for entry in json.loads(found["files"])]
    assert sorted(listed) == sorted(name.decode("utf-8", "replace") for name in names)
    for name in names:
        if b"\xff" in name:
            continue  # not to be written in JSON: goes with the folder above
        text = name.decode()
        answer = await fetch(ann, folder, text)
        assert (answer.status, answer.body) == (200, b""), text
        assert "\n" not in answer.headers["Content-Disposition"]
        wanted = {"target_path": text, "new_name": "plain"}
        await ann.ok("POST", f"/folders/{folder}/rename-file", **wanted)
        await ann.ok("DELETE", f"/folders/{folder}/delete-files", files=["plain"])
    assert len(await ann.names(folder)) == 1


async def test_depth_and_number_that_another_user_chose_hold_up_no_deletion(both: Both) -> None:
    ann, bob, folder = both
    await bob.sh("mkdir f/top; cd f/top; for n in $(seq 400); do mkdir d; cd d; done; "
                 "touch bottom; cd /home/work/f/top; chmod 0 d")  # fmt: skip
    async with asyncio.timeout(60):
        body = {"files": ["top"], "recursive": True}
        await ann.ok("DELETE", f"/folders/{folder}/delete-files", **body)
    assert await ann.names(folder) == []
