"""Users of virtual folders: two who know nothing of each other, and an administrator."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.e2e.conftest import Server
from tests.e2e.vfolder_user import User, user_of


@pytest.fixture
async def ann(server: Server) -> AsyncIterator[User]:
    async with user_of(server) as user:
        yield user


@pytest.fixture
async def bob(server: Server) -> AsyncIterator[User]:
    async with user_of(server) as user:
        yield user


@pytest.fixture
async def admin(server: Server) -> AsyncIterator[User]:
    async with user_of(server, admin=True) as user:
        yield user
