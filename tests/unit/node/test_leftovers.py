from __future__ import annotations

from pathlib import Path

import pytest

from retort.errors import SandboxFault
from retort.node.leftovers import end_leftovers, remember
from retort.sandbox.launcher import Identity, Sandbox


class Machine:
    """A launcher that knows which sandboxes are alive."""

    def __init__(self, *alive: Identity) -> None:
        self.alive = set(alive)
        self.is_stubborn = False

    def adopt(self, identity: Identity, folder: Path) -> Sandbox | None:
        if identity.pid > 2**31:
            raise OverflowError  # as os.pidfd_open does
        return sandbox(identity, folder) if identity in self.alive else None

    async def kill(self, sandbox: Sandbox) -> None:
        if self.is_stubborn:
            raise SandboxFault("kill", "ignores SIGKILL")
        self.alive.remove(sandbox.identity)


def sandbox(identity: Identity, folder: Path) -> Sandbox:
    return Sandbox(identity, -1, folder / "init.sock", folder, None)


def left(sessions: Path, name: str, text: str | None = None) -> Path:
    folder = sessions / name
    folder.mkdir()
    if text is not None:
        (folder / "identity").write_text(text)
    return folder


async def test_what_is_alive_is_ended_and_every_folder_removed(tmp_path: Path) -> None:
    one, other = Identity(11, 111), Identity(22, 222)
    machine = Machine(one, other)
    for number, identity in enumerate((one, other)):
        remember(sandbox(identity, left(tmp_path, f"live{number}")))
    left(tmp_path, "dead", "33 333\n")
    assert await end_leftovers(machine, tmp_path) == 2  # type: ignore[arg-type]
    assert machine.alive == set()
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 - a test's own folder


async def test_a_process_that_only_has_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    machine = Machine(Identity(11, 999))
    left(tmp_path, "old", "11 111\n")
    assert await end_leftovers(machine, tmp_path) == 0  # type: ignore[arg-type]
    assert machine.alive == {Identity(11, 999)}


@pytest.mark.parametrize("text", [None, "", "x y", "1", "1 2 3", f"{10**30} 1", "\xff", "1 2\n3 4"])
async def test_a_record_that_makes_no_sense_is_removed(tmp_path: Path, text: str | None) -> None:
    left(tmp_path, "odd", text)
    assert await end_leftovers(Machine(), tmp_path) == 0  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


async def test_one_that_does_not_die_does_not_keep_the_others(tmp_path: Path) -> None:
    machine = Machine(Identity(11, 111))
    machine.is_stubborn = True
    left(tmp_path, "a", "11 111")
    left(tmp_path, "b", "22 222")
    await end_leftovers(machine, tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240
