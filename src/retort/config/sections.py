"""Every setting of Retort: its unit, its default and its effect, one class a section.

The table for operators, docs/configuration.md, is made from the comments here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from retort.core.image import ImageLimits
from retort.core.keypair import KeyPolicy
from retort.core.limits import Limits
from retort.errors import RetortError

KIB = 1024
MIB = 1024 * KIB


class ConfigError(RetortError):
    """A setting cannot be used."""

    code = "config-error"


def default_folder(environ: Mapping[str, str]) -> Path:
    """Give the state folder that is used when none is set."""
    if os.geteuid() == 0:
        return Path("/var/lib/retort")
    home = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or Path.home(), ".local/state")
    return Path(home, "retort")


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """Where the server listens, and how others reach it."""

    #: Address to listen on; other than loopback only with at least one key.
    host: str = "127.0.0.1"
    #: TCP port to listen on; 0 takes a free one.
    port: int = 8090
    #: URL under which clients reach the server, for links in answers; unset: the request's Host.
    public_url: str | None = None
    #: Path before every route, such as /retort, for a proxy that does not strip it.
    base_path: str = ""
    #: Version the server gives itself as "manager"; clients parse it as YY.MM.patch.
    version: str = "23.09.10"

    @property
    def endpoint(self) -> str:
        """The URL for clients, as far as it is known without a request; no slash at its end."""
        if self.public_url:
            return self.public_url.rstrip("/")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}{self.base_path}"


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """Where everything lies that must survive a restart."""

    #: Folder of the database, sessions and retort.toml; made with mode 0700 if missing.
    folder: Path = dataclasses.field(default_factory=lambda: default_folder(os.environ))
    #: Seconds for which callers of a session that ended by itself are told why.
    told_s: float = 3600.0


@dataclasses.dataclass(frozen=True, slots=True)
class DatabaseSection:
    """Where key pairs and sessions are kept."""

    #: postgresql://user:password@host/name; unset: SQLite in the state folder.
    url: str | None = None
    #: Seconds to wait for another process's lock before a request fails.
    busy_s: float = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Http:
    """What one request and one answer may weigh, and how slow they may be."""

    #: Bytes of a JSON body.
    json_bytes: int = MIB
    #: Bytes of the request line, and of each header line.
    header_line_bytes: int = 16 * KIB
    #: Files of one upload.
    upload_files: int = 20
    #: Bytes of one uploaded file.
    upload_file_bytes: int = MIB
    #: Bytes of a refused body that are still read, so that the client gets to see the answer.
    drain_bytes: int = 64 * MIB
    #: Seconds until a connection must have sent its first headers; later ones, `keepalive_s`.
    header_s: float = 30.0
    #: Seconds before a body has to arrive at `body_min_rate_bytes_s`.
    body_grace_s: float = 30.0
    #: Bytes per second; a body that is slower over its whole time is refused with 408.
    body_min_rate_bytes_s: int = 4 * KIB
    #: Seconds an idle connection stays open.
    keepalive_s: float = 75.0
    #: Bytes of a file in a multi-file download; a larger one is refused.
    download_part_bytes: int = 64 * MIB
    #: Entries of a folder that a listing shows; the rest is cut, and the answer says so.
    listing_entries: int = 100_000
    #: Entries of a folder that is downloaded as an archive; a larger one is refused.
    archive_entries: int = 100_000


@dataclasses.dataclass(frozen=True, slots=True)
class Sandbox:
    """What a session may use when nobody asks for less or more, and how it is shut in."""

    #: The bubblewrap program; a bare name is looked for in PATH.
    bwrap: str = "bwrap"
    #: Bytes of /home/work, a tmpfs that counts as memory.
    scratch_bytes: int = 512 * MIB
    #: Bytes of /tmp and of /var/tmp, each a tmpfs.
    tmp_bytes: int = 64 * MIB
    #: Bytes of /dev/shm.
    shm_bytes: int = 64 * MIB
    #: Files and folders in /home/work.
    scratch_inodes: int = 131_072
    #: Files and folders in each of /tmp, /var/tmp and /dev/shm.
    tmp_inodes: int = 16_384
    #: Bytes of memory of a session that does not name its `mem` slot.
    memory_bytes: int = 2048 * MIB
    #: CPUs of a session that does not name its `cpu` slot.
    cpus: float = 1.0
    #: Bytes of memory that a session may ask for; unset: all that the host has.
    max_memory_bytes: int | None = None
    #: CPUs that a session may ask for; unset: all that the host has.
    max_cpus: float | None = None
    #: Processes and threads of a session at a time.
    processes: int = 1024
    #: Open files of a process (RLIMIT_NOFILE).
    open_files: int = 4096
    #: Bytes of a process's stack (RLIMIT_STACK).
    stack_bytes: int = 64 * MIB
    #: Bytes of the largest file that a process can write (RLIMIT_FSIZE).
    file_bytes: int = 512 * MIB
    #: First host user id given to sessions; only used as root.
    host_uid_first: int = 1_900_000_000
    #: Host user ids: one for trials, the others for sessions, one each; only used as root.
    host_uid_count: int = 65_536
    #: Network of sessions: "none" has only its own loopback; "host" shares everything: trusted use.
    network: str = "none"
    #: "refused": nothing can be locked or watched, by which sessions could signal each other.
    file_locks: str = "allowed"
    #: v2 group that holds those of sessions, "../NAME" is one beside the own; unset: the own.
    group: str | None = None
    #: Other names of images: what a caller may ask for, and what it gets.
    image_aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: What sessions of an image get, and at most: cpu=, mem=, wall_s=, cpu_s= between blanks.
    image_limits: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Pool:
    """Sandboxes made ahead, so that a session with the default limits need not wait for its own."""

    #: Sandboxes that may wait at a time, by demand; 0: each is made when it is asked for.
    size: int = 16
    #: Of these, how many wait also when nobody asked for a long time.
    ready: int = 2
    #: Bytes of memory that all of them may take; each is counted as 2 MiB.
    memory_bytes: int = 64 * MIB
    #: Bytes of memory that the host must have free; below, none waits and none is made ahead.
    spare_bytes: int = 256 * MIB


@dataclasses.dataclass(frozen=True, slots=True)
class Runs:
    """How programs are run and watched."""

    #: Seconds an execute call waits for news before it answers that the program still runs.
    poll_s: float = 2.0
    #: Seconds for which a stream collects output before it sends it.
    flush_s: float = 0.2
    #: Characters of output that one answer carries; more is dropped and counted.
    output_chars: int = 524_288
    #: Seconds after which a run that nobody asks about is forgotten.
    forget_s: float = 900.0
    #: Seconds a step may take; unset: no end.
    wall_s: float | None = None
    #: Seconds of CPU time that a run's processes may use together; unset: no end.
    cpu_s: float | None = None
    #: Bytes that a step may print before it is ended; unset: no end, what is too much is cut.
    output_bytes: int | None = None
    #: Runs of a session that may wait for their turn.
    max_queued_runs: int = 64
    #: Bytes of input that may wait for a program to read them.
    input_bytes: int = MIB


@dataclasses.dataclass(frozen=True, slots=True)
class Repeats:
    """How long answers are kept for those who repeat a request with its client token."""

    #: Seconds an answer is kept.
    keep_s: float = 900.0
    #: Bytes of answers kept for one key; the longest unused make room for new ones.
    key_bytes: int = 32 * MIB
    #: Bytes of the largest answer that is kept; above the largest answer of a run.
    answer_bytes: int = 8 * MIB


@dataclasses.dataclass(frozen=True, slots=True)
class VFolders:
    """Virtual folders and what goes in and out of them."""

    #: Bytes of one uploaded file.
    file_bytes: int = 1024 * 1024 * MIB
    #: Seconds for which the token of an upload or download is good, and an unfinished upload kept.
    token_s: float = 86_400.0
    #: Files and directories of a folder that `info` counts; of more it says that there are more.
    counted_entries: int = 100_000
    #: Host user id that owns what is in folders; only used as root, and never given to a session.
    host_uid: int = 1_899_999_999
    #: Folders that one session may ask for; dot-folders come on top.
    mounts_per_session: int = 5
    #: Files of any kind that a new virtual folder may hold; unset: no end.
    max_inodes: int | None = 1_000_000
    #: Seconds between two counts of what sessions write into, where no project quota does it.
    count_s: float = 60.0
    #: Project ids for folders are drawn from the 1048576 from here on; another server's on the
    #: same file system must lie elsewhere.
    project_first: int = 1_400_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Sessions:
    """How long sessions live."""

    #: Seconds without a call and without a running program after which one ends; unset: no end.
    idle_s: float | None = None
    #: Seconds after which a session ends, whatever it does; unset: no end.
    life_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Cache:
    """Whether an identical earlier build may stand for a build, and what is kept of builds."""

    #: "asked": of runs with `cache: true`; "always": of all but those with `cache: false`; "never".
    builds: str = "asked"
    #: "owner": a build serves the key that made it; "all": every key, which must trust each other.
    sharing: str = "owner"
    #: Bytes that kept builds take on the disk; what was not used for longest goes first.
    store_bytes: int = 1024 * MIB
    #: Bytes of the files in /home/work; a build with more is not cached.
    tree_bytes: int = 64 * MIB
    #: Files and folders in /home/work; a build with more is not cached.
    tree_entries: int = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    """What a key that is made now may use; keys made before keep what they have."""

    #: Live sessions of a key.
    max_sessions: int = 30
    #: Requests of a key in a rolling window of 900 s.
    rate_limit: int = 30_000
    #: Bytes of memory that one session of a key may ask for; unset: as much as the server gives.
    max_memory_bytes: int | None = None
    #: CPUs that one session of a key may ask for; unset: as many as the server gives.
    max_cpus: float | None = None
    #: Virtual folders of a key's owner.
    max_vfolders: int = 30
    #: Bytes that one virtual folder of a key may hold; unset: as much as the disk has.
    max_vfolder_bytes: int | None = None

    @property
    def policy(self) -> KeyPolicy:
        """The same as a value of core."""
        return KeyPolicy(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set, one field per section of `retort.toml`."""

    server: Server = dataclasses.field(default_factory=Server)
    state: State = dataclasses.field(default_factory=State)
    database: DatabaseSection = dataclasses.field(default_factory=DatabaseSection)
    http: Http = dataclasses.field(default_factory=Http)
    sandbox: Sandbox = dataclasses.field(default_factory=Sandbox)
    pool: Pool = dataclasses.field(default_factory=Pool)
    runs: Runs = dataclasses.field(default_factory=Runs)
    sessions: Sessions = dataclasses.field(default_factory=Sessions)
    cache: Cache = dataclasses.field(default_factory=Cache)
    keys: Keys = dataclasses.field(default_factory=Keys)
    repeats: Repeats = dataclasses.field(default_factory=Repeats)

    vfolders: VFolders = dataclasses.field(default_factory=VFolders)

    @property
    def image_limits(self) -> dict[str, ImageLimits]:
        """The limits of images by their names, as values of core; checked when it was loaded."""
        return {name: ImageLimits.parse(text) for name, text in self.sandbox.image_limits.items()}

    @property
    def limits(self) -> Limits:
        """The limits of a session that asks for nothing."""
        names = {field.name for field in dataclasses.fields(Limits)}
        given = {name: getattr(self.sandbox, name) for name in names}
        return Limits(**given)
