from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.errors import (
    AccessKeyUnknown,
    ClockSkew,
    InvalidAuth,
    NotAuthenticated,
    RequestError,
    SignatureMismatch,
    UnsupportedVersion,
)
from retort.wire import signature
from retort.wire.signature import (
    Credential,
    bearer_token,
    media_type,
    needs_body,
    parse_authorization,
    read_signature,
    read_version,
    sign,
    verify,
)
from retort.wire.versions import ApiVersion

KEY, SECRET = "RETORTKEY00000000001", "retort-secret-for-tests"
DATE = "2024-03-05T01:02:03.456789+00:00"
NOW = datetime.fromisoformat(DATE)
HOST = "127.0.0.1:8090"
OLD_BODY = b'{"mode": "continue", "code": "", "runId": "r1"}'

# The test vectors of the specification, 3.2, made with the real clients.
VECTORS = [
    (
        "GET",
        "/session/demo-1?owner_access_key=X",
        "text/plain",
        "v7.20230615",
        b"",
        "1be69817b6ebc478b751321176ece9aff3c245bef6b000e1efc2a5fff72aac8b",
    ),
    (
        "POST",
        "/session/demo-1/upload",
        "multipart/form-data; boundary=6c0e",
        "v7.20230615",
        b"any",
        "823b8a9ff157e7be303b1d7ccfc78ca05f9be1f097b2f4bfb56dcf5f3f80a1d5",
    ),
    (
        "GET",
        "/stream/session/demo-1/execute",
        None,
        "v7.20230615",
        b"",
        "9dc964ad2e7fbb239867fd5d9e18e7742d9b710b3fa2ff7dbaf66734a2fa94c5",
    ),
    (
        "POST",
        "/v2/kernel/demo-1",
        "application/json",
        "v2.20170315",
        OLD_BODY,
        "96023d1620979065e3f7dd8d1b8848e2be75dff91e432ea2f5ce9ea727553f71",
    ),
]


class Headers(dict):
    """A mapping that finds names in any case."""

    def __init__(self, pairs):
        super().__init__({name.lower(): value for name, value in pairs.items()})

    def get(self, name, default=None):
        return super().get(name.lower(), default)


def headers(signed, content_type="application/json", version="v7.20230615", **others):
    pairs = {
        "Host": HOST,
        "Date": DATE,
        "X-BackendAI-Version": version,
        "Content-Type": content_type,
        "Authorization": f"BackendAI signMethod=HMAC-SHA256, credential={KEY}:{signed}",
    } | {name.replace("_", "-"): value for name, value in others.items()}
    return Headers({name: value for name, value in pairs.items() if value is not None})


def read(method="GET", target="/", signed="00", now=NOW, **others):
    return read_signature(method, target, headers(signed, **others), now)


@pytest.mark.parametrize(("method", "target", "content_type", "version", "body", "signed"), VECTORS)
def test_the_vectors_of_the_specification_are_accepted(
    method, target, content_type, version, body, signed
):
    request = read(method, target, signed, content_type=content_type, version=version)
    verify(request, SECRET, body)
    assert request.credential == Credential(KEY, signed, "sha256")


@pytest.mark.parametrize(("method", "target", "content_type", "version", "body", "signed"), VECTORS)
def test_one_change_anywhere_is_a_mismatch(method, target, content_type, version, body, signed):
    def refused(body=body, secret=SECRET, **changes):
        parts = {"method": method, "target": target, "signed": signed, "version": version}
        request = read(**{**parts, "content_type": content_type, **changes})
        with pytest.raises(SignatureMismatch, match=r"^Signature mismatch$"):
            verify(request, secret, body)

    refused(secret=SECRET + "x")
    refused(method="PATCH")
    refused(target=target + "%20")
    refused(signed=signed[:-1])
    refused(signed=signed.upper())
    refused(signed="é" + signed)
    refused(content_type="text/html")
    refused(version="v7.20230614")
    refused(Host=HOST + "0")
    refused(Host="h" * 5000)
    refused(Date="2024-03-05T01:02:03.456788+00:00")
    if version.startswith("v2"):
        refused(body=body + b" ")
        refused(body=None)


def test_the_body_counts_before_v4_20181215_only():
    for version, signs_body in [
        ("v2.20170315", True),
        ("v4.20181214", True),
        ("v4.20181215", False),
        ("v7.20230615", False),
    ]:
        assert needs_body(ApiVersion.parse(version), "application/json") is signs_body
    assert not needs_body(ApiVersion.parse("v2.20170315"), "Multipart/form-data; boundary=x")


def test_old_versions_may_be_signed_with_the_empty_hash_too():
    version = ApiVersion.parse("v3.20170615")
    made = signed_headers(version=version)
    request = read_signature("POST", "/a?b=%2F", made, NOW)
    verify(request, SECRET, b"some body")
    verify(request, SECRET, None)


def signed_headers(**others):
    made = sign(
        "POST",
        "/a?b=%2F",
        host=HOST,
        content_type="application/json; charset=utf-8",
        when=NOW,
        access_key=KEY,
        secret=SECRET,
        **others,
    )
    return Headers(made | {"Host": HOST, "Content-Type": "application/json"})


def test_sign_makes_what_verify_accepts():
    request = read_signature("POST", "/a?b=%2F", signed_headers(), NOW)
    verify(request, SECRET)
    with pytest.raises(SignatureMismatch):
        verify(request, SECRET[:-1])


def test_sign_makes_the_vectors():
    method, target, content_type, version, _, signed = VECTORS[0]
    made = sign(
        method,
        target,
        host=HOST,
        content_type=content_type,
        when=NOW,
        access_key=KEY,
        secret=SECRET,
        version=ApiVersion.parse(version),
    )
    assert made == {
        "Date": DATE,
        "X-BackendAI-Version": version,
        "Authorization": f"BackendAI signMethod=HMAC-SHA256, credential={KEY}:{signed}",
    }


def test_the_day_is_taken_in_the_zone_that_is_written():
    request = read(Date="2024-03-05T00:30:00+02:00", now=datetime(2024, 3, 4, 22, 30, tzinfo=UTC))
    assert request.day == "20240305"


def test_sorna_headers_are_understood():
    version = read_version(Headers({"X-Sorna-Version": "v2.20170315"}))
    assert (version.name, str(version.version)) == ("x-sorna-version", "v2.20170315")
    request = read_signature(
        "GET",
        "/",
        Headers(
            {
                "Host": HOST,
                "X-Sorna-Date": "20240305T010203Z",
                "X-Sorna-Version": "v2.20170315",
                "Authorization": f"Sorna signMethod=HMAC-SHA256,credential={KEY}:ab",
            }
        ),
        NOW,
    )
    assert request.date == "20240305T010203Z"
    text = signature.string_to_sign(request, "BODY").decode()
    assert text == (
        f"GET\n/\n20240305T010203Z\nhost:{HOST}\ncontent-type:application/octet-stream\n"
        "x-sorna-version:v2.20170315\nBODY"
    )


def test_date_wins_over_the_other_date_headers():
    assert read(X_BackendAI_Date="20200101T000000Z").date == DATE
    assert read(Date=None, X_BackendAI_Date=DATE, X_Sorna_Date="x").date == DATE
    with pytest.raises(ClockSkew):
        read(Date="gibberish", X_BackendAI_Date=DATE)


@pytest.mark.parametrize("sign_of_drift", [1, -1])
def test_the_clock_must_be_strictly_within_15_minutes(sign_of_drift):
    drift = timedelta(minutes=15) * sign_of_drift
    assert read(now=NOW + drift - timedelta(microseconds=1) * sign_of_drift)
    with pytest.raises(ClockSkew, match=r"^Date/time sync error$"):
        read(now=NOW + drift)


def test_checks_come_in_the_order_of_the_specification():
    wrong = {"Date": "x", "Authorization": None, "version": "v1.1"}
    with pytest.raises(UnsupportedVersion):
        read_version(headers("00", **wrong))
    wrong["version"] = None
    assert read_version(headers("00", **wrong)) is None
    with pytest.raises(ClockSkew):
        read(**wrong)
    wrong["Date"] = DATE
    with pytest.raises(NotAuthenticated, match=r"^Unauthorized access$"):
        read(**wrong)
    wrong["Authorization"] = "Basic x"
    with pytest.raises(InvalidAuth):
        read(**wrong)
    del wrong["Authorization"]
    with pytest.raises(InvalidAuth):
        read(**wrong)
    del wrong["version"]
    with pytest.raises(AccessKeyUnknown, match=r"^Access key not found$"):
        verify(read(**wrong), None)
    with pytest.raises(SignatureMismatch):
        verify(read(**wrong), SECRET)


def test_a_missing_date_is_clock_skew():
    with pytest.raises(ClockSkew):
        read(Date=None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "BackendAI",
        "BackendAI ",
        "Basic signMethod=HMAC-SHA256, credential=a:b",
        "Bearer signMethod=HMAC-SHA256, credential=a:b",
        "BackendAI credential=a:b",
        "BackendAI signMethod=HMAC-SHA256",
        "BackendAI signMethod=HMAC-SHA256, credential=ab",
        "BackendAI signMethod=HMAC-SHA256, credential=:b",
        "BackendAI signMethod=HMAC-SHA256, credential=a:",
        "BackendAI signMethod=SHA256, credential=a:b",
        "BackendAI signMethod=HMAC-MD5, credential=a:b",
        "BackendAI signMethod=HMAC-SHA512, credential=a:b",
        "BackendAI signMethod=HMAC-, credential=a:b",
    ],
)
def test_malformed_authorization_is_refused(text):
    with pytest.raises(InvalidAuth):
        parse_authorization(text)


def test_authorization_is_read_leniently_in_case_and_blanks():
    assert parse_authorization(
        " backendai  signMethod = hmac-sha256 ,credential= a:b:c , x"
    ) == Credential("a", "b:c")


def test_other_algorithms_may_be_allowed():
    text = "BackendAI signMethod=HMAC-SHA512, credential=a:b"
    allowed = frozenset({"sha512", "md5"})
    assert parse_authorization(text, algorithms=allowed).algorithm == "sha512"
    with pytest.raises(InvalidAuth):
        parse_authorization(text.replace("SHA512", "MD5"), algorithms=allowed)


def test_bearer_tokens_are_taken_out():
    assert bearer_token("Bearer  abc ") == "abc"
    assert [bearer_token(text) for text in (None, "", "Bearer", "BackendAI x")] == [None] * 4


@pytest.mark.parametrize(
    ("header", "signed"),
    [
        (None, "application/octet-stream"),
        ("", "application/octet-stream"),
        ("Text/Plain; charset=UTF-8", "text/plain"),
    ],
)
def test_the_media_type_is_signed_without_parameters(header, signed):
    assert media_type(header) == signed


def test_signing_keys_are_cached_within_bounds():
    signature.signing_key.cache_clear()
    request = read(signed="00")
    for _ in range(3):
        with pytest.raises(SignatureMismatch):
            verify(request, SECRET)
    info = signature.signing_key.cache_info()
    assert (info.hits, info.misses) == (2, 1)
    assert info.maxsize is not None
    with pytest.raises(SignatureMismatch):
        verify(read(Host="h" * 1000), SECRET)
    assert signature.signing_key.cache_info().currsize == 1


@given(st.text(st.characters()), st.text(st.characters()), st.text(st.characters()))
def test_any_headers_are_read_or_refused(authorization, date, host):
    for text in (authorization, f"BackendAI {authorization}", f"Sorna credential={authorization}"):
        try:
            request = read(Authorization=text, Host=host, target=date)
        except RequestError:
            continue
        with pytest.raises(SignatureMismatch):
            verify(request, SECRET)
    with pytest.raises(SignatureMismatch):
        verify(read(Host=host, target=date, signed="0" + host), SECRET)
    try:
        read(Date=date)
    except RequestError:
        return
    assert date
