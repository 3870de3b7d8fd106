"""The network of sessions: none but loopback, unless the operator says otherwise, loudly."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import NewSession, Server, printed, run_to_end, running_server

pytestmark = pytest.mark.slow


def reaching(url: str) -> str:
    host, port = url.removeprefix("http://").split(":")
    return (
        f"exec 3<>/dev/tcp/{host}/{port} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && "
        "head -c 12 <&3"
    )


async def test_a_session_cannot_reach_its_own_server(
    server: Server, api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("bash")
    answers = await run_to_end(api, name, build=None, exec=reaching(server.url))
    assert answers[-1]["exitCode"] == 1
    assert "Connection refused" in printed(answers, "stderr")
    assert answers[-1]["walls"]["network"] == "loopback"


async def test_the_hosts_network_is_shared_only_by_setting_and_with_a_warning(
    tmp_path: Path,
) -> None:
    with running_server(tmp_path / "state", RETORT_SANDBOX_NETWORK="host") as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        async with aiohttp.ClientSession(server.url, headers=headers) as api:
            async with api.post("/session", json={"name": "open", "image": "bash"}) as made:
                assert made.status == 201
            answers = await run_to_end(api, "open", build=None, exec=reaching(server.url))
        log = server.log.read_text()
    assert printed(answers) == "HTTP/1.0 200"
    assert answers[-1]["walls"]["network"] == "host"
    assert 'WARNING: sandbox.network is "host"' in log
