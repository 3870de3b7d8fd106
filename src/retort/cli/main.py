"""`retort`: the command line. Each group lives in a file of its own and is loaded when called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

from retort import __version__

#: Name -> where it is, and its line of help, so that showing it imports nothing.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("retort.cli.run:run", "Build and run files in a sandbox."),
    "serve": ("retort.cli.serve:serve", "Run the server until SIGINT or SIGTERM."),
    "keys": ("retort.cli.keys:keys", "Make, list and revoke access keys."),
    "doctor": ("retort.cli.doctor:doctor", "Say what this host can enforce."),
    "selftest": (
        "retort.cli.selftest:selftest",
        "Attack sandboxes of this host and say which walls held.",
    ),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when it is called: `--help` starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every command."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None when there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write every command's line from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="retort")
def main() -> None:
    """Build and run other people's code, safely and fast."""


if __name__ == "__main__":
    main(prog_name="retort")
