"""The server without control groups and without the deny-list: the floor of what walls cost.

Takes the arguments of `retort`; for the benchmark only.
"""

from __future__ import annotations

from unittest import mock

from retort.cli.main import main
from retort.sandbox.cgroup import Groups
from retort.sandbox.session_group import Mode

if __name__ == "__main__":
    with (
        mock.patch("retort.wiring.server.find", return_value=Groups(Mode.NONE, {}, "for a bench")),
        mock.patch("retort.wiring.server.is_available", return_value=False),
    ):
        main()
