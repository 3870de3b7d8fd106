"""Naming images after the host's tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from retort.core.image import ImageKind
from retort.errors import ImageNotFound
from retort.sandbox.images import host_catalogue, platform_id


def tool(folder: Path, name: str, prints: str, code: int = 0) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{prints}'\nexit {code}\n")
    path.chmod(0o755)


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    path = tmp_path / "os-release"
    path.write_text('NAME="Debian GNU/Linux"\nVERSION_ID="12"\nID=debian\n')
    return path


def test_tags_follow_the_tools_found(tmp_path: Path, debian: Path) -> None:
    tool(tmp_path, "gcc", "13.2.0")
    tool(tmp_path, "python3", "Python 3.12.1")
    tool(tmp_path, "bash", "GNU bash, version 5.2.15(1)-release")
    catalogue = host_catalogue(search_path=str(tmp_path), os_release=debian)
    names = [str(image.ref) for image in catalogue.images]
    assert names == ["gcc:13-debian", "python:3.12-debian", "bash:5-debian"]
    for alias in ("c", "gcc", "gcc:latest", "gcc:13", "gcc:13.2", "gcc:13-debian"):
        assert catalogue.resolve(alias).kind is ImageKind.C
    for alias in ("python", "python:3", "python:3.12", "python:3.12.1-debian", "python3"):
        assert catalogue.resolve(alias).kind is ImageKind.PYTHON
    with pytest.raises(ImageNotFound):
        catalogue.resolve("cpp")


def test_only_tools_that_work_make_images(tmp_path: Path, debian: Path) -> None:
    tool(tmp_path, "gcc", "12.2.0", code=1)
    tool(tmp_path, "python3", "no version here")
    tool(tmp_path, "g++", "12")
    catalogue = host_catalogue(search_path=str(tmp_path), os_release=debian)
    assert [str(image.ref) for image in catalogue.images] == ["cpp:12-debian"]
    assert catalogue.resolve("c++").kind is ImageKind.CPP


@pytest.mark.parametrize(
    ("text", "found"),
    [("ID=alpine\n", "alpine"), ('ID="rhel"\n', "rhel"), ("", "linux"), ("ID=a b\n", "linux")],
)
def test_the_platform_is_the_distributions_id(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert platform_id(tmp_path / "os-release") == found
    assert platform_id(tmp_path / "missing") == "linux"
