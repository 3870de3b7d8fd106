"""What a killed server's upload leaves beside the files that it stored."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tests.unit.hostfs.trees import tree_of

from retort.hostfs.folders import FolderTree
from retort.hostfs.spares import SPARE, clear_spares
from retort.hostfs.staging import _spare_name


async def test_temporary_names_are_removed_and_nothing_else(tmp_path: Path) -> None:
    spare = os.fsdecode(_spare_name())
    assert SPARE.fullmatch(spare)
    (tmp_path / spare).write_bytes(b"half")
    kept = {b"file", b".retort", b".retort-notes", f"{spare}.txt".encode()}
    for name in kept:
        (tmp_path / os.fsdecode(name)).write_bytes(b"kept")
    (tmp_path / os.fsdecode(_spare_name())).mkdir()  # a user's, and no upload's
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        await clear_spares(FolderTree(root))
    finally:
        os.close(root)
    assert {name for name, (mode, *_) in tree_of(tmp_path).items() if stat.S_ISREG(mode)} == kept
    assert len(tree_of(tmp_path)) == len(kept) + 1
