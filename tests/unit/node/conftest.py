"""A runner over a scripted init."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.unit.node.scripted_init import ScriptedInit, make

from retort.node.runner import Runner


@pytest.fixture
async def init() -> AsyncIterator[ScriptedInit]:
    made = ScriptedInit()
    yield made
    for step in made.steps:
        step.close()


@pytest.fixture
async def runner(init: ScriptedInit) -> AsyncIterator[Runner]:
    made = make(init)
    yield made
    made.broken("the test is over")
