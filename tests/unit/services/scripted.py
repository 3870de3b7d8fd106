"""A node that does what a test says."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from retort.core.files import Download, FileUpload, Listing
from retort.core.limits import Usage
from retort.core.ports import Node
from retort.core.run import Answer, RunRequest, Status
from retort.core.session import Session
from retort.errors import SessionNotFound

USED = Usage(user_us=7)  #: by every session


class ScriptedNode:
    """A `core.ports.Node` without sandboxes.

    Attributes:
        gate: while it is not set, `create` and `restart` wait.
        failure: what `create` and `restart` raise when the gate is open.
        fails_once: the next `create` succeeds again.
        held: the sessions on this node.
        busy: those of them that run a program.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.fails_once = False
        self.held: set[uuid.UUID] = set()
        self.calls: list[tuple[Any, ...]] = []
        self.busy: set[uuid.UUID] = set()

    def _find(self, session_id: uuid.UUID, *call: Any) -> None:
        if session_id not in self.held:
            raise SessionNotFound
        self.calls.append(call)

    async def create(self, session: Session) -> None:
        await self.gate.wait()
        failure, self.failure = self.failure, None if self.fails_once else self.failure
        if failure is not None:
            raise failure
        self.held.add(session.id)

    async def destroy(self, session_id: uuid.UUID) -> Usage:
        self._find(session_id, "destroy")
        self.held.remove(session_id)
        return USED

    async def adopt(self, session: Session) -> Session:
        self.calls.append(("adopt", session.id))
        if self.failure is not None:
            raise self.failure
        self.held.add(session.id)
        return dataclasses.replace(session, num_queries=3)

    async def sweep(self) -> None:
        self.calls.append(("sweep",))

    async def restart(self, session_id: uuid.UUID) -> None:
        self._find(session_id, "restart")
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def interrupt(self, session_id: uuid.UUID) -> None:
        self._find(session_id, "interrupt")

    async def execute(self, session_id: uuid.UUID, request: RunRequest, wait_s: float) -> Answer:
        self._find(session_id, "execute", request, wait_s)
        return Answer("r", Status.CONTINUED)

    async def undeliver(self, session_id: uuid.UUID, answer: Answer) -> None:
        self.calls.append(("undeliver", answer))

    async def stream(self, session_id: uuid.UUID, request: RunRequest) -> Any:
        self._find(session_id, "stream", request)
        return object()

    def is_busy(self, session_id: uuid.UUID) -> bool:
        return session_id in self.busy

    async def usage(self, session_id: uuid.UUID) -> Usage:
        self._find(session_id, "usage")
        return USED

    async def upload(self, session_id: uuid.UUID, files: AsyncIterator[FileUpload]) -> None:
        self._find(session_id, "upload")

    async def listing(self, session_id: uuid.UUID, path: str) -> Listing:
        self._find(session_id, "listing", path)
        return None  # type: ignore[return-value]

    async def download(self, session_id: uuid.UUID, paths: Sequence[str]) -> list[Download]:
        self._find(session_id, "download", tuple(paths))
        return []

    async def download_single(self, session_id: uuid.UUID, path: str) -> Download:
        self._find(session_id, "download_single", path)
        if self.failure is not None:
            raise self.failure
        return None  # type: ignore[return-value]


class OneNode:
    """A `core.ports.Placement` on one node; it takes its time, as a distant one would."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.failure: Exception | None = None

    async def place(self, session: Session) -> Node:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return self.node

    async def sweep(self) -> None:
        await self.node.sweep()

    def node_of(self, session_id: uuid.UUID) -> Node:
        return self.node
