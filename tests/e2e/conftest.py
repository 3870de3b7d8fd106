"""A real server as its own process, and ways to call it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass
class Server:
    """A running `retort serve`."""

    process: subprocess.Popen[str]
    url: str
    state: Path
    access_key: str
    secret_key: str
    token: str
    log: Path

    def new_key(self) -> dict[str, str]:
        """Make another key beside the running server."""
        made = retort("keys", "create", "--state", str(self.state), "--json")
        key: dict[str, str] = json.loads(made)
        return key

    def stop(self) -> None:
        """Stop it as an operator would, and insist."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def environment(**more: str) -> dict[str, str]:
    """The environment of a `retort` that runs from this tree."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RETORT_", "BACKEND_"))}
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths)} | more


def retort(*args: str) -> str:
    """Run a `retort` command to its end and give its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "retort.cli.main", *args],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@contextlib.contextmanager
def running_server(
    folder: Path, *, command: tuple[str, ...] = (sys.executable,), **settings: str
) -> Iterator[Server]:
    """Run a server on a free port; `settings` are variables, e.g. RETORT_RUNS_WALL_S.

    `command` is the interpreter and what comes before it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = json.loads(retort("keys", "create", "--state", str(folder), "--json"))
    log = folder / "server.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [
                *(*command, "-m", "retort.cli.main", "serve", "--verbose"),
                *("--listen", "127.0.0.1:0", "--state", str(folder), "--drain"),
            ],
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
        )
    assert process.stdout is not None
    server = Server(process, "", folder, key["accessKey"], key["secretKey"], key["token"], log)
    try:
        line = process.stdout.readline()
        assert "listens on" in line, log.read_text()
        server.url = next(word for word in line.split() if word.startswith("http"))
        yield server
    finally:
        server.stop()
        process.stdout.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for every test that does not need its own."""
    with running_server(tmp_path_factory.mktemp("server") / "state") as running:
        yield running


@pytest.fixture
async def api(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """Calls with the bearer token of the server's first key."""
    async with aiohttp.ClientSession(
        server.url, headers={"Authorization": f"Bearer {server.token}"}
    ) as session:
        yield session


NewSession = Callable[..., Awaitable[str]]


@pytest.fixture
async def new_session(api: aiohttp.ClientSession) -> AsyncIterator[NewSession]:
    """Make sessions, by image and further parameters; they end with the test."""
    names: list[str] = []

    async def make(image: str = "gcc", **params: Any) -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        async with api.post("/session", json={"name": name, "image": image, **params}) as answer:
            assert answer.status == 201, await answer.text()
        names.append(name)
        return name

    yield make
    for name in names:
        async with api.delete(f"/session/{name}") as answer:
            await answer.read()


async def upload(api: aiohttp.ClientSession, name: str, **files: str | bytes) -> None:
    """Upload files; a double underscore in a name stands for a dot."""
    form = aiohttp.FormData()
    for path, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        form.add_field("src", data, filename=path.replace("__", "."),
                       content_type="application/octet-stream")  # fmt: skip
    async with api.post(f"/session/{name}/upload", data=form) as answer:
        assert answer.status == 204, await answer.text()


async def execute(api: aiohttp.ClientSession, name: str, **body: Any) -> dict[str, Any]:
    """Make one execute call and give its result object."""
    async with api.post(f"/session/{name}", json=body) as answer:
        assert answer.status == 200, await answer.text()
        result: dict[str, Any] = (await answer.json())["result"]
        return result


async def run_to_end(
    api: aiohttp.ClientSession, name: str, *, stdin: tuple[str, ...] = (), **options: Any
) -> list[dict[str, Any]]:
    """Run a batch to its end; give every answer. `stdin`: lines for each wait for input."""
    lines = list(stdin)
    answers = [await execute(api, name, mode="batch", code="", options=options)]
    async with asyncio.timeout(120):
        while answers[-1]["status"] not in ("finished", "exec-timeout"):
            run_id, is_waiting = answers[-1]["runId"], answers[-1]["status"] == "waiting-input"
            mode, code = ("input", lines.pop(0)) if is_waiting else ("continue", "")
            answers.append(await execute(api, name, mode=mode, code=code, runId=run_id))
    return answers


def printed(answers: list[dict[str, Any]], stream: str = "stdout") -> str:
    """Join what a run printed."""
    return "".join(text for answer in answers for kind, text in answer["console"] if kind == stream)
