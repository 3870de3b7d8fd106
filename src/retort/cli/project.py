"""Which files a command line means, what they are called in a session, and what they look like."""

from __future__ import annotations

import dataclasses
import os
import shlex
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

EXCLUDED = frozenset(
    (
        *(".git", ".hg", ".svn", "__pycache__", ".venv", "node_modules", ".DS_Store"),
        *(".mypy_cache", ".ruff_cache", ".pytest_cache", ".tox", ".hypothesis"),
    )
)
MAX_FILES = 5000  # a walk beyond is a slip: somebody's home


class ProjectError(ValueError):
    """The files cannot be sent; the text says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Project:
    """Files to send.

    Attributes:
        files: by their path in the session.
        left_out: what was found but is not sent, and why.
    """

    files: dict[str, Path]
    left_out: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files.values())

    def image(self) -> str | None:
        """Guess the image: the language that there are sources of; None if there is no telling."""
        names = {Path(name).suffix for name in self.files}
        if ".c" in names:
            return "gcc"
        if names & {".cpp", ".cc", ".cxx"}:
            return "cpp"
        for name, image in (("main.py", "python"), ("setup.py", "python"), ("main.sh", "bash")):
            if name in self.files:
                return image
        return {".py": "python", ".sh": "bash"}.get(self._only_suffix())

    def exec(self) -> str:
        """Give what runs the project: a single script under another name than main, or "*"."""
        only = next(iter(self.files), "")
        interpreter = {".py": "python3 -u", ".sh": "bash"}.get(self._only_suffix())
        if interpreter is None or only in ("main.py", "main.sh"):
            return "*"
        return f"{interpreter} {shlex.quote('./' + only)}"

    def _only_suffix(self) -> str:
        return Path(next(iter(self.files))).suffix if len(self.files) == 1 else ""


def collect(arguments: Sequence[Path], base: Path | None = None) -> Project:
    """Find the files that arguments mean; folders are walked.

    Args:
        arguments: existing files and folders.
        base: paths in the session are relative to it; None: the deepest folder that holds all.

    Raises:
        ProjectError: too many, outside of `base`, or with a name that cannot be sent.
        OSError: a folder cannot be read.
    """
    given = [_absolute(path) for path in arguments]
    if not given:
        return Project({})
    if base is None:
        base = Path(os.path.commonpath([p if p.is_dir() else p.parent for p in given]))
    base = _absolute(base)
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for argument in given:
        for path in _walk(argument, left_out) if argument.is_dir() else (argument,):
            files[_name(path, base)] = path
            if len(files) > MAX_FILES:
                raise ProjectError(f"more than {MAX_FILES} files below {argument}: name fewer")
            if not path.is_file():
                raise ProjectError(f"{path}: not a regular file")
    return Project(dict(sorted(files.items())), tuple(left_out))


def _absolute(path: Path) -> Path:
    # Not resolve(): a link that was named keeps the name by which it was named.
    return Path(os.path.abspath(path))  # noqa: PTH100 see above


def _name(path: Path, base: Path) -> str:
    if not path.is_relative_to(base):
        raise ProjectError(f"{path}: not below {base}")
    name = path.relative_to(base).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise ProjectError(f"{name!a}: the name is not UTF-8") from exc
    return name


def _walk(folder: Path, left_out: list[str]) -> Iterator[Path]:
    """Give the regular files of a tree; links only where they stay in it.

    The tree may be a stranger's: a link in it must not send a file of the user's home.
    """
    root = folder.resolve()
    pending = [folder]
    while pending:
        current = pending.pop()
        for child in sorted(current.iterdir()):
            if child.name in EXCLUDED:
                continue
            mode = child.lstat().st_mode
            if stat.S_ISDIR(mode):
                pending.append(child)
            elif stat.S_ISREG(mode):
                yield child
            elif not stat.S_ISLNK(mode):
                left_out.append(f"{child}: not a regular file")
            elif child.is_file() and child.resolve().is_relative_to(root):
                yield child
            else:
                left_out.append(f"{child}: a link to a folder, to nothing or out of {folder}")
