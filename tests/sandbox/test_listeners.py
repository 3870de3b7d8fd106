"""Listening sockets that are made ahead: given once, removed when nobody takes them."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.core.limits import Limits
from retort.node.adopt import end_stray
from retort.node.boxes import spec_of
from retort.sandbox.host_uids import HostUids
from retort.sandbox.launcher import Launcher
from retort.sandbox.listeners import SOCKET_NAME, Listeners, is_spare


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    made = Listeners()
    yield made
    made.close()


def reaches(folder: Path, listener: socket.socket) -> bool:
    """Whether who connects to the folder's socket gets to that listener."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
        caller.connect(str(folder / SOCKET_NAME))
        listener.settimeout(10)
        listener.accept()[0].close()
    return True


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_folder_gets_a_socket_that_listens(
    listeners: Listeners, tmp_path: Path, is_ahead: bool
) -> None:
    folder = tmp_path / "one"
    if is_ahead:
        listeners.prepare(folder)
        assert [is_spare(entry) for entry in tmp_path.iterdir()] == [True]
    with listeners.take(folder).socket as listener:
        assert [entry.name for entry in tmp_path.iterdir()] == ["one"]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert reaches(folder, listener)


def test_a_spare_is_given_once(listeners: Listeners, tmp_path: Path) -> None:
    listeners.prepare(tmp_path / "any")
    listeners.prepare(tmp_path / "any")
    assert len(list(tmp_path.iterdir())) == 1
    with (
        listeners.take(tmp_path / "one").socket as one,
        listeners.take(tmp_path / "two").socket as two,
    ):
        assert reaches(tmp_path / "one", one)
        assert reaches(tmp_path / "two", two)


def test_a_folder_that_has_something_in_it_keeps_it(listeners: Listeners, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "note").touch()
    listeners.prepare(tmp_path / "one")
    with listeners.take(tmp_path / "one").socket as listener:
        assert reaches(tmp_path / "one", listener)
    assert (tmp_path / "one" / "note").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]


def test_a_spare_that_is_gone_does_no_harm(listeners: Listeners, tmp_path: Path) -> None:
    listeners.prepare(tmp_path / "one")
    (spare,) = tmp_path.iterdir()
    (spare / SOCKET_NAME).unlink()
    spare.rmdir()
    with listeners.take(tmp_path / "one").socket as listener:
        assert reaches(tmp_path / "one", listener)


def test_a_spare_is_filled_ahead_and_one_that_cannot_be_is_none(
    listeners: Listeners, tmp_path: Path
) -> None:
    listeners.prepare(tmp_path / "any", lambda folder: (folder / "note").touch())
    taken = listeners.take(tmp_path / "one")
    taken.socket.close()
    assert taken.is_filled
    assert (tmp_path / "one" / "note").exists()

    def fail(folder: Path) -> None:
        raise OSError(28, "no space")

    listeners.prepare(tmp_path / "any", fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]
    taken = listeners.take(tmp_path / "two")
    taken.socket.close()
    assert not taken.is_filled


def test_what_nobody_took_is_removed_at_the_end(tmp_path: Path) -> None:
    listeners = Listeners()
    listeners.prepare(tmp_path / "one")
    listeners.close()
    assert list(tmp_path.iterdir()) == []


def test_where_none_can_be_made_ahead_nothing_is_left(listeners: Listeners, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    listeners.prepare(tmp_path / "file" / "one")  # its parent is no folder
    with pytest.raises(NotADirectoryError):
        listeners.take(tmp_path / "file" / "one")
    with listeners.take(tmp_path / "two").socket as listener:
        assert reaches(tmp_path / "two", listener)


async def test_sandboxes_start_one_after_another_and_leave_no_spare(
    launcher: Launcher, host_uids: HostUids | None, place: Path
) -> None:
    host_uid = host_uids.acquire() if host_uids is not None else None
    spec = spec_of(Limits(), host_uid, shares_network=False)
    for name in ("one", "two", "three"):
        sandbox = await launcher.start(
            spec, place / name, meanwhile=lambda folder: (folder / "note").touch()
        )
        assert sandbox.socket_path.is_socket()
        assert (place / name / "note").exists()
        await launcher.kill(sandbox)
    launcher.close()
    assert not [entry for entry in place.iterdir() if is_spare(entry)]  # noqa: ASYNC240


async def test_a_spare_that_a_killed_server_left_is_removed_at_once(
    launcher: Launcher, tmp_path: Path
) -> None:
    killed = Listeners()
    killed.prepare(tmp_path / "one")
    (left,) = tmp_path.iterdir()  # noqa: ASYNC240 - a test's own folder
    assert not await end_stray(launcher, left)
    killed.close()  # as the kernel does for a process that ends
    assert not left.exists()
