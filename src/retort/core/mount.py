"""Mounts: which virtual folders a session has, at which places, and which of that is refused.

Pure rules of specification 10.7. Looking the folders up is services/mounts.py's, mounting them the
node's.
"""

from __future__ import annotations

import dataclasses
import posixpath
import uuid
from collections.abc import Iterable, Mapping, Sequence

from retort.core.vfolder import Permission, SeenVFolder
from retort.errors import InvalidRequest

HOME = "/home/work"
LONGEST_PLACE = 1024  #: bytes; its parents are made, and each is a file of the session's

_SYSTEM = (
    *(
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/lib",
        "/lib64",
        "/media",
        "/mnt",
        "/opt",
        "/proc",
        "/root",
    ),
    *("/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/home"),  # noqa: S108 - refused
    *("/lib32", "/libx32", "/.retort"),  # not in the specification, but places of ours
)


@dataclasses.dataclass(frozen=True, slots=True)
class AskedMount:
    """A mount as a caller asks for it, well-formed; whether there is such a folder is not known.

    Attributes:
        ref: the folder's name or id.
        below: the folder in it that is meant; "." for all of it.
        destination: absolute; None: by the folder's name, below the home.
    """

    ref: str
    below: str = "."
    destination: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Mount:
    """A folder in a session.

    Attributes:
        source: the folder's id.
        name: the folder's name when it was mounted.
        destination: absolute, in the session; normal.
        below: the folder in the source that is mounted, relative and normal.
        access: READ mounts it read-only; the others are alike.
    """

    source: uuid.UUID
    name: str
    destination: str
    below: str = "."
    access: Permission = Permission.WRITE

    @property
    def is_read_only(self) -> bool:
        """Whether programs cannot write there."""
        return self.access is Permission.READ


def asked_mounts(mounts: Sequence[str], places: Mapping[str, str]) -> tuple[AskedMount, ...]:
    """Read `mounts` and `mount_map` of a creation config.

    Args:
        mounts: `name`, `name:place`, `name/subfolder` or `name/subfolder:place`; ids are names too.
        places: from what is in `mounts`, without its `:place`, to a place.

    Raises:
        InvalidRequest: naming the field.
    """
    asked = []
    left = dict(places)
    for entry in mounts:
        source, colon, alias = entry.partition(":")
        mapped = left.pop(source, None)
        if colon and mapped is not None and mapped != alias:
            raise _refused(f"{source!r} has two places")
        place = alias if colon else mapped
        ref, _, below = source.partition("/")
        asked.append(
            AskedMount(
                _checked_ref(ref), _below(below), None if place is None else _destination(place)
            )
        )
    if left:
        raise InvalidRequest.field(
            "config.mount_map", f"{sorted(left)[0]!r} is not in config.mounts"
        )
    return tuple(asked)


def granted(
    asked: Sequence[AskedMount], found: Sequence[SeenVFolder], visible: Iterable[SeenVFolder]
) -> tuple[Mount, ...]:
    """Give the mounts of a session: those asked for, then the caller's dot-folders.

    A dot-folder is left out when it is asked for by name, or when its place is not free.

    Args:
        found: the folder of each of `asked`.
        visible: all folders of the caller that can be used.

    Raises:
        InvalidRequest: two mounts exclude each other (specification 10.7).
    """
    mounts = [_mount(one, seen) for one, seen in zip(asked, found, strict=True)]
    _check(mounts)
    for seen in visible:
        if seen.folder.name.startswith("."):
            extra = _mount(AskedMount(seen.folder.name), seen)
            if _fits(mounts, extra):
                mounts.append(extra)
    return tuple(mounts)


def _mount(asked: AskedMount, seen: SeenVFolder) -> Mount:
    name = seen.folder.name
    destination = asked.destination or f"{HOME}/{name}"
    return Mount(seen.folder.id, name, destination, asked.below, seen.permission)


def _check(mounts: Sequence[Mount]) -> None:
    for index, mount in enumerate(mounts):
        for other in mounts[:index]:
            if mount.destination == other.destination:
                raise _refused(f"two folders at {mount.destination}")
            if _is_nested(mount.destination, other.destination):
                raise _refused(f"{mount.destination} and {other.destination} are in each other")
            if mount.source == other.source and (
                mount.below == other.below or _is_nested(mount.below, other.below)
            ):
                raise _refused(f"{mount.name!r} is mounted twice, or with a folder in it")
        taken = {f"{HOME}/{other.name}": other.name for other in mounts if other is not mount}
        if mount.name != taken.get(mount.destination, mount.name):
            raise _refused(f"{mount.destination} is the place of {taken[mount.destination]!r}")


def _fits(mounts: Sequence[Mount], extra: Mount) -> bool:
    try:
        _check([*mounts, extra])
    except InvalidRequest:
        return False
    return True


def _is_nested(one: str, other: str) -> bool:
    """Tell whether one of two normal paths lies in the other; "." holds every relative one."""
    outer, inner = sorted((one, other), key=len)
    return "." in (one, other) or inner.startswith(f"{outer}/")


def _checked_ref(ref: str) -> str:
    if not ref:
        raise _refused("a folder without a name")
    return ref


def _below(path: str) -> str:
    """Check a path in a folder: it must not lead out of it, nor be longer than a path may be."""
    _check_text(path)
    if ".." in path.split("/"):
        raise _refused(f"{path!r} leads out of the folder")
    return posixpath.normpath(path).strip("/") if path.strip("/") else "."


def _destination(place: str) -> str:
    """Make an absolute, normal path of a place; relative ones are below the home."""
    _check_text(place)
    if not place.strip():
        raise _refused("an empty place")
    path = posixpath.normpath(posixpath.join(HOME, place))
    path = "/" + path.lstrip("/")  # normpath keeps two slashes at the beginning
    if path in ("/", HOME):
        raise _refused(f"{path} is no place for a folder")
    if not path.startswith(f"{HOME}/") and any(
        path == system or path.startswith(f"{system}/") for system in _SYSTEM
    ):
        raise _refused(f"{path} is in a system directory")
    return path


def _check_text(path: str) -> None:
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise _refused("a path that is no Unicode") from None
    if b"\0" in raw or len(raw) > LONGEST_PLACE or any(len(p) > 255 for p in raw.split(b"/")):
        raise _refused("a path with a null character, or one that is too long")


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest.field("config.mounts", why)
