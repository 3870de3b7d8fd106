"""A small file system of its own with project quotas, where this host can mount one."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SIZE = 320 << 20  # mkfs.xfs makes none below 300 MiB; the file is sparse
MAKERS = {
    "ext4": ("mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota", "-m", "0"),
    "xfs": ("mkfs.xfs", "-q"),
}


@contextlib.contextmanager
def mounted(folder: Path, kind: str) -> Iterator[Path]:
    """Make a file system of a kind in a file, and mount it until the block ends."""
    image, place = folder / "prjquota.img", folder / "prjquota"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE)
    _run(*MAKERS[kind], image)
    _run("mount", "-t", kind, "-o", "loop,prjquota", image, place)
    try:
        yield place
    finally:
        _run("umount", "--lazy", place)  # a test that failed may hold something open
        image.unlink()


def kinds() -> list[object]:
    """Give the kinds as parameters of tests; one that this host cannot mount is skipped."""
    return [
        pytest.param(kind, marks=pytest.mark.skipif(bool(why := why_not(kind)), reason=why))
        for kind in MAKERS
    ]


@functools.cache
def why_not(kind: str) -> str:
    """Say why this host cannot; "" if it can. Tries it."""
    if os.geteuid() != 0:
        return f"only root can mount a file system ({kind}) with project quotas"
    missing = [
        name for name in (MAKERS[kind][0], "mount", "losetup") if not shutil.which(name)
    ]  # fmt: skip
    if missing:
        return f"{missing[0]} is not here"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder), kind):
                return ""
        except subprocess.CalledProcessError as exc:
            said = exc.stderr.strip().partition("\n")[0].rpartition(": ")[2] or str(exc)
            return f"this host mounts no {kind} with prjquota ({said}); the one of vm/run does"


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
