"""The base folder: what is in it, what is not, and where it is made."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.errors import SandboxFault
from retort.sandbox.rootfs import build, choose_root, why_unsuitable


@pytest.fixture
def host_etc(tmp_path: Path) -> Path:
    """A small /etc with things to take and things to leave."""
    etc = tmp_path / "host-etc"
    for name in ("ssl/certs", "ssl/private", "alternatives", "ld.so.conf.d", "python3.11"):
        (etc / name).mkdir(parents=True)
    for name in ("passwd", "shadow", "machine-id", "resolv.conf", "hostname", "pip.conf"):
        (etc / name).write_text("the host's")
    (etc / "protocols").write_text("tcp 6\n")
    (etc / "services").write_text("hidden")
    (etc / "services").chmod(0o600)
    (etc / "ssl/private/key").write_text("secret")
    (etc / "ssl/certs/real.pem").write_text("cert")
    (etc / "ssl/certs/beside.pem").symlink_to("real.pem")
    (etc / "ssl/certs/usr.pem").symlink_to("/usr/share/ca.crt")
    (etc / "elsewhere.pem").write_text("elsewhere")
    (etc / "ssl/certs/copied.pem").symlink_to(etc / "elsewhere.pem")
    (etc / "ssl/certs/dangling.pem").symlink_to("/nowhere/x")
    (etc / "alternatives/cc").symlink_to("/usr/bin/gcc")
    (etc / "localtime").symlink_to("/usr/share/zoneinfo/Etc/UTC")
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").touch()
    (etc / "os-release").symlink_to("../usr/lib/os-release")
    return etc


@pytest.fixture
def init(tmp_path: Path) -> Path:
    path = tmp_path / "retort-init"
    path.write_bytes(b"program")
    return path


@pytest.fixture
def state() -> Iterator[Path]:
    """A data folder that others can pass, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="retort-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder / "state"
    shutil.rmtree(folder)


def test_etc_is_ours_and_the_hosts_secrets_stay_outside(state, init, host_etc) -> None:
    base = build(state, init, host_etc=host_etc)
    assert "work:x:1000:1000" in (base.etc / "passwd").read_text()
    assert "work:x:1000" in (base.etc / "group").read_text()
    for name in ("shadow", "machine-id", "pip.conf", "ssl/private", "services"):
        assert not (base.etc / name).exists()
    for path in base.path.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"the host's" not in path.read_bytes()
    assert (base.etc / "protocols").read_text() == "tcp 6\n"
    assert base.init.read_bytes() == b"program"
    assert base.empty.read_bytes() == b""


def test_links_that_lead_into_usr_stay_and_others_become_files(state, init, host_etc) -> None:
    etc = build(state, init, host_etc=host_etc).etc
    assert (etc / "alternatives/cc").readlink() == Path("/usr/bin/gcc")
    assert (etc / "localtime").readlink() == Path("/usr/share/zoneinfo/Etc/UTC")
    assert (etc / "os-release").readlink() == Path("../usr/lib/os-release")
    assert (etc / "ssl/certs/usr.pem").is_symlink()
    assert (etc / "ssl/certs/beside.pem").readlink() == Path("real.pem")
    copied = etc / "ssl/certs/copied.pem"
    assert not copied.is_symlink()
    assert copied.read_text() == "elsewhere"
    assert not os.path.lexists(etc / "ssl/certs/dangling.pem")


def test_everything_is_readable_by_anyone_whatever_the_umask(state, init, host_etc) -> None:
    before = os.umask(0o077)
    try:
        base = build(state, init, host_etc=host_etc)
    finally:
        os.umask(before)
    assert stat.S_IMODE(base.init.stat().st_mode) == 0o755
    for path in (base.path, *base.path.rglob("*")):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode in ((0o755,) if path.is_dir() else (0o444, 0o644, 0o755)), path


def test_the_same_content_is_built_once_and_another_beside_it(state, init, host_etc) -> None:
    first = build(state, init, host_etc=host_etc)
    made_at = first.path.stat().st_mtime_ns
    assert build(state, init, host_etc=host_etc) == first
    assert first.path.stat().st_mtime_ns == made_at
    init.write_bytes(b"newer program")
    second = build(state, init, host_etc=host_etc)
    assert second.path != first.path
    assert first.init.read_bytes() == b"program"  # sandboxes of the first go on
    assert sorted(first.path.parent.iterdir()) == sorted((first.path, second.path))


def test_a_base_that_others_may_write_is_refused(state, init, host_etc) -> None:
    base = build(state, init, host_etc=host_etc)
    base.path.chmod(0o777)
    with pytest.raises(SandboxFault, match="not ours alone"):
        build(state, init, host_etc=host_etc)


def test_a_missing_init_is_a_fault_that_says_what_to_do(state, tmp_path, host_etc) -> None:
    with pytest.raises(SandboxFault, match="scripts/build-init"):
        build(state, tmp_path / "missing", host_etc=host_etc)


def test_a_private_data_folder_is_replaced_for_root(state) -> None:
    state.mkdir(mode=0o700)
    fallback = state.parent / "fallback"
    assert "chmod o+x" in (why_unsuitable(state, shared=True) or "")
    assert why_unsuitable(state, shared=False) is None
    assert choose_root(state, shared=False) == state / "base"
    assert choose_root(state, shared=True, fallback=fallback) == fallback
    fallback.chmod(0o700)
    with pytest.raises(SandboxFault, match=r"state.*; .*fallback"):
        choose_root(state, shared=True, fallback=fallback)
