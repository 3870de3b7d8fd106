"""`retort serve`: run the server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import click
import uvloop

from retort.cli.key_lines import shell_lines
from retort.cli.logs import configure_logs
from retort.cli.notify import tell_systemd
from retort.config import Config, load
from retort.errors import RetortError
from retort.wiring.server import RunningServer, running_server
from retort.wiring.store import open_keyring

HOST_NETWORK = """\
WARNING: sandbox.network is "host". Every program in every session has this machine's network:
its services on loopback, this server included, your local network and the internet. This is for
code that you trust; anything else belongs behind sandbox.network = "none"."""


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Address to listen on [127.0.0.1:8090].")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="State folder: keys, sessions, settings.",
)
@click.option(
    "--config",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Settings, instead of retort.toml in the state folder.",
)
@click.option("--drain", is_flag=True, help="End all sessions when the server stops.")
@click.option("--verbose", is_flag=True, help="Log every step of every run.")
def serve(
    listen: str | None, state: Path | None, file: Path | None, drain: bool, verbose: bool
) -> None:
    """Run the server until SIGINT or SIGTERM.

    Sessions and their programs go on when the server stops or is killed, and the next start on
    the state folder takes them over; with --drain they end when it stops.

    The first start on a state folder makes a key and prints how to use it. Beyond loopback the
    server only listens once there is a key.
    """
    configure_logs(logging.DEBUG if verbose else logging.INFO)
    config: Config | None = None
    try:
        config = load(flags={"server.listen": listen, "state.folder": state}, file=file)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, keeps_sessions=not drain))
    except RetortError as exc:
        raise click.ClickException(exc.message) from exc
    except OSError as exc:
        raise click.ClickException(_plain(exc, config)) from exc


async def _serve(config: Config, *, keeps_sessions: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    if not is_loopback(config.server.host):
        await _insist_on_a_key(config)
    async with running_server(config, keeps_sessions=keeps_sessions) as server:
        if server.is_new:
            await _first_key(server, config)
        else:
            hint = "   (Ctrl-C stops it)" if sys.stdout and sys.stdout.isatty() else ""
            _say([f"Retort listens on {server.url}{hint}"])
        if config.sandbox.network == "host":
            click.echo(HOST_NETWORK, err=True)
        tell_systemd("READY=1")
        await stop.wait()
        tell_systemd("STOPPING=1")
        _say([_farewell(server.sessions.live_count, keeps_sessions=keeps_sessions)])


def _farewell(sessions: int, *, keeps_sessions: bool) -> str:
    if not sessions:
        return "Retort stops."
    if not keeps_sessions:
        return f"Retort stops, and ends its sessions ({sessions})."
    return f"Retort stops; {sessions} sessions go on, and its next start takes them over."


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name other than localhost is doubted."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _insist_on_a_key(config: Config) -> None:
    """Refuse to meet the network before somebody decided who may come in."""
    async with open_keyring(config) as ring:
        if not await ring.list():
            raise RetortError(
                f"{config.server.host} can be reached from other machines, and there is no key yet."
                f" Make one first: retort keys create --state {config.state.folder}"
            )


async def _first_key(server: RunningServer, config: Config) -> None:
    """Make the first key of a new state folder and print how to use it.

    A key that could not be shown is of no use to anyone, and is removed again.
    """
    if sys.stdout is None:
        return
    if _is_journal(sys.stdout):
        state = config.state.folder
        _say(
            [
                f"Retort listens on {server.url}",
                f"There is no key yet, and none is made, as this is a log. Make one as this user:"
                f" retort keys create --admin --state {state}",
            ]
        )
        return
    new = await server.keys.create(is_admin=True)
    url = config.server.public_url or server.url
    is_shown = _say(
        [
            f"Retort listens on {server.url}",
            "This folder had no key, so here is one; it is shown only now.",
            "",
            *(f"  {line}" for line in shell_lines(url.rstrip("/"), new)),
            "",
        ]
    )
    if not is_shown:
        await server.keys.remove(new.keypair.access_key)


def _is_journal(stream: TextIO) -> bool:
    """Whether a stream goes to systemd's journal (systemd.exec(5), JOURNAL_STREAM)."""
    named = os.environ.get("JOURNAL_STREAM")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


def _say(lines: Sequence[str]) -> bool:
    """Print lines; False when standard output is gone, which is no reason to stop serving."""
    if sys.stdout is None:
        return False
    try:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
    except (OSError, ValueError):
        # What is buffered is lost for good: or the interpreter would complain when it ends.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        return False
    return True


def _plain(exc: OSError, config: Config | None) -> str:
    """Say in the operator's words why the start failed."""
    if config is None:
        return str(exc)
    server, folder = config.server, config.state.folder
    address = f"{server.host}:{server.port}"
    if exc.errno == errno.EADDRINUSE:
        return f"{address} is taken by another program; --listen chooses another address"
    if exc.errno == errno.EADDRNOTAVAIL or isinstance(exc, socket.gaierror):
        return f"{server.host} is not an address of this machine"
    if exc.filename is not None:
        return f"state folder {folder}: {exc.filename}: {exc.strerror}"
    if exc.errno == errno.EACCES:
        return f"{address}: ports below 1024 need privileges; --listen chooses another"
    return f"{address}: {exc}"
