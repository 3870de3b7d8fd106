"""The first catalogue of images: the toolchains that this host has, as every sandbox sees them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from retort.core.image import Catalogue, Image, ImageKind, ImageRef

SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"  #: of what is mounted in a sandbox
ASK_S = 10  #: a tool that does not tell its version by then is taken as missing


def host_catalogue(*, search_path: str = SEARCH_PATH, os_release: Path | None = None) -> Catalogue:
    """Ask the host's tools for their versions and name an image after each."""
    platform = platform_id(os_release or Path("/etc/os-release"))
    images = []
    if version := _version(("gcc", "-dumpfullversion", "-dumpversion"), search_path):
        images.append(named("gcc", version, 1, platform, ImageKind.C, ("c",)))
    if version := _version(("g++", "-dumpfullversion", "-dumpversion"), search_path):
        images.append(named("cpp", version, 1, platform, ImageKind.CPP, ("c++", "g++")))
    if version := _version(("python3", "--version"), search_path):
        images.append(named("python", version, 2, platform, ImageKind.PYTHON, ("python3", "py")))
    if version := _version(("bash", "--version"), search_path):
        images.append(named("bash", version, 1, platform, ImageKind.BASH, ("shell", "sh")))
    return Catalogue(images)


def named(
    name: str, version: str, digits: int, platform: str, kind: ImageKind, others: Sequence[str]
) -> Image:
    """Name an image by its tool's version and give it the aliases people will try.

    Args:
        name: e.g. "python".
        version: of the tool, e.g. "3.11.2".
        digits: how many parts of the version name the image, e.g. 2 for "3.11-debian".
        platform: e.g. "debian".
        kind: its language.
        others: further names; they get no tags of their own.
    """
    parts = version.split(".")
    ref = ImageRef(name, f"{'.'.join(parts[:digits])}-{platform}")
    tags = ["latest", platform]
    for count in range(1, len(parts) + 1):
        short = ".".join(parts[:count])
        tags += [short, f"{short}-{platform}"]
    own = [f"{name}:{tag}" for tag in tags if tag != ref.tag]
    return Image(ref, kind, (*own, *others))


def platform_id(os_release: Path) -> str:
    """Give the distribution's id, such as "debian" (os-release(5)); "linux" if it has none."""
    try:
        text = os_release.read_text(errors="replace")
    except OSError:
        return "linux"
    match = re.search(r"""^ID=["']?([a-z0-9._-]+)["']?\s*$""", text, re.MULTILINE)
    return match[1] if match else "linux"


def _version(argv: Sequence[str], search_path: str) -> str | None:
    """Run a tool and find a version in its first line."""
    program = shutil.which(argv[0], path=search_path)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_S,
            check=True,
            env={"PATH": search_path, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(rb"\d+(\.\d+)*", done.stdout)
    return match[0].decode() if match else None
