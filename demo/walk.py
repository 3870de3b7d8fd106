"""The whole API once: a C project is uploaded, built, run, listed and downloaded.

Run it by `make demo` or `scripts/demo`. The server is a temporary one and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from retort.cli.project import collect
from retort.cli.temporary import temporary_server
from retort.cli.terminal import harmless
from retort.client.client import Client, SessionHandle
from retort.client.events import Finished, Output, PhaseEnded
from retort.errors import RetortError
from retort.units import format_bytes

PROJECT = Path(__file__).parent / "plotter"
IS_COLOURED = sys.stdout.isatty() and "NO_COLOR" not in os.environ


class Step:
    """One step: its title before, the calls it made and their time after."""

    def __init__(self, title: str, calls: str) -> None:
        self._calls = calls
        print(_styled("1", f"\n{title}"), flush=True)

    def __enter__(self) -> None:
        self._began_at = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        took_ms = (time.perf_counter() - self._began_at) * 1000
        print(_styled("2", f"  {self._calls:52} {took_ms:7.1f} ms"), flush=True)


def _styled(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if IS_COLOURED else text


def _line(text: str) -> None:
    print(f"  {text}", flush=True)


async def walk() -> int:
    """Take every step; gives the exit code."""
    began_at = time.perf_counter()
    async with contextlib.AsyncExitStack() as stack:
        with Step("Start a server in a temporary folder", "GET /"):
            server = await stack.enter_async_context(temporary_server(os.environ))
            client = await stack.enter_async_context(
                Client(server.url, access_key=server.access_key, secret_key=server.secret_key)
            )
            about = await client.call("GET", "/")
            _line(f"{server.url}  speaks {about['version']}")
        is_same = await _project(client)
    print(_styled("1", f"\nAll of it took {time.perf_counter() - began_at:.1f} s."), flush=True)
    return 0 if is_same else 1


async def _project(client: Client) -> bool:
    with Step("Make a session: one sandbox, no network, its own files", "POST /session"):
        session = await client.create_session("gcc", "demo")
        _line(f"session {session.name}  {session.id}")
    project = collect([PROJECT])
    with Step("Upload a C project", "POST /session/demo/upload"):
        await session.upload(project.files)
        _line(", ".join(project.files))
        _line(f"{len(project.files)} files, {format_bytes(project.size)}")
    with Step("Build it (make) and run it", "WebSocket /stream/session/demo/execute"):
        is_good = await _run(session)
    with Step("List what there is now", "GET /session/demo/files (twice)"):
        for folder in ("/home/work", "/home/work/.output"):
            _line(f"{folder}:")
            for entry in sorted(await session.list(folder), key=lambda entry: entry.name):
                _line(f"  {entry.mode} {format_bytes(entry.size):>10}  {harmless(entry.name)}")
    with (
        tempfile.TemporaryDirectory() as folder,
        Step("Download the program and its result", "GET /session/demo/download"),
    ):
        got = await session.download(["main", ".output"], Path(folder))
        for path in got.files:
            _line(f"{path.relative_to(folder)}  {format_bytes(path.stat().st_size)}")
        here = hashlib.sha256((Path(folder) / "main").read_bytes()).hexdigest()
    with Step("Compare the program with the one inside", "WebSocket /stream/session/demo/execute"):
        inside = await _printed(session, "sha256sum main")
        is_same = inside.split()[:1] == [here]
        _line(f"here    {here}")
        _line(f"inside  {' '.join(inside.split()[:1])}")
        _line("the same" if is_same else "NOT THE SAME")
    with Step("End the session; its files go with it", "DELETE /session/demo"):
        stats = await session.destroy()
        _line(f"CPU time {stats.get('cpu_used', 0)} ms")
    return is_good and is_same


async def _run(session: SessionHandle) -> bool:
    began_at = time.perf_counter()
    async with session.run(clean="*") as run:
        async for event in run:
            match event:
                case Output(_, text, is_program=True):
                    print(text, end="", flush=True)
                case Output(_, text):
                    print(_styled("2", "".join(f"  {t}\n" for t in text.splitlines())), end="")
                case PhaseEnded("build", code):
                    took_ms = (time.perf_counter() - began_at) * 1000
                    _line(f"built in {took_ms:.0f} ms, exit code {code}\n")
                case Finished(code, files):
                    _line(f"exit code {code}, result files: {', '.join(f.name for f in files)}")
                    return code == 0
    return False


async def _printed(session: SessionHandle, command: str) -> str:
    async with session.run(build=None, exec=command) as run:
        return "".join([event.text async for event in run if isinstance(event, Output)])


NEXT = """
Now yours:
  retort run demo/plotter          the same in one line; or any files of your own
  retort serve                     a server on http://127.0.0.1:8090; its first start prints a key
  export BACKEND_ENDPOINT=http://127.0.0.1:8090
  export BACKEND_ACCESS_KEY=...    as printed
  export BACKEND_SECRET_KEY=...    as printed
  backend.ai run gcc main.c --rm   the public client works as it is
  retort doctor                    what this host can enforce
"""


async def _until_told_to_stop() -> int:
    task = asyncio.ensure_future(walk())
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
    return await task


def main() -> None:
    """Walk, and say where to go next."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_until_told_to_stop())
    except (RetortError, OSError) as exc:
        sys.exit(f"{exc}\nretort doctor tells what this host lacks")
    except asyncio.CancelledError:
        sys.exit(130)
    if code == 0:
        print(NEXT, end="")
    sys.exit(code)


if __name__ == "__main__":
    main()
