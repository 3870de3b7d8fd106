"""`retort doctor`: which walls this host can raise, and the command for each one it cannot."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from retort.wiring.host import host_facts

if TYPE_CHECKING:
    from retort.sandbox.probe import Finding, HostFacts

_COLOURS = {"enforced": "green", "missing": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="State folder of the server; checked to be usable.",
)
def doctor(as_json: bool, state: Path | None) -> None:
    """Say what this host can enforce; exit code 1 if it cannot run sandboxes."""
    facts, findings = host_facts()
    problem = _state_problem(state)
    if as_json:
        click.echo(json.dumps(as_data(facts, findings, problem), indent=2))
    else:
        _print(facts, findings, problem)
    raise SystemExit(0 if facts.can_sandbox and problem is None else 1)


def as_data(facts: HostFacts, findings: list[Finding], problem: str | None) -> dict[str, Any]:
    """Give the whole report as JSON-able values."""
    return {
        "canSandbox": facts.can_sandbox and problem is None,
        "stateProblem": problem,
        "facts": _plain(dataclasses.asdict(facts)),
        "findings": [_plain(dataclasses.asdict(finding)) for finding in findings],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _state_problem(state: Path | None) -> str | None:
    """Say why a state folder could not serve; what does not exist yet is judged by its parent."""
    if state is None:
        return None
    folder = state.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder}: not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder}: not writable"
    return None


def _print(facts: HostFacts, findings: list[Finding], problem: str | None) -> None:
    console = Console()
    version = ".".join(map(str, facts.bwrap_version)) or "none"
    console.print(
        f"Linux {facts.kernel_release}, bubblewrap {version}, {facts.cores} cores,"
        f" {facts.memory_bytes / 2**30:.1f} GiB, cgroups {facts.cgroup_mode.value},"
        f" {'root' if facts.is_root else 'unprivileged'}",
        highlight=False,
    )
    table = Table("wall", "state", "why", box=None)
    for finding in findings:
        colour = _COLOURS[finding.state.value]
        why = Text(finding.why)
        if finding.command:
            why.append(f"\n$ {finding.command}", style="bold")
        table.add_row(Text(finding.wall), Text(finding.state.value, style=colour), why)
    console.print(table)
    if problem is not None:
        console.print(Text(f"state folder: {problem}", style="red"))
    ready = facts.can_sandbox and problem is None
    console.print(
        Text("Sandboxes can be made here." if ready else "Sandboxes cannot be made here.")
    )
