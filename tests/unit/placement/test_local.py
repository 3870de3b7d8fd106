from __future__ import annotations

import datetime as dt
import uuid

import pytest

from retort.core.limits import Limits
from retort.core.ports import Node
from retort.core.session import Session, SessionStatus
from retort.errors import QuotaExceeded
from retort.placement.local import LocalPlacement, machine_memory_bytes

GIB = 1024**3


def session(**limits: float) -> Session:
    return Session(
        uuid.uuid4(), "name", "AK", uuid.uuid4(), "gcc:12", "gcc", SessionStatus.PENDING,
        dt.datetime.now(dt.UTC), limits=Limits(**limits),  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def node() -> Node:
    return object()  # type: ignore[return-value]


@pytest.mark.parametrize("limits", [{"memory_bytes": GIB, "cpus": 2}, {"memory_bytes": 1}])
async def test_what_fits_the_machine_is_put_on_its_node(
    node: Node, limits: dict[str, float]
) -> None:
    placement = LocalPlacement(node, memory_bytes=GIB, cpus=2)
    placed = session(**limits)
    assert await placement.place(placed) is node
    assert placement.node_of(placed.id) is node


@pytest.mark.parametrize(
    ("limits", "slot"),
    [({"memory_bytes": GIB + 1}, "mem"), ({"memory_bytes": GIB, "cpus": 2.1}, "cpu")],
)
async def test_what_can_never_fit_is_refused_by_its_slot(
    node: Node, limits: dict[str, float], slot: str
) -> None:
    with pytest.raises(QuotaExceeded, match=f"^{slot}:"):
        await LocalPlacement(node, memory_bytes=GIB, cpus=2).place(session(**limits))


def test_a_machine_has_memory() -> None:
    assert machine_memory_bytes() > 64 * 1024**2
