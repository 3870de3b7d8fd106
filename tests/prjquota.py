"""A small ext4 of its own with project quotas, where this host can mount one."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

SIZE = 256 << 20


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """Make the file system in a file, and mount it until the block ends."""
    image, place = folder / "prjquota.img", folder / "prjquota"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE)
    _run("mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota", "-m", "0", image)
    _run("mount", "-o", "loop,prjquota", image, place)
    try:
        yield place
    finally:
        _run("umount", "--lazy", place)  # a test that failed may hold something open
        image.unlink()


@functools.cache
def why_not() -> str:
    """Say why this host cannot; "" if it can. Tries it."""
    if os.geteuid() != 0:
        return "only root can mount an ext4 with project quotas"
    missing = [name for name in ("mkfs.ext4", "mount", "losetup") if not shutil.which(name)]
    if missing:
        return f"{missing[0]} is not here"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder)):
                return ""
        except subprocess.CalledProcessError as exc:
            said = exc.stderr.strip().rpartition(": ")[2] or str(exc)
            return f"this host mounts no ext4 with prjquota ({said}); the one of vm/run does"


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
