"""Files into and out of a session."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence

from retort.core.files import Download, FileUpload, Listing
from retort.core.keypair import KeyPair
from retort.core.ports import Placement
from retort.core.session import Session
from retort.errors import (
    FileNotFound,
    PathNotFound,
    PathRefused,
    SandboxFault,
    SessionNotFound,
)
from retort.services.sessions import SessionService

OUTPUT_DIR = "/home/work/.output"


class FileService:
    """Upload, listing, download, and the unsigned fetch of a run's result files.

    Args:
        secret: of this server; signs the addresses of result files (spec 5.4).
    """

    def __init__(self, sessions: SessionService, placement: Placement, *, secret: bytes) -> None:
        self._sessions = sessions
        self._placement = placement
        self._secret = secret

    async def upload(self, owner: KeyPair, ref: str, files: AsyncIterator[FileUpload]) -> None:
        """Store files, all or none (spec 6.1); see `ports.Node.upload`."""
        session = await self._sessions.running(owner, ref)
        with self._ending(owner, session):
            await self._placement.node_of(session.id).upload(session.id, files)

    async def listing(self, owner: KeyPair, ref: str, path: str) -> Listing:
        """List a folder (spec 6.3)."""
        session = await self._sessions.running(owner, ref)
        with self._ending(owner, session):
            return await self._placement.node_of(session.id).listing(session.id, path)

    async def download(self, owner: KeyPair, ref: str, paths: Sequence[str]) -> list[Download]:
        """Open files and folders as tar streams (spec 6.4)."""
        session = await self._sessions.running(owner, ref)
        with self._ending(owner, session):
            return await self._placement.node_of(session.id).download(session.id, paths)

    async def download_single(self, owner: KeyPair, ref: str, path: str) -> Download:
        """Open one regular file (spec 6.5)."""
        session = await self._sessions.running(owner, ref)
        with self._ending(owner, session):
            return await self._placement.node_of(session.id).download_single(session.id, path)

    @contextlib.contextmanager
    def _ending(self, owner: KeyPair, session: Session) -> Iterator[None]:
        """Say that a session is gone when it was destroyed during a call on it."""
        try:
            yield
        except SandboxFault:
            self._sessions.find(owner, str(session.id))  # raises SessionNotFound
            raise

    def output_token(self, session_id: uuid.UUID, name: str) -> str:
        """Make the unguessable part of a result file's address (spec 5.4)."""
        said = session_id.bytes + name.encode()
        return hmac.new(self._secret, said, hashlib.sha256).hexdigest()[:32]

    async def output_file(self, session_id: uuid.UUID, name: str, token: str) -> Download:
        """Open a result file by its address.

        Raises:
            PathNotFound: the token is not this file's, the file or its session is gone.
        """
        if not hmac.compare_digest(
            self.output_token(session_id, name).encode(), token.encode("utf-8", "replace")
        ):
            raise PathNotFound
        try:
            node = self._placement.node_of(session_id)
            return await node.download_single(session_id, f"{OUTPUT_DIR}/{name}")
        except (SessionNotFound, FileNotFound, PathRefused):
            raise PathNotFound from None
