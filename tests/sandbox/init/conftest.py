"""Every test of init runs on both kinds of sandbox, unless it asks for one."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.sandbox.init.box import BINARY, Box

from retort.sandbox.init import InitClient


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, as a socket's name has 107 bytes at most, and one that every uid can pass."""
    with tempfile.TemporaryDirectory(prefix="ri-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(params=["bare", "pid1"])
def kind(request: pytest.FixtureRequest) -> str:
    if not BINARY.exists():
        pytest.skip("init is not built: run scripts/build-init")
    if request.param == "pid1" and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    return str(request.param)


@pytest.fixture
def make_box(kind: str, folder: Path) -> Iterator[Callable[..., Box]]:
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(Box(kind, folder, *arguments))


@pytest.fixture
def box(make_box: Callable[..., Box]) -> Box:
    return make_box()


@pytest_asyncio.fixture
async def client(box: Box) -> AsyncIterator[InitClient]:
    connection = await box.connect()
    yield connection
    connection.close()


only_pid1 = pytest.mark.parametrize("kind", ["pid1"], indirect=True)
