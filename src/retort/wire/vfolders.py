"""Virtual folders on the wire (specification 10)."""

from __future__ import annotations

import enum
import stat
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from retort.core.files import FileEntry
from retort.core.vfolder import (
    DEFAULT_GROUP,
    FolderUsage,
    Invitation,
    NewVFolder,
    Permission,
    SeenVFolder,
    Share,
    UsageMode,
    VFolder,
)
from retort.errors import InsufficientPrivilege, InvalidRequest
from retort.units import parse_bytes
from retort.wire.params import Params
from retort.wire.times import format_time

E = TypeVar("E", bound=enum.Enum)

HOST = "local:volume1"  #: the one place where folders are (10.1)
GROUP_NAME = "default"
TYPES = ("user", "group")  #: whose folders there may be

_MAX_FILES = 10_000  # names in one deletion
_BATCH = 256  # entries of a listing that are encoded at once
_encode = msgspec.json.Encoder().encode


# --- requests ----------------------------------------------------------------------------------


def parse_create(params: Params) -> NewVFolder:
    """Read the parameters of a new folder (10.2).

    Raises:
        InvalidRequest: a value is not known here.
        InsufficientPrivilege: a folder outside of the server's own place.
    """
    if params.value("unmanaged_path") is not None:
        raise InsufficientPrivilege("Folders lie in the server's own place only")
    _check_host(params, "host")
    return NewVFolder(
        name=params.required("name"),
        permission=_one(params, Permission, "permission") or Permission.WRITE,
        usage_mode=_one(params, UsageMode, "usage_mode", "usageMode") or UsageMode.GENERAL,
        is_cloneable=params.boolean("cloneable"),
        is_of_group=_is_group(params, "group", "groupId", "group_id"),
        max_bytes=_quota(params),
        max_inodes=params.optional_integer("max_files", "maxFiles") or None,
    )


def parse_clone(params: Params) -> NewVFolder:
    """Read what a copy is to be (10.2)."""
    _check_host(params, "target_host")
    return NewVFolder(
        name=params.required("target_name"),
        permission=_one(params, Permission, "permission") or Permission.WRITE,
        usage_mode=_one(params, UsageMode, "usage_mode", "usageMode") or UsageMode.GENERAL,
        is_cloneable=params.boolean("cloneable"),
    )


@dataclass(frozen=True, slots=True)
class ListRequest:
    """Which folders: everybody's, the group's, one owner's; otherwise all that the caller sees."""

    is_all: bool = False
    is_of_group: bool = False
    owner_email: str | None = None


def parse_list(params: Params) -> ListRequest:
    """Read which folders are to be listed (10.2)."""
    return ListRequest(
        params.boolean("all"),
        _is_group(params, "group_id", "groupId"),
        params.string("owner_user_email") or None,
    )


def parse_id(params: Params, *names: str) -> uuid.UUID:
    """Read a UUID that must be there."""
    try:
        return uuid.UUID(params.required(*names))
    except ValueError:
        raise params.refuse(names[0], "is not an id") from None


def parse_optional_id(params: Params, *names: str) -> uuid.UUID | None:
    """Read a UUID, or that there is none."""
    return parse_id(params, *names) if params.string(*names) else None


def parse_options(params: Params) -> tuple[bool | None, Permission | None]:
    """Read what `update-options` changes: whether it is cloneable, and the permission."""
    is_cloneable = None if params.value("cloneable") is None else params.boolean("cloneable")
    return is_cloneable, _one(params, Permission, "permission")


def parse_invite(params: Params) -> tuple[list[str], Permission]:
    """Read whom to invite, and to what (10.6)."""
    permission = _one(params, Permission, "perm", "permission") or Permission.WRITE
    return _emails(params, "emails", "user_ids", "userIDs"), permission


def parse_share(params: Params) -> tuple[list[str], Permission]:
    """Read with whom a group's folder is shared (10.6)."""
    permission = _one(params, Permission, "permission", "perm") or Permission.WRITE
    return _emails(params, "emails"), permission


def parse_emails(params: Params) -> list[str]:
    """Read from whom a share is taken."""
    return _emails(params, "emails")


def parse_permission(params: Params, *names: str) -> Permission:
    """Read a permission that must be there."""
    found = _one(params, Permission, *names)
    if found is None:
        raise params.refuse(names[0], "is required")
    return found


def parse_optional_permission(params: Params, *names: str) -> Permission | None:
    """Read a permission, or that there is none."""
    return _one(params, Permission, *names)


def parse_path(params: Params) -> str:
    """Read the directory to list; the root without one (10.3)."""
    return params.string("path") or "."


def parse_mkdir(params: Params) -> tuple[str, bool, bool]:
    """Read a directory to make, whether its parents too, and whether it may be there."""
    return (
        params.required("path"),
        params.boolean("parents", default=True),
        params.boolean("exist_ok"),
    )


def parse_delete_files(params: Params) -> tuple[list[str], bool]:
    """Read what to delete, and whether directories with all they hold."""
    files = params.string_list("files")
    if not files:
        raise params.refuse("files", "is required")
    if len(files) > _MAX_FILES:
        raise params.refuse("files", f"must be at most {_MAX_FILES}")
    return files, params.boolean("recursive")


def parse_upload(params: Params) -> tuple[str, int]:
    """Read the path and the final size of an upload (10.4)."""
    size = params.optional_integer("size")
    if size is None:
        raise params.refuse("size", "is required")
    return params.required("path"), size


def parse_download(params: Params) -> tuple[str, bool]:
    """Read what to fetch, and whether a directory may be sent as an archive (10.5)."""
    return params.required("path", "file"), params.boolean("archive")


def _one(params: Params, kind: type[E], *names: str) -> E | None:
    text = params.string(*names)
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise params.refuse(names[0], f"must be one of {known}") from None


def _check_host(params: Params, name: str) -> None:
    if params.string(name) not in (None, "", HOST):
        raise params.refuse(name, f"this server has only {HOST}")


def _is_group(params: Params, *names: str) -> bool:
    group = params.string(*names)
    if not group:
        return False
    if group in (GROUP_NAME, str(DEFAULT_GROUP), DEFAULT_GROUP.hex):
        return True
    raise params.refuse(names[0], f"this server has only {GROUP_NAME!r}")


def _quota(params: Params) -> int | None:
    value = params.value("quota")
    if value is None:
        return None
    try:
        return parse_bytes(value) or None
    except ValueError as exc:
        raise params.refuse("quota", str(exc)) from None


def _emails(params: Params, *names: str) -> list[str]:
    emails = params.string_list(*names)
    if not emails:
        raise params.refuse(names[0], "is required")
    return emails


# --- answers -----------------------------------------------------------------------------------


def created(folder: VFolder, **more: Any) -> dict[str, Any]:
    """Answer a new folder (10.2)."""
    return {
        "id": folder.id.hex,
        "name": folder.name,
        "quota_scope_id": quota_scope(folder),
        "host": HOST,
        "usage_mode": folder.usage_mode.value,
        "permission": folder.permission.value,
        "max_size": folder.max_bytes,
        "creator": folder.creator,
        "ownership_type": owner_type(folder),
        "user": _text(folder.user_id),
        "group": _text(folder.group_id),
        "cloneable": folder.is_cloneable,
        "status": folder.status.value,
        **more,
    }


def listed(seen: SeenVFolder) -> dict[str, Any]:
    """Answer one item of a list of folders (10.2)."""
    folder = seen.folder
    return {
        "name": folder.name,
        "id": folder.id.hex,
        "quota_scope_id": quota_scope(folder),
        "host": HOST,
        "status": folder.status.value,
        "usage_mode": folder.usage_mode.value,
        "created_at": format_time(folder.created_at),
        "is_owner": seen.is_owner,
        "permission": seen.permission.value,
        "user": _text(folder.user_id),
        "group": _text(folder.group_id),
        "creator": folder.creator,
        "user_email": None if folder.is_of_group else folder.creator,
        "group_name": GROUP_NAME if folder.is_of_group else None,
        "ownership_type": owner_type(folder),
        "type": owner_type(folder),
        "unmanaged_path": None,
        "cloneable": folder.is_cloneable,
        "max_files": folder.max_inodes or 0,
        "max_size": folder.max_bytes,
        "cur_size": 0,
    }


def info(seen: SeenVFolder, usage: FolderUsage) -> dict[str, Any]:
    """Answer one folder with what it holds (10.2)."""
    folder = seen.folder
    created_at = format_time(folder.created_at)
    return {
        "name": folder.name,
        "id": folder.id.hex,
        "host": HOST,
        "quota_scope_id": quota_scope(folder),
        "status": folder.status.value,
        "numFiles": usage.entries,
        "num_files": usage.entries,
        "used_bytes": usage.bytes,
        "usage_is_whole": usage.is_whole,
        "created": created_at,
        "created_at": created_at,
        "last_used": None,
        "user": _text(folder.user_id),
        "group": _text(folder.group_id),
        "type": owner_type(folder),
        "is_owner": seen.is_owner,
        "permission": seen.permission.value,
        "usage_mode": folder.usage_mode.value,
        "cloneable": folder.is_cloneable,
        "max_files": folder.max_inodes or 0,
        "max_size": folder.max_bytes,
        "cur_size": usage.bytes,
        "quota_enforcement": usage.enforced_by.value,
    }


def hosts() -> dict[str, Any]:
    """Answer where folders may be (10.2)."""
    about = {"backend": "vfs", "capabilities": [], "usage": {}, "sftp_scaling_groups": []}
    return {"default": HOST, "allowed": [HOST], "volume_info": {HOST: about}}


def invitation(made: Invitation, folder: VFolder) -> dict[str, Any]:
    """Answer one invitation (10.6)."""
    return {
        "id": str(made.id),
        "inviter": made.inviter,
        "invitee": made.invitee,
        "perm": made.permission.value,
        "state": "pending",
        "created_at": format_time(made.created_at),
        "modified_at": format_time(made.modified_at),
        "vfolder_id": folder.id.hex,
        "vfolder_name": folder.name,
    }


def shared(folder: VFolder, share: Share) -> dict[str, Any]:
    """Answer whom a folder is open for (10.6)."""
    return {
        "vfolder_id": folder.id.hex,
        "vfolder_name": folder.name,
        "status": folder.status.value,
        "owner": folder.creator,
        "type": owner_type(folder),
        "shared_to": {"uuid": str(share.user_id), "email": share.email},
        "perm": share.permission.value,
    }


def owner_type(folder: VFolder) -> str:
    """Tell whose a folder is, in the wire's words."""
    return "group" if folder.is_of_group else "user"


def quota_scope(folder: VFolder) -> str:
    """Name whose quota a folder counts against."""
    owner = folder.group_id or folder.user_id
    return f"{'project' if folder.is_of_group else 'user'}:{owner}"


class _Item(msgspec.Struct, frozen=True, gc=False):
    name: str
    type: str
    size: int
    mode: str
    created: str
    modified: str


class _File(msgspec.Struct, frozen=True, gc=False):
    filename: str
    size: int
    mode: str
    ctime: float
    atime: float
    mtime: float


def files_answer(entries: Sequence[FileEntry], *, is_truncated: bool = False) -> bytes:
    """Answer a listing (10.3): the same entries as objects and as JSON within JSON.

    A second for 100 000 entries, in which other threads get their turns.

    Bytes of a name that are not UTF-8 are shown as U+FFFD, as in a session's listing.

    Args:
        is_truncated: entries were left out; adds a key that clients ignore.
    """
    items, files = [], []
    for start in range(0, len(entries), _BATCH):
        batch = _batch(entries[start : start + _BATCH])
        items.append(batch[0])
        files.append(batch[1])
    return b'{"items":[%s],"files":%s%s}' % (
        b",".join(items),
        _encode(f"[{b','.join(files).decode()}]"),
        b',"truncated":true' if is_truncated else b"",
    )


def _batch(entries: Sequence[FileEntry]) -> tuple[bytes, bytes]:
    """Encode some entries both ways, without the brackets."""
    items, files = [], []
    for entry in entries:
        name = entry.name.decode("utf-8", "replace")
        items.append(
            _Item(
                name,
                _file_type(entry.mode),
                entry.size,
                f"{entry.mode & 0o777:o}",
                _moment(entry.ctime),
                _moment(entry.mtime),
            )
        )
        mode = stat.filemode(entry.mode)
        files.append(_File(name, entry.size, mode, entry.ctime, entry.atime, entry.mtime))
    return _encode(items)[1:-1], _encode(files)[1:-1]


def _file_type(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "DIRECTORY"
    return "SYMLINK" if stat.S_ISLNK(mode) else "FILE"


def _moment(seconds: float) -> str:
    """Print a file's time; users set them to anything."""
    try:
        return format_time(datetime.fromtimestamp(seconds, UTC))
    except (ValueError, OverflowError, OSError):
        return format_time(datetime.fromtimestamp(0, UTC))


def _text(value: uuid.UUID | None) -> str | None:
    return None if value is None else str(value)


# --- uploads -----------------------------------------------------------------------------------

TUS_VERSION = "1.0.0"


def parse_offset(text: str | None) -> int:
    """Read the Upload-Offset header of a chunk (10.4)."""
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise InvalidRequest.field("Upload-Offset", "must be a number of bytes")
    return int(text)


def upload_headers(offset: int, size: int) -> dict[str, str]:
    """Give the headers that tell where an upload stands (10.4)."""
    return {
        "Upload-Offset": str(offset),
        "Upload-Length": str(size),
        "Tus-Resumable": TUS_VERSION,
        "Cache-Control": "no-store",
    }


def upload_abilities(max_bytes: int) -> dict[str, str]:
    """Give the headers that answer OPTIONS (10.4)."""
    return {
        "Tus-Resumable": TUS_VERSION,
        "Tus-Version": TUS_VERSION,
        "Tus-Max-Size": str(max_bytes),
        "X-Content-Type-Options": "nosniff",
    }


def transfer(token: str, url: str) -> dict[str, str]:
    """Answer where and by what token bytes go (10.4, 10.5)."""
    return {"token": token, "url": url}


def emails_answer(key: str, emails: Sequence[str]) -> dict[str, Any]:
    """Answer the users that a call reached (10.6)."""
    return {key: list(emails)}
