from __future__ import annotations

import pytest
from tests.unit.services.conftest import key
from tests.unit.services.scripted import OneNode, ScriptedNode

from retort.core.run import Answer, Mode, RunRequest, Status
from retort.core.session import SessionRequest
from retort.errors import SessionNotFound
from retort.services.runs import RunService
from retort.services.sessions import SessionService

A = key("AKA")


@pytest.fixture
async def runs(sessions: SessionService, placement: OneNode) -> RunService:
    await sessions.create(A, SessionRequest("gcc:12", "name"))
    return RunService(sessions, placement, poll_s=2.0)


@pytest.mark.parametrize("mode", Mode)
async def test_a_call_reaches_the_node_and_only_starts_are_counted(
    runs: RunService, sessions: SessionService, node: ScriptedNode, mode: Mode
) -> None:
    request = RunRequest(mode, run_id="r")
    session, answer = await runs.execute(A, "name", request)
    assert (session.name, answer.status) == ("name", Status.CONTINUED)
    assert node.calls == [("execute", request, 2.0)]
    assert sessions.find(A, "name").num_queries == int(mode.starts)


async def test_a_stream_is_counted_as_a_run(runs: RunService, sessions: SessionService) -> None:
    await runs.stream(A, "name", RunRequest(Mode.BATCH))
    assert sessions.find(A, "name").num_queries == 1


async def test_an_undelivered_answer_goes_back_to_its_node(
    runs: RunService, sessions: SessionService, node: ScriptedNode
) -> None:
    answer = Answer("r", Status.FINISHED, 0)
    await runs.undeliver(sessions.find(A, "name"), answer)
    assert node.calls == [("undeliver", answer)]


async def test_another_keys_session_runs_nothing(runs: RunService, node: ScriptedNode) -> None:
    with pytest.raises(SessionNotFound):
        await runs.execute(key("AKB"), "name", RunRequest(Mode.BATCH))
    with pytest.raises(SessionNotFound):
        await runs.stream(key("AKB"), "name", RunRequest(Mode.BATCH))
    assert node.calls == []
