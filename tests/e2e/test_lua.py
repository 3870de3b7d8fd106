"""Something real that nobody here wrote: Lua 5.4, with its own makefile and its own tests.

Its sources come from the distribution that requirements/lua.in pins; they are fetched once.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import ROOT, NewSession, printed, run_to_end

pytestmark = pytest.mark.slow

REQUIREMENT = ROOT / "requirements" / "lua.in"
CACHE = ROOT / ".cache" / "lua"
INSIDE = "third-party/lua54/"
FILES_PER_UPLOAD = 20
# What its makefile says, but for readline, which is not everywhere, and for this machine's own
# instructions (-march=native). The many warnings it asks for are left out as well.
MAKE = (
    "make -C lua54 -j2 MYCFLAGS='-std=c99 -DLUA_USE_LINUX' MYLDFLAGS=-Wl,-E MYLIBS=-ldl"
    " CFLAGS='-Wall -O1 $(MYCFLAGS) -fno-stack-protector -fno-common'"
)
PRIMES_LUA = """\
local sieve, count, last = {}, 0, 0
for n = 2, 100000 do
  if not sieve[n] then
    count, last = count + 1, n
    for multiple = n * n, 100000, n do sieve[multiple] = true end
  end
end
print(count, last, ("%.3f"):format(math.pi), utf8.char(26085, 26412), _VERSION)
io.write("name? "); io.flush()
print("hello " .. io.read("l"))
os.exit(count % 256)
"""


@pytest.fixture(scope="module")
def archive() -> Path:
    """The distribution's archive, from the cache or else by pip, checked against its hash."""
    found = sorted(CACHE.glob("*.tar.gz"))
    if not found:
        # To know the name of a source archive, pip has to run its setup, whose own needs come as
        # binaries. The two variables keep that from compiling everything in it.
        command = "-m pip download -q --no-deps --no-binary lupa --require-hashes -r"
        fetched = subprocess.run(
            [sys.executable, *command.split(), REQUIREMENT, "-d", CACHE],
            env=os.environ | {"LUPA_NO_BUNDLE": "true", "LUPA_NO_LUAJIT": "true"},
            capture_output=True,
            text=True,
        )
        assert fetched.returncode == 0, fetched.stderr
        found = sorted(CACHE.glob("*.tar.gz"))
    with found[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert f"sha256:{digest}" in REQUIREMENT.read_text()
    return found[0]


@pytest.fixture(scope="module")
def sources(archive: Path) -> dict[str, bytes]:
    """Every file of Lua by its path in a folder lua54."""
    files = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, path = member.name.partition(INSIDE)
            if path and member.isfile():
                content = tar.extractfile(member)
                assert content is not None
                files[f"lua54/{path}"] = content.read()
    return files


async def upload_all(api: aiohttp.ClientSession, name: str, files: dict[str, bytes]) -> None:
    """Upload files in as many requests as it takes."""
    items = iter(files.items())
    while batch := list(itertools.islice(items, FILES_PER_UPLOAD)):
        form = aiohttp.FormData()
        for path, content in batch:
            form.add_field("src", content, filename=path)
        async with api.post(f"/session/{name}/upload", data=form) as answer:
            assert answer.status == 204, await answer.text()


async def download(api: aiohttp.ClientSession, name: str, *paths: str) -> list[bytes]:
    """Download files, each by its path."""
    async with api.get(f"/session/{name}/download", json={"files": paths}) as answer:
        assert answer.status == 200, await answer.text()
        reader = aiohttp.MultipartReader.from_response(answer)
        contents = []
        while (part := await reader.next()) is not None:
            assert isinstance(part, aiohttp.BodyPartReader)
            with tarfile.open(fileobj=io.BytesIO(await part.read())) as tar:
                (member,) = tar.getmembers()
                content = tar.extractfile(member)
                assert content is not None
                contents.append(content.read())
        return contents


def exit_codes(answers: list[dict[str, Any]]) -> dict[str, int]:
    return {a["status"]: a["exitCode"] for a in answers if a["exitCode"] is not None}


async def test_lua_is_built_run_tested_and_fetched(
    api: aiohttp.ClientSession, new_session: NewSession, sources: dict[str, bytes]
) -> None:
    assert len(sources) > 100
    name = await new_session("gcc")
    await upload_all(api, name, sources | {"primes.lua": PRIMES_LUA.encode()})

    built = await run_to_end(
        api, name, build=MAKE, exec="lua54/lua -v && lua54/lua primes.lua", stdin=("Jürg",)
    )
    assert exit_codes(built) == {"build-finished": 0, "finished": 9592 % 256}, printed(
        built, "stderr"
    )
    version, computed, greeting = printed(built).split("\n", 1)[1].splitlines()[-3:]
    assert version.startswith("Lua 5.4.")
    assert computed == "9592\t99991\t3.142\t日本\tLua 5.4"
    assert greeting == "name? hello Jürg"

    # Uploads and runs left the times alone, so nothing is out of date.
    again = await run_to_end(api, name, build=MAKE)
    assert "gcc" not in printed(again)
    assert "-o lua" not in printed(again)
    assert exit_codes(again)["build-finished"] == 0

    # Its own tests, as its own script calls them, but for those that need more than the language.
    tested = await run_to_end(
        api, name, exec="""cd lua54/testes && ulimit -S -s 1100 && ../lua -W -e '_U=true' all.lua"""
    )
    assert exit_codes(tested)["finished"] == 0, printed(tested, "stderr")
    assert "final OK !!!" in printed(tested)

    hashed = await run_to_end(api, name, exec="sha256sum lua54/lua lua54/liblua.a lua54/lvm.c")
    sums = [line.split()[0] for line in printed(hashed).splitlines()]
    files = await download(api, name, "lua54/lua", "lua54/liblua.a", "lua54/lvm.c")
    assert [hashlib.sha256(content).hexdigest() for content in files] == sums
    assert files[0].startswith(b"\x7fELF")
    assert files[2] == sources["lua54/lvm.c"]
