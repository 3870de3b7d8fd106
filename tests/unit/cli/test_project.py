"""Which files are sent, under which names, and what their language is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retort.cli import project
from retort.cli.project import ProjectError, collect


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("p/Makefile", "p/src/main.c", "p/src/sub/a.h", "p/.hidden", "q/data.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def _names(*paths: Path, base: Path | None = None) -> list[str]:
    return list(collect(paths, base).files)


def test_one_folder_becomes_the_home(tree: Path) -> None:
    assert _names(tree / "p") == [".hidden", "Makefile", "src/main.c", "src/sub/a.h"]


def test_names_are_relative_to_the_deepest_common_folder(tree: Path) -> None:
    assert _names(tree / "p/src/main.c") == ["main.c"]
    assert _names(tree / "p/src/main.c", tree / "p/Makefile") == ["Makefile", "src/main.c"]
    assert _names(tree / "q", tree / "p/src") == ["p/src/main.c", "p/src/sub/a.h", "q/data.txt"]


def test_a_base_keeps_the_folders_above(tree: Path) -> None:
    assert _names(tree / "q/data.txt", base=tree) == ["q/data.txt"]
    with pytest.raises(ProjectError, match="not below"):
        _names(tree / "q/data.txt", base=tree / "p")


def test_relative_arguments_with_dots_are_understood(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree / "p/src")
    assert _names(Path(), Path("../Makefile")) == ["Makefile", "src/main.c", "src/sub/a.h"]


def test_version_control_and_caches_are_left_out(tree: Path) -> None:
    for folder in (".git", "__pycache__", "src/.venv"):
        (tree / "p" / folder).mkdir()
        (tree / "p" / folder / "x").touch()
    assert _names(tree / "p") == [".hidden", "Makefile", "src/main.c", "src/sub/a.h"]


def test_a_link_out_of_the_folder_is_left_out_and_told(tree: Path) -> None:
    (tree / "secret").touch()
    (tree / "p/out").symlink_to(tree / "secret")
    (tree / "p/within").symlink_to("Makefile")
    (tree / "p/loop").symlink_to(".")
    (tree / "p/dangling").symlink_to("nothing")

    found = collect([tree / "p"])

    assert "within" in found.files
    assert not {"out", "loop", "dangling"} & set(found.files)
    assert len(found.left_out) == 3


def test_a_link_that_is_named_is_sent_under_its_own_name(tree: Path) -> None:
    (tree / "main.c").symlink_to(tree / "p/src/main.c")
    assert _names(tree / "main.c") == ["main.c"]


def test_a_fifo_is_neither_opened_nor_sent(tree: Path) -> None:
    os.mkfifo(tree / "p/fifo")
    assert len(collect([tree / "p"]).left_out) == 1
    with pytest.raises(ProjectError, match="not a regular file"):
        collect([tree / "p/fifo"])


def test_a_name_that_is_not_utf8_is_refused_by_name(tree: Path) -> None:
    (tree / "p" / os.fsdecode(b"\xff.c")).touch()
    with pytest.raises(ProjectError, match=r"\\udcff.c.*not UTF-8"):
        collect([tree / "p"])


def test_a_walk_through_too_much_stops(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "MAX_FILES", 3)
    with pytest.raises(ProjectError, match="more than 3 files"):
        collect([tree / "p"])


@pytest.mark.parametrize(
    ("names", "image", "command"),
    [
        (("Makefile", "src/a.c"), "gcc", "*"),
        (("main.cpp", "x.hpp"), "cpp", "*"),
        (("a.cc",), "cpp", "*"),
        (("main.py", "lib/x.py"), "python", "*"),
        (("setup.py", "x/y.py"), "python", "*"),
        (("main.sh",), "bash", "*"),
        (("hello.py",), "python", "python3 -u ./hello.py"),
        (("it's.sh",), "bash", "bash './it'\"'\"'s.sh'"),
        (("a.py", "b.py"), None, "*"),
        (("data.txt",), None, "*"),
        ((), None, "*"),
    ],
)
def test_the_language_is_guessed_from_the_files(
    tmp_path: Path, names: tuple[str, ...], image: str | None, command: str
) -> None:
    found = project.Project(dict.fromkeys(names, tmp_path))
    assert (found.image(), found.exec()) == (image, command)
