"""Every failure that the specification names, and what a caller can get wrong in a request."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import Iterator
from typing import Any
from unittest import mock

import aiohttp
import pytest
import yarl

from retort.api.app import table_of
from retort.wire.errors import TITLES
from tests.e2e.conftest import NewSession, Server, execute, run_to_end, upload
from tests.e2e.plain_http import (
    ask,
    check_common_headers,
    check_problem,
    check_rate_headers,
    complaints,
    made_session,
)

ROUTES = [(method, pattern) for method, pattern, _ in table_of(mock.MagicMock())]
PATTERNS = sorted({pattern for _, pattern in ROUTES})


@pytest.fixture(scope="module")
def session(server: Server) -> Iterator[str]:
    """One session for every test that only gets refused."""
    with made_session(server) as name:
        yield name


def in_config(**fields: Any) -> dict[str, Any]:
    return {"image": "gcc", "config": fields}


BAD_CREATES: list[tuple[dict[str, Any], str]] = [
    ({}, "image"),
    *(({"image": bad}, "image") for bad in (None, "", 5, [], {}, "a b", "x" * 513, "a\nb")),
    *(
        ({"image": "gcc", "name": bad}, "name")
        for bad in ("abc", "x" * 65, "-abc", "abc-", "ab cd", "naïve", "a/b/c", "../x", "a\nbcd", 5)
    ),
    *(({"image": "gcc", "name": bad}, "name") for bad in ("create", "from-template", "", [], {})),
    *(({"image": "gcc", "type": bad}, "type") for bad in ("inference", "x", 5, [])),
    ({"image": "gcc", "type": "batch"}, "startupCommand"),
    ({"image": "gcc", "type": "batch", "startupCommand": "true"}, "type"),
    *(({"image": "gcc", "clusterSize": bad}, "clusterSize") for bad in (2, 0, -1, "x", 1.5, [])),
    (in_config(clusterSize=2), "config.clusterSize"),
    *(({"image": "gcc", "clusterMode": bad}, "clusterMode") for bad in ("x", 5)),
    *(({"image": "gcc", "enqueueOnly": bad}, "enqueueOnly") for bad in ("maybe", 7, [], {})),
    *(({"image": "gcc", "reuseIfExists": bad}, "reuseIfExists") for bad in ("maybe", 7, [])),
    *(({"image": "gcc", "maxWaitSeconds": bad}, "maxWaitSeconds") for bad in (-1, "x", 1.5, True)),
    ({"image": "gcc", "startupCommand": 5}, "startupCommand"),
    ({"image": "gcc", "startupCommand": "a\0b"}, "startupCommand"),
    ({"image": "gcc", "startupCommand": "x" * 65_537}, "startupCommand"),
    ({"image": "gcc", "starts_at": "2030-01-01T00:00:00Z"}, "starts_at"),
    ({"image": "gcc", "starts_at": 5}, "starts_at"),
    ({"image": "gcc", "bootstrap_script": 5}, "bootstrap_script"),
    *(({"image": "gcc", "dependencies": bad}, "dependencies") for bad in ("x", 5, [5], {})),
    *(({"image": "gcc", "callback_url": bad}, "callback_url") for bad in ("ftp://x", 5)),
    ({"image": "gcc", "tag": 5}, "tag"),
    ({"image": "gcc", "architecture": 5}, "architecture"),
    *(({"image": "gcc", "group": bad}, "group") for bad in ("other", 5)),
    *(({"image": "gcc", "domain": bad}, "domain") for bad in ("other", 5)),
    *(({"image": "gcc", "config": bad}, "config") for bad in (5, [], "x", True)),
    *((in_config(mounts=bad), "config.mounts") for bad in ("x", [5], {})),
    *((in_config(mount_map=bad), "config.mount_map") for bad in ([], "x", {"a": 1})),
    *(
        (in_config(environ=bad), "config.environ")
        for bad in ([], "x", {"A": 1}, {"A": None}, {"A=B": "x"}, {"": "x"}, {"A": "\0"})
    ),
    *((in_config(resources=bad), "config.resources") for bad in ([], 5, "x")),
    *((in_config(resources={"cpu": bad}), "config.resources.cpu") for bad in ("x", [], {}, -1)),
    *((in_config(resources={"mem": bad}), "config.resources.mem") for bad in ("x", "-1", "5q", [])),
    (in_config(resources={"gpu": 1}), "config.resources.gpu"),
    *((in_config(resource_opts=bad), "config.resource_opts") for bad in (5, [], "x")),
    *((in_config(scaling_group=bad), "config.scaling_group") for bad in ("x", 5)),
    *(
        (in_config(preopen_ports=bad), "config.preopen_ports")
        for bad in ("x", 5, [80], ["x"], [70_000], [True], {"a": 1})
    ),
    *((in_config(agent_list=bad), "config.agent_list") for bad in ("x", [5])),
]


@pytest.mark.parametrize(("body", "field"), BAD_CREATES)
async def test_create_names_the_field_it_refuses(
    api: aiohttp.ClientSession, body: dict[str, Any], field: str
) -> None:
    answer = await ask(api, "POST", "/session", json=body)
    document = check_problem(answer, 400, "invalid-api-params")
    assert list(document["data"]) == [field]
    assert document["msg"] == f"{field}: {document['data'][field]}"
    check_rate_headers(answer)


@pytest.mark.parametrize(
    ("body", "status", "kind", "thing"),
    [
        ({"image": "no-such-image"}, 404, "object-not-found", "environment image"),
        (in_config(agent_list=["a"]), 403, "generic-forbidden", ""),
        ({"image": "gcc", "owner_access_key": "AKOTHER"}, 403, "generic-forbidden", ""),
        (in_config(resources={"mem": "1000t"}), 412, "quota-exceeded", ""),
        (in_config(resources={"cpu": 100_000}), 412, "quota-exceeded", ""),
        (in_config(instanceMemory=900_000), 412, "quota-exceeded", ""),
    ],
)
async def test_create_of_what_cannot_be_had_is_refused(
    api: aiohttp.ClientSession, body: dict[str, Any], status: int, kind: str, thing: str
) -> None:
    check_problem(await ask(api, "POST", "/session", json=body), status, kind, thing=thing)


async def test_a_taken_name_is_refused_with_the_id_of_its_session(
    api: aiohttp.ClientSession, session: str
) -> None:
    again = {"image": "gcc", "name": session}
    reused = await ask(api, "POST", "/session", json=again)
    assert (reused.status, reused.json["created"]) == (200, False)
    data = {"existingSessionId": reused.json["sessionId"]}
    for body in (again | {"reuseIfExists": False}, again | {"image": "python"}):
        answer = await ask(api, "POST", "/session", json=body)
        check_problem(answer, 400, "session-already-exists", data=data)


BAD_EXECUTES: list[tuple[dict[str, Any], str]] = [
    *((body, "mode is missing or empty!") for body in ({}, {"mode": ""}, {"mode": None})),
    *(
        ({"mode": bad}, "mode has an invalid value.")
        for bad in ("x", "BATCH", 5, {"a": 1}, ["batch"], True, "batch ")
    ),
    ({"type": "x"}, "mode has an invalid value."),
    *(
        ({"mode": mode, "runId": None}, "continuation requires explicit run ID")
        for mode in ("continue", "input")
    ),
    ({"mode": "continue"}, "continuation requires explicit run ID"),
    *(
        ({"mode": "batch", "runId": bad}, "runId: must have 1 to 128 characters")
        for bad in ("", "x" * 129)
    ),
    *(({"mode": "batch", "runId": bad}, "runId: must be a string") for bad in (5, [], {}, True)),
    *(({"mode": "query", "code": bad}, "code: must be a string") for bad in (5, [], {}, True)),
    *(({"mode": "batch", "options": bad}, "options: must be an object") for bad in (5, [], "x")),
    *(
        ({"mode": "batch", "options": {name: bad}}, f"options.{name}: must be a string")
        for name in ("clean", "build", "exec")
        for bad in (5, [], {}, True, ["*"])
    ),
    *(
        (
            {"mode": "batch", "options": {name: "a\0b"}},
            f"options.{name}: must not have a null character",
        )
        for name in ("clean", "build", "exec")
    ),
    *(
        ({"mode": "batch", "options": {"buildLog": bad}}, "options.buildLog: must be a boolean")
        for bad in (5, "yes", [], {})
    ),
    ({"mode": "complete", "options": {"row": "x"}}, "options.row: must be an integer"),
    ({"mode": "complete", "options": {"line": 5}}, "options.line: must be a string"),
    ({"mode": "complete", "options": []}, "options: must be an object"),
]


@pytest.mark.parametrize(("body", "msg"), BAD_EXECUTES)
async def test_execute_says_what_is_wrong(
    api: aiohttp.ClientSession, session: str, body: dict[str, Any], msg: str
) -> None:
    answer = await ask(api, "POST", f"/session/{session}", json=body)
    check_problem(answer, 400, "invalid-api-params", msg=msg)
    check_rate_headers(answer)


@pytest.mark.parametrize("mode", ["continue", "input"])
async def test_an_unknown_run_is_not_found(
    api: aiohttp.ClientSession, session: str, mode: str
) -> None:
    body = {"mode": mode, "code": "", "runId": uuid.uuid4().hex}
    answer = await ask(api, "POST", f"/session/{session}", json=body)
    check_problem(answer, 404, "object-not-found", thing="run")


@pytest.mark.slow
async def test_a_finished_run_is_not_found_and_its_id_may_be_used_again(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("python")
    for _ in range(2):
        answers = [await execute(api, name, mode="batch", runId="r", options={"exec": "true"})]
        while answers[-1]["status"] != "finished":
            answers.append(await execute(api, name, mode="continue", runId="r"))
        assert {answer["runId"] for answer in answers} == {"r"}
        again = await ask(api, "POST", f"/session/{name}", json={"mode": "continue", "runId": "r"})
        check_problem(again, 404, "object-not-found", thing="run")


async def test_type_stands_in_for_a_missing_mode(api: aiohttp.ClientSession, session: str) -> None:
    answer = await ask(api, "POST", f"/session/{session}", json={"type": "complete"})
    assert answer.json == {"result": []}


@pytest.mark.parametrize("suffix", ["", "/rename", "/files", "/download", "/download_single"])
async def test_null_is_the_same_as_missing(
    api: aiohttp.ClientSession, session: str, suffix: str
) -> None:
    names = ("mode", "name", "files", "file", "code", "options", "runId", "path")
    method = "POST" if suffix in ("", "/rename") else "GET"
    nothing = await ask(api, method, f"/session/{session}{suffix}", json={})
    nulls = await ask(api, method, f"/session/{session}{suffix}", json=dict.fromkeys(names))
    assert (nothing.status, nothing.body) == (nulls.status, nulls.body)


@pytest.mark.parametrize(
    "query", ["", "name=", "name=abc", "name=a%2Fbcd", "name=create", "name=one1&name=two2"]
)
async def test_rename_refuses_what_is_no_name(
    api: aiohttp.ClientSession, session: str, query: str
) -> None:
    answer = await ask(api, "POST", f"/session/{session}/rename?{query}")
    assert list(check_problem(answer, 400, "invalid-api-params")["data"]) == ["name"]


async def test_rename_to_a_taken_name_is_refused(
    api: aiohttp.ClientSession, session: str, new_session: NewSession
) -> None:
    other = await new_session("python")
    answer = await ask(api, "POST", f"/session/{other}/rename?name={session}")
    assert answer.status == 400
    check_problem(answer, 400, answer.json["type"].rpartition("/")[2])


# --- files (6.3 to 6.5) -------------------------------------------------------------------------


@pytest.fixture
async def with_files(api: aiohttp.ClientSession, new_session: NewSession) -> str:
    """A session with a file, a folder, a link to the outside and a huge file."""
    name = await new_session("python")
    await upload(api, name, plain="text")
    commands = "mkdir d && ln -s /etc out && ln -s /etc/passwd leak && truncate -s 65M huge"
    answers = await run_to_end(api, name, exec=f"{commands} && mkfifo pipe")
    assert answers[-1]["exitCode"] == 0, answers
    return name


OUTSIDE = ["/", "/etc", "..", "../..", "/home", "d/../../x", "/home/work/../x", "/home/workx"]


@pytest.mark.slow
async def test_listing_refuses_as_the_table_says(
    api: aiohttp.ClientSession, with_files: str
) -> None:
    url = f"/session/{with_files}/files"
    for missing in ("nothing", "d/nothing", "/home/work/nothing"):
        answer = await ask(api, "GET", url, json={"path": missing})
        check_problem(answer, 404, "object-not-found", thing="file or directory")
    for bad in (*OUTSIDE, "out", "leak", "plain", "pipe", "plain/x", 5, [], {}, "a\0b", "x" * 5000):
        answer = await ask(api, "GET", url, json={"path": bad})
        check_problem(answer, 400, "invalid-api-params")
    for good in (".", "", "/home/work", "./d/..", "d", None):
        answer = await ask(api, "GET", url, json={"path": good})
        assert answer.status == 200, (good, answer.body)


@pytest.mark.slow
async def test_download_refuses_as_the_table_says(
    api: aiohttp.ClientSession, with_files: str
) -> None:
    url = f"/session/{with_files}/download"
    answer = await ask(api, "GET", url, json={"files": ["plain"] * 6})
    check_problem(answer, 400, "invalid-api-params", msg="Too many files")
    answer = await ask(api, "GET", url, json={"files": ["plain", "nothing"]})
    check_problem(answer, 400, "invalid-api-params", msg="The file is not found.")
    answer = await ask(api, "GET", url, json={"files": ["huge"]})
    check_problem(answer, 400, "invalid-api-params", msg="Too large file")
    for bad in (None, [], "plain", 5, {}, [5], [None], [["plain"]], [""], ["a\0b"], ["x" * 5000]):
        answer = await ask(api, "GET", url, json={"files": bad})
        check_problem(answer, 400, "invalid-api-params")
    for outside in (*OUTSIDE, "out", "leak", "out/passwd", "pipe"):
        answer = await ask(api, "GET", url, json={"files": [outside]})
        check_problem(answer, 400, "invalid-api-params")
    answer = await ask(api, "GET", url + "?files=plain&files=d")
    assert answer.status == 200


@pytest.mark.slow
async def test_download_of_one_file_refuses_as_the_table_says(
    api: aiohttp.ClientSession, with_files: str
) -> None:
    url = f"/session/{with_files}/download_single"
    for method in ("GET", "POST"):
        answer = await ask(api, method, url, json={"file": "nothing"})
        check_problem(answer, 400, "invalid-api-params", msg="The file is not found.")
        answer = await ask(api, method, url, json={"file": "huge"})
        check_problem(answer, 400, "invalid-api-params", msg="Too large file")
        for bad in (None, "", 5, [], ["plain"], {}, "a\0b", "x" * 5000, "d", "pipe"):
            answer = await ask(api, method, url, json={"file": bad})
            check_problem(answer, 400, "invalid-api-params")
        for outside in (*OUTSIDE, "out", "leak", "out/passwd"):
            answer = await ask(api, method, url, json={"file": outside})
            check_problem(answer, 400, "invalid-api-params")
        answer = await ask(api, method, url, json={"file": "plain"})
        assert (answer.status, answer.body) == (200, b"text")
        assert answer.headers["Content-Length"] == "4"
        check_common_headers(answer)


@pytest.mark.parametrize("token", ["x", "%C3%A9", "%FF", "0" * 32, "x" * 5000])
async def test_a_guessed_address_of_a_result_file_is_not_found(
    server: Server, session: str, api: aiohttp.ClientSession, token: str
) -> None:
    answer = await ask(api, "GET", f"/session/{session}")
    known = answer.json["containerId"]
    for which in (known, str(uuid.uuid4()), "x", "%C3%A9"):
        answer = await ask(api, "GET", f"/output/{which}/{token}/a.txt")
        check_problem(answer, 404, "object-not-found", thing="file or directory")
    assert not complaints(server)


# --- sessions that are not there, or not the caller's (H4) --------------------------------------

OF_SESSIONS = [
    (method, pattern.replace("*", "{ref}"))
    for method, pattern in ROUTES
    if pattern.startswith(("/session/*", "/stream/session"))
]
ENOUGH = {  # what every one of these calls needs, so that nothing else is missing
    "mode": "continue",
    "runId": "r",
    "name": "new-name",
    "files": ["x"],
    "file": "x",
}


def form() -> aiohttp.FormData:
    made = aiohttp.FormData()
    made.add_field("src", b"x", filename="x")
    return made


@pytest.fixture(scope="module")
def other_token(server: Server) -> str:
    """A token of another user."""
    return server.new_key()["token"]


@pytest.mark.parametrize(("method", "path"), OF_SESSIONS)
async def test_another_users_session_looks_like_none(
    session: str,
    other_token: str,
    api: aiohttp.ClientSession,
    new_session: NewSession,
    method: str,
    path: str,
) -> None:
    # Control: its owner's same call finds a session, whatever else it may miss.
    own = {"data": form()} if path.endswith("/upload") else {"json": ENOUGH}
    found = await ask(api, method, path.format(ref=await new_session("python")), **own)
    assert found.status < 500
    if found.status == 404:  # a run, for instance, that is not there
        assert found.json["title"] != TITLES["object-not-found"].format(thing="session")
    real = (await ask(api, "GET", f"/session/{session}")).json["containerId"]
    answers = []
    for ref in (session, real, "nothing-there", str(uuid.uuid4()), "%00", "%FF", "x" * 3000):
        more: dict[str, Any] = {"data": form()} if path.endswith("/upload") else {"json": ENOUGH}
        headers = {"Authorization": f"Bearer {other_token}"}
        answer = await ask(api, method, path.format(ref=ref), headers=headers, **more)
        check_problem(answer, 404, "object-not-found", thing="session")
        answers.append(answer.body)
    assert len(set(answers)) == 1
    assert (await ask(api, "GET", f"/session/{session}")).status == 200


async def test_a_destroyed_session_is_not_found_again(
    api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    name = await new_session("python")
    assert (await ask(api, "DELETE", f"/session/{name}")).status == 200
    check_problem(
        await ask(api, "DELETE", f"/session/{name}"), 404, "object-not-found", thing="session"
    )


@pytest.mark.slow
async def test_a_call_whose_session_is_destroyed_meanwhile_does_not_find_it(
    server: Server, api: aiohttp.ClientSession, new_session: NewSession
) -> None:
    before = complaints(server)
    for _ in range(5):
        name = await new_session("python")
        async with asyncio.TaskGroup() as group:
            listings = [
                group.create_task(ask(api, "GET", f"/session/{name}/files")) for _ in range(40)
            ]
            group.create_task(ask(api, "DELETE", f"/session/{name}"))
        assert {task.result().status for task in listings} <= {200, 404}
    assert complaints(server) == before


async def test_a_stream_without_an_upgrade_is_a_bad_request(
    server: Server, api: aiohttp.ClientSession, session: str
) -> None:
    answer = await ask(api, "GET", f"/stream/session/{session}/execute")
    check_problem(answer, 400, "generic-bad-request")
    assert not complaints(server)


# --- URLs and methods ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/session/a/b",
        "/session/a/upload/b",
        "/session//upload/x",
        "//session",
        "/v1",
        "/v1/session",
        "/v8",
        "/v8/session/a",
        "/v0",
        "/v99/session/a",
        "/v2/v3/session",
        "/%FF",
        "/..",
        "/v7/../session",
        "/a%0D%0Ab",
        "/%3Cscript%3E",
        "/favicon.ico",
        "/" + "x" * 4000,
        "/" + "a/" * 2000,
    ],
)
async def test_an_unknown_url_is_named_and_needs_no_key(server: Server, path: str) -> None:
    async with aiohttp.ClientSession() as client:
        answer = await ask(client, "GET", yarl.URL(server.url + path, encoded=True))  # type: ignore[arg-type]
    data = check_problem(answer, 404, "url-not-found")["data"]
    assert data.startswith("/")
    check_rate_headers(answer, limit=1000)


async def test_the_unknown_path_is_in_data(api: aiohttp.ClientSession) -> None:
    check_problem(await ask(api, "GET", "/no/thing?a=b"), 404, "url-not-found", data="/no/thing")
    check_problem(await ask(api, "GET", "/v8/session"), 404, "url-not-found", data="/v8/session")


@pytest.mark.parametrize("pattern", [*PATTERNS, "/v2", "/v7/", "/v3/session/*"])
async def test_a_method_that_a_url_has_not_is_refused_with_those_it_has(
    server: Server, pattern: str
) -> None:
    plain = pattern.rstrip("/").removeprefix("/v3")
    known = {m for m, p in ROUTES if p == (plain or "/")} or {"GET"}
    path = pattern.replace("*", "xxxx")
    wrong = [m for m in ("GET", "POST", "PUT", "PATCH", "DELETE") if m not in known]
    async with aiohttp.ClientSession(server.url) as client:
        for method in wrong:
            answer = await ask(client, method, path)
            check_problem(answer, 405, "method-not-allowed")
            assert set(answer.headers["Allow"].split(", ")) == known
            check_rate_headers(answer, limit=1000)


# --- bodies (H7) --------------------------------------------------------------------------------

MALFORMED = [
    b"{",
    b"}",
    b"[]",
    b"null",
    b"5",
    b'"text"',
    b"true",
    b"{'mode': 'batch'}",
    b'{"mode": "batch",}',
    b'{"mode": "batch"} x',
    b'{"mode": "batch"}{}',
    b'{"mode": NaN}',
    b'{"mode": Infinity}',
    b'{"mode": -Infinity}',
    b'{"mode": 1e999}',
    b'{"mode": 1' + b"0" * 400 + b"}",
    b'{"mode": ' + b"9" * 500_000 + b"}",
    b'{"mode": 18446744073709551616}',
    b'{"mode": 01}',
    b'{"mode": "batch", "mode": "query"}',
    b'{"mode": "batch", "options": {"build": "a", "build": "b"}}',
    b'{"mode": "batch", "m\\u006fde": "query"}',
    b'{"mode": "\xff"}',
    b'{"mode": "\xed\xa0\x80"}',
    b'{"mode": "a\nb"}',
    b"\xef\xbb\xbf{}",
    '{"mode": "batch"}'.encode("utf-16"),
    b"\0" * 100,
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b'{"a":' + b"[" * 40 + b"]" * 40 + b"}",
    b"--b\r\nContent-Disposition: form-data; name=mode\r\n\r\nbatch\r\n--b--\r\n",
    b"mode=batch",
]


@pytest.mark.parametrize("body", MALFORMED, ids=[str(n) for n in range(len(MALFORMED))])
async def test_a_malformed_body_is_refused_whatever_its_type(
    server: Server, api: aiohttp.ClientSession, session: str, body: bytes
) -> None:
    for media in ("application/json", "text/plain", "multipart/form-data; boundary=b"):
        headers = {"Content-Type": media}
        answer = await ask(api, "POST", f"/session/{session}", data=body, headers=headers)
        check_problem(answer, 400, "invalid-api-params", msg="Malformed body")
    answer = await ask(api, "GET", f"/session/{session}/files", data=body)
    check_problem(answer, 400, "invalid-api-params", msg="Malformed body")
    assert not complaints(server)


async def test_a_lone_surrogate_in_json_is_never_our_failure(
    server: Server, api: aiohttp.ClientSession, session: str
) -> None:
    for body in (b'{"mode": "\\ud800"}', b'{"mode": "continue", "runId": "\\udc00x"}'):
        answer = await ask(api, "POST", f"/session/{session}", data=body)
        assert answer.status in (400, 404), answer.body
    answer = await ask(api, "POST", "/session", data=b'{"image": "gcc", "tag": "\\ud800"}')
    assert answer.status == 400
    assert not complaints(server)


async def test_a_body_of_exactly_the_limit_is_read_and_one_byte_more_is_not(
    api: aiohttp.ClientSession, session: str
) -> None:
    body = b'{"mode": "complete", "code": "%s"}'
    body = body.replace(b"%s", b"x" * (1024 * 1024 - len(body) + 2))
    assert len(body) == 1024 * 1024
    assert (await ask(api, "POST", f"/session/{session}", data=body)).status == 200
    answer = await ask(api, "POST", f"/session/{session}", data=io.BytesIO(body + b" "))
    check_problem(answer, 400, "generic-bad-request", msg="The body is larger than 1048576 bytes")


@pytest.mark.parametrize("query", ["&".join(f"a{n}=b" for n in range(1001)), "a&" * 1001])
async def test_a_query_of_too_many_fields_is_refused(
    api: aiohttp.ClientSession, session: str, query: str
) -> None:
    answer = await ask(api, "GET", f"/session/{session}/files?{query}")
    check_problem(answer, 400, "invalid-api-params")


async def test_match_needs_a_beginning(api: aiohttp.ClientSession) -> None:
    answer = await ask(api, "GET", "/session/_/match")
    check_problem(answer, 400, "invalid-api-params", data={"id": "is required"})
