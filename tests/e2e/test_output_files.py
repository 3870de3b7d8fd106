"""Files that a run leaves under .output (spec 5.4), against a real server."""

from __future__ import annotations

import aiohttp
import pytest
import yarl

from tests.e2e.conftest import NewSession, execute, run_to_end, upload
from tests.e2e.running import (
    Calls,
    begin,
    destroy,
    go_on,
    interrupt,
    restart,
    until,
    wait_for_file,
)


@pytest.fixture
async def name(new_session: NewSession) -> str:
    return await new_session("bash")


async def made_by(api: Calls, name: str, command: str) -> dict[str, str]:
    """Run a command; give the addresses of its files by their names."""
    answers = await run_to_end(api, name, exec=command)
    assert all(answer["files"] == [] for answer in answers[:-1])
    return {file["name"]: file["url"] for file in answers[-1]["files"]}


async def fetch(url: str) -> tuple[int, bytes]:
    """Fetch as anybody would: no signature, no token but the one in the address."""
    address = yarl.URL(url, encoded=True)
    async with aiohttp.ClientSession() as nobody, nobody.get(address) as answer:
        return answer.status, await answer.read()


NAMES = [
    "a.txt",
    "with space",
    "ü 世界.png",
    "50%",
    "a#b?c&d",
    "%2e%2e",
    "sub/dir/x",
    "..odd",
    "-rf",
    "a\\b",
    "\n",
    "<b>",
]


async def test_files_of_any_name_are_told_and_fetched(api: Calls, name: str) -> None:
    code = (
        f"import os\nfor name in {NAMES!r}:\n"
        "  path = '.output/' + name\n  os.makedirs(os.path.dirname(path), exist_ok=True)\n"
        "  open(path, 'w').write('is ' + name)\n"
    )
    await upload(api, name, make__py=code)
    found = await made_by(api, name, "python3 make.py")
    assert sorted(found) == sorted(NAMES)
    for file, url in found.items():
        assert url.startswith("http://")
        assert await fetch(url) == (200, f"is {file}".encode())


async def test_only_what_a_run_changed_is_told(api: Calls, name: str) -> None:
    assert set(await made_by(api, name, "mkdir .output; touch .output/a .output/b")) == {"a", "b"}
    # The clock of file times ticks every few milliseconds; the slack covers one tick.
    await run_to_end(api, name, exec="sleep 0.1")
    assert set(await made_by(api, name, "echo x >> .output/b; echo > .output/c")) == {"b", "c"}
    await run_to_end(api, name, exec="sleep 0.1")
    assert await made_by(api, name, "cat .output/a") == {}


@pytest.mark.parametrize(
    "options",
    [
        {"clean": "mkdir .output; touch .output/f"},
        {"build": "mkdir .output; touch .output/f"},
        {"build": "mkdir .output; touch .output/f; exit 1", "exec": "true"},
        {"build": "mkdir .output; touch .output/f", "exec": "sleep 0.1"},
        {"exec": "mkdir .output; touch .output/f; exit 3"},
        {"exec": "mkdir .output; touch .output/f; kill -9 $$"},
    ],
)
async def test_files_of_every_phase_are_told_with_the_end(
    api: Calls, name: str, options: dict[str, str]
) -> None:
    answers = await run_to_end(api, name, **options)
    assert [len(answer["files"]) for answer in answers if answer["status"] != "finished"] == [
        0 for _ in answers[:-1]
    ]
    assert [file["name"] for file in answers[-1]["files"]] == ["f"]


async def test_what_is_no_regular_file_is_neither_told_nor_followed(api: Calls, name: str) -> None:
    found = await made_by(
        api,
        name,
        "mkdir .output; cd .output; ln -s /etc/passwd link; ln -s / root; mkfifo pipe; mkdir dir;"
        "ln -s /dev/zero zero; ln -s loop loop; touch real; ln -s real alias",
    )
    assert set(found) == {"real"}


@pytest.mark.parametrize("trick", ["true", "ln -s /etc/passwd f", "mkfifo f", "mkdir f"])
async def test_an_address_does_not_lead_elsewhere_later(api: Calls, name: str, trick: str) -> None:
    found = await made_by(api, name, "mkdir .output; touch .output/f")
    await run_to_end(api, name, exec=f"cd .output; rm f; {trick}")
    status, body = await fetch(found["f"])
    assert status == 404
    assert b"root:" not in body


async def test_output_that_is_itself_a_link_is_not_followed(api: Calls, name: str) -> None:
    assert await made_by(api, name, "mkdir x; ln -s x .output; touch x/f") == {}
    assert await made_by(api, name, "rm .output; ln -s /etc .output") == {}
    assert await made_by(api, name, "rm .output; mkfifo .output") == {}


async def test_a_hopeless_tree_does_not_stop_the_server(api: Calls, name: str) -> None:
    code = (
        "import os\nos.mkdir('.output'); os.chdir('.output')\n"
        "for n in range(3000): open(f'f{n}', 'w')\n"
        "for n in range(40): os.mkdir('d'); os.chdir('d')\n"
    )
    found = await made_by(api, name, f'python3 -c "{code}"')
    assert len(found) == 1000


async def test_another_token_or_name_is_404(api: Calls, name: str, new_session: NewSession) -> None:
    found = await made_by(api, name, "mkdir .output; touch .output/f .output/g")
    base, token, _ = found["f"].rsplit("/", 2)
    other = await made_by(api, await new_session("bash"), "mkdir .output; touch .output/f")
    for url in (
        f"{base}/{'0' * 32}/f",
        f"{base}/{token}/g",
        f"{base}/{token}/f2",
        f"{base}/{token[:-1]}/f",
        f"{base}/%C3%BC/f",
        f"{other['f'].rsplit('/', 2)[0]}/{token}/f",
        f"{base.rsplit('/', 1)[0]}/nonsense/{token}/f",
    ):
        status, _ = await fetch(url)
        assert status == 404, url


async def test_an_address_ends_with_its_session(api: Calls, new_session: NewSession) -> None:
    name = await new_session("bash")
    found = await made_by(api, name, "mkdir .output; echo hi > .output/f")
    await restart(api, name)
    assert await fetch(found["f"]) == (200, b"hi\n")
    await destroy(api, name)
    assert (await fetch(found["f"]))[0] == 404


async def test_the_files_of_an_interrupted_run_are_told(api: Calls, name: str) -> None:
    # bash goes on after a SIGINT that came while a child was ending by itself; a trap does not.
    command = "trap 'exit 130' INT; mkdir .output; touch .output/f go; sleep 60 & wait"
    run_id = await begin(api, name, command)
    await wait_for_file(api, name, "go")
    await interrupt(api, name)
    answers = await until(api, name, await go_on(api, name, run_id), "finished")
    assert answers[-1]["exitCode"] == 130
    assert [file["name"] for file in answers[-1]["files"]] == ["f"]


async def test_the_host_of_the_request_is_in_the_address(api: Calls, name: str) -> None:
    await execute(api, name, mode="batch", runId="r", options={"exec": "mkdir .output; >.output/f"})
    body = {"mode": "continue", "runId": "r", "code": ""}
    headers = {"Host": "retort.example:81"}
    async with api.post(f"/session/{name}", json=body, headers=headers) as answer:
        (file,) = (await answer.json())["result"]["files"]
    assert file["url"].startswith("http://retort.example:81/output/")
