"""Full folders over HTTP and in sessions: a clear error, and nothing lost that was there.

The first half runs where this server counts, the second on a file system with project quotas where
this host can mount one (vm/run can).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server, printed, run_to_end, running_server
from tests.e2e.plain_http import ask, check_problem
from tests.e2e.vfolder_user import User, calls, fetch, patch, retort_with, user_of
from tests.prjquota import kinds, mounted

pytestmark = pytest.mark.slow

MIB = 1 << 20


async def session(user: User, name: str, *mounts: str) -> str:
    body = {"name": name, "image": "gcc", "config": {"mounts": list(mounts)}}
    await user.ok("POST", "/session", 201, **body)
    return name


async def sh(user: User, name: str, command: str) -> str:
    return printed(await run_to_end(user.api, name, exec=f"{{ {command}\n}} 2>&1"))


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(
        tmp_path_factory.mktemp("counting") / "s", RETORT_VFOLDERS_COUNT_S="1"
    ) as server:
        yield server


@pytest.fixture
async def ann(counting: Server) -> AsyncIterator[User]:
    async with user_of(counting) as user:
        yield user


async def test_a_full_folder_refuses_uploads_and_keeps_what_it_has(ann: User) -> None:
    name = await ann.make(quota=str(MIB))
    assert (await ann.ok("GET", f"/folders/{name}"))["quota_enforcement"] == "counted"
    await ann.put(name, "old", b"o" * (MIB // 2))
    request = f"/folders/{name}/request-upload"

    answer = await ann.ask("POST", request, path="old", size=MIB)
    check_problem(answer, 412, "quota-exceeded")
    assert f"of {MIB} bytes" in answer.json["msg"]

    first = await ann.ok("POST", request, path="one", size=MIB // 2)
    second = await ann.ok("POST", request, path="two", size=MIB // 2)  # both would fit alone
    assert (await patch(ann.api, first, 0, b"1" * (MIB // 2))).status == 204
    check_problem(await patch(ann.api, second, 0, b"2" * (MIB // 2)), 412, "quota-exceeded")

    assert await ann.names(name) == ["old", "one"]
    assert (await fetch(ann, name, "old")).body == b"o" * (MIB // 2)
    await ann.ok("DELETE", f"/folders/{name}/delete-files", files=["old"])
    assert (await patch(ann.api, second, 0, b"2" * (MIB // 2))).status == 204
    assert (await fetch(ann, name, "two")).body == b"2" * (MIB // 2)


async def test_uploads_side_by_side_do_not_exceed_the_quota_together(ann: User) -> None:
    name = await ann.make(quota=str(MIB))
    given = [
        await ann.ok("POST", f"/folders/{name}/request-upload", path=str(n), size=MIB // 4)
        for n in range(8)
    ]
    answers = await asyncio.gather(*(patch(ann.api, one, 0, b"x" * (MIB // 4)) for one in given))
    assert sorted(answer.status for answer in answers) == [204] * 4 + [412] * 4
    assert len(await ann.names(name)) == 4


async def test_files_are_bounded_by_number_too(ann: User) -> None:
    name = await ann.make(max_files=3)
    assert (await ann.ok("GET", f"/folders/{name}"))["max_files"] == 3
    await ann.put(name, "file", b"x")
    await ann.put(name, "empty", b"")
    await ann.ok("POST", f"/folders/{name}/mkdir", 201, path="dir")
    full = await ann.ask("POST", f"/folders/{name}/mkdir", path="dir2")
    check_problem(full, 412, "quota-exceeded")
    full = await ann.ask("POST", f"/folders/{name}/request-upload", path="f", size=0)
    check_problem(full, 412, "quota-exceeded")
    assert "4 of 3 files" in full.json["msg"]
    assert await ann.names(name) == ["dir", "empty", "file"]


async def test_a_clone_that_would_be_too_large_leaves_nothing(counting: Server) -> None:
    email = f"{uuid.uuid4().hex[:12]}@example.org"
    made = retort_with(counting, "--email", email, RETORT_KEYS_MAX_VFOLDER_BYTES="1m")
    async with user_of(counting) as owner, calls(counting, made["token"]) as api:
        guest = User(api, email)
        name = await owner.make(cloneable=True)
        await owner.put(name, "file", b"x" * (2 * MIB))
        body: dict[str, Any] = {"emails": [guest.email], "perm": "ro"}
        await owner.ok("POST", f"/folders/{name}/invite", 201, **body)
        (invitation,) = (await guest.ok("GET", "/folders/invitations/list"))["invitations"]
        await guest.ok("POST", "/folders/invitations/accept", inv_id=invitation["id"])
        answer = await guest.ask("POST", f"/folders/{name}/clone", target_name="copy")
        check_problem(answer, 412, "quota-exceeded")
        assert [item["name"] for item in await guest.ok("GET", "/folders")] == [name]


async def test_what_sessions_write_counts_and_a_writer_that_goes_on_is_ended(
    ann: User,
) -> None:
    name = await ann.make(quota=str(MIB))
    writer = await session(ann, f"w-{name}", f"{name}:f")
    await ann.ok("POST", f"/folders/{name}/update-options", 201, permission="ro", cloneable=None)
    reader = await session(ann, f"r-{name}", f"{name}:f")
    await ann.ok("POST", f"/folders/{name}/update-options", 201, permission="rw", cloneable=None)
    await sh(ann, writer, "head -c 2M /dev/zero >f/large")

    async with asyncio.timeout(60):  # the last count is good for a second
        while (  # noqa: ASYNC110
            answer := await ann.ask("POST", f"/folders/{name}/request-upload", path="x", size=1)
        ).status == 200:
            await asyncio.sleep(0.2)
    check_problem(answer, 412, "quota-exceeded")
    async with asyncio.timeout(60):
        while (await ann.ask("GET", f"/session/{writer}")).status == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.2)  # the server counts once a second, and tells nobody
    told = await ann.ask("GET", f"/session/{writer}")
    assert told.status == 404
    assert f"virtual-folder-full: {name}" in told.json["msg"]
    assert await sh(ann, reader, "stat -c %s f/large") == f"{2 * MIB}\n"  # it may go on

    body = {"name": f"n-{name}", "image": "gcc", "config": {"mounts": [f"{name}:f"]}}
    refused = await ann.ask("POST", "/session", **body)
    check_problem(refused, 412, "quota-exceeded")
    assert "delete files first" in refused.json["msg"]
    await ann.ok("DELETE", f"/folders/{name}/delete-files", files=["large"])
    await ann.ok("POST", "/session", 201, **body)
    for live in (reader, body["name"]):
        await ann.ok("DELETE", f"/session/{live}")


# --- where the host kernel does it --------------------------------------------------------------


@pytest.fixture(scope="module", params=kinds())
def bounded(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Server]:
    with mounted(tmp_path_factory.mktemp("bounded"), str(request.param)) as place:
        place.chmod(0o711)
        with running_server(Path(place, "s")) as server:
            yield server


async def test_a_program_in_a_full_folder_gets_the_kernels_own_answer(bounded: Server) -> None:
    async with user_of(bounded) as ann:
        name = await ann.make(quota=str(MIB), max_files=20)
        writer = await session(ann, f"w-{name}", f"{name}:f")
        told = await sh(ann, writer, "for n in $(seq 30); do touch f/n$n; done; ls f | wc -l")
        assert "Disk quota exceeded" in told or "No space left on device" in told
        assert told.endswith("\n20\n")
        about = await ann.ok("GET", f"/folders/{name}")
        assert (about["quota_enforcement"], about["num_files"]) == ("project", 20)

        told = await sh(ann, writer, "rm f/n*; touch f/more; "
                        "head -c 512K /dev/zero >f/fits && echo fits; "
                        "head -c 1M /dev/zero >>f/more; stat -c '%n %s' f/fits")  # fmt: skip
        assert told.startswith("fits\n")
        assert "Disk quota exceeded" in told or "No space left on device" in told
        assert told.endswith(f"f/fits {MIB // 2}\n")
        about = await ann.ok("GET", f"/folders/{name}")
        assert MIB // 2 < about["used_bytes"] <= MIB
        answer = await ann.ask("POST", f"/folders/{name}/request-upload", path="x", size=MIB)
        check_problem(answer, 412, "quota-exceeded")
        assert "walls" not in told
        assert await sh(ann, writer, "rm f/more && echo tidy >f/x && cat f/x") == "tidy\n"
        await ann.ok("DELETE", f"/session/{writer}")


async def test_what_was_removed_or_replaced_makes_room_at_once(bounded: Server) -> None:
    """XFS counts what is removed until it gets to it; no upload is refused for that."""
    async with user_of(bounded) as ann:
        name = await ann.make(quota=str(MIB), max_files=4)
        for _ in range(20):  # the old one goes when the new one is whole: two fit
            await ann.put(name, "file", b"x" * (400 << 10))
        for number in range(20):
            await ann.ok("DELETE", f"/folders/{name}/delete-files", files=["file"])
            await ann.put(name, "file", bytes([number]) * (900 << 10))
        assert (await fetch(ann, name, "file")).body == bytes([19]) * (900 << 10)


async def test_uploads_as_root_pass_no_project_quota(bounded: Server) -> None:
    """ext4 bounds no process that may exceed resources, as a server run by root may."""
    async with user_of(bounded) as ann:
        name = await ann.make(quota=str(MIB))
        given = [
            await ann.ok("POST", f"/folders/{name}/request-upload", path=str(n), size=MIB // 4)
            for n in range(8)
        ]
        sent = await asyncio.gather(*(patch(ann.api, one, 0, b"x" * (MIB // 4)) for one in given))
        assert sorted(answer.status for answer in sent) == [204] * 4 + [412] * 4
        assert (await ann.ok("GET", f"/folders/{name}"))["used_bytes"] <= MIB
        assert (await ask(ann.api, "DELETE", f"/folders/{name}")).status == 204
