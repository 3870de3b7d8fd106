"""What the services need from the outside, as Protocols; each states its errors.

Everything a port carries is a plain value or an asynchronous stream, so that an adapter may live
in another process (DESIGN 9).
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from retort.core.files import Download, FileUpload, Listing, OpenFile
from retort.core.keypair import KeyPair
from retort.core.limits import Usage
from retort.core.reply import Reply, ReplyKey
from retort.core.run import Answer, RunRequest
from retort.core.session import Session, SessionStatus
from retort.core.vfolder import FolderUsage, Invitation, Quota, Share, VFolder


class Clock(Protocol):
    """Time, so that tests can make it jump."""

    def now(self) -> dt.datetime:
        """Give the present time, aware UTC."""
        ...


class KeyPairStore(Protocol):
    """Key pairs, kept. Every method raises StoreFault when the database fails."""

    async def add(self, keypair: KeyPair) -> None:
        """Keep a new key pair. Raises Conflict when its access key exists."""
        ...

    async def get(self, access_key: str) -> KeyPair | None:
        """Find by access key, active or not."""
        ...

    async def get_by_token(self, token_sha256: str) -> KeyPair | None:
        """Find by the digest of a bearer token, active or not."""
        ...

    async def all(self) -> Sequence[KeyPair]:
        """Give every key pair, oldest first."""
        ...

    async def update(self, keypair: KeyPair) -> None:
        """Replace a key pair by its access key. Raises NotFound when there is none."""
        ...

    async def remove(self, access_key: str) -> None:
        """Forget a key pair. Raises NotFound when there is none."""
        ...


class SessionStore(Protocol):
    """Sessions, kept. Every method raises StoreFault when the database fails."""

    async def add(self, session: Session) -> None:
        """Keep a new session.

        Raises Conflict when its id exists, or when its owner has a live one of that name.
        """
        ...

    async def update(self, session: Session) -> None:
        """Replace a session by its id. Raises NotFound when there is none."""
        ...

    async def get(self, session_id: uuid.UUID) -> Session | None:
        """Find by id, in any state."""
        ...

    async def live(self) -> Sequence[Session]:
        """Give every session that is neither TERMINATED nor CANCELLED, oldest first."""
        ...

    async def find(
        self,
        owner: str | None,
        *,
        statuses: Sequence[SessionStatus] = (),
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[Session]:
        """List an owner's sessions, or everybody's, newest first; no statuses: in any state."""
        ...

    async def ended_since(self, at: dt.datetime) -> Sequence[Session]:
        """Give sessions that ended after a time, oldest first."""
        ...

    async def forget_ended_before(self, at: dt.datetime) -> int:
        """Delete records of sessions that ended before a time; give their number."""
        ...


class VFolderStore(Protocol):
    """Records of virtual folders. Every method raises StoreFault when the database fails."""

    async def add(self, folder: VFolder) -> None:
        """Keep a new folder. Raises VFolderExists when its owner has one of that name."""
        ...

    async def update(self, folder: VFolder) -> None:
        """Replace a folder by its id. Raises VFolderNotFound, VFolderExists."""
        ...

    async def remove(self, folder_id: uuid.UUID) -> None:
        """Forget a folder, its shares and its invitations. Raises VFolderNotFound."""
        ...

    async def get(self, folder_id: uuid.UUID) -> VFolder | None:
        """Find by id."""
        ...

    async def all(self) -> Sequence[VFolder]:
        """Give every folder, by name."""
        ...

    async def visible_to(
        self, user_id: uuid.UUID, group_id: uuid.UUID
    ) -> Sequence[tuple[VFolder, Share | None]]:
        """Give a user's folders, those of the group, and those shared with the user, by name."""
        ...

    async def put_share(self, share: Share) -> None:
        """Open a folder for a user, or change the opening. Raises VFolderNotFound."""
        ...

    async def remove_share(self, folder_id: uuid.UUID, user_id: uuid.UUID) -> bool:
        """Close a folder to a user; tell whether it was open."""
        ...

    async def shares(self, folder_id: uuid.UUID) -> Sequence[Share]:
        """Give everybody a folder is open for, by e-mail."""
        ...

    async def add_invitation(self, invitation: Invitation) -> None:
        """Keep an invitation. Raises VFolderExists (invited before), VFolderNotFound."""
        ...

    async def update_invitation(self, invitation: Invitation) -> None:
        """Replace an invitation by its id. Raises InvitationNotFound."""
        ...

    async def remove_invitation(self, invitation_id: uuid.UUID) -> None:
        """Forget an invitation. Raises InvitationNotFound."""
        ...

    async def accept_invitation(self, invitation: Invitation) -> None:
        """Turn an invitation into a share, at once. Raises InvitationNotFound."""
        ...

    async def invitation(self, invitation_id: uuid.UUID) -> Invitation | None:
        """Find an invitation by id."""
        ...

    async def invitations_to(self, user_id: uuid.UUID) -> Sequence[tuple[Invitation, VFolder]]:
        """Give the invitations for a user with their folders, oldest first."""
        ...

    async def invitations_by(self, user_id: uuid.UUID) -> Sequence[tuple[Invitation, VFolder]]:
        """Give the invitations that a user sent, with their folders, oldest first."""
        ...


class ReplyStore(Protocol):
    """Answers, kept for those who repeat. Every method raises StoreFault when it fails."""

    async def get(self, key: ReplyKey) -> Reply | None:
        """Find an answer that is not too old; it is the newest of its owner's then."""
        ...

    async def put(self, key: ReplyKey, reply: Reply) -> None:
        """Keep an answer, so that it is there even if this process is killed at once.

        The owner's longest unused ones make room for it.
        """
        ...


class VFolderDisk(Protocol):
    """The files of virtual folders.

    A folder is made out of sight, published when its record is there, discarded at once and emptied
    later; each step may be repeated. Paths are relative to a folder's root. Every method that takes
    a folder's id raises VFolderNotFound when it is not there; those that take a path raise
    PathRefused for one that is none, and SandboxFault when the disk failed.
    """

    async def make(self, folder_id: uuid.UUID, quota: Quota = ...) -> None:
        """Make an empty folder where nobody finds it yet; bounded by the host kernel if it can."""
        ...

    async def bound(self, folder_id: uuid.UUID, quota: Quota) -> None:
        """Bound a published folder as `make` does; what it holds stays, even if it is too much."""
        ...

    async def publish(self, folder_id: uuid.UUID) -> None:
        """Put a made folder in its place."""
        ...

    async def discard(self, folder_id: uuid.UUID) -> None:
        """Take a folder away, made or published."""
        ...

    async def restore(self, folder_id: uuid.UUID) -> None:
        """Take a discard back."""
        ...

    async def leftovers(self) -> tuple[Sequence[uuid.UUID], Sequence[uuid.UUID]]:
        """List what was made but not published, and what was discarded but is not gone."""
        ...

    async def empty_trash(self, folder_ids: Sequence[uuid.UUID]) -> Sequence[uuid.UUID]:
        """Remove discarded folders for good; give those that resist, for the next time."""
        ...

    async def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove uploads that are over by their id, and what interrupted deletions of files left.

        Args:
            is_over: called from a thread.
        """
        ...

    async def copy(
        self,
        source: uuid.UUID,
        target: uuid.UUID,
        *,
        max_bytes: int | None,
        max_inodes: int | None,
        on_progress: Callable[[int, int], None],
    ) -> None:
        """Copy a folder's files into one that is made but not published.

        Args:
            on_progress: called with entries and bytes done so far, from any thread.

        Raises VFolderFull; VFolderOperation for what cannot be copied.
        """
        ...

    async def usage(self, folder_id: uuid.UUID, max_entries: int = 0) -> FolderUsage:
        """Tell what a folder holds, in bounded time.

        Args:
            max_entries: where it must be counted, to count at least so far.
        """
        ...

    async def settle(self, folder_id: uuid.UUID) -> None:
        """Have a host kernel that counts by itself count what was removed just now, too."""
        ...

    async def listing(self, folder_id: uuid.UUID, path: str) -> Listing:
        """List a directory. Raises PathNotFound, VFolderOperation."""
        ...

    async def mkdir(
        self, folder_id: uuid.UUID, path: str, *, parents: bool, exist_ok: bool
    ) -> None:
        """Make a directory. Raises VFolderOperation: it exists, or a parent is missing."""
        ...

    async def rename(self, folder_id: uuid.UUID, path: str, new_name: str) -> None:
        """Rename in place. Raises PathNotFound; VFolderOperation: the name is taken."""
        ...

    async def move(self, folder_id: uuid.UUID, source: str, target: str) -> None:
        """Move, into `target` if that is a directory. Raises PathNotFound, VFolderOperation."""
        ...

    async def delete(self, folder_id: uuid.UUID, paths: Sequence[str], *, recursive: bool) -> None:
        """Delete files, and directories if `recursive`; of unfit names, nothing is deleted.

        Raises PathNotFound, VFolderOperation.
        """
        ...

    async def is_directory(self, folder_id: uuid.UUID, path: str) -> bool:
        """Tell a directory from a regular file. Raises PathNotFound, VFolderOperation."""
        ...

    async def open_file(self, folder_id: uuid.UUID, path: str) -> OpenFile:
        """Open a regular file. Raises PathNotFound, VFolderOperation."""
        ...

    async def open_zip(self, folder_id: uuid.UUID, path: str, name: str) -> Download:
        """Open a directory as a zip stream; `name` is the root's in it.

        Raises PathNotFound, VFolderOperation, FileTooLarge.
        """
        ...

    async def begin_upload(
        self, folder_id: uuid.UUID, upload_id: str, path: str, size: int
    ) -> None:
        """Get ready for a file; an empty one appears at once. Raises VFolderOperation, VFolderFull.

        Args:
            upload_id: a name of hex digits that no other upload has.
        """
        ...

    async def upload_offset(
        self, folder_id: uuid.UUID, upload_id: str, path: str, size: int
    ) -> int:
        """Tell how much has come; a complete file is in place then. Raises PathNotFound."""
        ...

    async def append(
        self,
        folder_id: uuid.UUID,
        upload_id: str,
        path: str,
        size: int,
        offset: int,
        chunks: AsyncIterator[bytes],
    ) -> int:
        """Add to an upload; give how much has come. Complete, the file appears in its place.

        Raises OffsetMismatch, FileTooLarge, PathNotFound, VFolderOperation, VFolderFull, and
        whatever `chunks` raises; what came before that stays.
        """
        ...


class RunStream(Protocol):
    """One run, watched by a caller that stays connected (spec 9.1)."""

    @property
    def session_id(self) -> uuid.UUID:
        """The session it runs in."""
        ...

    def __aiter__(self) -> AsyncIterator[Answer]:
        """Give answers until `finished` or `exec-timeout`, output flushed every 0.2 s."""
        ...

    async def give_input(self, text: str) -> None:
        """Deliver one line; a newline is appended when it does not end with one."""
        ...

    async def abandon(self) -> None:
        """Say that the caller is gone: interrupt the program and discard the run."""
        ...


class Node(Protocol):
    """One machine that holds sessions.

    Every method but `create` raises SessionNotFound for a session it does not hold, and
    SandboxFault when the session's sandbox broke.
    """

    async def create(self, session: Session) -> None:
        """Make a session's sandbox. Raises SandboxFault, ImageNotFound."""
        ...

    async def adopt(self, session: Session) -> Session:
        """Take over a session that an earlier server made and left running.

        Returns:
            The session, with what its runs came to meanwhile.

        Raises:
            SessionLost: nothing of it runs any more; says why. What its runs had still to say is
                told as after any loss.
        """
        ...

    async def sweep(self) -> None:
        """End what an earlier server left and nobody adopted: it belongs to no session."""
        ...

    async def destroy(self, session_id: uuid.UUID) -> Usage:
        """Kill everything in a session and delete its files; give what it used in all."""
        ...

    async def restart(self, session_id: uuid.UUID) -> None:
        """Kill everything in a session; files, environment and mounts stay."""
        ...

    async def interrupt(self, session_id: uuid.UUID) -> None:
        """Send SIGINT to the process group of the running program, if there is one."""
        ...

    async def execute(self, session_id: uuid.UUID, request: RunRequest, wait_s: float) -> Answer:
        """Start, continue or feed a run, and wait for its next answer (spec 6.2).

        Raises:
            RunNotFound: continue or input of a run that is not there (R3).
        """
        ...

    async def delivered(self, session_id: uuid.UUID, answer: Answer) -> None:
        """Say that an answer reached its caller: it will not be given again."""
        ...

    async def stop_waiting(self) -> None:
        """Let waiting calls answer now: the server stops."""
        ...

    async def undeliver(self, session_id: uuid.UUID, answer: Answer) -> None:
        """Put an answer back that could not be written; it is the run's next one again."""
        ...

    async def stream(self, session_id: uuid.UUID, request: RunRequest) -> RunStream:
        """Start a run and watch it (spec 9.1)."""
        ...

    def is_busy(self, session_id: uuid.UUID) -> bool:
        """Tell whether a program of a session runs; False for a session it does not hold."""
        ...

    async def usage(self, session_id: uuid.UUID) -> Usage:
        """Give what a session used so far."""
        ...

    async def upload(self, session_id: uuid.UUID, files: AsyncIterator[FileUpload]) -> None:
        """Store files, all or none (spec 6.1).

        Raises:
            PathRefused: a name does not lie strictly under /home/work, or cannot be made there.
            ScratchFull: the session's disk space is used up.
            RequestError: whatever the iterator raises passes through; nothing is stored then.
        """
        ...

    async def listing(self, session_id: uuid.UUID, path: str) -> Listing:
        """List a folder (spec 6.3). Raises PathNotFound, PathRefused."""
        ...

    async def download(self, session_id: uuid.UUID, paths: Sequence[str]) -> list[Download]:
        """Open files or folders as tar streams, in the order asked (spec 6.4).

        Raises FileNotFound, PathRefused, FileTooLarge before anything is streamed.
        """
        ...

    async def download_single(self, session_id: uuid.UUID, path: str) -> Download:
        """Open one regular file as it is (spec 6.5). Raises as `download`."""
        ...


class Placement(Protocol):
    """Where sessions live."""

    async def place(self, session: Session) -> Node:
        """Choose a node for a new session. Raises QuotaExceeded when none can ever hold it."""
        ...

    async def sweep(self) -> None:
        """End what an earlier server left on any node and nobody adopted."""
        ...

    def node_of(self, session_id: uuid.UUID) -> Node:
        """Find the node that holds a session. Raises SessionNotFound."""
        ...
