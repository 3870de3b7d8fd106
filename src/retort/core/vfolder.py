"""Virtual folders: what they are, who may do what with them, and what their names may be.

A vfolder outlives sessions. Its record is in the store, its files are in a tree of the server's own
(hostfs/volume.py). Whoever is not told of here sees no folder at all (specification 10.1).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import re
import uuid

from retort.errors import InvalidRequest

#: The one group that every user of this server belongs to; its folders are for all of them.
DEFAULT_GROUP = uuid.UUID("4e4d6f7a-0f0b-4d0e-9e3c-7d1a5b2c9f10")

_NAME = re.compile(r"(?=.{1,64}\Z)\.?[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_RESERVED = frozenset({".ssh", ".terminfo", ".jupyter", ".tmux.conf"})
_SHELL_FILE = re.compile(r"\.[a-z_]*(?:rc|profile|login|logout)")


class Permission(enum.Enum):
    """What somebody may do with a folder's files; each includes the ones before it."""

    READ = "ro"
    WRITE = "rw"
    DELETE = "wd"  #: also delete the folder itself

    def allows(self, needed: Permission) -> bool:
        """Tell whether who has this may do what needs the other."""
        order = list(Permission)
        return order.index(self) >= order.index(needed)


class UsageMode(enum.Enum):
    """What a folder is for, as its owner says; nothing depends on it."""

    GENERAL = "general"
    DATA = "data"
    MODEL = "model"


class VFolderStatus(enum.Enum):
    """Whether a folder can be used."""

    READY = "ready"
    CLONING = "cloning"  #: its files are being copied into it; nobody may use it yet


class EnforcedBy(enum.Enum):
    """Who sees to it that a folder stays within its quota (decision 0018)."""

    PROJECT = "project"  #: the host kernel, for every byte whoever writes it
    COUNTED = "counted"  #: this server: its own calls at once, what sessions write by counting


@dataclasses.dataclass(frozen=True, slots=True)
class Quota:
    """What a folder may hold: bytes on the disk, and files of any kind; None: no end."""

    max_bytes: int | None = None
    max_inodes: int | None = None

    def excess(self, size: int, entries: int) -> str:
        """Say what of it would be exceeded by holding so much; "" if nothing."""
        if self.max_bytes is not None and size > self.max_bytes:
            return f"{size} of {self.max_bytes} bytes"
        if self.max_inodes is not None and entries > self.max_inodes:
            return f"{entries} of {self.max_inodes} files"
        return ""


@dataclasses.dataclass(frozen=True, slots=True)
class VFolder:
    """One virtual folder.

    Attributes:
        id: also the name of its directory on the host, as 32 hex digits.
        user_id: the owner; None: a folder of `group_id`.
        group_id: the group it belongs to; None: a folder of `user_id`.
        creator: e-mail of who made it.
        permission: how sessions of its owner mount it, and what members of its group may do.
            Through the API its owner may do everything.
        is_cloneable: others may copy it.
        max_bytes, max_inodes: the quota; None: as much as the disk has.
    """

    id: uuid.UUID
    name: str
    user_id: uuid.UUID | None
    creator: str
    created_at: dt.datetime
    group_id: uuid.UUID | None = None
    permission: Permission = Permission.WRITE
    usage_mode: UsageMode = UsageMode.GENERAL
    is_cloneable: bool = False
    status: VFolderStatus = VFolderStatus.READY
    max_bytes: int | None = None
    max_inodes: int | None = None

    @property
    def quota(self) -> Quota:
        """What it may hold."""
        return Quota(self.max_bytes, self.max_inodes)

    @property
    def is_of_group(self) -> bool:
        """Whether it belongs to a group and not to a user."""
        return self.group_id is not None


@dataclasses.dataclass(frozen=True, slots=True)
class NewVFolder:
    """What is asked of a folder that is to be made; attributes as of VFolder."""

    name: str
    permission: Permission = Permission.WRITE
    usage_mode: UsageMode = UsageMode.GENERAL
    is_cloneable: bool = False
    is_of_group: bool = False
    max_bytes: int | None = None
    max_inodes: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """A folder's opening for one user: accepted invitation, or shared by an administrator."""

    folder_id: uuid.UUID
    user_id: uuid.UUID
    email: str
    permission: Permission


@dataclasses.dataclass(frozen=True, slots=True)
class Invitation:
    """An offer to share a folder, not answered yet.

    Attributes:
        inviter, invitee: e-mails.
    """

    id: uuid.UUID
    folder_id: uuid.UUID
    inviter_id: uuid.UUID
    inviter: str
    invitee_id: uuid.UUID
    invitee: str
    permission: Permission
    created_at: dt.datetime
    modified_at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class SeenVFolder:
    """A folder as one user sees it.

    Attributes:
        permission: how this user's sessions mount it.
        access: what this user may do through the API.
        is_owner: it is the user's own.
    """

    folder: VFolder
    permission: Permission
    access: Permission
    is_owner: bool


@dataclasses.dataclass(frozen=True, slots=True)
class FolderUsage:
    """What a folder holds.

    Attributes:
        bytes: disk space of its files.
        entries: files, directories and everything else.
        is_whole: False: there is more than was counted.
        enforced_by: who sees to its quota.
    """

    bytes: int
    entries: int
    is_whole: bool = True
    enforced_by: EnforcedBy = EnforcedBy.COUNTED


def seen_by(
    folder: VFolder, user_id: uuid.UUID, share: Share | None, *, is_admin: bool
) -> SeenVFolder | None:
    """Give a folder as a user sees it; None when that is not at all.

    Args:
        share: the folder's opening for this user, if there is one.
        is_admin: an administrator looks after the group's folders.
    """
    if folder.user_id == user_id:
        return SeenVFolder(folder, folder.permission, Permission.DELETE, is_owner=True)
    if folder.is_of_group:
        permission = share.permission if share else folder.permission
        access = Permission.DELETE if is_admin else permission
        return SeenVFolder(folder, permission, access, is_owner=False)
    if share is None:
        return None
    return SeenVFolder(folder, share.permission, share.permission, is_owner=False)


def checked_name(name: str) -> str:
    """Give a folder's name back if it is one.

    Raises:
        InvalidRequest: it breaks a rule of specification 10.1, or is reserved.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest.field(
            "name",
            "must be up to 64 letters, digits, `_`, `-` and `.`, the last two not at its end",
        )
    if name in _RESERVED or _SHELL_FILE.fullmatch(name):
        raise InvalidRequest.field("name", "is reserved")
    return name
