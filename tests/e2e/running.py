"""Ways to run programs by polling, shared by the tests of runs."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.conftest import (
    execute,
    printed,
    run_to_end,
)

Calls = aiohttp.ClientSession


async def start(api: Calls, name: str, run_id: str | None = None, **options: Any) -> dict[str, Any]:
    return await execute(api, name, mode="batch", code="", runId=run_id, options=options)


async def go_on(api: Calls, name: str, run_id: str, line: str | None = None) -> dict[str, Any]:
    mode, code = ("continue", "") if line is None else ("input", line)
    return await execute(api, name, mode=mode, code=code, runId=run_id)


async def status_of(api: Calls, name: str, **body: Any) -> tuple[int, dict[str, Any]]:
    async with api.post(f"/session/{name}", json=body) as answer:
        return answer.status, await answer.json()


async def until(
    api: Calls, name: str, answer: dict[str, Any], *statuses: str, text: str = ""
) -> list[dict[str, Any]]:
    """Continue until an answer has one of these statuses, or the run printed a text."""
    answers = [answer]
    async with asyncio.timeout(60):
        while answers[-1]["status"] not in statuses and not (text and text in printed(answers)):
            assert answers[-1]["status"] not in ("finished", "exec-timeout"), answers
            answers.append(await go_on(api, name, answer["runId"]))
    return answers


async def begin(api: Calls, name: str, command: str) -> str:
    """Start a program and wait until it runs; give the run's id."""
    mark = f"begun-{uuid.uuid4().hex}"
    # No touch(1): an interrupt that found it still there would be lost on the shell.
    first = await start(api, name, exec=f": > {mark}\n{command}")
    await wait_for_file(api, name, mark)
    return str(first["runId"])


def ends(answers: list[dict[str, Any]]) -> list[tuple[str, int | None]]:
    return [(a["status"], a["exitCode"]) for a in answers if a["status"] != "continued"]


async def sh(api: Calls, name: str, command: str, **more: Any) -> tuple[int, str]:
    """Run one command; give its exit code and what it printed."""
    answers = await run_to_end(api, name, exec=command, **more)
    return answers[-1]["exitCode"], printed(answers)


async def wait_for_file(api: Calls, name: str, path: str) -> None:
    """Wait until a program of a session has made a file."""

    async def is_there() -> bool:
        async with api.get(f"/session/{name}/files") as answer:
            listed = json.loads((await answer.json())["files"])
        return any(entry["filename"] == path for entry in listed)

    await wait_for(is_there)


async def create(api: Calls, image: str = "bash", **body: Any) -> str:
    async with api.post("/session", json={"image": image, **body}) as answer:
        assert answer.status == 201, await answer.text()
        return str((await answer.json())["sessionName"])


def processes_with(argument: str) -> list[int]:
    """Find processes of this machine by an argument of theirs."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                arguments = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if argument.encode() in arguments:
                found.append(int(entry.name))
    return found


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def all_are_gone(pids: Iterable[int]) -> bool:
    return all(map(is_gone, pids))


async def destroy(api: Calls, name: str) -> None:
    async with api.delete(f"/session/{name}") as answer:
        assert answer.status == 200, (answer.status, await answer.text())


async def restart(api: Calls, name: str) -> None:
    async with api.patch(f"/session/{name}") as answer:
        assert answer.status == 204


async def interrupt(api: Calls, name: str) -> None:
    async with api.post(f"/session/{name}/interrupt") as answer:
        assert answer.status == 204


async def runs_of(api: Calls, name: str, count: int) -> bool:
    """Whether a session has started so many runs."""
    async with api.get(f"/session/{name}") as answer:
        return bool((await answer.json())["numQueriesExecuted"] == count)


async def has_process(argument: str) -> bool:
    return bool(processes_with(argument))


async def is_over(argument: str) -> bool:
    """Whether nothing with this argument runs; a destroyed session was killed, and is dying."""
    return not processes_with(argument)


async def wait_for(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - what it waits for is another process
            await asyncio.sleep(0.01)
