"""Listening sockets that are made ahead: given once, removed when nobody takes them."""

from __future__ import annotations

import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.core.limits import Limits
from retort.node.boxes import spec_of
from retort.sandbox.host_uids import HostUids
from retort.sandbox.launcher import Launcher
from retort.sandbox.listeners import SOCKET_NAME, Listeners
from retort.sandbox.rootfs import Base

from .conftest import BINARY, BWRAP


@pytest.fixture
def spares(tmp_path: Path) -> Path:
    return tmp_path / "spares"


@pytest.fixture
def listeners(spares: Path) -> Iterator[Listeners]:
    made = Listeners(spares)
    yield made
    made.close()
    assert not spares.exists() or list(spares.iterdir()) == []


def reaches(folder: Path, listener: socket.socket) -> bool:
    """Whether who connects to the folder's socket gets to that listener."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
        caller.connect(str(folder / SOCKET_NAME))
        listener.settimeout(10)
        listener.accept()[0].close()
    return True


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_folder_gets_a_socket_that_listens(
    listeners: Listeners, tmp_path: Path, spares: Path, is_ahead: bool
) -> None:
    folder = tmp_path / "one"
    if is_ahead:
        listeners.prepare()
        assert len(list(spares.iterdir())) == 1
        assert stat.S_IMODE(spares.stat().st_mode) == 0o700  # as the folder of sessions
    with listeners.take(folder).socket as listener:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert reaches(folder, listener)


def test_a_spare_is_given_once(listeners: Listeners, tmp_path: Path, spares: Path) -> None:
    listeners.prepare()
    listeners.prepare()
    assert len(list(spares.iterdir())) == 1
    with listeners.take(tmp_path / "a").socket as one, listeners.take(tmp_path / "b").socket as two:
        assert reaches(tmp_path / "a", one)
        assert reaches(tmp_path / "b", two)


def test_a_folder_that_has_something_in_it_keeps_it(listeners: Listeners, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "note").touch()
    listeners.prepare()
    with listeners.take(tmp_path / "one").socket as listener:
        assert reaches(tmp_path / "one", listener)
    assert (tmp_path / "one" / "note").exists()


def test_a_spare_that_is_gone_does_no_harm(
    listeners: Listeners, tmp_path: Path, spares: Path
) -> None:
    listeners.prepare()
    shutil.rmtree(spares)
    with listeners.take(tmp_path / "one").socket as listener:
        assert reaches(tmp_path / "one", listener)


def test_a_spare_is_filled_ahead_and_one_that_cannot_be_is_none(
    listeners: Listeners, tmp_path: Path, spares: Path
) -> None:
    listeners.prepare(lambda folder: (folder / "note").touch())
    taken = listeners.take(tmp_path / "one")
    taken.socket.close()
    assert taken.is_filled
    assert (tmp_path / "one" / "note").exists()

    def fail(folder: Path) -> None:
        raise OSError(28, "no space")

    listeners.prepare(fail)
    assert list(spares.iterdir()) == []
    taken = listeners.take(tmp_path / "two")
    taken.socket.close()
    assert not taken.is_filled


def test_where_none_can_be_made_ahead_it_is_made_when_it_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    listeners = Listeners(tmp_path / "file")  # no folder
    listeners.prepare()
    with listeners.take(tmp_path / "two").socket as listener:
        assert reaches(tmp_path / "two", listener)
    listeners.close()


def test_what_a_killed_server_left_is_removed(listeners: Listeners, spares: Path) -> None:
    killed = Listeners(spares)
    killed.prepare()
    (left,) = spares.iterdir()
    listeners.prepare()
    assert not left.exists()
    assert len(list(spares.iterdir())) == 1
    killed.close()


@pytest.mark.parametrize("is_ahead", [False, True])
async def test_sandboxes_start_one_after_another_and_leave_no_spare(
    base: Base, host_uids: HostUids | None, place: Path, is_ahead: bool
) -> None:
    assert BWRAP is not None
    where = place / f"spares-{is_ahead}"
    launcher = Launcher(Path(BWRAP), base, helper=BINARY, spares=where if is_ahead else None)
    host_uid = host_uids.acquire() if host_uids is not None else None
    spec = spec_of(Limits(), host_uid, shares_network=False)
    for number in range(3):
        folder = place / f"listened-{is_ahead}-{number}"
        sandbox = await launcher.start(spec, folder, meanwhile=lambda in_: (in_ / "note").touch())
        assert sandbox.socket_path.is_socket()
        assert (folder / "note").exists()
        await launcher.kill(sandbox)
    launcher.close()
    assert where.exists() is is_ahead
    assert not is_ahead or list(where.iterdir()) == []
