"""A session's files over a folder of the host, by openat2 and by walking."""

# ruff: noqa: PTH208 - a test may block, and works on raw names

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.node.session_files.home import LIMITS, SECRET

from retort.hostfs.folders import FolderTree
from retort.node.files import SessionFiles


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture(params=["openat2", "walk"])
def tree(root: Path, request: pytest.FixtureRequest) -> Iterator[FolderTree]:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield FolderTree(fd, walk=request.param == "walk")
    os.close(fd)


@pytest.fixture
def files(tree: FolderTree) -> SessionFiles:
    return SessionFiles(tree, LIMITS)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    after = set(os.listdir("/proc/self/fd"))
    # The event loop's and the root's own come and go with their fixtures.
    assert len(after) <= len(before) + 8
