"""Which folders a new session mounts: what was asked for, and what its owner may have."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Awaitable, Callable, Sequence

from retort.core.keypair import KeyPair
from retort.core.mount import AskedMount, Mount, granted
from retort.core.vfolder import Permission, VFolder, VFolderStatus
from retort.errors import InvalidRequest, VFolderFull
from retort.services.vfolders import VFolderLookup


class MountService:
    """From names to mounts.

    Args:
        is_folder: tells whether a path below a folder's root is a folder.
        is_overfull: tells whether a folder holds more than it may.
        most: mounts that a session may ask for; dot-folders come on top.
    """

    def __init__(
        self,
        lookup: VFolderLookup,
        is_folder: Callable[[uuid.UUID, str], Awaitable[bool]],
        is_overfull: Callable[[VFolder], Awaitable[bool]],
        *,
        most: int,
    ) -> None:
        self._lookup = lookup
        self._is_folder = is_folder
        self._is_overfull = is_overfull
        self._most = most

    async def granted(self, owner: KeyPair, asked: Sequence[AskedMount]) -> tuple[Mount, ...]:
        """Give the mounts of a new session (spec 10.7).

        Raises:
            VFolderNotFound: the owner sees none of a name.
            VFolderOperation: one is still being copied.
            InvalidRequest: too many, no such folder in a folder, or two that exclude each other.
            VFolderFull: one would be mounted for writing, and holds more than it may. A dot-folder
                that nobody asked for is mounted read-only then.
        """
        if len(asked) > self._most:
            raise InvalidRequest.field("config.mounts", f"at most {self._most} folders")
        found = [await self._lookup.find(owner, one.ref) for one in asked]
        visible = await self._lookup.visible(owner)
        visible.sort(key=lambda seen: (not seen.is_owner, seen.folder.is_of_group))
        ready = [seen for seen in visible if seen.folder.status is VFolderStatus.READY]
        mounts = list(granted(asked, found, ready))
        for mount in mounts:
            if mount.below != "." and not await self._is_folder(mount.source, mount.below):
                raise InvalidRequest.field(
                    "config.mounts", f"no folder {mount.below!r} in {mount.name!r}"
                )
        folders = {seen.folder.id: seen.folder for seen in (*ready, *found)}
        for number, mount in enumerate(mounts):
            if mount.is_read_only or not await self._is_overfull(folders[mount.source]):
                continue
            if number < len(asked):
                raise VFolderFull(f"{mount.name!r} holds more than it may; delete files first.")
            mounts[number] = dataclasses.replace(mount, access=Permission.READ)
        return tuple(mounts)
