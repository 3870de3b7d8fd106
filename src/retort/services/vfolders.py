"""Which virtual folders somebody sees, and with which rights."""

from __future__ import annotations

import uuid

from retort.core.keypair import KeyPair
from retort.core.ports import VFolderStore
from retort.core.vfolder import (
    DEFAULT_GROUP,
    Permission,
    SeenVFolder,
    VFolderStatus,
    seen_by,
)
from retort.errors import VFolderNotFound, VFolderOperation


class VFolderLookup:
    """The one way from a name to a folder. What a caller may not do looks like a missing folder."""

    def __init__(self, store: VFolderStore) -> None:
        self._store = store

    async def visible(self, caller: KeyPair) -> list[SeenVFolder]:
        """Give every folder that a caller sees, by name. Raises StoreFault."""
        pairs = await self._store.visible_to(caller.user_id, DEFAULT_GROUP)
        seen = (
            seen_by(folder, caller.user_id, share, is_admin=caller.is_admin)
            for folder, share in pairs
        )
        return [folder for folder in seen if folder is not None]

    async def find(
        self, caller: KeyPair, ref: str, needed: Permission = Permission.READ
    ) -> SeenVFolder:
        """Find a folder that can be used, by name or by id (dashed or plain hex).

        Of several folders of one name it is the caller's own, else one that others share, else the
        group's.

        Raises:
            VFolderNotFound: the caller sees none, or may not do there what needs `needed`.
            VFolderOperation: it is still being copied.
            StoreFault: the database failed.
        """
        return _usable(await self.find_any(caller, ref), needed)

    async def visible_by_id(
        self, caller: KeyPair, folder_id: uuid.UUID, needed: Permission
    ) -> SeenVFolder:
        """Find a folder by its id alone; raises as `find`."""
        for seen in await self.visible(caller):
            if seen.folder.id == folder_id:
                return _usable(seen, needed)
        raise VFolderNotFound

    async def find_any(self, caller: KeyPair, ref: str) -> SeenVFolder:
        """Find a folder in whatever state. Raises VFolderNotFound, StoreFault."""
        visible = await self.visible(caller)
        named = [seen for seen in visible if seen.folder.name == ref]
        if not named:
            wanted = _as_id(ref)
            named = [seen for seen in visible if seen.folder.id == wanted]
        if not named:
            raise VFolderNotFound
        return min(named, key=lambda seen: (not seen.is_owner, seen.folder.is_of_group))


def _usable(found: SeenVFolder, needed: Permission) -> SeenVFolder:
    if not found.access.allows(needed):
        raise VFolderNotFound
    if found.folder.status is not VFolderStatus.READY:
        raise VFolderOperation("The virtual folder is still being copied.")
    return found


def _as_id(ref: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(ref)
    except ValueError:
        return None
