"""What exists is documented, what is documented exists, and the README's examples run."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import subprocess
import tempfile
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from retort import errors
from retort.api import app
from retort.api.routes import Route, RouteTable
from retort.cli.main import main
from retort.config import Config
from tests.e2e.conftest import running_server

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
README = (ROOT / "README.md").read_text("utf-8")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def commands(group: click.Group, above: str) -> list[str]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found.append(f"{above} {name}")
        if isinstance(command, click.Group):
            found += commands(command, f"{above} {name}")
    return found


def test_every_command_is_told_of() -> None:
    operations = page("operations.md")
    assert [name for name in commands(main, "retort") if name not in operations] == []


def test_every_setting_is_in_the_table() -> None:
    keys = [
        f"{section}.{field.name}"
        for section, kind in typing.get_type_hints(Config).items()
        for field in dataclasses.fields(kind)
    ]
    table = page("configuration.md")
    assert [key for key in keys if f"| `{key}` |" not in table] == []


def test_every_setting_that_limits_is_in_limits() -> None:
    known = page("limits.md")
    for key in re.findall(r"`((?:http|runs|keys|sandbox)\.\w+)`", known):
        section, _, name = key.partition(".")
        assert hasattr(getattr(Config(), section), name), key
    wanted = {f"http.{field.name}" for field in dataclasses.fields(Config().http)}
    assert {key for key in wanted if key not in known} == set()


class Recorder(RouteTable):
    """A table that remembers what was added."""

    added: list[str]

    def add(self, methods: str, pattern: str, route: Route) -> None:
        self.added += [f"{method} {pattern}" for method in methods.split()]


class AnyHandlers:
    """Stands for a room of handlers; none is called."""

    def __getattr__(self, name: str) -> Any:
        return name


def test_every_route_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "RouteTable", Recorder)
    monkeypatch.setattr(Recorder, "added", [], raising=False)
    rooms = {field.name: AnyHandlers() for field in dataclasses.fields(app.Routes)}
    app.table_of(SimpleNamespace(**rooms))  # type: ignore[arg-type]
    listed = page("wire.md")
    assert Recorder.added
    assert [call for call in Recorder.added if f"`{call}`" not in listed] == []
    documented = re.findall(r"`((?:GET|POST|PATCH|DELETE) /[^`]*)`", listed.split("## Auth")[0])
    aliases = {"GET /v2", "GET /v7", "POST /session/create"}
    assert set(documented) - set(Recorder.added) == aliases


def test_every_error_code_is_explained() -> None:
    codes = {
        kind.code
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.RetortError)
    }
    assert sorted(code for code in codes if f"`{code}`" not in page("wire.md")) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


def test_files_that_the_architecture_names_exist() -> None:
    named = set(re.findall(r"\b(\w+/\w+\.(?:py|c|h))\b", page("ARCHITECTURE.md")))
    assert len(named) > 15
    for name in named:
        above = "" if name.startswith(("init/", "tests/")) else "src/retort"
        assert (ROOT / above / name).is_file(), name


def test_verbs_that_the_pages_name_exist() -> None:
    verbs = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", path.read_text("utf-8"), re.MULTILINE))
        assert named <= verbs, path


def shell_blocks(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_examples_parse(path: Path) -> None:
    for block in shell_blocks(path.read_text("utf-8")):
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_example_of_the_readme_runs(tmp_path: Path) -> None:
    blocks = shell_blocks(README)
    source = next(block for block in blocks if "cat > hello.c" in block).split("backend.ai")[0]
    calls = next(block for block in blocks if block.startswith("call()"))
    script = calls.replace("-sS", "-sS --fail-with-body")
    # Not below tmp_path: pytest names folders after tests, and a socket's path has 108 bytes.
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as server:
        done = subprocess.run(
            ["bash", "-eu", "-c", source + script.replace("http://127.0.0.1:8090", server.url)],
            cwd=tmp_path,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "TOKEN": server.token},
            text=True,
            capture_output=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hello from a sandbox" in done.stderr  # where the example shows answers
