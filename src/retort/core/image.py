"""Images: how they are named, what their default commands are, what environment commands get.

Where a server's images come from is not known here (`sandbox/images.py`, `oci/`).

Source: specification 5.6, 5.7, 7.10.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Callable, Iterable, Mapping

from retort.errors import ImageNotFound, InvalidRequest
from retort.units import parse_bytes, parse_duration

DEFAULT_TAG = "latest"
MAX_REFERENCE_CHARS = 255

HOME = "/home/work"
STANDARD_PATH = ":".join(
    (
        f"{HOME}/.local/bin",
        *("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"),
    )
)

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._+-]*[A-Za-z0-9+])?"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}"
_REGISTRY = rf"{_NAME}(?::[0-9]{{1,5}})?(?:/{_NAME})*"
_REFERENCE = re.compile(rf"(?:({_REGISTRY})/)?({_NAME})(?::({_TAG}))?", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRef:
    """The name of an image, complete.

    Attributes:
        name: without registry, e.g. "gcc".
        tag: "version-platform" by custom, e.g. "12-debian".
        registry: host, port and folders, e.g. "example.org:5000/stable"; "" for the server's own.
    """

    name: str
    tag: str = DEFAULT_TAG
    registry: str = ""

    @classmethod
    def parse(cls, text: str) -> ImageRef:
        """Read ``name``, ``name:tag`` or ``registry/name:tag``; a missing tag is "latest".

        Raises:
            InvalidRequest: on the field ``image``.
        """
        if len(text) > MAX_REFERENCE_CHARS:
            raise InvalidRequest.field("image", f"longer than {MAX_REFERENCE_CHARS} characters")
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise InvalidRequest.field("image", "is not of the form [registry/]name[:tag]")
        return cls(match[2], match[3] or DEFAULT_TAG, match[1] or "")

    def __str__(self) -> str:
        """The form that `parse` reads back to the same reference."""
        registry = f"{self.registry}/" if self.registry else ""
        return f"{registry}{self.name}:{self.tag}"


class ImageKind(enum.Enum):
    """What language an image is for; decides its default commands (spec 5.6)."""

    C = "c"
    CPP = "c++"
    PYTHON = "python"
    BASH = "bash"


@dataclasses.dataclass(frozen=True, slots=True)
class ImageLimits:
    """What sessions of an image get at most, and what they get unasked; None: as the server says.

    Attributes:
        cpus, memory_bytes: of a session (spec 5.9).
        wall_s, cpu_s: of a run, in seconds; as in `RunLimits`.
    """

    cpus: float | None = None
    memory_bytes: int | None = None
    wall_s: float | None = None
    cpu_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> ImageLimits:
        """Read what an operator writes: ``cpu=0.5 mem=256m wall_s=30 cpu_s=10s``, any of these.

        Raises:
            ValueError: says what is wrong.
        """
        found: dict[str, float | int] = {}
        for word in text.split():
            name, _, value = word.partition("=")
            if name not in _LIMITS:
                raise ValueError(f"{name!r} is none of {', '.join(_LIMITS)}")
            field, read = _LIMITS[name]
            try:
                found[field] = read(value)
            except ValueError as exc:
                raise ValueError(f"{name} {exc}") from exc
            if not 0 < found[field] < math.inf:
                raise ValueError(f"{name} must be above 0")
        return cls(**found)  # type: ignore[arg-type]

    def within(self, *, cpus: float, memory_bytes: int) -> ImageLimits:
        """Cut what a session gets to what it can have: or none could ever be made."""
        return dataclasses.replace(
            self,
            cpus=None if self.cpus is None else min(self.cpus, cpus),
            memory_bytes=None
            if self.memory_bytes is None
            else min(self.memory_bytes, memory_bytes),
        )


_LIMITS: Mapping[str, tuple[str, Callable[[str], float | int]]] = {
    "cpu": ("cpus", float),
    "mem": ("memory_bytes", parse_bytes),
    "wall_s": ("wall_s", parse_duration),
    "cpu_s": ("cpu_s", parse_duration),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """One environment that sessions can have.

    Attributes:
        ref: its full name.
        kind: its language.
        aliases: other references for it; the tag "latest" when none is written.
        limits: of its sessions and their runs.
    """

    ref: ImageRef
    kind: ImageKind
    aliases: tuple[str, ...] = ()
    limits: ImageLimits = ImageLimits()

    @property
    def clean(self) -> str | None:
        """The bash text that ``clean: "*"`` stands for."""
        return _CLEAN

    @property
    def build(self) -> str | None:
        """The bash text that ``build: "*"`` stands for."""
        return _BUILD[self.kind]

    @property
    def exec(self) -> str | None:
        """The bash text that ``exec: "*"`` stands for."""
        return _EXEC[self.kind]

    def query_argv(self, code: str) -> tuple[str, ...] | None:
        """Give the argv that runs source text in query mode (spec 7.10); None if there is none."""
        return ("/bin/bash", "-c", _QUERY[self.kind], "query", code)


class Catalogue:
    """The images of a server.

    Args:
        images: an alias of a later one does not take a name from an earlier one.
        aliases: the operator's own names and what they stand for; these do take a name.
        limits: of images, by any of their names but the operator's.

    Raises:
        InvalidRequest: an operator's alias, or the name of a limited image, is malformed.
        ImageNotFound: what it stands for is not there.
    """

    def __init__(
        self,
        images: Iterable[Image],
        aliases: Mapping[str, str] | None = None,
        limits: Mapping[str, ImageLimits] | None = None,
    ) -> None:
        self._images = tuple(images)
        if limits:
            plain = Catalogue(self._images)
            given = {plain.resolve(name).ref: limit for name, limit in limits.items()}
            self._images = tuple(
                dataclasses.replace(image, limits=given.get(image.ref, image.limits))
                for image in self._images
            )
        self._by_ref: dict[ImageRef, Image] = {}
        for image in self._images:
            self._by_ref.setdefault(image.ref, image)
        for image in self._images:
            for alias in image.aliases:
                self._by_ref.setdefault(ImageRef.parse(alias), image)
        known = {name: self.resolve(target) for name, target in (aliases or {}).items()}
        self._by_ref |= {ImageRef.parse(name): image for name, image in known.items()}

    @property
    def images(self) -> tuple[Image, ...]:
        """Every image once, in the order given."""
        return self._images

    def resolve(self, text: str) -> Image:
        """Find an image by its reference or an alias.

        Raises:
            InvalidRequest: the reference is malformed.
            ImageNotFound: nothing has this name.
        """
        ref = ImageRef.parse(text)
        found = self._by_ref.get(ref)
        if found is None:
            raise ImageNotFound(f"No such environment image: {ref}")
        return found


def environment(session_environ: Mapping[str, str]) -> dict[str, str]:
    """Give the environment of every command of a session (spec 5.7); the session's own wins."""
    return {
        "HOME": HOME,
        "USER": "work",
        "LOGNAME": "work",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "TERM": "xterm",
        "PATH": STANDARD_PATH,
        **session_environ,
    }


# --- the default commands ----------------------------------------------------------------------
# Bash, in /home/work. File names are a stranger's: they travel NUL-separated, in arrays, and begin
# with "./", so none is taken for an option or for a compiler's @file. Sorted, so that the same
# files give the same build. Hidden folders are skipped, as ** would. The session may have replaced
# PATH, so the system's is appended. `exec` leaves no shell between the step and its program.

_START = 'PATH="${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin"\n'
_MAKE = "if [ -f Makefile ]; then exec make; fi\n"
_CLEAN = _START + "if [ -f Makefile ]; then exec make clean; fi\n"

_SOURCES = r"""
sources() {
  mapfile -d '' -t found < <(
    find . -name '.?*' -prune -o \( "$@" \) -xtype f -print0 | LC_ALL=C sort -z)
  ((${#found[@]}))
}
flags=(-o main -Wall -pthread)
libraries=(-lm -lrt -ldl)
c=(-name '*.c')
cpp=(-name '*.cpp' -o -name '*.cc' -o -name '*.cxx')
"""
_IF_C = """if sources "${c[@]}"; then
  exec gcc "${flags[@]}" "${found[@]}" "${libraries[@]}"
fi
"""
_IF_CPP = """if sources "${cpp[@]}"; then
  exec g++ "${flags[@]}" "${found[@]}" "${libraries[@]}"
fi
"""


def _or_fail(message: str) -> str:
    return f"echo '{message}' >&2\nexit 127\n"


_NATIVE = (
    _START
    + """for program in ./main ./a.out; do
  if [ -f "$program" ] && [ -x "$program" ]; then exec "$program"; fi
done
"""
    + _or_fail("there is no ./main and no ./a.out to run")
)

_EDITABLE = """if [ -f setup.py ]; then
  export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1
  if python3 -c 'import pip' 2>/dev/null; then
    exec python3 -m pip install --user --no-build-isolation --editable .
  fi
  exec python3 setup.py develop --user
fi
"""

_BUILD: Mapping[ImageKind, str] = {
    ImageKind.C: _START + _MAKE + _SOURCES + _IF_C + _IF_CPP + _or_fail("there is no .c file"),
    ImageKind.CPP: _START
    + _MAKE
    + _SOURCES
    + _IF_CPP
    + _IF_C
    + _or_fail("there is no .cpp, .cc or .cxx file"),
    ImageKind.PYTHON: _START + _MAKE + _EDITABLE,
    ImageKind.BASH: _START + _MAKE,
}


def _script(interpreter: str, name: str) -> str:
    return (
        _START
        + f"if [ -f {name} ]; then exec {interpreter} {name}; fi\n"
        + _or_fail(f"there is no {name}")
    )


_EXEC: Mapping[ImageKind, str] = {
    ImageKind.C: _NATIVE,
    ImageKind.CPP: _NATIVE,
    # Unbuffered: a caller who polls sees what is printed when it is printed.
    ImageKind.PYTHON: _script("python3 -u", "main.py"),
    ImageKind.BASH: _script("/bin/bash", "main.sh"),
}


def _compile_and_run(compiler: str, language: str) -> str:
    return (
        _START
        + "folder=$(mktemp -d) || exit\n"
        + f'printf "%s\\n" "$1" | {compiler} -x {language} -o "$folder/main" -Wall -pthread -'
        " -lm -lrt -ldl || exit\n"
        'exec "$folder/main"\n'
    )


_QUERY: Mapping[ImageKind, str] = {
    ImageKind.C: _compile_and_run("gcc", "c"),
    ImageKind.CPP: _compile_and_run("g++", "c++"),
    # An interpreter's exit code is 0 whatever happens (spec 7.10).
    ImageKind.PYTHON: _START + 'python3 -u -c "$1"\nexit 0\n',
    ImageKind.BASH: _START + '/bin/bash -c "$1"\nexit 0\n',
}
