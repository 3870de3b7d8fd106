"""Telling systemd how far the server is (sd_notify(3)); nothing happens without systemd."""

from __future__ import annotations

import contextlib
import os
import socket


def tell_systemd(state: str) -> None:
    """Send one line, such as "READY=1", to the socket that `Type=notify` names.

    A message that cannot be sent is no reason to stop: systemd then ends a start that takes too
    long for it.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if name[:1] not in ("/", "@"):
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
    ):
        sender.connect(f"\0{name[1:]}" if name[0] == "@" else name)
        sender.send(state.encode())
