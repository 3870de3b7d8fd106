"""Making and ending sessions on a machine whose sandboxes are scripted."""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest

from retort.core.image import Catalogue, Image, ImageKind, ImageRef
from retort.core.limits import Limits
from retort.core.run import Mode, RunRequest
from retort.core.session import Session, SessionStatus
from retort.errors import HostShort, ImageNotFound, SandboxFault, SessionNotFound
from retort.node import adopt, agent, boxes, reserve
from retort.node.agent import LocalNode
from retort.node.boxes import Boxes
from retort.node.files import FileLimits
from retort.node.places import Places
from retort.node.pool import Pool, PoolSettings
from retort.node.reserve import Need
from retort.node.run_settings import RunSettings
from retort.sandbox.cgroup import Groups
from retort.sandbox.host_uids import HostUids
from retort.sandbox.launcher import Identity, Sandbox
from retort.sandbox.session_group import Mode as GroupMode
from retort.sandbox.view import SandboxSpec


class Launcher:
    """Makes sandboxes that nobody listens in."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.killed: list[Sandbox] = []

    async def start(
        self,
        spec: SandboxSpec,
        folder: Path,
        *,
        meanwhile: Callable[[Path], None],
        on_spawned: Callable[[], None],
    ) -> Sandbox:
        folder.mkdir()  # noqa: ASYNC240 - a double has nothing else to do
        meanwhile(folder)
        on_spawned()
        if self.failure is not None:
            raise self.failure
        return Sandbox(Identity(1, 1), -1, folder / "init.sock", folder, spec.host_uid)

    async def kill(self, sandbox: Sandbox) -> None:
        self.killed.append(sandbox)

    def close(self) -> None:
        pass


@pytest.fixture
def launcher() -> Launcher:
    return Launcher()


async def _is_kept(token: str) -> bool:
    return False


@pytest.fixture
async def node(launcher: Launcher, tmp_path: Path) -> LocalNode:
    images = Catalogue([Image(ImageRef.parse("bash:5"), ImageKind.BASH)])
    made = Boxes(
        launcher,  # type: ignore[arg-type]
        Places(Groups(GroupMode.NONE, {}), {}),
        host_uids=HostUids(5000, 1),
        shares_network=False,
    )
    pool = Pool(made, tmp_path, Limits(), PoolSettings(), free_bytes=lambda: 1 << 40)
    return LocalNode(
        made,
        pool,
        images,
        tmp_path,
        runs=RunSettings(),
        files=FileLimits(),
        flush_s=0.2,
        on_lost=lambda session_id, reason: None,
        is_kept=_is_kept,
    )


def session(image: str = "bash:5") -> Session:
    return Session(
        uuid.uuid4(), "name", "AK", uuid.uuid4(), image, image, SessionStatus.PREPARING,
        dt.datetime.now(dt.UTC),
    )  # fmt: skip


async def test_a_sandbox_that_cannot_start_leaves_neither_folder_nor_uid_taken(
    node: LocalNode, launcher: Launcher, tmp_path: Path
) -> None:
    launcher.failure = SandboxFault("launch", "no")
    for _ in range(3):  # there is one uid: a second time it must be free again
        with pytest.raises(SandboxFault, match="launch"):
            await node.create(session())
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 - a test's own folder


async def test_a_sandbox_whose_init_does_not_answer_is_ended(
    node: LocalNode, launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boxes, "CONNECT_S", 0.05)
    monkeypatch.setattr(boxes, "START_S", 0.0)
    for count in (1, 2):
        with pytest.raises(SandboxFault, match="init"):
            await node.create(session())
        assert len(launcher.killed) == count
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


async def test_with_descriptors_for_a_run_alone_a_session_gets_what_is_ready_or_is_refused(
    node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[Any] = []

    async def clear(self: Boxes, box: Any) -> None:
        cleared.append(box)

    monkeypatch.setattr(Boxes, "clear", clear)
    monkeypatch.setattr(reserve, "is_short", lambda need: need is not Need.RUN)
    with pytest.raises(HostShort, match="descriptors"):
        await node.create(session())
    ready = mock.Mock()
    ready.move.side_effect = OSError(errno.EROFS, "so far")
    monkeypatch.setattr(Pool, "take", lambda self, limits: ready)
    with pytest.raises(SandboxFault, match="so far"):
        await node.create(session())
    await asyncio.sleep(0)
    assert cleared == [ready]  # it is nobody's now
    monkeypatch.setattr(reserve, "is_short", lambda need: True)
    with pytest.raises(HostShort, match="descriptors"):
        await node.create(session())


async def test_an_image_that_is_not_there_takes_no_uid(node: LocalNode) -> None:
    with pytest.raises(ImageNotFound):
        await node.create(session("none:1"))


async def test_a_session_that_is_not_held_is_not_found(node: LocalNode) -> None:
    nobody = uuid.uuid4()
    calls: list[Any] = [
        node.destroy(nobody),
        node.restart(nobody),
        node.interrupt(nobody),
        node.usage(nobody),
        node.execute(nobody, RunRequest(Mode.BATCH), 1.0),
        node.stream(nobody, RunRequest(Mode.BATCH)),
        node.listing(nobody, "."),
        node.download(nobody, []),
        node.download_single(nobody, "a"),
    ]
    for call in calls:
        with pytest.raises(SessionNotFound):
            await call


async def test_what_ends_slowly_holds_up_no_start_and_keeps_its_uid(
    node: LocalNode, launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node has one uid, and a sandbox of an earlier server, which is ending, has it."""
    stray = tmp_path / "stray"
    stray.mkdir()
    record = adopt.SandboxRecord(1, 1, 5000, "of another run of the host", "stray")
    (stray / adopt.IDENTITY).write_bytes(msgspec.json.encode(record))
    ended = asyncio.Event()

    async def end_slowly(_: object, folder: Path) -> bool:
        await ended.wait()
        shutil.rmtree(folder)
        return True

    monkeypatch.setattr(boxes, "end_stray", end_slowly)
    monkeypatch.setattr(boxes, "SWEEP_S", 0.01)
    monkeypatch.setattr(boxes, "CONNECT_S", 0.05)
    monkeypatch.setattr(boxes, "START_S", 0.0)
    async with asyncio.timeout(5):
        await node.sweep()
    with pytest.raises(SandboxFault, match="all 1 host uids are taken"):
        await node.create(session())
    ended.set()
    await asyncio.wait((node._boxes._sweeping,))
    with pytest.raises(SandboxFault, match="init"):  # it got the uid, and there is no init
        await node.create(session())
    assert launcher.killed
    await node.close()


async def test_a_destroy_waits_once_too_many_ended_sessions_are_not_yet_cleared(
    node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = asyncio.Semaphore(0)
    cleared: list[Any] = []

    async def clear(boxes: Boxes, box: Any) -> None:
        await may_end.acquire()
        cleared.append(box)

    monkeypatch.setattr(Boxes, "clear", clear)
    ids = [uuid.uuid4() for _ in range(agent.MAX_CLEARING + 2)]
    held = {one: mock.MagicMock() for one in ids}
    monkeypatch.setattr(node, "_held", dict(held))
    for one in ids[: agent.MAX_CLEARING]:
        await asyncio.wait_for(node.destroy(one), 10)  # answered, and nothing is cleared yet
    assert cleared == []
    late = [asyncio.ensure_future(node.destroy(one)) for one in ids[agent.MAX_CLEARING :]]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not any(task.done() for task in late)
    for one in ids:  # those that wait have been sent their end as well
        held[one].box.kill.assert_called_once()
    may_end.release()
    done, _ = await asyncio.wait(late, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(cleared)) == (1, 1)  # one went, one came
    for _ in ids[1:]:
        may_end.release()
    await asyncio.wait_for(asyncio.gather(*late), 10)
    await node.close()
    assert len(cleared) == len(ids)


async def test_a_node_without_sessions_closes(node: LocalNode) -> None:
    await node.close()
