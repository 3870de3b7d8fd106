"""Files in virtual folders over HTTP (spec 10.3)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.plain_http import check_problem
from tests.e2e.vfolder_user import User, fetch, no_folder, share

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dash", ["-", "_"])  # spec 10.3 has both
async def test_files_are_listed_made_moved_and_deleted(ann: User, dash: str) -> None:
    name = await ann.make()
    await ann.ok("POST", f"/folders/{name}/mkdir", 201, path="a/b")
    await ann.put(name, "a/b/file", b"12345")
    found = await ann.ok("GET", f"/folders/{name}/files", path="a/b")
    (item,) = found["items"]
    assert (item["name"], item["type"], item["size"], item["mode"]) == ("file", "FILE", 5, "644")
    (entry,) = json.loads(found["files"])
    assert (entry["filename"], entry["mode"], entry["size"]) == ("file", "-rw-r--r--", 5)
    rename = {"target_path": "a/b/file", "new_name": "other"}
    assert await ann.ok("POST", f"/folders/{name}/rename{dash}file", **rename) == {}
    assert await ann.ok("POST", f"/folders/{name}/move-file", src="a/b/other", dst=".") == {}
    assert await ann.names(name) == ["a", "other"]
    answer = await ann.ask("DELETE", f"/folders/{name}/delete{dash}files", files=["a", "other"])
    check_problem(answer, 400, "vfolder-operation-failed")
    assert await ann.names(name) == ["a", "other"]
    await ann.ok(
        "DELETE", f"/folders/{name}/delete{dash}files", files=["a", "other"], recursive=True
    )
    assert await ann.names(name) == []


@pytest.mark.parametrize(
    ("method", "call", "body", "status", "kind"),
    [
        ("GET", "files", {"path": "none"}, 404, "object-not-found"),
        ("GET", "files", {"path": "file"}, 400, "vfolder-operation-failed"),
        ("GET", "files", {"path": "../x"}, 400, "invalid-api-params"),
        ("GET", "files", {"path": "/etc"}, 400, "invalid-api-params"),
        ("POST", "mkdir", {"path": "file"}, 400, "vfolder-operation-failed"),
        ("POST", "mkdir", {"path": "x/y", "parents": False}, 400, "vfolder-operation-failed"),
        ("POST", "mkdir", {}, 400, "invalid-api-params"),
        ("POST", "rename-file", {"target_path": "none", "new_name": "x"}, 404, "object-not-found"),
        (
            *("POST", "rename-file", {"target_path": "file", "new_name": "a/b"}),
            *(400, "vfolder-operation-failed"),
        ),
        ("POST", "move-file", {"src": "none", "dst": "x"}, 404, "object-not-found"),
        ("POST", "move-file", {"src": "file", "dst": "../x"}, 400, "invalid-api-params"),
        ("DELETE", "delete-files", {"files": ["none"]}, 404, "object-not-found"),
        ("DELETE", "delete-files", {"files": []}, 400, "invalid-api-params"),
        ("POST", "request-upload", {"path": "x"}, 400, "invalid-api-params"),
        ("POST", "request-upload", {"path": "x", "size": -1}, 400, "invalid-api-params"),
        ("POST", "request-upload", {"path": "../x", "size": 1}, 400, "invalid-api-params"),
        ("POST", "request-upload", {"path": "x", "size": 2**60}, 400, "invalid-api-params"),
        ("POST", "request-download", {"path": "none"}, 404, "object-not-found"),
        ("POST", "request-download", {"path": "."}, 400, "vfolder-operation-failed"),
    ],
)
async def test_what_files_cannot_do(
    ann: User, method: str, call: str, body: dict[str, Any], status: int, kind: str
) -> None:
    name = await ann.make()
    await ann.put(name, "file", b"x")
    answer = await ann.ask(method, f"/folders/{name}/{call}", **body)
    check_problem(answer, status, kind, thing="file or directory" if status == 404 else "")
    assert await ann.names(name) == ["file"]


async def test_a_reader_reads_and_no_more(ann: User, bob: User) -> None:
    name = await ann.make()
    await ann.put(name, "file", b"x")
    await share(ann, bob, name, "ro")
    assert await bob.names(name) == ["file"]
    assert (await fetch(bob, name, "file")).body == b"x"
    for method, call, body in (
        ("POST", "mkdir", {"path": "x"}),
        ("POST", "rename-file", {"target_path": "file", "new_name": "x"}),
        ("POST", "move-file", {"src": "file", "dst": "x"}),
        ("DELETE", "delete-files", {"files": ["file"]}),
        ("POST", "request-upload", {"path": "x", "size": 1}),
    ):
        no_folder(await bob.ask(method, f"/folders/{name}/{call}", **body))
    answer = await bob.ask("DELETE", f"/folders/{name}")
    check_problem(answer, 400, "vfolder-operation-failed")
    assert await ann.names(name) == ["file"]
