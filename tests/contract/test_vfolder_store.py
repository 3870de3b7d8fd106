"""What every VFolderStore promises (core/ports.py)."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import uuid

import pytest
from tests.fakes import START

from retort.core.ports import VFolderStore
from retort.core.vfolder import (
    DEFAULT_GROUP,
    Invitation,
    Permission,
    Share,
    UsageMode,
    VFolder,
    VFolderStatus,
)
from retort.errors import InvitationNotFound, VFolderExists, VFolderNotFound

ANN, BOB, EVE = (uuid.UUID(int=number) for number in (1, 2, 3))


def folder(number: int, **changes: object) -> VFolder:
    made = VFolder(
        id=uuid.UUID(int=number),
        name=f"folder-{number}",
        user_id=ANN,
        creator="ünï@example.org",
        created_at=START + dt.timedelta(microseconds=number),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def share(number: int, user: uuid.UUID = BOB) -> Share:
    return Share(uuid.UUID(int=number), user, f"{user.int}@example.org", Permission.READ)


def invitation(number: int, of: int = 1, **changes: object) -> Invitation:
    made = Invitation(
        id=uuid.UUID(int=number),
        folder_id=uuid.UUID(int=of),
        inviter_id=ANN,
        inviter="ann@example.org",
        invitee_id=BOB,
        invitee="bob@example.org",
        permission=Permission.WRITE,
        created_at=START + dt.timedelta(seconds=number),
        modified_at=START,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


async def test_what_is_added_is_found_whole(vfolders: VFolderStore) -> None:
    made = folder(
        1,
        user_id=None,
        group_id=DEFAULT_GROUP,
        permission=Permission.DELETE,
        usage_mode=UsageMode.MODEL,
        is_cloneable=True,
        status=VFolderStatus.CLONING,
        max_bytes=2**45,
        max_inodes=2**33,
    )
    await vfolders.add(made)

    assert await vfolders.get(made.id) == made
    assert await vfolders.all() == [made]
    assert await vfolders.get(uuid.UUID(int=9)) is None


async def test_a_name_is_taken_among_one_owners_folders_only(vfolders: VFolderStore) -> None:
    await vfolders.add(folder(1, name="data"))
    await vfolders.add(folder(2, name="data", user_id=BOB))
    await vfolders.add(folder(3, name="data", user_id=None, group_id=DEFAULT_GROUP))

    with pytest.raises(VFolderExists):
        await vfolders.add(folder(4, name="data"))
    with pytest.raises(VFolderExists):
        await vfolders.add(folder(4, name="data", user_id=None, group_id=DEFAULT_GROUP))
    assert len(await vfolders.all()) == 3


async def test_of_two_that_take_a_name_at_once_one_gets_it(vfolders: VFolderStore) -> None:
    results = await asyncio.gather(
        *(vfolders.add(folder(number, name="data")) for number in range(1, 6)),
        return_exceptions=True,
    )

    assert sorted(str(type(result).__name__) for result in results) == [
        "NoneType",
        *["VFolderExists"] * 4,
    ]


async def test_update_replaces_by_id(vfolders: VFolderStore) -> None:
    await vfolders.add(folder(1))
    await vfolders.add(folder(2))
    changed = folder(1, name="other", permission=Permission.READ)

    await vfolders.update(changed)

    assert await vfolders.get(changed.id) == changed
    with pytest.raises(VFolderExists):
        await vfolders.update(folder(1, name="folder-2"))
    with pytest.raises(VFolderNotFound):
        await vfolders.update(folder(9))


async def test_a_removed_folder_takes_shares_and_invitations_along(vfolders: VFolderStore) -> None:
    await vfolders.add(folder(1))
    await vfolders.put_share(share(1, EVE))
    await vfolders.add_invitation(invitation(1))

    await vfolders.remove(folder(1).id)

    assert await vfolders.get(folder(1).id) is None
    assert await vfolders.visible_to(EVE, DEFAULT_GROUP) == []
    assert await vfolders.shares(folder(1).id) == []
    assert await vfolders.invitation(uuid.UUID(int=1)) is None
    with pytest.raises(VFolderNotFound):
        await vfolders.remove(folder(1).id)


async def test_visible_are_own_shared_and_the_groups_by_name(vfolders: VFolderStore) -> None:
    own = folder(1, name="c", user_id=BOB)
    of_group = folder(2, name="a", user_id=None, group_id=DEFAULT_GROUP)
    shared = folder(3, name="b")
    for made in (own, of_group, shared, folder(4), folder(5, user_id=None, group_id=EVE)):
        await vfolders.add(made)
    await vfolders.put_share(share(3))
    await vfolders.put_share(share(4, EVE))

    assert await vfolders.visible_to(BOB, DEFAULT_GROUP) == [
        (of_group, None),
        (shared, share(3)),
        (own, None),
    ]


async def test_what_is_visible_follows_every_change_at_once(vfolders: VFolderStore) -> None:
    async def seen() -> list[tuple[str, Permission | None]]:
        found = await vfolders.visible_to(BOB, DEFAULT_GROUP)
        return [(folder.name, shared and shared.permission) for folder, shared in found]

    assert await seen() == []
    await vfolders.add(folder(1))
    await vfolders.add(folder(2, user_id=BOB))
    assert await seen() == [("folder-2", None)]
    await vfolders.put_share(share(1))
    assert await seen() == [("folder-1", Permission.READ), ("folder-2", None)]
    await vfolders.update(folder(2, user_id=BOB, name="a"))
    assert await seen() == [("a", None), ("folder-1", Permission.READ)]
    await vfolders.remove_share(uuid.UUID(int=1), BOB)
    assert await seen() == [("a", None)]
    await vfolders.add_invitation(invitation(5))
    await vfolders.accept_invitation(invitation(5))
    assert await seen() == [("a", None), ("folder-1", Permission.WRITE)]
    await vfolders.remove(uuid.UUID(int=1))
    assert await seen() == [("a", None)]


async def test_what_is_seen_while_something_changes_is_not_remembered(
    vfolders: VFolderStore,
) -> None:
    async def look() -> int:
        return len(await vfolders.visible_to(ANN, DEFAULT_GROUP))

    for number in range(1, 21):
        await asyncio.gather(look(), vfolders.add(folder(number)), look(), look())
        assert await look() == number


async def test_a_share_is_put_replaced_and_removed(vfolders: VFolderStore) -> None:
    await vfolders.add(folder(1))
    await vfolders.put_share(share(1))
    changed = dataclasses.replace(share(1), permission=Permission.DELETE)
    await vfolders.put_share(changed)
    await vfolders.put_share(share(1, EVE))

    assert await vfolders.shares(folder(1).id) == [changed, share(1, EVE)]
    assert await vfolders.remove_share(folder(1).id, BOB) is True
    assert await vfolders.remove_share(folder(1).id, BOB) is False
    assert await vfolders.shares(folder(1).id) == [share(1, EVE)]


async def test_nothing_is_shared_of_a_folder_that_is_gone(vfolders: VFolderStore) -> None:
    with pytest.raises(VFolderNotFound):
        await vfolders.put_share(share(1))
    with pytest.raises(VFolderNotFound):
        await vfolders.add_invitation(invitation(1))


async def test_invitations_are_found_by_both_sides_oldest_first(vfolders: VFolderStore) -> None:
    await vfolders.add(folder(1))
    await vfolders.add(folder(2))
    later, first = invitation(5), invitation(4, of=2)
    await vfolders.add_invitation(later)
    await vfolders.add_invitation(first)

    assert await vfolders.invitations_to(BOB) == [(first, folder(2)), (later, folder(1))]
    assert await vfolders.invitations_by(ANN) == [(first, folder(2)), (later, folder(1))]
    assert await vfolders.invitations_to(ANN) == []
    assert await vfolders.invitation(later.id) == later


async def test_a_user_is_invited_to_a_folder_once(vfolders: VFolderStore) -> None:
    await vfolders.add(folder(1))
    await vfolders.add_invitation(invitation(1))

    with pytest.raises(VFolderExists):
        await vfolders.add_invitation(invitation(2))


async def test_an_invitation_is_changed_and_withdrawn(vfolders: VFolderStore) -> None:
    await vfolders.add(folder(1))
    await vfolders.add_invitation(invitation(1))
    changed = invitation(1, permission=Permission.READ, modified_at=START + dt.timedelta(days=1))

    await vfolders.update_invitation(changed)
    assert await vfolders.invitation(changed.id) == changed

    await vfolders.remove_invitation(changed.id)
    with pytest.raises(InvitationNotFound):
        await vfolders.remove_invitation(changed.id)
    with pytest.raises(InvitationNotFound):
        await vfolders.update_invitation(changed)


async def test_an_accepted_invitation_is_a_share_and_gone(vfolders: VFolderStore) -> None:
    await vfolders.add(folder(1))
    await vfolders.add_invitation(invitation(1))

    await vfolders.accept_invitation(invitation(1))

    wanted = Share(folder(1).id, BOB, "bob@example.org", Permission.WRITE)
    assert await vfolders.shares(folder(1).id) == [wanted]
    assert await vfolders.invitations_to(BOB) == []
    with pytest.raises(InvitationNotFound):
        await vfolders.accept_invitation(invitation(1))
