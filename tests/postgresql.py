"""A PostgreSQL of the tests' own, if Debian's package is there."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def _programs() -> Path | None:
    """The newest PostgreSQL that Debian's `postgresql` package has put on this host."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


class Cluster:
    """A fresh cluster on a unix socket, run by an unprivileged user (it refuses root)."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody", "nogroup")
            self._as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        self._data = str(folder / "data")
        self.url = f"postgresql://retort@/postgres?host={folder}"
        named = ("--auth=trust", "--username=retort", "--encoding=UTF8")
        self._do("initdb", "--no-sync", *named, self._data)

    def start(self) -> None:
        options = f"-k {self._folder} -c listen_addresses= -c fsync=off"
        log = str(self._folder / "log")
        self._do("pg_ctl", "start", "--wait", "-D", self._data, "-l", log, "-o", options)

    def stop(self) -> None:
        """End it as a crash would."""
        self._do("pg_ctl", "stop", "-D", self._data, "-m", "immediate")

    def _do(self, *command: str) -> None:
        argv = [*self._as_user, str(self._programs / command[0]), *command[1:]]
        subprocess.run(argv, check=True, capture_output=True, cwd=self._folder)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Run one; skips the test where there is no PostgreSQL."""
    programs = _programs()
    if programs is None:
        pytest.skip("no /usr/lib/postgresql/*/bin/postgres (apt install postgresql)")
    pytest.importorskip("asyncpg", reason="asyncpg is not installed")
    # Not in tmp_path: its parents are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="retort-pg-"))
    try:
        cluster = Cluster(programs, folder)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder)
