"""The protocol's public clients, unmodified, each in an environment of its own."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Server, environment

SCRIPTS = Path(__file__).parent / "client_scripts"
TIMEOUT_S = 60  # nothing here takes a tenth of it
Done = subprocess.CompletedProcess[str]


@dataclasses.dataclass
class Client:
    """One installed client that speaks to a server as one user.

    Attributes:
        bin: the programs of its environment.
        env: the variables that tell it the server and the key.
        folder: where its commands run, and its home.
    """

    bin: Path
    env: dict[str, str]
    folder: Path

    def scenario(self, script: str, name: str, *args: object) -> Any:
        """Run one function of a script in the client's Python and give what it returned."""
        done = self._run("python", SCRIPTS / script, name, *args)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def command(self, *args: object, stdin: str = "") -> Done:
        """Run the client's command line, ended or not as it likes."""
        return self._run("backend.ai", *args, stdin=stdin)

    def ok(self, *args: object, stdin: str = "") -> Done:
        """Run the client's command line, which has to end well."""
        done = self.command(*args, stdin=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def write(self, **files: str) -> list[str]:
        """Write files where the commands run; a double underscore in a name stands for a dot."""
        names = [name.replace("__", ".") for name in files]
        for name, content in zip(names, files.values(), strict=True):
            (self.folder / name).write_text(content)
        return names

    def _run(self, program: str, *args: object, stdin: str = "") -> Done:
        return subprocess.run(
            [self.bin / program, *map(str, args)],
            env=self.env,
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )


def client(kind: str, server: Server, folder: Path) -> Client:
    """Give the client of one environment ("client", "client-1") the server's first key."""
    key = {"accessKey": server.access_key, "secretKey": server.secret_key}
    return with_key(kind, server, folder, key)


def with_key(kind: str, server: Server, folder: Path, key: dict[str, str]) -> Client:
    """Give the client of one environment a key as `retort keys create --json` prints it."""
    folder.mkdir(parents=True, exist_ok=True)
    env = environment(
        HOME=str(folder),
        BACKEND_ENDPOINT=server.url,
        BACKEND_ACCESS_KEY=key["accessKey"],
        BACKEND_SECRET_KEY=key["secretKey"],
        COLUMNS="200",
    )
    env = {name: value for name, value in env.items() if not name.startswith(("PYTHON", "XDG_"))}
    return Client(installed(kind), env, folder)


def installed(kind: str) -> Path:
    """Find the programs of a client's environment."""
    programs = ROOT / f".venv-{kind}" / "bin"
    if not (programs / "python").exists():
        if sys.version_info[:2] != (3, 11) and not shutil.which("python3.11"):
            pytest.skip("the public client needs Python 3.11, which is not here")
        pytest.fail(f"{programs.parent.name} is not set up: run `make test`", pytrace=False)
    return programs


def tree(folder: Path) -> dict[str, bytes | None]:
    """Give every file beneath a folder with its content, and every folder with None."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def statuses(answers: list[dict[str, Any]]) -> list[tuple[str, int | None]]:
    """Give the statuses of a run with their exit codes, without the mere continuations."""
    return [(a["status"], a["exitCode"]) for a in answers if a["status"] != "continued"]
