"""`retort keys`: make, list and revoke access keys, on the server's own machine.

Speaks to the database and not to the server, so it works before the first start and beside a
running one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retort.cli.key_lines import shell_lines
from retort.config import Config, load
from retort.errors import RetortError

if TYPE_CHECKING:
    from retort.services.keypairs import KeyRing

_state = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="State folder of the server.",
)
_config = click.option(
    "--config",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Settings, instead of retort.toml in the state folder.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_access_key = click.argument("access_key", metavar="KEY")


@click.group()
def keys() -> None:
    """Make, list and revoke access keys."""


@keys.command()
@click.option("--email", metavar="ADDRESS", help="Owner; keys of one address share their user.")
@click.option("--admin", is_flag=True, help="May act for other owners.")
@_as_json
@_state
@_config
def create(
    email: str | None, admin: bool, as_json: bool, state: Path | None, file: Path | None
) -> None:
    """Make a key; its secret and token are shown once."""
    config = _load(state, file)
    new = _with_keyring(config, lambda ring: ring.create(email, is_admin=admin))
    if as_json:
        shown = {
            "accessKey": new.keypair.access_key,
            "secretKey": new.keypair.secret_key,
            "token": new.token,
        }
        click.echo(json.dumps(shown))
        return
    for line in shell_lines(config.server.endpoint, new):
        click.echo(line)


@keys.command("list")
@_as_json
@_state
@_config
def list_(as_json: bool, state: Path | None, file: Path | None) -> None:
    """List every key, oldest first, without secrets."""
    pairs = _with_keyring(_load(state, file), lambda ring: ring.list())
    rows = [
        {
            "accessKey": pair.access_key,
            "email": pair.email,
            "isActive": pair.is_active,
            "isAdmin": pair.is_admin,
            "createdAt": pair.created_at.isoformat(timespec="seconds"),
        }
        for pair in pairs
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for pair in pairs:
        kind = "admin" if pair.is_admin else "user"
        status = "active" if pair.is_active else "disabled"
        made = pair.created_at.isoformat(" ", "seconds")
        click.echo(f"{pair.access_key:20}  {status:8}  {kind:5}  {made}  {pair.email}")


@keys.command()
@_access_key
@_state
@_config
def disable(access_key: str, state: Path | None, file: Path | None) -> None:
    """Refuse a key; a running server follows within seconds."""
    _with_keyring(_load(state, file), lambda ring: ring.deactivate(access_key))


@keys.command()
@_access_key
@_state
@_config
def enable(access_key: str, state: Path | None, file: Path | None) -> None:
    """Accept a disabled key again; a running server follows within seconds."""
    _with_keyring(_load(state, file), lambda ring: ring.activate(access_key))


@keys.command()
@_access_key
@_state
@_config
def remove(access_key: str, state: Path | None, file: Path | None) -> None:
    """Forget a key for good; its sessions stay until they end."""
    _with_keyring(_load(state, file), lambda ring: ring.remove(access_key))


def _load(state: Path | None, file: Path | None) -> Config:
    with _told_plainly():
        return load(flags={"state.folder": state}, file=file)


def _with_keyring(config: Config, act: Callable[[KeyRing], Awaitable[Any]]) -> Any:
    # Imported here, not above: `retort --help` must not pay for SQLAlchemy.
    from retort.wiring.store import open_keyring

    async def run() -> Any:
        async with open_keyring(config) as ring:
            return await act(ring)

    with _told_plainly():
        return asyncio.run(run())


@contextlib.contextmanager
def _told_plainly() -> Iterator[None]:
    try:
        yield
    except RetortError as exc:
        raise click.ClickException(exc.message) from exc
