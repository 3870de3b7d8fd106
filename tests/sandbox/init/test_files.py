"""OPEN, MKDIRS, LINK, RENAME, UNLINK: what they do when nobody interferes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from tests.sandbox.init.box import Box

from retort.sandbox.init import InitClient
from retort.sandbox.init_files import RENAME_EXCHANGE, RENAME_NOREPLACE, RESOLVE_NO_XDEV
from retort.sandbox.protocol import DEPTH_MAX, Features


@pytest.fixture(params=["openat2", "walk"])
def box(request: pytest.FixtureRequest, make_box: Callable[..., Box]) -> Box:
    """Both ways of opening: the kernel's, and the fallback where it has none."""
    return make_box(*(["--no-openat2"] if request.param == "walk" else []))


@pytest_asyncio.fixture
async def client(box: Box) -> AsyncIterator[InitClient]:
    connection = await box.connect()
    yield connection
    connection.close()


async def write(client: InitClient, path: bytes, data: bytes, flags: int = os.O_EXCL) -> None:
    fd = await client.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


async def read(client: InitClient, path: bytes) -> bytes:
    fd = await client.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1000)
    finally:
        os.close(fd)


async def test_feature_bit_tells_which_way(
    request: pytest.FixtureRequest, client: InitClient
) -> None:
    assert bool(client.features & Features.OPENAT2) is ("openat2" in request.node.name)


async def test_written_file_is_seen_by_programs_and_back(box: Box, client: InitClient) -> None:
    await write(client, b"from-server", b"hello")
    ran = await box.sh(client, "cat from-server; echo world > from-program")
    assert ran.text == "hello"
    assert await read(client, b"from-program") == b"world\n"


async def test_mode_is_exact_and_owner_is_the_programs(box: Box, client: InitClient) -> None:
    os.close(await client.open(b"f", os.O_WRONLY | os.O_CREAT, 0o666))
    await client.mkdirs(b"d", 0o777)
    ran = await box.sh(client, "stat -c %a:%u f d; id -u")
    file, folder, uid = ran.text.split()
    assert (file, folder) == (f"666:{uid}", f"777:{uid}")


async def test_descriptor_is_nonblocking_and_close_on_exec(client: InitClient) -> None:
    fd = await client.open(b"f", os.O_RDWR | os.O_CREAT, 0o600)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    assert not os.get_inheritable(fd)
    os.close(fd)


async def test_home_itself_can_be_opened(client: InitClient) -> None:
    await write(client, b"a", b"")
    fd = await client.open(b".", os.O_RDONLY | os.O_DIRECTORY)
    assert "a" in os.listdir(fd)  # noqa: PTH208  a descriptor has no Path
    os.close(fd)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDONLY | os.O_NOFOLLOW])
async def test_slashes_and_dots_mean_nothing(client: InitClient, flags: int) -> None:
    await client.mkdirs(b"a/b")
    await write(client, b"a/b/c", b"x")
    for path in (b"a//b///c", b"./a/./b/c", b"a/b/./c"):
        os.close(await client.open(path, flags))
    with pytest.raises(NotADirectoryError):
        await client.open(b"a/b/c/", flags)


@pytest.mark.parametrize(
    ("path", "flags", "error"),
    [
        (b"", os.O_RDONLY, errno.ENOENT),
        (b"missing", os.O_RDONLY, errno.ENOENT),
        (b"missing/x", os.O_WRONLY | os.O_CREAT, errno.ENOENT),
        (b"file/x", os.O_RDONLY, errno.ENOTDIR),
        (b"file", os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
        (b"folder", os.O_WRONLY, errno.EISDIR),
        (b"file", os.O_WRONLY | os.O_CREAT | os.O_EXCL, errno.EEXIST),
        (b"x" * 256, os.O_WRONLY | os.O_CREAT, errno.ENAMETOOLONG),
        (b"x" * 256 + b"/y", os.O_RDONLY, errno.ENAMETOOLONG),
        (b"a/" * 2048, os.O_RDONLY, errno.ENAMETOOLONG),
    ],
)
async def test_errors_are_the_kernels_own(
    client: InitClient, path: bytes, flags: int, error: int
) -> None:
    await client.mkdirs(b"folder")
    await write(client, b"file", b"")
    with pytest.raises(OSError, match=r".") as caught:
        await client.open(path, flags, 0o600)
    assert caught.value.errno == error


async def test_names_are_bytes(box: Box, client: InitClient) -> None:
    names = [b"new\nline", b"quote'\"", b"-rf", b"\xff\xfe", b"x" * 255, b" ", "ü".encode()]
    for name in names:
        await write(client, name, name)
    assert [await read(client, name) for name in names] == names
    ran = await box.py(client, "import os; print(sorted(os.listdir(b'.')))")
    assert all(str(name) in ran.text for name in names)


async def test_unnamed_file_gets_its_name_at_once(client: InitClient) -> None:
    await client.mkdirs(b"d")
    fd = await client.open(b"d", os.O_WRONLY | os.O_TMPFILE, 0o640)
    os.write(fd, b"whole")
    with pytest.raises(FileNotFoundError):
        await read(client, b"d/name")
    await client.link(fd, b"d/name")
    os.close(fd)
    assert await read(client, b"d/name") == b"whole"


async def test_link_never_replaces_and_names_only_the_unnamed(client: InitClient) -> None:
    await write(client, b"taken", b"old")
    fd = await client.open(b".", os.O_WRONLY | os.O_TMPFILE, 0o600)
    with pytest.raises(FileExistsError):
        await client.link(fd, b"taken")
    await client.link(fd, b"free")
    with pytest.raises(OSError, match="Invalid"):  # it has a name now
        await client.link(fd, b"second")
    os.close(fd)
    null = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid"):
        await client.link(null, b"device")
    os.close(null)
    assert await read(client, b"taken") == b"old"


async def test_rename_replaces_keeps_or_exchanges_as_asked(client: InitClient) -> None:
    await write(client, b"a", b"A")
    await write(client, b"b", b"B")
    with pytest.raises(FileExistsError):
        await client.rename(b"a", b"b", RENAME_NOREPLACE)
    await client.rename(b"a", b"b", RENAME_EXCHANGE)
    assert (await read(client, b"a"), await read(client, b"b")) == (b"B", b"A")
    await client.rename(b"a", b"b")
    assert await read(client, b"b") == b"B"
    with pytest.raises(FileNotFoundError):
        await client.rename(b"a", b"b")
    with pytest.raises(Exception, match="Invalid"):
        await client.rename(b"b", b"c", 4)  # RENAME_WHITEOUT


async def test_unlink_removes_files_and_empty_folders(client: InitClient) -> None:
    await client.mkdirs(b"d/e")
    await write(client, b"d/f", b"")
    with pytest.raises(IsADirectoryError):
        await client.unlink(b"d")
    with pytest.raises(OSError, match="not empty"):
        await client.unlink(b"d", directory=True)
    with pytest.raises(NotADirectoryError):
        await client.unlink(b"d/f", directory=True)
    await client.unlink(b"d/f")
    await client.unlink(b"d/e", directory=True)
    await client.unlink(b"d", directory=True)


@pytest.mark.parametrize("last", [b".", b"a/.", b"a/", b"a/b/"])
async def test_last_component_must_be_a_name(client: InitClient, last: bytes) -> None:
    await client.mkdirs(b"a/b")
    for request in (
        client.unlink(last, directory=True),
        client.rename(last, b"c"),
        client.rename(b"a", last),
    ):
        with pytest.raises(OSError, match="Invalid") as caught:
            await request
        assert caught.value.errno == errno.EINVAL


async def test_mkdirs_counts_what_it_made(client: InitClient) -> None:
    assert await client.mkdirs(b"a/b/c") == 3
    assert await client.mkdirs(b"a/b/c") == 0
    assert await client.mkdirs(b"./a//b/c/d/./e/") == 2
    assert await client.mkdirs(b".") == 0
    assert await client.mkdirs(b"/".join([b"d"] * DEPTH_MAX)) == DEPTH_MAX


async def test_failed_mkdirs_leaves_nothing(box: Box, client: InitClient) -> None:
    await client.mkdirs(b"a")
    await write(client, b"a/file", b"")
    with pytest.raises(NotADirectoryError):
        await client.mkdirs(b"a/file/b")
    with pytest.raises(OSError, match="too long"):
        await client.mkdirs(b"a/n1/n2/" + b"x" * 256)
    with pytest.raises(OSError, match="cross-device"):
        await client.mkdirs(b"a/n1/../n2")
    with pytest.raises(OSError, match="too long"):
        await client.mkdirs(b"/".join([b"n"] * (DEPTH_MAX + 1)))
    ran = await box.sh(client, "find . -name 'n*'")
    assert ran.text == ""


async def test_mkdirs_with_a_useless_mode_is_undone(box: Box, client: InitClient) -> None:
    if box.kind == "bare" and os.geteuid() == 0:
        pytest.skip("root enters any folder")
    with pytest.raises(PermissionError):
        await client.mkdirs(b"n1/n2/n3", 0)
    assert (await box.sh(client, "ls")).text == ("" if box.kind == "bare" else "vfolder\n")


async def test_fifo_and_socket_and_lease_do_not_block(box: Box, client: InitClient) -> None:
    await box.py(
        client, "import os,socket; os.mkfifo('fifo'); socket.socket(socket.AF_UNIX).bind('sock')"
    )
    fd = await client.open(b"fifo", os.O_RDONLY)  # a plain open would wait for a writer
    assert stat.S_ISFIFO(os.fstat(fd).st_mode)
    os.close(fd)
    with pytest.raises(OSError, match="No such device or address"):
        await client.open(b"fifo", os.O_WRONLY)
    with pytest.raises(OSError, match="No such device or address"):
        await client.open(b"sock", os.O_RDONLY)
    # A plain open of a leased file waits for /proc/sys/fs/lease-break-time, 45 s.
    script = "import fcntl,time; f=open('leased','w+'); fcntl.fcntl(f, fcntl.F_SETLEASE, 1); "
    script += "import signal; signal.signal(29, signal.SIG_IGN); print('ready', flush=True); "
    script += "time.sleep(60)"
    with await box.start(client, "/usr/bin/python3", "-c", script) as running:
        assert await running.line() == "ready"
        for flags in (os.O_RDONLY, os.O_WRONLY | os.O_TRUNC):
            with pytest.raises(BlockingIOError):
                await client.open(b"leased", flags)
        await client.kill(running.number, 9)
        await running.ended()


async def test_path_descriptor_shows_a_link_itself(box: Box, client: InitClient) -> None:
    await box.sh(client, "ln -s target link")
    fd = await client.open(b"link", os.O_PATH | os.O_NOFOLLOW)
    assert os.readlink("", dir_fd=fd) == "target"
    os.close(fd)


async def test_other_mount_is_entered_unless_forbidden(box: Box, client: InitClient) -> None:
    if box.kind == "bare":
        pytest.skip("has no other mount below home")
    await write(client, b"vfolder/f", b"x")
    ask = RESOLVE_NO_XDEV
    fd = await client.open(b".", os.O_WRONLY | os.O_TMPFILE, 0o600, ask)
    for request in (
        client.open(b"vfolder", os.O_RDONLY, 0, ask),
        client.open(b"vfolder/f", os.O_RDONLY, 0, ask),
        client.open(b"vfolder/f", os.O_WRONLY | os.O_TRUNC, 0, ask),
        client.open(b"vfolder/g", os.O_WRONLY | os.O_CREAT, 0o600, ask),
        client.open(b"vfolder", os.O_WRONLY | os.O_TMPFILE, 0o600, ask),
        client.mkdirs(b"vfolder/d", 0o755, ask),
        client.mkdirs(b"vfolder", 0o755, ask),
        client.link(fd, b"vfolder/g", ask),
        client.rename(b"vfolder/f", b"vfolder/g", 0, ask),
        client.unlink(b"vfolder/f", resolve=ask),
    ):
        with pytest.raises(OSError, match="cross-device") as caught:
            await request
        assert caught.value.errno == errno.EXDEV
    os.close(fd)
    with pytest.raises(OSError, match="busy"):
        await client.unlink(b"vfolder", directory=True)
    assert (await box.sh(client, "ls vfolder; cat vfolder/f")).text == "f\nx"
