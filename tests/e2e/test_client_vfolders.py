"""`backend.ai vfolder ...` of the public client, as released: what a user types and reads."""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.clients import Client, tree, with_key
from tests.e2e.conftest import Server, retort

pytestmark = pytest.mark.slow  # each command starts a Python with the client in it


def user(server: Server, folder: Path, *more: str) -> tuple[Client, str]:
    email = f"{uuid.uuid4().hex[:12]}@example.org"
    made = retort("keys", "create", "--state", str(server.state), "--json", "--email", email, *more)
    return with_key("client", server, folder, json.loads(made)), email


@pytest.fixture
def cli(server: Server, tmp_path: Path) -> Client:
    return user(server, tmp_path / "home")[0]


@pytest.fixture
def folder(cli: Client) -> str:
    """A folder that the command line made."""
    name = f"cli-{uuid.uuid4().hex[:8]}"
    done = cli.ok("vfolder", "create", name, "local:volume1")
    assert f'Virtual folder "{name}" is created.' in done.stdout
    return name


def test_hosts_and_types(cli: Client) -> None:
    done = cli.ok("vfolder", "list-hosts")
    assert "Default vfolder host: local:volume1" in done.stdout
    assert "user" in cli.ok("vfolder", "list-allowed-types").stdout


def test_info_tells_of_it(cli: Client, folder: str) -> None:
    told = cli.ok("vfolder", "info", folder).stdout
    assert re.search(rf'Virtual folder "{folder}" \(ID: [0-9a-f]{{32}}\)', told)
    for line in ("Owner: True", "Permission: rw", "Number of files: 0", "Ownership Type: user"):
        assert f"- {line}" in told
    missing = cli.command("vfolder", "info", "none")
    assert missing.returncode == 1
    assert "No such virtual folder." in missing.stdout + missing.stderr


def test_lists_have_their_columns_in_place(cli: Client, folder: str) -> None:
    for command in ("list", "list-own"):
        told = cli.ok("vfolder", command).stdout
        row = next(line for line in told.splitlines() if folder in line)
        assert "local:volume1" in row
        assert row.index("local:volume1") < row.index(folder)
    for command in ("list-invited", "list-project"):
        assert folder not in cli.command("vfolder", command).stdout


def test_rename_and_delete(cli: Client, folder: str) -> None:
    cli.ok("vfolder", "rename", folder, f"{folder}-new")
    assert cli.command("vfolder", "info", folder).returncode == 1
    assert "Deleted." in cli.ok("vfolder", "delete", f"{folder}-new").stderr
    assert cli.command("vfolder", "delete", folder).returncode == 1


def test_files_go_up_and_come_down(cli: Client, folder: str, tmp_path: Path) -> None:
    source = cli.folder / "up"
    (source / "sub" / "empty dir").mkdir(parents=True)
    (source / "a.txt").write_bytes(b"text\n" * 1000)
    (source / "sub" / "ünï.bin").write_bytes(bytes(range(256)) * 9000)
    (source / "sub" / "empty").touch()

    cli.ok("vfolder", "upload", "-r", "-b", source, folder, source / "a.txt", source / "sub")

    listed = cli.ok("vfolder", "ls", folder, ".").stdout
    assert "a.txt" in listed
    assert "sub" in listed
    target = cli.folder / "down"
    (target / "sub").mkdir(parents=True)
    names = ["a.txt", "sub/ünï.bin", "sub/empty"]
    cli.ok("vfolder", "download", "-b", target, folder, *names)
    assert {name: content for name, content in tree(target).items() if content is not None} == {
        name: content for name, content in tree(source).items() if content is not None
    }
    assert "empty dir" in cli.ok("vfolder", "ls", folder, "sub").stdout


def test_files_are_made_renamed_moved_and_removed(cli: Client, folder: str) -> None:
    cli.write(a__txt="a")
    cli.ok("vfolder", "upload", folder, "a.txt")
    cli.ok("vfolder", "mkdir", folder, "one")
    cli.ok("vfolder", "mkdir", "-p", folder, "two/three")
    assert cli.command("vfolder", "mkdir", folder, "one").returncode == 1
    cli.ok("vfolder", "mkdir", "-e", folder, "one")
    cli.ok("vfolder", "rename-file", folder, "a.txt", "b.txt")
    cli.ok("vfolder", "mv", folder, "b.txt", "two/three")
    assert "b.txt" in cli.ok("vfolder", "ls", folder, "two/three").stdout
    assert cli.command("vfolder", "rm", folder, "two", stdin="y\n").returncode == 1
    cli.ok("vfolder", "rm", "-r", folder, "two", stdin="y\n")
    assert "two" not in cli.ok("vfolder", "ls", folder, ".").stdout


def test_an_invited_user_enters_and_leaves(
    cli: Client, folder: str, server: Server, tmp_path: Path
) -> None:
    guest, email = user(server, tmp_path / "guest")
    assert email in cli.ok("vfolder", "invite", "-p", "ro", folder, email).stdout
    assert "rejected" in guest.ok("vfolder", "invitations", stdin="1\nr\n").stdout
    assert folder not in guest.command("vfolder", "list-invited").stdout
    assert email in cli.ok("vfolder", "invite", "-p", "ro", folder, email).stdout
    chosen = guest.ok("vfolder", "invitations", stdin="1\na\n").stdout
    assert "List of invitations" in chosen
    assert folder in guest.ok("vfolder", "list-invited").stdout
    guest.write(x__txt="x")
    assert guest.command("vfolder", "mkdir", folder, "no").returncode == 1
    guest.ok("vfolder", "leave", folder)
    assert "No invitations." in guest.command("vfolder", "invitations").stdout
    assert guest.command("vfolder", "info", folder).returncode == 1
    assert "cannot leave" in cli.command("vfolder", "leave", folder).stdout


def test_options_and_clone(cli: Client, folder: str) -> None:
    cli.write(a__txt="a")
    cli.ok("vfolder", "upload", folder, "a.txt")
    cli.ok("vfolder", "update-options", folder, "-p", "ro", "--set-cloneable", "true")
    told = cli.ok("vfolder", "info", folder).stdout
    assert "- Permission: ro" in told
    assert "- Clone Allowed: True" in told
    done = cli.ok("vfolder", "clone", folder, f"{folder}-c", "local:volume1")
    assert "Cloning the vfolder is complete." in done.stderr
    assert "a.txt" in cli.ok("vfolder", "ls", f"{folder}-c", ".").stdout


@pytest.fixture
def admin(server: Server, tmp_path: Path) -> Client:
    return user(server, tmp_path / "admin", "--admin")[0]


@pytest.fixture
def groups(admin: Client) -> Iterator[str]:
    """A folder of the group."""
    name = f"grp-{uuid.uuid4().hex[:8]}"
    admin.ok("vfolder", "create", "-g", "default", "-p", "ro", name, "local:volume1")
    yield name
    admin.ok("vfolder", "delete", name)


def test_a_groups_folder_is_shared_and_unshared(
    admin: Client, groups: str, server: Server, tmp_path: Path
) -> None:
    member, email = user(server, tmp_path / "member")
    assert groups in member.ok("vfolder", "list-project").stdout
    assert member.command("vfolder", "mkdir", groups, "no").returncode == 1
    assert email in admin.ok("vfolder", "share", "-p", "rw", groups, email).stdout
    member.ok("vfolder", "mkdir", groups, "yes")
    assert email in admin.ok("vfolder", "unshare", groups, email).stdout
    assert member.command("vfolder", "mkdir", groups, "no").returncode == 1


def test_a_library_is_built_once_and_used_by_ten_builds_at_once(cli: Client, folder: str) -> None:
    """The use that docs/folders.md tells, command by command."""
    builder = f"builder-{folder}"
    cli.write(t__c="int twice(int n) { return 2 * n; }", t__h="int twice(int);")
    cli.ok("start", "-t", builder, "-v", f"{folder}:lib", "gcc")
    build = "gcc -O2 -c t.c && ar rcs lib/libt.a t.o && cp t.h lib"
    cli.ok("run", "-t", builder, "gcc", "--build", build, "--exec", "true", "t.c", "t.h")
    cli.ok("rm", builder)
    cli.ok("vfolder", "update-options", folder, "-p", "ro")

    def use(number: int) -> str:
        main = cli.folder / f"use{number}" / "main.c"
        main.parent.mkdir()
        main.write_text(
            "#include <stdio.h>\n#include <t.h>\n"
            f'int main(void) {{ printf("twice is %d\\n", twice({number})); }}'
        )
        own = dataclasses.replace(cli, folder=main.parent)
        done = own.ok(
            "run", "--rm", "-q", "-v", f"{folder}:lib", "gcc",
            "--build", "gcc -Ilib main.c -Llib -lt -o main",
            "--exec", "./main; touch lib/x", "main.c",
        )  # fmt: skip
        return done.stdout + done.stderr

    with ThreadPoolExecutor(10) as users:
        told = list(users.map(use, range(10)))
    for number, text in enumerate(told):
        assert f"twice is {2 * number}\n" in text, text
        assert "Read-only file system" in text
    listed = cli.ok("vfolder", "ls", folder, ".").stdout
    assert "libt.a" in listed
    assert " x " not in listed
