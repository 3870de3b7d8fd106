"""A real server for the benchmarks: its own process, its own state folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from bench.http import Connection, multipart

ROOT = Path(__file__).parents[1]


class Bench:
    """A running server and a connection to it."""

    def __init__(self, url: str, token: str, pid: int, state: str) -> None:
        self.url = url
        self.token = token
        self.pid = pid
        self.state = state
        self.http = Connection(url, token)

    def session(self, image: str = "gcc") -> str:
        """Make a session and give its name."""
        name = f"bench-{uuid.uuid4().hex[:12]}"
        self.http.json("POST", "/session", {"name": name, "image": image})
        return name

    def upload(self, name: str, files: dict[str, bytes]) -> None:
        """Upload files."""
        body, kind = multipart(files)
        status, answer = self.http.call("POST", f"/session/{name}/upload", body, kind)
        assert status == 204, answer

    def run(self, name: str, http: Connection | None = None, **options: str | None) -> int:
        """Run a batch to its end; give the exit code."""
        http = http or self.http
        path = f"/session/{name}"
        result = http.json("POST", path, {"mode": "batch", "code": "", "options": options})
        result = result["result"]
        while result["status"] != "finished":
            follow = {"mode": "continue", "code": "", "runId": result["runId"]}
            result = http.json("POST", path, follow)["result"]
        code: int = result["exitCode"]
        return code

    def destroy(self, name: str) -> None:
        """End a session."""
        self.http.json("DELETE", f"/session/{name}")


@contextlib.contextmanager
def running(program: str = "retort.cli.main", **settings: str) -> Iterator[Bench]:
    """Run a server for the length of a block.

    Args:
        program: the module to run; `bench.bare_server` has no walls but the sandbox itself.
        settings: RETORT_ variables.
    """
    environ = os.environ | {
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "RETORT_KEYS_RATE_LIMIT": "100000000",
        "RETORT_KEYS_MAX_SESSIONS": "100000",
        **settings,
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        command = [sys.executable, "-m", program]
        key = json.loads(
            subprocess.run(
                [*command, "keys", "create", "--json", "--state", folder],
                env=environ,
                capture_output=True,
                check=True,
            ).stdout
        )
        process = subprocess.Popen(
            [*command, "serve", "--listen", "127.0.0.1:0", "--state", folder],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            url = next(word for word in line.split() if word.startswith("http"))
            yield Bench(url, key["token"], process.pid, folder)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            process.stdout.close()
