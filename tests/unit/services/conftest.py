from __future__ import annotations

import uuid

import pytest
from tests.fakes import START, FakeClock, MemorySessions
from tests.unit.services.scripted import OneNode, ScriptedNode

from retort.core.image import Catalogue, Image, ImageKind, ImageLimits, ImageRef
from retort.core.keypair import KeyPair, KeyPolicy
from retort.core.limits import MIB, Limits
from retort.services.sessions import SessionService


def key(name: str = "AKA", *, max_sessions: int = 3) -> KeyPair:
    return KeyPair(
        access_key=name,
        secret_key="s",
        token_sha256=name,
        user_id=uuid.uuid5(uuid.NAMESPACE_DNS, name),
        email="a@example.org",
        created_at=START,
        policy=KeyPolicy(max_sessions=max_sessions),
    )


@pytest.fixture
async def node() -> ScriptedNode:
    return ScriptedNode()


@pytest.fixture
async def placement(node: ScriptedNode) -> OneNode:
    return OneNode(node)


@pytest.fixture
def sessions_store() -> MemorySessions:
    return MemorySessions()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def sessions(
    sessions_store: MemorySessions, placement: OneNode, clock: FakeClock
) -> SessionService:
    images = (
        Image(ImageRef.parse("gcc:12"), ImageKind.C, ("c:12",)),
        Image(ImageRef.parse("python:3"), ImageKind.PYTHON),
        Image(ImageRef.parse("bash:5"), ImageKind.BASH, limits=ImageLimits(0.5, 128 * MIB)),
    )
    return SessionService(sessions_store, placement, Catalogue(images), clock, Limits())
