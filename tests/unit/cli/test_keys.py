from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from retort.cli.keys import keys
from retort.config import load
from retort.wiring.store import open_keyring


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"HOME": "/nowhere"})


def _run(folder: Path, *args: str) -> Result:
    return CliRunner().invoke(keys, [*args, "--state", str(folder)])


def _created(folder: Path, *args: str) -> dict[str, str]:
    result = _run(folder, "create", "--json", *args)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)  # type: ignore[no-any-return]


def _listed(folder: Path) -> list[dict[str, Any]]:
    return json.loads(_run(folder, "list", "--json").output)  # type: ignore[no-any-return]


def test_json_is_one_object_of_key_secret_and_token(tmp_path: Path) -> None:
    created = _created(tmp_path)

    assert set(created) == {"accessKey", "secretKey", "token"}
    assert re.fullmatch(r"AK[A-Z0-9]{18}", created["accessKey"])
    assert re.fullmatch(r"rt_[\w-]{40}", created["token"])


def test_lines_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    (tmp_path / "retort.toml").write_text("[server]\npublic_url = 'https://r.example/x y'")
    lines = _run(tmp_path, "create").output
    script = f'{lines.split("#")[0]}\nprintf "%s\\n" "$BACKEND_ENDPOINT" "${{#BACKEND_SECRET_KEY}}"'

    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout

    assert shown == "https://r.example/x y\n40\n"
    assert re.search(r"^curl -H 'Authorization: Bearer rt_[\w-]{40}' ", lines, re.MULTILINE)


def test_a_folder_that_no_server_ever_used_is_made(tmp_path: Path) -> None:
    created = _created(tmp_path / "new" / "state")

    assert _listed(tmp_path / "new" / "state")[0]["accessKey"] == created["accessKey"]


def test_email_and_admin_are_kept(tmp_path: Path) -> None:
    _created(tmp_path, "--email", "ann@example.org", "--admin")

    (listed,) = _listed(tmp_path)
    assert (listed["email"], listed["isAdmin"]) == ("ann@example.org", True)


def test_the_policy_is_that_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "retort.toml").write_text("[keys]\nmax_sessions = 2")
    _created(tmp_path)

    async def policies() -> list[int]:
        async with open_keyring(load(flags={"state.folder": tmp_path})) as ring:
            return [pair.policy.max_sessions for pair in await ring.list()]

    assert asyncio.run(policies()) == [2]


def test_a_list_shows_no_secret(tmp_path: Path) -> None:
    created = _created(tmp_path)

    for output in (_run(tmp_path, "list").output, _run(tmp_path, "list", "--json").output):
        assert created["accessKey"] in output
        assert created["secretKey"] not in output
        assert created["token"] not in output


def test_disabled_enabled_and_removed_keys_are_listed_so(tmp_path: Path) -> None:
    access_key = _created(tmp_path)["accessKey"]

    assert _run(tmp_path, "disable", access_key).exit_code == 0
    assert not _listed(tmp_path)[0]["isActive"]
    assert "disabled" in _run(tmp_path, "list").output
    assert _run(tmp_path, "enable", access_key).exit_code == 0
    assert _listed(tmp_path)[0]["isActive"]
    assert _run(tmp_path, "remove", access_key).exit_code == 0
    assert _listed(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("disable", "AKUNKNOWN"), "no access key AKUNKNOWN"),
        (("remove", "AKUNKNOWN"), "no access key AKUNKNOWN"),
        (("create", "--email", "ann"), "email: is not an address"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, args: tuple[str, ...], told: str) -> None:
    result = _run(tmp_path, *args)

    assert (result.exit_code, result.output) == (1, f"Error: {told}\n")


def test_a_wrong_configuration_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "retort.toml").write_text("[server]\nprot = 1")

    result = _run(tmp_path, "list")

    assert result.exit_code == 1
    assert "did you mean server.port?" in result.output


async def test_beside_a_running_server_a_key_works_at_once_and_can_be_revoked(
    tmp_path: Path,
) -> None:
    async with open_keyring(load(flags={"state.folder": tmp_path})) as server:
        await server.load()
        created = await asyncio.to_thread(_created, tmp_path)
        access_key = created["accessKey"]

        found = await server.lookup(access_key)
        assert found is not None
        assert found.secret_key == created["secretKey"]
        assert await server.lookup_token(created["token"]) == found

        await asyncio.to_thread(_run, tmp_path, "disable", access_key)
        await server.refresh()
        assert server.find(access_key) is None


@pytest.mark.slow
def test_create_imports_nothing_heavy(tmp_path: Path) -> None:
    script = """
import sys
from retort.cli.keys import keys
assert "sqlalchemy" not in sys.modules  # `--help` needs none of it
keys(["create", "--state", sys.argv[1]], standalone_mode=False)
heavy = {"aiohttp", "rich", "structlog", "ray", *sys.argv[2:]} & set(sys.modules)
assert not heavy, heavy
"""
    for more in ([], ["alembic"]):  # the second time there is nothing to migrate
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), *more],
            env={"PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
        )
