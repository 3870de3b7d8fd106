"""Virtual folders on this machine: how a session's mounts become mounts of its sandbox."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from pathlib import Path

from retort.core import mount as core
from retort.errors import NotSupported
from retort.sandbox.launcher import Launcher
from retort.sandbox.mounts import why_unmountable
from retort.sandbox.view import Mount


class Ids(enum.Enum):
    """Whose the files of folders are, as sandboxes see them (docs/decisions/0015)."""

    SAME = "same"  #: not root: sandboxes have the server's uid, and so have the files
    MAPPED = "mapped"  #: the kernel shows the folders' owner as the uid of each sandbox
    SHARED = "shared"  #: it cannot here: sandboxes with mounts run as the folders' owner
    NONE = "none"  #: nothing can be mounted


@dataclasses.dataclass(frozen=True, slots=True)
class Folders:
    """How folders are mounted here.

    Attributes:
        path: where they lie; hostfs/volume.py says how. Nobody else can write in it, nor in its
            parents, so its own paths are safe.
        owner: the uid of what is in them; None: the server's own.
        problem: why nothing can be mounted; None otherwise.
    """

    path: Path
    owner: int | None
    ids: Ids
    problem: str | None = None

    def mounts(self, wanted: Sequence[core.Mount]) -> tuple[Mount, ...]:
        """Give a session's mounts as its sandbox takes them.

        Raises:
            NotSupported: this host cannot mount folders.
        """
        if wanted and self.ids is Ids.NONE:
            raise NotSupported(f"This host cannot mount virtual folders: {self.problem}")
        return tuple(
            Mount(
                self.path / mount.source.hex / "data",
                mount.destination,
                mount.below,
                mount.is_read_only,
            )
            for mount in wanted
        )

    @property
    def shared_uid(self) -> int | None:
        """The uid of every sandbox with mounts; None: each has what it would have without."""
        return self.owner if self.ids is Ids.SHARED else None

    @property
    def walls(self) -> Mapping[str, str]:
        """What stands differently around a session with mounts (docs/wire.md)."""
        return {"uid": "shared"} if self.ids is Ids.SHARED else {}


async def try_mounting(
    launcher: Launcher, path: Path, trial: Path, *, owner: int | None, host_uid: int | None
) -> Folders:
    """Find out how folders can be mounted here, by doing it.

    Args:
        path: where the folders lie.
        trial: for a sandbox's socket; made, and removed again.
        owner, host_uid: of the folders, and of a sandbox; None: the server is not root.
    """
    why = await why_unmountable(launcher, path, trial, host_uid, owner)
    if why is None:
        return Folders(path, owner, Ids.SAME if owner is None else Ids.MAPPED)
    if owner is not None and await why_unmountable(launcher, path, trial, owner, None) is None:
        return Folders(path, owner, Ids.SHARED)
    return Folders(path, owner, Ids.NONE, why)
