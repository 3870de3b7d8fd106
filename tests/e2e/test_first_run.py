"""The shortest way through everything: make, upload, build, run, list, fetch, end."""

from __future__ import annotations

import io
import tarfile

import aiohttp

from tests.e2e.conftest import NewSession, printed, run_to_end, upload


async def test_a_c_project_is_built_run_listed_and_fetched(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("gcc")
    await upload(
        api,
        name,
        main__c='#include <stdio.h>\nint add(int,int);\nint main(){printf("%d\\n",add(2,3));}',
        add__c="int add(int a, int b) { return a + b; }",
    )
    answers = await run_to_end(api, name, clean="*", build="*", exec="*")
    assert [a["status"] for a in answers if a["status"] != "continued"] == [
        "clean-finished",
        "build-finished",
        "finished",
    ]
    assert [a["exitCode"] for a in answers if a["status"] != "continued"] == [0, 0, 0]
    assert printed(answers) == "5\n"
    async with api.get(f"/session/{name}/files") as answer:
        assert "main" in (await answer.json())["files"]
    async with api.get(f"/session/{name}/download", json={"files": ["add.c"]}) as answer:
        reader = aiohttp.MultipartReader.from_response(answer)
        part = await reader.next()
        assert part is not None
        with tarfile.open(fileobj=io.BytesIO(await part.read())) as tar:
            member = tar.extractfile("add.c")
            assert member is not None
            assert member.read() == b"int add(int a, int b) { return a + b; }"
