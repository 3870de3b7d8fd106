"""A session under attack: run something in it, and the same outside of it as a control."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import printed, run_to_end

MIB = 1 << 20

#: What the server of these tests is set to (conftest.py); small, so that a test is short.
PROCESSES = 128
SCRATCH = 48 * MIB
FILE = 32 * MIB
MEMORY = 192 * MIB
SMALL_TMP = 8 * MIB
SECRET = "canary-of-the-servers-environment"

#: Builtins only: they need no other process. What is dead and not yet reaped does not count.
COUNT = (
    "n=0; for p in /proc/[0-9]*; do { read -r _ name state _ <$p/stat"
    ' && [ "$name" != "(init)" ] && [ "$state" != Z ] && n=$((n + 1)); } 2>/dev/null; done; echo $n'
)

#: For `python -c`: what most attacks of these tests begin with.
PRELUDE = """
import ctypes, errno, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(a) for a in arguments])
    return ctypes.get_errno() if result < 0 else 0
"""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended: its last answer, and all that it printed."""

    answer: dict[str, Any]
    out: str
    err: str

    @property
    def told(self) -> tuple[str, int | None, str | None]:
        """Outcome, exit code and signal."""
        return self.answer["outcome"], self.answer["exitCode"], self.answer["signal"]

    @property
    def usage(self) -> dict[str, int]:
        return dict(self.answer["usage"])


@dataclasses.dataclass
class Box:
    """A session of the server under attack.

    Attributes:
        walls: what this host enforces, as the first run told.
        was_ahead: its sandbox was made before the session was asked for.
        may_die: the attack may end the session, so that only a new one must work afterwards.
    """

    api: aiohttp.ClientSession
    name: str
    walls: dict[str, str] = dataclasses.field(default_factory=dict)
    may_die: bool = False
    was_ahead: bool = False

    async def sh(self, command: str, **options: Any) -> Ended:
        """Run a bash text as exec."""
        answers = await run_to_end(self.api, self.name, **{"build": None, **options}, exec=command)
        return Ended(answers[-1], printed(answers), printed(answers, "stderr"))

    async def put(self, **files: str | bytes) -> None:
        """Upload files; a double underscore in a name stands for a dot."""
        await self.put_named({name.replace("__", "."): text for name, text in files.items()})

    async def put_named(self, files: dict[str, str | bytes]) -> None:
        form = aiohttp.FormData()
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            form.add_field("src", data, filename=path, content_type="application/octet-stream")
        async with self.api.post(f"/session/{self.name}/upload", data=form) as answer:
            assert answer.status == 204, await answer.text()

    async def python(self, code: str, **options: Any) -> Ended:
        """Run a Python text as the main process."""
        await self.put(attack__py=PRELUDE + code)
        return await self.sh("exec python3 -IS attack.py", **options)

    async def c(self, code: str, **options: Any) -> Ended:
        """Compile a C text, and run it as the main process."""
        await self.put(attack__c=code)
        build = "gcc -O1 -pthread -o attack attack.c"
        return await self.sh("exec ./attack", build=build, **options)

    async def ps(self) -> int:
        """Count the session's processes besides init, its standby child and the one that counts."""
        return int((await self.sh(COUNT)).out) - 1

    async def works(self) -> None:
        """Show that a normal run works and finds no process of an earlier one."""
        ended = await self.sh(f"echo fine; {COUNT}")
        assert (*ended.told, ended.out) == ("exited", 0, None, "fine\n1\n"), ended

    def needs(self, wall: str) -> None:
        """Skip where this host cannot enforce it: the attack would succeed, as the docs say."""
        if self.walls[wall] == "none":
            pytest.skip(f"this host does not limit {wall} (docs/threat-model.md)")

    def needs_inodes(self) -> None:
        if self.walls["inodes"] != "tmpfs":
            pytest.skip(f"this host caps files by: {self.walls['inodes']}")

    def needs_groups(self) -> None:
        self.needs("memory")


def outside(code: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run the same Python text on the host, as a control; it must be bounded by itself."""
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [sys.executable, "-IS", "-c", PRELUDE + code],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def outside_sh(command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run the same bash text in a folder of the host, as a control, and take all that it prints."""
    return subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )


def outside_c(code: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Compile and run the same C text on the host, as a control."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["gcc", "-O1", "-pthread", "-x", "c", "-o", f"{folder}/attack", "-"],
            input=code,
            text=True,
            check=True,
        )
        return subprocess.run(
            [f"{folder}/attack"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
