"""`retort run` before it meets a server: what it refuses, and how."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from retort.cli.main import COMMANDS, LazyGroup, main
from retort.cli.run import run


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"HOME": "/nowhere"})


def _run(*args: str, **environ: str) -> Result:
    return CliRunner().invoke(run, args, env=environ)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--nonsense",), "No such option"),
        (("/nonexistent.c",), "does not exist"),
        ((), "choose an --image"),
        (("--image", "gcc", "--env", "=x"), "NAME=VALUE"),
        (("--image", "gcc", "--env", "UNSET_HERE"), "NAME=VALUE"),
        (("--image", "gcc", "--keep"), "needs a server"),
        (("--image", "gcc", "--endpoint", "http://127.0.0.1:1"), "needs a key"),
        (("--image", "gcc", "--endpoint", "http://127.0.0.1:1", "--token", "t"), "127.0.0.1:1"),
    ],
)
def test_our_own_failures_exit_125_with_a_plain_message(args: tuple[str, ...], text: str) -> None:
    result = _run(*args)
    assert result.exit_code == 125
    assert text in result.output
    assert "Traceback" not in result.output


def test_escapes_of_a_file_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/\x1b[31m").symlink_to("nothing")
    result = _run(str(tmp_path / "p"))
    assert "\x1b" not in result.output
    assert "\\x1b[31m" in result.output


def test_help_lists_every_command_without_importing_it() -> None:
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from retort.cli.main import main\n"
            "main(['--help'], standalone_mode=False)\n"
            "print(sorted(m for m in sys.modules if m.startswith('retort.')))",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    ).stdout
    for name, (_, text) in COMMANDS.items():
        assert f"{name} " in shown
        assert text in shown
    assert "['retort.cli', 'retort.cli.main']" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_loaded_and_is_described_as_it_describes_itself(name: str) -> None:
    assert isinstance(main, LazyGroup)
    command = main.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    assert command.name == name
    assert COMMANDS[name][1].rstrip(".").lower() in command.get_short_help_str(200).lower()
