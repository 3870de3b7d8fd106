"""A server of a command's own: in this process, on a free port, gone without a trace afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from retort.cli.logs import configure_logs
from retort.config import load
from retort.wiring.server import running_server

SECTIONS = ("RETORT_SANDBOX_", "RETORT_RUNS_")  # of the environment; the rest is the real server's
PLACE_BYTES = 30  # a session's socket must fit into the 107 of an address (unix(7))
UPLOAD_BYTES = 64 * 1024 * 1024  # of a file: it comes from this very user


@dataclasses.dataclass(frozen=True, slots=True)
class TemporaryServer:
    """Where a temporary server listens, and its only key."""

    url: str
    access_key: str
    secret_key: str
    token: str


@contextlib.asynccontextmanager
async def temporary_server(environ: Mapping[str, str]) -> AsyncIterator[TemporaryServer]:
    """Run a server until the block is left; its folder, sessions and key go with it.

    Raises:
        RetortError: as `running_server`; a setting in `environ` cannot be used.
    """
    configure_logs(logging.ERROR)
    folder = _make_folder()
    try:
        config = load(
            flags={
                "state.folder": folder,
                "server.host": "127.0.0.1",
                "server.port": 0,
                "pool.size": 0,
                "http.upload_file_bytes": UPLOAD_BYTES,
            },
            environ={name: text for name, text in environ.items() if name.startswith(SECTIONS)}
            | {"HOME": str(folder)},
        )
        async with running_server(config) as server:
            new = await server.keys.create()
            pair = new.keypair
            yield TemporaryServer(server.url, pair.access_key, pair.secret_key, new.token)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_folder() -> Path:
    """Make the state folder where programs can be started and, by root, every user can pass.

    As root each sandbox has a uid of its own, and starts retort-init from this folder.
    """
    mode = 0o711 if os.geteuid() == 0 else 0o700
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/run")]  # noqa: S108 mkdtemp is safe there
    place = next((place for place in places if _is_fit(place)), places[1])
    folder = Path(tempfile.mkdtemp(prefix="retort-", dir=place))
    folder.chmod(mode)
    return folder


def _is_fit(place: Path) -> bool:
    try:
        place = place.resolve(strict=True)
        if len(os.fsencode(place)) > PLACE_BYTES:
            return False
        if os.statvfs(place).f_flag & os.ST_NOEXEC or not os.access(place, os.W_OK | os.X_OK):
            return False
        return os.geteuid() != 0 or all(
            part.stat().st_mode & stat.S_IXOTH for part in (place, *place.parents)
        )
    except OSError:
        return False
