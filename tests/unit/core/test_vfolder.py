from __future__ import annotations

import dataclasses
import uuid

import pytest
from tests.fakes import START

from retort.core.vfolder import (
    DEFAULT_GROUP,
    Permission,
    Share,
    VFolder,
    checked_name,
    seen_by,
)
from retort.errors import InvalidRequest

ANN, BOB = uuid.UUID(int=1), uuid.UUID(int=2)
FOLDER = VFolder(uuid.UUID(int=9), "data", ANN, "ann@example.org", START)
GROUPS = dataclasses.replace(
    FOLDER, user_id=None, group_id=DEFAULT_GROUP, permission=Permission.READ
)


@pytest.mark.parametrize(
    "name", ["a", "_", "7", "a.b-c_d", ".hidden", "data-2026.01", "A" * 64, "_x_"]
)
def test_these_are_names(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "a/b", "a b", "-a", "a-", "a.", "..a", "ä", "a\n", "\0", "A" * 65),
        *(".ssh", ".terminfo", ".jupyter", ".tmux.conf", ".bashrc", ".bash_profile", ".zshrc"),
        *(".profile", ".bash_logout", ".zlogin"),
    ],
)
def test_these_are_none(name: str) -> None:
    with pytest.raises(InvalidRequest):
        checked_name(name)


def test_each_permission_includes_the_lesser_ones() -> None:
    read, write, delete = Permission
    assert delete.allows(write)
    assert write.allows(read)
    assert write.allows(write)
    assert not write.allows(delete)
    assert not read.allows(write)


def test_an_owner_may_do_everything_whatever_sessions_may() -> None:
    read_only = dataclasses.replace(FOLDER, permission=Permission.READ)

    seen = seen_by(read_only, ANN, None, is_admin=False)

    assert seen is not None
    assert (seen.permission, seen.access, seen.is_owner) == (
        Permission.READ,
        Permission.DELETE,
        True,
    )


def test_others_see_nothing_without_a_share_administrators_too() -> None:
    assert seen_by(FOLDER, BOB, None, is_admin=False) is None
    assert seen_by(FOLDER, BOB, None, is_admin=True) is None


def test_a_share_gives_what_it_says() -> None:
    share = Share(FOLDER.id, BOB, "bob@example.org", Permission.READ)

    seen = seen_by(FOLDER, BOB, share, is_admin=False)

    assert seen is not None
    assert (seen.permission, seen.access, seen.is_owner) == (
        Permission.READ,
        Permission.READ,
        False,
    )


@pytest.mark.parametrize(
    ("share", "is_admin", "permission", "access"),
    [
        (None, False, Permission.READ, Permission.READ),
        (Permission.WRITE, False, Permission.WRITE, Permission.WRITE),
        (None, True, Permission.READ, Permission.DELETE),
    ],
)
def test_members_see_the_groups_folders(
    share: Permission | None, is_admin: bool, permission: Permission, access: Permission
) -> None:
    opening = Share(FOLDER.id, BOB, "bob@example.org", share) if share else None

    seen = seen_by(GROUPS, BOB, opening, is_admin=is_admin)

    assert seen is not None
    assert (seen.permission, seen.access) == (permission, access)
