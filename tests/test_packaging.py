"""The wheel: what is in it, and that it works where only the wheel is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BINARY = "retort/_bin/retort-init"


def run(*argv: str | Path, **env: str) -> str:
    """Run a program without this tree in its way; give its output."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RETORT_", "PYTHON"))}
    done = subprocess.run(argv, env=kept | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # meson and ninja
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check")
    run(*pip, "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, ROOT, PATH=tools)
    (made,) = folder.glob("retort-*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_tree_and_init(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("retort/")}
        mode = archive.getinfo(BINARY).external_attr >> 16
        binary = archive.read(BINARY)
    source = ROOT / "src"
    expected = {
        str(path.relative_to(source))
        for path in (source / "retort").rglob("*")
        if path.is_file() and not {"__pycache__", "_bin"} & set(path.parts)
    }
    assert names == expected | {BINARY}
    assert any("migrations/versions/" in name for name in names)
    assert stat.S_IMODE(mode) == 0o755
    assert binary[:4] == b"\x7fELF"


@pytest.mark.slow
def test_an_installed_wheel_makes_a_key(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
                        ).strip())  # fmt: skip
    # Only what the server depends on comes from here; retort itself must be the wheel's.
    links = packages / "links"
    links.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("retort"):
            (links / entry.name).symlink_to(entry)
    (packages / "links.pth").write_text(f"{links}\n")
    run(sys.executable, "-m", "pip", "--quiet", "--python", python, "install", "--no-index",
        "--no-deps", wheel)  # fmt: skip
    retort = tmp_path / "venv/bin/retort"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run(retort, "--version").split()[-1] == version
    made = json.loads(run(retort, "keys", "create", "--json", "--state", tmp_path / "state"))
    assert made.keys() == {"accessKey", "secretKey", "token"}
    where = "from retort.wiring.host import init_program as p; print(p())"
    init = Path(run(python, "-c", where).strip())
    assert init.is_relative_to(packages)
    assert os.access(init, os.X_OK)


def test_the_locked_packages_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = (ROOT / "requirements/runtime.in").read_text().splitlines()
    listed = [line.partition("#")[0].strip() for line in listed]
    assert sorted(line for line in listed if line) == sorted(project["dependencies"])


@pytest.mark.parametrize(
    "path", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda p: p.name
)
def test_a_lock_has_hashes_and_no_address(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert not [line for line in lines if "://" in line or line.lstrip().startswith("-i")]
    pins = [line for line in lines if line and line[0].isalnum()]
    assert pins
    assert all(re.match(r"[a-z0-9._-]+(\[\w+\])?==\S+.* \\$", line) for line in pins)
    assert sum("--hash=sha256:" in line for line in lines) >= len(pins)


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for place in ("meson.build", "src/retort/__init__.py"):
        found = re.search(r"version(?:__)?\s*[:=]\s*['\"]([^'\"]+)", (ROOT / place).read_text())
        assert found, place
        assert found[1] == version, place
