"""`retort`: the command line. Each group lives in a file of its own and is loaded when called."""

from __future__ import annotations

import importlib

import click

from retort import __version__

COMMANDS = {
    "serve": "retort.cli.serve:serve",
    "keys": "retort.cli.keys:keys",
    "doctor": "retort.cli.doctor:doctor",
    "run": "retort.cli.run:run",
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when it is asked for: `keys` starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every command."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None when there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="retort")
def main() -> None:
    """Build and run other people's code, safely and fast."""


if __name__ == "__main__":
    main()
