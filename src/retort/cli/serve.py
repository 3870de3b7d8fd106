"""`retort serve`: run the server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

import click
import structlog
import uvloop

from retort.cli.key_lines import shell_lines
from retort.config import Config, load
from retort.errors import RetortError
from retort.wiring.server import RunningServer, running_server

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


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
@click.option("--verbose", is_flag=True, help="Log every step of every run.")
def serve(listen: str | None, state: Path | None, file: Path | None, verbose: bool) -> None:
    """Run the server until SIGINT or SIGTERM.

    The first start on a state folder makes a key and prints how to use it.
    """
    _configure_logs(verbose=verbose)
    try:
        config = load(flags={"server.listen": listen, "state.folder": state}, file=file)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config))
    except (RetortError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    async with running_server(config) as server:
        if server.is_new:
            await _first_key(server)
        elif not sys.stdout.isatty():
            click.echo(f"Retort listens on {server.url}")
        else:
            click.echo(f"Retort listens on {server.url}   (Ctrl-C stops it)")
        await stop.wait()
        with contextlib.suppress(ValueError):
            click.echo("Retort stops; its sessions end with it.")


async def _first_key(server: RunningServer) -> None:
    """Make the first key of a new state folder and print how to use it."""
    new = await server.keys.create(is_admin=True)
    click.echo(f"Retort listens on {server.url}")
    click.echo("This folder had no key, so here is one; it is shown only now.\n")
    for line in shell_lines(server.url, new):
        click.echo(f"  {line}")
    click.echo()
    sys.stdout.flush()


def _configure_logs(*, verbose: bool) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbose else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
