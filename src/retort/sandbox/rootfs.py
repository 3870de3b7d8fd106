"""The base folder: the read-only files that all sandboxes of one server share.

It holds our own `/etc` (never the host's passwd, shadow, machine-id, resolv.conf or hostname), the
init program and an empty file to mask others with. It is made once, named after the digest of its
content and never changed: an updated server leaves the sandboxes of its predecessor alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retort.errors import SandboxFault

USER_ID = 1000  #: uid and gid of every program, as seen inside
USER_NAME = "work"
HOME = "/home/work"

OWN_ETC = {
    "passwd": f"root:x:0:0:root:/root:/usr/sbin/nologin\n"
    f"{USER_NAME}:x:{USER_ID}:{USER_ID}:{USER_NAME}:{HOME}:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": f"root:x:0:\ntty:x:5:\n{USER_NAME}:x:{USER_ID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "hostname": "localhost\n",
    "host.conf": "multi on\n",
    "resolv.conf": "",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
    "networks: files\nprotocols: files\nservices: files\n",
    "shells": "/bin/sh\n/bin/bash\n",
    "environment": "",
}  #: files of /etc that are ours

HOST_ETC = (
    "alternatives",  # cc, c++, awk, java, editor ... are links through here on Debian
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "ssl/certs",
    "ssl/openssl.cnf",
    "pki/tls/certs",
    "localtime",
    "timezone",
    "locale.alias",
    "mime.types",
    "magic",
    "protocols",
    "services",
    "debian_version",
    "os-release",
    "python3",
    "python3.*",
    "java-*",
    "perl",
    "R",
    "php",
)  #: what programs need from the host's /etc, as globs; the rest stays outside

LARGEST_FILE_BYTES = 8 * 2**20  #: a larger file of the host's /etc is left out

FALLBACK_ROOT = Path("/var/lib/retort")  #: for root, when the data folder cannot hold the base


@dataclass(frozen=True, slots=True)
class Base:
    """A finished base folder.

    Args:
        path: absolute; readable and executable by any uid.
        digest: SHA-256 of the content, hexadecimal.
    """

    path: Path
    digest: str

    @property
    def etc(self) -> Path:
        """The folder bound at `/etc`."""
        return self.path / "etc"

    @property
    def init(self) -> Path:
        """The program bound at `/.retort/init`."""
        return self.path / "retort-init"

    @property
    def empty(self) -> Path:
        """An empty file, bound over what must not be read."""
        return self.path / "empty"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One thing of the base: a file's bytes or a link's target."""

    content: bytes
    mode: int
    is_link: bool = False


def build(state: Path, init: Path, *, host_etc: Path = Path("/etc")) -> Base:
    """Make the base folder below a server's data folder, or find it there.

    As root, sandboxes are started under another uid, so every parent must let others pass; a
    data folder that does not, or that is mounted `noexec`, is replaced by `/var/lib/retort`.

    Args:
        state: the server's data folder.
        init: the retort-init program to copy.
        host_etc: where the host's configuration is read.

    Raises:
        SandboxFault: phase "base"; no suitable place, or init is missing.
    """
    if not init.is_file():
        raise SandboxFault("base", f"{init}: no such program (build it with scripts/build-init)")
    entries = _content(init, host_etc)
    digest = _digest(entries)
    root = choose_root(state, shared=os.geteuid() == 0)
    path = root / f"base-{digest[:16]}"
    if not path.exists():
        _write(root, path, entries)
    found = path.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise SandboxFault("base", f"{path}: not ours alone (owner {found.st_uid})")
    return Base(path, digest)


def choose_root(state: Path, *, shared: bool, fallback: Path = FALLBACK_ROOT) -> Path:
    """Choose the folder in which the base folder is made, and make it.

    Args:
        state: the server's data folder.
        shared: other uids must reach it.
        fallback: where to go when `state` does not serve; only tried if `shared`.

    Raises:
        SandboxFault: phase "base"; says what is wrong with each place.
    """
    problems = []
    for root in (state / "base", fallback) if shared else (state / "base",):
        try:
            _make(root)
            problem = why_unsuitable(root.resolve(), shared=shared)
        except OSError as exc:
            problem = f"{root}: {exc.strerror}"
        if problem is None:
            return root.resolve()
        problems.append(problem)
    raise SandboxFault("base", "; ".join(problems))


def _make(folder: Path) -> None:
    """Make a folder and its parents, passable whatever the umask; what exists stays as it is."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)


def why_unsuitable(folder: Path, *, shared: bool) -> str | None:
    """Say why programs below a folder could not be run by a sandbox, or None if they can."""
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return f"{folder}: on a file system mounted noexec"
    if shared:
        for part in (folder, *folder.parents):
            if not part.stat().st_mode & stat.S_IXOTH:
                return f"{part}: other users cannot pass (chmod o+x would allow it)"
    return None


def _content(init: Path, host_etc: Path) -> dict[str, _Entry]:
    """Everything the base holds, by path below it."""
    entries = {
        "retort-init": _Entry(init.read_bytes(), 0o755),
        "empty": _Entry(b"", 0o444),
        "etc/mtab": _Entry(b"/proc/self/mounts", 0, is_link=True),
    }
    for pattern in HOST_ETC:
        for top in sorted(host_etc.glob(pattern)):
            entries.update(_copied(top, host_etc))
    entries.update({f"etc/{name}": _Entry(text.encode(), 0o644) for name, text in OWN_ETC.items()})
    return entries


def _copied(top: Path, host_etc: Path) -> Iterator[tuple[str, _Entry]]:
    """Entries for one file or tree of the host's /etc; what others may not read is left out."""
    if top.is_dir() and not top.is_symlink():
        for child in sorted(top.iterdir()):
            yield from _copied(child, host_etc)
        return
    name = f"etc/{top.relative_to(host_etc)}"
    if top.is_symlink():
        target = top.readlink()
        end = Path(os.path.normpath(Path("/etc") / top.relative_to(host_etc).parent / target))
        # /usr is mounted too, so a link into it stays a link, and so does one to a neighbour;
        # any other would dangle inside and is replaced by what it leads to.
        if end.is_relative_to("/usr") or (target.parent == Path() and top.exists()):
            yield name, _Entry(os.fsencode(target), 0, is_link=True)
            return
    try:
        info = top.stat()
        readable = info.st_mode & stat.S_IROTH and stat.S_ISREG(info.st_mode)
        if readable and info.st_size <= LARGEST_FILE_BYTES:
            mode = 0o755 if info.st_mode & stat.S_IXOTH else 0o644
            yield name, _Entry(top.read_bytes(), mode)
    except OSError:  # a dangling link, or a file that vanished
        return


def _digest(entries: dict[str, _Entry]) -> str:
    total = hashlib.sha256()
    for name, entry in sorted(entries.items()):
        head = f"{name}\0{entry.mode:o}\0{entry.is_link:d}\0{len(entry.content)}\0"
        total.update(head.encode("utf-8", "surrogateescape") + entry.content)
    return total.hexdigest()


def _write(root: Path, path: Path, entries: dict[str, _Entry]) -> None:
    """Write the entries beside their place and rename: a crash leaves no half-made base."""
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
    try:
        (work / "empty.d").mkdir()
        for name, entry in entries.items():
            place = work / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if entry.is_link:
                place.symlink_to(os.fsdecode(entry.content))
            else:
                place.write_bytes(entry.content)
                place.chmod(entry.mode)
        for folder, _, _ in os.walk(work):
            Path(folder).chmod(0o755)  # whatever the umask was
        work.rename(path)
    except FileExistsError:
        shutil.rmtree(work)
    except OSError as exc:
        shutil.rmtree(work, ignore_errors=True)
        if not path.is_dir():  # else another server of this data folder was faster
            raise SandboxFault("base", f"{path}: {exc}") from exc
