"""A real server for the benchmarks: its own process, its own state folder."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from bench.http import Connection, multipart

ROOT = Path(__file__).parents[1]
#: On a disk, as a server's state is; in a full /tmp each new file may cost 1 ms.
STATES = "/var/tmp"
LISTEN_S = 60.0  # until a server listens, however many sessions it has to adopt


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
        self.send(name, *multipart(files))

    def send(self, name: str, body: bytes, kind: str) -> None:
        """Upload files that `multipart` made ready."""
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

    def was_ahead(self, session_id: str) -> bool:
        """Tell whether a session got a sandbox that was made before anybody asked for it."""
        # Its group keeps the name that it had while it waited.
        written = Path(self.state, "sessions", session_id, "sandbox.json").read_text()
        return str(json.loads(written)["group"]).startswith("pool-")

    def until_ahead(self, count: int) -> None:
        """Wait until so many sandboxes stand ready."""
        folder = Path(self.state, "sessions")
        while len(list(folder.glob("pool-*/sandbox.json"))) < count:
            time.sleep(0.1)
        time.sleep(1)  # the last one's group

    def destroy(self, name: str) -> None:
        """End a session."""
        self.http.json("DELETE", f"/session/{name}")


class Server:
    """A server on a state folder of its own, which can die and be started again.

    Args:
        folder: its state; empty, and a key is made in it.
        program: the module to run; `bench.bare_server` has no walls but the sandbox itself,
            `bench.chaos_server` can be told where to die.
        log: where its standard error goes.
        settings: RETORT_ variables.
    """

    def __init__(
        self,
        folder: str,
        program: str = "retort.cli.main",
        *,
        log: int = subprocess.DEVNULL,
        settings: Mapping[str, str],
    ) -> None:
        self.state = folder
        self._log = log
        self._environ = os.environ | {
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            "RETORT_KEYS_RATE_LIMIT": "100000000",
            "RETORT_KEYS_MAX_SESSIONS": "100000",
            **settings,
        }
        self._command = [sys.executable, "-m", program]
        self._listen = "127.0.0.1:0"
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        Path(folder).chmod(0o711)
        made = subprocess.run(
            [*self._command, "keys", "create", "--json", "--state", folder],
            env=self._environ,
            capture_output=True,
            check=True,
        ).stdout
        self.token: str = json.loads(made)["token"]

    @property
    def pid(self) -> int:
        """Its process, also when that is dead by now."""
        assert self._process is not None
        return self._process.pid

    def start(self, **more: str) -> bool:
        """Start it where it was before; False: it ended before it listened, or took too long.

        Args:
            more: variables of this start alone.
        """
        self._process = subprocess.Popen(
            [*self._command, "serve", "--drain", "--listen", self._listen, "--state", self.state],
            env=self._environ | more,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout is not None
        is_readable, _, _ = select.select([self._process.stdout], [], [], LISTEN_S)
        line = self._process.stdout.readline() if is_readable else ""
        found = [word for word in line.split() if word.startswith("http")]
        if not found:
            self.kill()
            return False
        self.url = found[0]
        self._listen = urlsplit(self.url).netloc
        return True

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end; gives what it ended with, None when it lives on."""
        assert self._process is not None
        assert self._process.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
            self._process.stdout.close()
        return self._process.returncode

    def kill(self) -> None:
        """End it as nothing can be prepared for."""
        assert self._process is not None
        self._process.kill()
        self.wait(30)

    def stop(self) -> None:
        """End it in order."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        if self.wait(30) is None:
            self.kill()
            raise RuntimeError("the server does not end")

    def bench(self) -> Bench:
        """Connect to it."""
        return Bench(self.url, self.token, self.pid, self.state)


@contextlib.contextmanager
def running(program: str = "retort.cli.main", **settings: str) -> Iterator[Bench]:
    """Run a server for the length of a block; arguments as of `Server`."""
    with tempfile.TemporaryDirectory(dir=STATES) as folder:
        server = Server(folder, program, settings=settings)
        assert server.start()
        try:
            yield server.bench()
        finally:
            server.stop()
