"""Sandboxes that outlived the server which started them: found, taken over, or ended.

Before a sandbox is started its folder is there, with init's listening socket in it; after that, its
identity is written down. So whatever a killed server left has a folder, and whoever holds the other
end of its socket is found through it, also when the server was killed between the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn, cast

import msgspec
import structlog

from retort.errors import SandboxFault
from retort.node.records import Printed, Record
from retort.node.replay import IsKept, MakeRun, Replay
from retort.node.runner import Runner
from retort.sandbox.channel import close_all
from retort.sandbox.init import InitClient
from retort.sandbox.launcher import Identity, Launcher, Sandbox, mark_of
from retort.sandbox.listeners import SOCKET_NAME
from retort.sandbox.protocol import State
from retort.sandbox.step_values import StepRecord

log = structlog.get_logger()

IDENTITY = "sandbox.json"  # in the sandbox's folder
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
ANSWER_S = 10.0  # an init that has started answers in milliseconds
HOLDERS_S = 0.1  # between looks for processes that are to become an init
STARTING_S = 0.002  # between looks at a step that is about to become its program


class SandboxRecord(msgspec.Struct, frozen=True):
    """What a later server must know of a sandbox.

    Attributes:
        pid, start_ticks: of its init; no other process ever has both (`Identity`).
        boot_id: of the host's run; after another one, nothing of it can be left.
        group: name of its control group.
        walls: that it was made with; no later server's settings change them.
    """

    pid: int
    start_ticks: int
    host_uid: int | None
    boot_id: str
    group: str
    walls: dict[str, str] = {}


def remember(sandbox: Sandbox, group: str, walls: Mapping[str, str]) -> None:
    """Write down how a later server finds this sandbox: whole, or not at all.

    Args:
        group: name of its control group.
        walls: as in `SandboxRecord`.
    """
    record = SandboxRecord(*sandbox.identity, sandbox.host_uid, boot_id(), group, dict(walls))
    fresh = sandbox.folder / f"{IDENTITY}.new"
    fresh.write_bytes(msgspec.json.encode(record))
    fresh.rename(sandbox.folder / IDENTITY)


@functools.cache
def boot_id() -> str:
    """Name this run of the host."""
    return BOOT_ID.read_text("ascii").strip()


def recollect(folder: Path) -> SandboxRecord | None:
    """Read what was written down of a sandbox; None: it did not come so far."""
    try:
        return msgspec.json.decode((folder / IDENTITY).read_bytes(), type=SandboxRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def find(launcher: Launcher, folder: Path, record: SandboxRecord) -> Sandbox | None:
    """Find a sandbox by what was written down of it; None: it has ended."""
    identity = Identity(record.pid, record.start_ticks)
    with contextlib.suppress(OverflowError):
        return launcher.adopt(identity, folder, host_uid=record.host_uid)
    return None


class _GoneInit:
    """Stands for the init of a sandbox that has ended: nothing can be asked of it."""

    def __getattr__(self, name: str) -> NoReturn:
        raise SandboxFault("init", "it has ended")


GONE = cast(InitClient, _GoneInit())


# --- runs -----------------------------------------------------------------------------------


async def resume(runner: Runner, replay: Replay, client: InitClient) -> None:
    """Let a runner go on with the runs of an earlier server.

    Raises:
        SandboxFault: init is gone, or does not know what it must.
    """
    records = await _steps(client)
    number = replay.sent.number if replay.sent is not None else 0
    own = next((record for record in records if record.number == number), None)
    for record in records:
        if record is not own:
            await _drop(client, record)
    runner.take_over(replay, own)


async def replay_of(
    records: Iterable[Record | Printed], make_run: MakeRun, is_kept: IsKept
) -> Replay:
    """Go through the records of a session's journal.

    Args:
        is_kept: says whether the answer to a call is kept for its token.
    """
    replay = Replay(make_run)
    replay.read(records)
    await replay.settle(is_kept)
    return replay


async def _steps(client: InitClient) -> list[StepRecord]:
    """List init's steps, when none of them is half-way between init and its program."""
    while True:
        records = await client.steps()
        if all(record.state is not State.STARTING for record in records):
            return records
        close_all([end for record in records for end in record.held if end is not None])
        await asyncio.sleep(STARTING_S)


async def _drop(client: InitClient, record: StepRecord) -> None:
    """Let init forget a step whose end is written down, or that nobody knows."""
    close_all([end for end in record.held if end is not None])
    if record.exit is None:
        return  # it dies with what comes next; nobody waits for it
    with contextlib.suppress(OSError):
        await client.release(record.number)


# --- what nobody goes on with ---------------------------------------------------------------


def uids_of_stray(folder: Path) -> set[int]:
    """Say as which uids of the host an earlier server's sandbox in a folder may still run."""
    record = recollect(folder)
    if record is not None:
        return set() if record.host_uid is None else {record.host_uid}
    return {uid for pid in _holders(folder) if (uid := _uid_of(pid)) is not None}


async def end_stray(launcher: Launcher, folder: Path) -> bool:
    """End whatever an earlier server left in a folder, and remove it.

    Returns:
        Whether something was alive.
    """
    record = recollect(folder)
    if record is None:
        is_alive = await _end_unrecorded(folder)
    else:
        sandbox = find(launcher, folder, record)
        is_alive = sandbox is not None
        if sandbox is not None:
            with contextlib.suppress(SandboxFault):
                await launcher.kill(sandbox)
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    if is_alive:
        log.warning("node.stray", folder=folder.name)
    return is_alive


async def _end_unrecorded(folder: Path) -> bool:
    """End a sandbox that was started and not written down: whoever has its listening socket.

    Until its init runs, its processes are told by their mark, and are killed at once: bubblewrap's
    child would wait for ever for a parent that died with the server's end of a pipe. Its init has
    no mark and answers. What is on its way from the one to the other is met by one of the two.
    """
    if not (folder / SOCKET_NAME).exists():
        return False
    connecting = asyncio.ensure_future(
        InitClient.connect(
            os.fsencode(folder / SOCKET_NAME), timeout_s=ANSWER_S, on_lost=lambda _: None
        )
    )
    is_alive = False
    try:
        while True:
            await asyncio.wait((connecting,), timeout=HOLDERS_S)
            is_last = connecting.done()
            if is_last and connecting.exception() is None:
                break
            holders = await asyncio.to_thread(_holders, folder)
            for pid in holders:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            is_alive |= bool(holders)
            if is_last and not holders:  # nobody was born while we looked
                return is_alive
        client = connecting.result()
    finally:
        connecting.cancel()
    pidfd = os.dup(client.pidfd)  # the client closes its own as soon as its connection ends
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await _ended(pidfd)
    finally:
        os.close(pidfd)
        client.close()
    return True


async def _ended(pidfd: int) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(pidfd)


def _uid_of(pid: int) -> int | None:
    """Give a process's uid; who owns its folder in /proc says nothing of one that hides itself."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[1])
    return None


def _holders(folder: Path) -> list[int]:
    """Find processes of a sandbox that never came up, by the mark in their environment."""
    mark = mark_of(folder)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
