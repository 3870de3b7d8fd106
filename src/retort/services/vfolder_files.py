"""The files of virtual folders: who may list, change, send and fetch them."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from weakref import WeakValueDictionary

from retort.core.files import Download, Listing, OpenFile
from retort.core.keypair import KeyPair
from retort.core.moment import Moment
from retort.core.ports import VFolderDisk
from retort.core.vfolder import Permission, VFolder
from retort.errors import FileTooLarge, NotPermitted, VFolderOperation
from retort.services.keypairs import KeyRing
from retort.services.vfolder_quota import Quotas
from retort.services.vfolder_tokens import Tokens, Transfer, draw_upload_id, end_of_upload
from retort.services.vfolders import VFolderLookup


class VFolderFiles:
    """Calls on files, and the two halves of each transfer: asked for by a key, done by a token.

    Args:
        now: tells the time by both clocks of the host.
        quotas: tells whether a folder can take more.
        secret: of this server; signs the tokens.
        token_s: how long a token is good for.
        max_file_bytes: of one upload.
    """

    def __init__(
        self,
        lookup: VFolderLookup,
        disk: VFolderDisk,
        keys: KeyRing,
        now: Callable[[], Moment],
        quotas: Quotas,
        *,
        secret: bytes,
        token_s: float,
        max_file_bytes: int,
    ) -> None:
        self._lookup = lookup
        self._disk = disk
        self._keys = keys
        self._now = now
        self._quotas = quotas
        self._tokens = Tokens(secret)
        self._token_s = token_s
        self.max_file_bytes = max_file_bytes
        self._uploading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # --- by key -----------------------------------------------------------------------------

    async def listing(self, caller: KeyPair, ref: str, path: str) -> Listing:
        """List a directory (spec 10.3); see `ports.VFolderDisk.listing`."""
        return await self._disk.listing(await self._id(caller, ref), path)

    async def mkdir(
        self, caller: KeyPair, ref: str, path: str, *, parents: bool, exist_ok: bool
    ) -> None:
        """Make a directory. Raises VFolderFull."""
        folder = (await self._lookup.find(caller, ref, Permission.WRITE)).folder
        async with self._quotas.taking(folder, 0, entries=1):
            await self._disk.mkdir(folder.id, path, parents=parents, exist_ok=exist_ok)

    async def rename(self, caller: KeyPair, ref: str, path: str, new_name: str) -> None:
        """Give a file or directory another name."""
        await self._disk.rename(await self._id(caller, ref, Permission.WRITE), path, new_name)

    async def move(self, caller: KeyPair, ref: str, source: str, target: str) -> None:
        """Move a file or directory."""
        await self._disk.move(await self._id(caller, ref, Permission.WRITE), source, target)

    async def delete(
        self, caller: KeyPair, ref: str, paths: Sequence[str], *, recursive: bool
    ) -> None:
        """Delete files and directories."""
        folder_id = await self._id(caller, ref, Permission.WRITE)
        await self._disk.delete(folder_id, paths, recursive=recursive)
        self._quotas.forget(folder_id)

    async def request_upload(self, caller: KeyPair, ref: str, path: str, size: int) -> str:
        """Get ready for a file and give the token for its bytes; an empty one is there at once.

        Raises:
            FileTooLarge: more than one file may have.
            VFolderFull: more than the folder's quota leaves.
        """
        seen = await self._lookup.find(caller, ref, Permission.WRITE)
        if size > self.max_file_bytes:
            raise FileTooLarge
        await self._quotas.check(seen.folder, size, entries=1)
        ends = self._end()
        upload_id = draw_upload_id(ends)
        async with self._quotas.taking(seen.folder, 0, entries=1):
            await self._disk.begin_upload(seen.folder.id, upload_id, path, size)
        return self._sign(
            Transfer("upload", caller.access_key, seen.folder.id, path, ends, size, upload_id)
        )

    async def request_download(self, caller: KeyPair, ref: str, path: str, *, archive: bool) -> str:
        """Check that something can be fetched, and give the token for it.

        Args:
            archive: a directory is fine, and sent as a zip.

        Raises:
            PathNotFound: it is not there.
            VFolderOperation: a directory without `archive`.
        """
        folder_id = await self._id(caller, ref)
        is_directory = await self._disk.is_directory(folder_id, path)
        if is_directory and not archive:
            raise VFolderOperation(f"{path}: it is a directory")
        return self._sign(
            Transfer(
                "download",
                caller.access_key,
                folder_id,
                path,
                self._end(),
                is_archive=is_directory,
            )
        )

    # --- by token ---------------------------------------------------------------------------

    async def upload_offset(self, token: str) -> tuple[int, int]:
        """Tell how much of an upload has come, and its size. Raises NotPermitted, PathNotFound."""
        transfer, _ = await self._read(token, "upload", Permission.WRITE)
        async with self._alone(transfer):
            offset = await self._disk.upload_offset(
                transfer.folder_id, transfer.upload_id, transfer.path, transfer.size
            )
        return offset, transfer.size

    async def append(
        self, token: str, offset: int, chunks: AsyncIterator[bytes], length: int | None
    ) -> tuple[int, int]:
        """Add to an upload; give how much has come, and its size.

        Args:
            length: what the caller says will come; None: not said.

        Raises:
            NotPermitted: the token does not allow it.
            OffsetMismatch: the upload stands elsewhere.
            FileTooLarge: more than the size would come.
            VFolderFull: more than the folder's quota leaves; what came before stays.
        """
        transfer, folder = await self._read(token, "upload", Permission.WRITE)
        if length is None:
            length = max(transfer.size - offset, 0)
        elif offset + length > transfer.size:
            raise FileTooLarge("More would come than the upload's size")
        async with self._alone(transfer), self._quotas.taking(folder, length, entries=0):
            stored = await self._disk.append(
                transfer.folder_id,
                transfer.upload_id,
                transfer.path,
                transfer.size,
                offset,
                chunks,
            )
        return stored, transfer.size

    async def open_download(self, token: str) -> OpenFile | Download:
        """Open what a token is for: a file, or a directory as a zip.

        Raises:
            NotPermitted: the token does not allow it.
            PathNotFound, VFolderOperation: it has changed since.
        """
        transfer, folder = await self._read(token, "download", Permission.READ)
        if not transfer.is_archive:
            return await self._disk.open_file(folder.id, transfer.path)
        return await self._disk.open_zip(folder.id, transfer.path, folder.name)

    async def sweep(self) -> None:
        """Remove uploads that nobody can go on with, and what cut off deletions left."""
        now = self._now()

        def is_over(upload_id: str) -> bool:
            ends = end_of_upload(upload_id)
            return upload_id not in self._uploading and (ends is None or ends.is_over(now))

        await self._disk.sweep(is_over)

    # --- below ------------------------------------------------------------------------------

    async def _id(
        self, caller: KeyPair, ref: str, needed: Permission = Permission.READ
    ) -> uuid.UUID:
        return (await self._lookup.find(caller, ref, needed)).folder.id

    def _sign(self, transfer: Transfer) -> str:
        return self._tokens.sign(transfer)

    def _end(self) -> Moment:
        return self._now().after(self._token_s)

    async def _read(
        self, token: str, operation: str, needed: Permission
    ) -> tuple[Transfer, VFolder]:
        """Read a token whose owner may still do what it says."""
        transfer = self._tokens.read(token, operation, self._now())
        caller = await self._caller(transfer)
        seen = await self._lookup.visible_by_id(caller, transfer.folder_id, needed)
        return transfer, seen.folder

    async def _caller(self, transfer: Transfer) -> KeyPair:
        caller = self._keys.find(transfer.access_key) or await self._keys.lookup(
            transfer.access_key
        )
        if caller is None:
            raise NotPermitted("The token's key is not valid any more")
        return caller

    @contextlib.asynccontextmanager
    async def _alone(self, transfer: Transfer) -> AsyncIterator[None]:
        """Wait until nobody else adds to the same upload."""
        lock = self._uploading.get(transfer.upload_id)
        if lock is None:
            lock = self._uploading[transfer.upload_id] = asyncio.Lock()
        async with lock:
            yield
