"""Which folders a new session mounts: what was asked for, and what its owner may have."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence

from retort.core.keypair import KeyPair
from retort.core.mount import AskedMount, Mount, granted
from retort.core.vfolder import VFolderStatus
from retort.errors import InvalidRequest
from retort.services.vfolders import VFolderLookup


class MountService:
    """From names to mounts.

    Args:
        is_folder: tells whether a path below a folder's root is a folder.
        most: mounts that a session may ask for; dot-folders come on top.
    """

    def __init__(
        self,
        lookup: VFolderLookup,
        is_folder: Callable[[uuid.UUID, str], Awaitable[bool]],
        *,
        most: int,
    ) -> None:
        self._lookup = lookup
        self._is_folder = is_folder
        self._most = most

    async def granted(self, owner: KeyPair, asked: Sequence[AskedMount]) -> tuple[Mount, ...]:
        """Give the mounts of a new session (spec 10.7).

        Raises:
            VFolderNotFound: the owner sees none of a name.
            VFolderOperation: one is still being copied.
            InvalidRequest: too many, no such folder in a folder, or two that exclude each other.
        """
        if len(asked) > self._most:
            raise InvalidRequest.field("config.mounts", f"at most {self._most} folders")
        found = [await self._lookup.find(owner, one.ref) for one in asked]
        visible = await self._lookup.visible(owner)
        visible.sort(key=lambda seen: (not seen.is_owner, seen.folder.is_of_group))
        ready = [seen for seen in visible if seen.folder.status is VFolderStatus.READY]
        mounts = granted(asked, found, ready)
        for mount in mounts:
            if mount.below != "." and not await self._is_folder(mount.source, mount.below):
                raise InvalidRequest.field(
                    "config.mounts", f"no folder {mount.below!r} in {mount.name!r}"
                )
        return mounts
