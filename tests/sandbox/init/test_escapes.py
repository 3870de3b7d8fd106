"""Paths that a program laid out to lead the server astray.

Every trap is first walked into by a plain open inside the sandbox, to show that it is one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from tests.sandbox.init.box import Box

from retort.sandbox.init import InitClient
from retort.sandbox.init_files import RESOLVE_NO_SYMLINKS

REFUSED = {errno.EXDEV, errno.ELOOP, errno.ENOTDIR}

# name: what makes the trap, its path, and whether only changes are refused
TRAPS = {
    "absolute link to a file": ("ln -s /usr/bin/env t", b"t", False),
    "absolute link to a folder": ("ln -s /usr t", b"t/bin/env", False),
    "link by parent": ("ln -s ../../usr/bin/env t || true; ln -sf /usr/bin/env t", b"t", False),
    "chain": ("ln -s /usr/bin/env a; ln -s a b; ln -s b t", b"t", False),
    "magic root": ("ln -s /proc/self/root t", b"t/usr/bin/env", False),
    "magic cwd": ("ln -s /proc/self/cwd t; echo > f", b"t/f", False),
    "link inside": ("mkdir d; echo > d/f; ln -s d/f t", b"t", True),
    "folder link inside": ("mkdir d; echo > d/f; ln -s d t", b"t/f", True),
}


@pytest.fixture(params=["openat2", "walk"])
def box(request: pytest.FixtureRequest, make_box: Callable[..., Box]) -> Box:
    return make_box(*(["--no-openat2"] if request.param == "walk" else []))


@pytest_asyncio.fixture
async def client(box: Box) -> AsyncIterator[InitClient]:
    connection = await box.connect()
    yield connection
    connection.close()


async def assert_refused(awaitable: object) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        await awaitable  # type: ignore[misc]
    assert caught.value.errno in REFUSED


@pytest.mark.parametrize("name", TRAPS)
async def test_trap_is_refused(
    request: pytest.FixtureRequest, box: Box, client: InitClient, name: str
) -> None:
    script, path, is_harmless_to_read = TRAPS[name]
    control = await box.sh(client, f"{script}; cat {os.fsdecode(path)} > /dev/null && echo follows")
    assert control.text == "follows\n"

    if is_harmless_to_read and "openat2" in request.node.name:
        os.close(await client.open(path, os.O_RDONLY))
        await assert_refused(client.open(path, os.O_RDONLY, 0, RESOLVE_NO_SYMLINKS))
    else:
        await assert_refused(client.open(path, os.O_RDONLY))
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREAT):
        await assert_refused(client.open(path, flags, 0o600))


@pytest.mark.parametrize("name", [name for name, (_, path, _) in TRAPS.items() if b"/" in path])
async def test_parent_that_is_a_trap_is_refused(box: Box, client: InitClient, name: str) -> None:
    script, path, _ = TRAPS[name]
    await box.sh(client, f"{script}; echo > own")
    fd = await client.open(b".", os.O_WRONLY | os.O_TMPFILE, 0o600)
    parent = path.rsplit(b"/", 1)[0]
    for request in (
        client.mkdirs(parent + b"/new"),
        client.link(fd, parent + b"/new"),
        client.rename(b"own", parent + b"/new"),
        client.rename(path, b"new"),
        client.unlink(path),
        client.open(parent, os.O_WRONLY | os.O_TMPFILE, 0o600),
    ):
        await assert_refused(request)
    os.close(fd)
    assert (await box.sh(client, "cat own; ls -d new 2>/dev/null")).text == "\n"


@pytest.mark.parametrize(
    "path", [b"../x", b"a/../../x", b"..", b"a/..", b"a/../f", b"/etc/passwd", b"/", b"//x"]
)
async def test_dotdot_and_absolute_paths_are_refused(
    box: Box, client: InitClient, path: bytes
) -> None:
    await box.sh(client, "mkdir a; echo > f")
    for request in (
        client.open(path, os.O_RDONLY),
        client.open(path, os.O_WRONLY | os.O_CREAT, 0o600),
        client.mkdirs(path),
    ):
        with pytest.raises(OSError, match=r".") as caught:
            await request
        assert caught.value.errno == errno.EXDEV
    for request in (client.unlink(path), client.rename(path, b"n"), client.rename(b"f", path)):
        with pytest.raises(OSError, match=r".") as caught:
            await request
        assert caught.value.errno in (errno.EXDEV, errno.EINVAL)


async def test_dangling_link_is_not_created_through(box: Box, client: InitClient) -> None:
    control = await box.sh(client, "ln -s target t; echo > t; ls target; rm target")
    assert control.text == "target\n"
    await assert_refused(client.open(b"t", os.O_WRONLY | os.O_CREAT, 0o600))
    assert (await box.sh(client, "ls target 2>/dev/null")).text == ""


async def test_last_component_is_acted_on_itself(box: Box, client: InitClient) -> None:
    await box.sh(client, "mkdir d; echo > d/f; ln -s d/f t; ln -s d u")
    await client.rename(b"t", b"moved")
    await client.unlink(b"moved")
    await client.unlink(b"u")
    assert (await box.sh(client, "ls -R")).text.count("f\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pid1"], indirect=True)
async def test_rename_race_never_leads_outside(box: Box, client: InitClient) -> None:
    # Two names are exchanged as fast as possible: a folder with a file, and a link to outside.
    script = """
import ctypes, os
os.mkdir("d"); open("d/env", "w").write("inside")
os.symlink("/usr/bin", "l")
renameat2 = ctypes.CDLL(None).renameat2
print("ready", flush=True)
while True:
    renameat2(-100, b"d", -100, b"l", 2)
"""
    outcomes = {"inside": 0, "refused": 0, "surprise": 0}
    allowed = REFUSED | {errno.EAGAIN}
    with await box.start(client, "/usr/bin/python3", "-c", script) as running:
        assert await running.line() == "ready"
        for i in range(20_000):
            flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT)[i % 2]
            try:
                fd = await client.open((b"d/env", b"l/env")[i // 2 % 2], flags, 0o600)
            except OSError as exc:
                outcomes["refused" if exc.errno in allowed else "surprise"] += 1
            else:
                assert os.fstat(fd).st_size in (0, len("inside"))
                os.close(fd)
                outcomes["inside"] += 1
        await client.kill(running.number, 9)
        await running.ended()
    assert outcomes["surprise"] == 0
    assert outcomes["inside"] > 100
    assert outcomes["refused"] > 100
