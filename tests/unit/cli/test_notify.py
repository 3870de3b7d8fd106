"""What systemd is told, and that nothing goes wrong without it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from retort.cli.notify import tell_systemd


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_socket_that_systemd_names_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"@retort-{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(name.replace("@", "\0", 1))
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        tell_systemd("READY=1")
        assert told.recv(100, socket.MSG_DONTWAIT) == b"READY=1"


@pytest.mark.parametrize("name", ["", "relative", "/nowhere/at/all"])
def test_without_a_listener_nothing_happens(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    tell_systemd("READY=1")
