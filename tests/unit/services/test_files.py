from __future__ import annotations

import uuid

import pytest
from tests.unit.services.conftest import key
from tests.unit.services.scripted import OneNode, ScriptedNode

from retort.core.session import SessionRequest
from retort.errors import FileNotFound, PathNotFound, PathRefused, SessionNotFound
from retort.services.files import FileService
from retort.services.sessions import SessionService

A = key("AKA")


@pytest.fixture
async def files(sessions: SessionService, placement: OneNode) -> FileService:
    await sessions.create(A, SessionRequest("gcc:12", "name"))
    return FileService(sessions, placement, secret=b"secret")


async def test_calls_reach_the_node(files: FileService, node: ScriptedNode) -> None:
    await files.listing(A, "name", "a")
    await files.download(A, "name", ["b", "c"])
    await files.download_single(A, "name", "d")
    assert node.calls == [("listing", "a"), ("download", ("b", "c")), ("download_single", "d")]


async def test_another_keys_files_are_not_there(files: FileService, node: ScriptedNode) -> None:
    other = key("AKB")
    with pytest.raises(SessionNotFound):
        await files.listing(other, "name", ".")
    with pytest.raises(SessionNotFound):
        await files.download(other, "name", ["a"])
    with pytest.raises(SessionNotFound):
        await files.download_single(other, "name", "a")
    assert node.calls == []


async def test_a_token_opens_its_own_file_only(
    files: FileService, sessions: SessionService, node: ScriptedNode
) -> None:
    session_id = sessions.find(A, "name").id
    token = files.output_token(session_id, "ü/f")
    await files.output_file(session_id, "ü/f", token)
    assert node.calls == [("download_single", "/home/work/.output/ü/f")]
    for wrong in (
        (session_id, "g", token),
        (uuid.uuid4(), "ü/f", token),
        (session_id, "ü/f", token[:-1]),
        (session_id, "ü/f", ""),
        (session_id, "ü/f", "ü" * 32),
    ):
        with pytest.raises(PathNotFound):
            await files.output_file(*wrong)


def test_another_server_signs_otherwise(files: FileService) -> None:
    other = FileService(None, None, secret=b"other")  # type: ignore[arg-type]
    assert other.output_token(uuid.UUID(int=1), "f") != files.output_token(uuid.UUID(int=1), "f")


@pytest.mark.parametrize("failure", [FileNotFound(), PathRefused(), SessionNotFound()])
async def test_a_file_that_is_gone_is_not_found(
    files: FileService, sessions: SessionService, node: ScriptedNode, failure: Exception
) -> None:
    session_id = sessions.find(A, "name").id
    node.failure = failure
    with pytest.raises(PathNotFound):
        await files.output_file(session_id, "f", files.output_token(session_id, "f"))
