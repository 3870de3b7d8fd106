"""Who may call: signatures, tokens, the order of checks, keys that change, rate limits (spec 3)."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import yarl

from tests.e2e.conftest import Server, retort
from tests.e2e.plain_http import (
    ask,
    check_common_headers,
    check_problem,
    check_rate_headers,
    key_of_policy,
    signed,
)

KEYS_SETTLE_S = 60  # the server looks every three seconds


@pytest.fixture
async def anyone(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """Calls without any headers of their own."""
    async with aiohttp.ClientSession(server.url) as session:
        yield session


async def say(
    client: aiohttp.ClientSession, headers: dict[str, str], **more: Any
) -> tuple[int, Any]:
    answer = await ask(client, "POST", "/auth", headers=headers, **more)
    return answer.status, answer.json


# --- right ----------------------------------------------------------------------------------

BODY = b'{"echo": "hello"}'


@pytest.mark.parametrize("version", ["v7.20230615", "v4.20181215", "v4.20190615", "v9.20991231"])
async def test_newer_versions_do_not_sign_the_body(
    server: Server, anyone: aiohttp.ClientSession, version: str
) -> None:
    headers = signed(server, "POST", "/auth", version=version)
    status, document = await say(anyone, headers, data=BODY)
    assert (status, document) == (200, {"authorized": "yes", "echo": "hello"})
    headers = signed(server, "POST", "/auth", version=version, body=BODY, hash_body=True)
    assert (await say(anyone, headers, data=BODY))[0] == 401


@pytest.mark.parametrize("version", ["v2.20170315", "v3.20170615", "v4.20180101", "v4.20181214"])
async def test_older_versions_may_sign_the_body_or_not(
    server: Server, anyone: aiohttp.ClientSession, version: str
) -> None:
    for hash_body in (True, False):
        headers = signed(server, "POST", "/auth", version=version, body=BODY, hash_body=hash_body)
        assert (await say(anyone, headers, data=BODY))[0] == 200
    headers = signed(server, "POST", "/auth", version=version, body=BODY, hash_body=True)
    answer = await ask(anyone, "POST", "/auth", headers=headers, data=BODY + b" ")
    check_problem(answer, 401, "auth-failed", msg="Signature mismatch")


async def test_uploads_never_sign_their_body(server: Server, anyone: aiohttp.ClientSession) -> None:
    for version in ("v2.20170315", "v7.20230615"):
        target = "/session/nothing-there/upload"
        headers = signed(
            server, "POST", target, content_type="multipart/form-data", version=version
        )
        headers["Content-Type"] += "; boundary=b"
        data = b'--b\r\nContent-Disposition: form-data; filename="x"\r\n\r\nx\r\n--b--\r\n'
        answer = await ask(anyone, "POST", target, headers=headers, data=data)
        check_problem(answer, 404, "object-not-found", thing="session")


@pytest.mark.parametrize("scheme", ["BackendAI", "Sorna", "backendai"])
@pytest.mark.parametrize("prefix", ["X-BackendAI", "X-Sorna"])
@pytest.mark.parametrize("date_header", ["Date", "X-BackendAI-Date", "X-Sorna-Date"])
async def test_every_generations_headers_are_accepted(
    server: Server, anyone: aiohttp.ClientSession, scheme: str, prefix: str, date_header: str
) -> None:
    headers = signed(server, "POST", "/auth", scheme=scheme, prefix=prefix, date_header=date_header)
    assert (await say(anyone, headers))[0] == 200


async def test_the_date_header_counts_before_its_stand_ins(
    server: Server, anyone: aiohttp.ClientSession
) -> None:
    headers = signed(server, "POST", "/auth")
    for other in ("X-BackendAI-Date", "X-Sorna-Date"):
        assert (await say(anyone, headers | {other: "nonsense"}))[0] == 200
        moved = {k: v for k, v in headers.items() if k != "Date"} | {other: headers["Date"]}
        assert (await say(anyone, moved | {"Date": "nonsense"}))[0] == 400


@pytest.mark.parametrize("minutes", [-14, 14])
@pytest.mark.parametrize("offset_h", [-11, 0, 9])
async def test_a_clock_within_15_minutes_in_any_zone_will_do(
    server: Server, anyone: aiohttp.ClientSession, minutes: int, offset_h: int
) -> None:
    zone = dt.timezone(dt.timedelta(hours=offset_h))
    when = dt.datetime.now(zone) + dt.timedelta(minutes=minutes)
    assert (await say(anyone, signed(server, "POST", "/auth", when=when)))[0] == 200


@pytest.mark.parametrize(
    "target", ["/auth?echo=a%2fb&x=", "/auth/?b=2&a=1", "/v4/auth/", "/%61uth"]
)
async def test_the_raw_target_is_signed(server: Server, target: str) -> None:
    url = yarl.URL(server.url + target, encoded=True)
    async with aiohttp.ClientSession() as client:
        for path, status in ((target, 200), ("/auth", 401)):
            async with client.post(url, headers=signed(server, "POST", path)) as answer:
                assert answer.status == status


async def test_media_types_are_signed_without_parameters_and_in_lower_case(
    server: Server, anyone: aiohttp.ClientSession
) -> None:
    headers = signed(server, "POST", "/auth", content_type="application/json")
    for media in ("application/json; charset=utf-8", "Application/JSON", "application/json;a=b"):
        assert (await say(anyone, headers | {"Content-Type": media}))[0] == 200
    assert (await say(anyone, headers | {"Content-Type": "text/plain"}))[0] == 401


async def test_a_bearer_token_needs_neither_date_nor_version(
    server: Server, anyone: aiohttp.ClientSession
) -> None:
    for scheme in ("Bearer", "bearer", "BEARER "):
        status, _ = await say(anyone, {"Authorization": f"{scheme} {server.token}"})
        assert status == 200
    more = {"Date": "nonsense", "X-BackendAI-Version": "v5.20191215"}
    assert (await say(anyone, {"Authorization": f"Bearer {server.token}"} | more))[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v5",
        "/manager/announcement",
        "/manager/status",
        "/config/resource-slots",
        "/config/vfolder-types",
    ],
)
@pytest.mark.parametrize("authorization", [None, "nonsense", "Bearer nothing", ""])
async def test_open_calls_ignore_who_asks(
    anyone: aiohttp.ClientSession, path: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await ask(anyone, "GET", path, headers=headers)
    assert answer.status == 200
    check_common_headers(answer)
    check_rate_headers(answer, limit=1000)


# --- wrong ----------------------------------------------------------------------------------


def changed(headers: dict[str, str], **changes: str | None) -> dict[str, str]:
    """Set or (None) drop headers; an underscore stands for a dash."""
    result = dict(headers)
    for name, value in changes.items():
        result.pop(name.replace("_", "-"), None)
        if value is not None:
            result[name.replace("_", "-")] = value
    return result


@pytest.mark.parametrize(
    "date",
    [
        None,
        "",
        "nonsense",
        "2024-03-05T01:02:03.456789+00:00",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "Tue, 05 Mar 2024 01:02:03 GMT",
        "1" * 5000,
        "\xff\xfe",
    ],
)
async def test_a_missing_or_wrong_date_is_a_sync_error(
    server: Server, anyone: aiohttp.ClientSession, date: str | None
) -> None:
    headers = changed(signed(server, "POST", "/auth"), Date=date)
    answer = await ask(anyone, "POST", "/auth", headers=headers)
    check_problem(answer, 400, "invalid-auth-params", msg="Date/time sync error")


@pytest.mark.parametrize("minutes", [-16, 16, -60 * 24, 60 * 24])
async def test_a_replayed_or_early_request_is_a_sync_error(
    server: Server, anyone: aiohttp.ClientSession, minutes: int
) -> None:
    when = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes)
    answer = await ask(anyone, "POST", "/auth", headers=signed(server, "POST", "/auth", when=when))
    check_problem(answer, 400, "invalid-auth-params", msg="Date/time sync error")


MALFORMED = [
    "",
    "nonsense",
    "Basic dXNlcjpwYXNz",
    "Bearer",
    "Bearer ",
    "BackendAI",
    "BackendAI signMethod=HMAC-SHA256",
    "BackendAI credential={key}:{signature}",
    "BackendAI signMethod=HMAC-SHA1, credential={key}:{signature}",
    "BackendAI signMethod=HMAC-MD5, credential={key}:{signature}",
    "BackendAI signMethod=HMAC-, credential={key}:{signature}",
    "BackendAI signMethod=SHA256, credential={key}:{signature}",
    "BackendAI signMethod=HMAC-SHA256, credential={key}",
    "BackendAI signMethod=HMAC-SHA256, credential=:{signature}",
    "BackendAI signMethod=HMAC-SHA256, credential={key}:",
    "Other signMethod=HMAC-SHA256, credential={key}:{signature}",
    "BackendAI signMethod=HMAC-SHA256; credential={key}:{signature}",
    "BackendAI " + "a=b," * 3000,
]


@pytest.mark.parametrize("text", MALFORMED)
async def test_a_malformed_authorization_is_told_from_a_wrong_one(
    server: Server, anyone: aiohttp.ClientSession, text: str
) -> None:
    right = signed(server, "POST", "/auth")
    key, _, signature = right["Authorization"].partition("credential=")[2].partition(":")
    text = text.format(key=key, signature=signature) if "{" in text else text
    answer = await ask(anyone, "POST", "/auth", headers=changed(right, Authorization=text))
    check_problem(answer, 400, "invalid-auth-params")


async def test_a_version_header_is_needed_by_signatures(
    server: Server, anyone: aiohttp.ClientSession
) -> None:
    headers = changed(signed(server, "POST", "/v7/auth"), X_BackendAI_Version=None)
    answer = await ask(anyone, "POST", "/v7/auth", headers=headers)
    check_problem(answer, 400, "invalid-auth-params")


@pytest.mark.parametrize(
    "version", ["", "v7", "7.20230615", "v1.20230615", "v10.20230615", "v7.2023", "v7.20230615x"]
)
async def test_an_unsupported_version_is_refused_first_of_all(
    server: Server, anyone: aiohttp.ClientSession, version: str
) -> None:
    for name in ("X-BackendAI-Version", "X-Sorna-Version"):
        for path in ("/", "/auth", "/nothing", "/v8"):
            answer = await ask(anyone, "PUT", path, headers={name: version})
            check_problem(answer, 400, "generic-bad-request", msg="Unsupported API version.")


@pytest.mark.parametrize("key", ["AKNOTHING", "x", "\xff\xfe", "x" * 2000, "a b", "%s", "'--"])
async def test_an_unknown_key_is_told(
    server: Server, anyone: aiohttp.ClientSession, key: str
) -> None:
    text = f"BackendAI signMethod=HMAC-SHA256, credential={key}:{'0' * 64}"
    headers = changed(signed(server, "POST", "/auth"), Authorization=text)
    answer = await ask(anyone, "POST", "/auth", headers=headers)
    check_problem(answer, 401, "auth-failed", msg="Access key not found")


@pytest.mark.parametrize("token", ["x", "rt_" + "x" * 40, "rt_" + "\xff" * 40, "a b"])
async def test_an_unknown_token_is_told(anyone: aiohttp.ClientSession, token: str) -> None:
    answer = await ask(anyone, "POST", "/auth", headers={"Authorization": f"Bearer {token}"})
    check_problem(answer, 401, "auth-failed", msg="Access key not found")


async def test_an_overlong_token_is_malformed(anyone: aiohttp.ClientSession) -> None:
    answer = await ask(anyone, "POST", "/auth", headers={"Authorization": "Bearer " + "x" * 257})
    check_problem(answer, 400, "invalid-auth-params")


@pytest.mark.parametrize("signature", ["0" * 64, "x", "\xff", "0" * 3000])
async def test_a_wrong_signature_is_told(
    server: Server, anyone: aiohttp.ClientSession, signature: str
) -> None:
    text = f"BackendAI signMethod=HMAC-SHA256, credential={server.access_key}:{signature}"
    headers = changed(signed(server, "POST", "/auth"), Authorization=text)
    answer = await ask(anyone, "POST", "/auth", headers=headers)
    check_problem(answer, 401, "auth-failed", msg="Signature mismatch")


async def test_a_signature_covers_method_target_date_and_version(
    server: Server, anyone: aiohttp.ClientSession
) -> None:
    right = signed(server, "POST", "/auth")
    assert (await say(anyone, right))[0] == 200  # control
    later = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)).isoformat()
    for method, path, headers in (
        ("GET", "/auth", right),
        ("POST", "/auth?echo=1", right),
        ("POST", "/auth/", right),
        ("POST", "/auth", changed(right, Date=later)),
        ("POST", "/auth", changed(right, X_BackendAI_Version="v6.20230315")),
        ("POST", "/auth", changed(right, Host="elsewhere:80")),
    ):
        answer = await ask(anyone, method, path, headers=headers)
        check_problem(answer, 401, "auth-failed", msg="Signature mismatch")


async def test_the_checks_come_in_the_order_of_the_specification(
    server: Server, anyone: aiohttp.ClientSession
) -> None:
    """Everything is wrong at first; each step mends the fault that was told."""
    headers = {"X-BackendAI-Version": "v99.1", "Authorization": "nonsense"}
    body = {"data": b"{"}

    async def fails(method: str, path: str, status: int, kind: str, msg: str | None = None) -> None:
        answer = await ask(anyone, method, path, headers=headers, **body)
        thing = "session" if kind == "object-not-found" else ""
        check_problem(answer, status, kind, msg=msg, thing=thing)

    await fails("PUT", "/nothing", 400, "generic-bad-request", "Unsupported API version.")
    headers["X-BackendAI-Version"] = "v7.20230615"
    await fails("PUT", "/nothing", 404, "url-not-found")
    await fails("PUT", "/session/nothing-there", 405, "method-not-allowed")
    sync = "Date/time sync error"
    await fails("POST", "/session/nothing-there", 400, "invalid-auth-params", sync)
    del headers["Authorization"]
    await fails("POST", "/session/nothing-there", 400, "invalid-auth-params", sync)
    headers["Date"] = dt.datetime.now(dt.UTC).isoformat()
    missing = "Unauthorized access"
    await fails("POST", "/session/nothing-there", 401, "auth-failed", missing)
    headers["Authorization"] = "nonsense"
    await fails("POST", "/session/nothing-there", 400, "invalid-auth-params")
    headers["Authorization"] = "BackendAI signMethod=HMAC-SHA256, credential=AKNOTHING:00"
    unknown = "Access key not found"
    await fails("POST", "/session/nothing-there", 401, "auth-failed", unknown)
    headers["Authorization"] = (
        f"BackendAI signMethod=HMAC-SHA256, credential={server.access_key}:00"
    )
    await fails("POST", "/session/nothing-there", 401, "auth-failed", "Signature mismatch")
    headers = signed(server, "POST", "/session/nothing-there")
    await fails("POST", "/session/nothing-there", 400, "invalid-api-params", "Malformed body")
    body["data"] = b"{}"
    await fails(
        "POST", "/session/nothing-there", 400, "invalid-api-params", "mode is missing or empty!"
    )
    body["data"] = b'{"mode": "batch"}'
    await fails("POST", "/session/nothing-there", 404, "object-not-found")


# --- keys that change -------------------------------------------------------------------------


async def status_of(client: aiohttp.ClientSession, token: str) -> int:
    return (await ask(client, "GET", "/auth", headers={"Authorization": f"Bearer {token}"})).status


@pytest.mark.slow
async def test_a_key_made_beside_the_server_works_at_once_and_until_it_is_disabled(
    server: Server, anyone: aiohttp.ClientSession
) -> None:
    key = await asyncio.to_thread(server.new_key)
    token = key["token"]
    assert await status_of(anyone, token) == 200
    for verb, status in (("disable", 401), ("enable", 200), ("remove", 401)):
        await asyncio.to_thread(
            retort, "keys", verb, key["accessKey"], "--state", str(server.state)
        )
        async with asyncio.timeout(KEYS_SETTLE_S):
            while await status_of(anyone, token) != status:  # noqa: ASYNC110 it tells no one
                await asyncio.sleep(0.1)
    answer = await ask(anyone, "GET", "/auth", headers={"Authorization": f"Bearer {token}"})
    check_problem(answer, 401, "auth-failed", msg="Access key not found")


@pytest.mark.slow
async def test_a_key_over_its_limit_is_told_and_others_are_not(
    server: Server, anyone: aiohttp.ClientSession
) -> None:
    key = await asyncio.to_thread(key_of_policy, server, RETORT_KEYS_RATE_LIMIT="5")
    headers = {"Authorization": f"Bearer {key['token']}"}
    for remaining in (4, 3, 2, 1, 0):
        answer = await ask(anyone, "GET", "/auth", headers=headers)
        assert answer.status == 200
        check_rate_headers(answer, limit=5)
        assert answer.headers["X-RateLimit-Remaining"] == str(remaining)
    for path in ("/auth", "/session/nothing-there"):
        answer = await ask(anyone, "GET", path, headers=headers)
        check_problem(answer, 429, "rate-limit-exceeded")
        check_rate_headers(answer, limit=5)
        assert answer.headers["X-RateLimit-Remaining"] == "0"
    assert await status_of(anyone, server.token) == 200
    assert (await ask(anyone, "GET", "/", headers=headers)).status == 200  # open to all


@pytest.mark.slow
async def test_a_key_over_its_sessions_is_told(
    server: Server, anyone: aiohttp.ClientSession
) -> None:
    key = await asyncio.to_thread(key_of_policy, server, RETORT_KEYS_MAX_SESSIONS="1")
    headers = {"Authorization": f"Bearer {key['token']}"}
    made = await ask(anyone, "POST", "/session", json={"image": "python"}, headers=headers)
    assert made.status == 201
    answer = await ask(anyone, "POST", "/session", json={"image": "python"}, headers=headers)
    check_problem(answer, 412, "quota-exceeded")
    name = json.loads(made.body)["sessionName"]
    assert (await ask(anyone, "DELETE", f"/session/{name}", headers=headers)).status == 200
