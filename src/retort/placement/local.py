"""Placement on the one machine that the server runs on."""

from __future__ import annotations

import os
import uuid

from retort.core.ports import Node
from retort.core.session import Session
from retort.errors import QuotaExceeded


class LocalPlacement:
    """Put every session on one node, as long as its slots can ever fit this machine.

    Args:
        memory_bytes: of the machine; a session may ask for at most this much.
        cpus: of the machine.
    """

    def __init__(self, node: Node, *, memory_bytes: int, cpus: float) -> None:
        self._node = node
        self._memory_bytes = memory_bytes
        self._cpus = cpus

    async def place(self, session: Session) -> Node:
        """Give the node, or refuse what it can never hold (spec 5.9)."""
        if session.limits.memory_bytes > self._memory_bytes:
            raise QuotaExceeded(f"mem: at most {self._memory_bytes} bytes on this server")
        if session.limits.cpus > self._cpus:
            raise QuotaExceeded(f"cpu: at most {self._cpus:g} on this server")
        return self._node

    async def sweep(self) -> None:
        """End what nobody adopted on the node."""
        await self._node.sweep()

    def node_of(self, session_id: uuid.UUID) -> Node:
        """Give the node; it answers SessionNotFound itself."""
        return self._node


def machine_memory_bytes() -> int:
    """Give this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
