import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.errors import MalformedBody
from retort.wire.bodies import MAX_DEPTH, decode_object


@pytest.mark.parametrize("body", [None, b"", "", b" \r\n\t"])
def test_an_empty_body_is_an_empty_object(body):
    assert decode_object(body) == {}


def test_objects_are_decoded():
    text = '{"mode": "batch", "options": {"exec": "echo a:b", "n": [1, -2.5, null, "\\u00e4"]}}'
    assert decode_object(text.encode()) == decode_object(text) == json.loads(text)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"x"',
        b"1",
        b"null",
        b"{} x",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": 9223372036854775808}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\xff"}',
        b'\xff\xfe{"a": 1}',
        b'{"a": "\\ud800"}',
        b'{"a": "\\ud800\\u0041"}',
        b'{"a": "\\udc00 "}',
        b'{"a": 1, "a": 1}',
        b'{"a": {"b" : 1, "b":2}}',
        b'{"x": "a:b", "l": [{"c": 1, "\\u0063": 2}]}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\0",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_other_bodies_are_malformed(body):
    with pytest.raises(MalformedBody, match=r"^Malformed body$"):
        decode_object(body)


def test_depth_is_bounded():
    def nested(depth):
        return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    assert decode_object(nested(MAX_DEPTH))
    with pytest.raises(MalformedBody):
        decode_object(nested(MAX_DEPTH + 1))


@given(st.binary())
def test_any_bytes_are_an_object_or_malformed(body):
    for raw in (body, b'{"a":' + body + b"}", b'{"a": "' + body + b'"}'):
        try:
            document = decode_object(raw)
        except MalformedBody:
            continue
        json.dumps(document, ensure_ascii=False).encode()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), VALUES))
def test_what_json_writes_is_read_alike(document):
    assert decode_object(json.dumps(document).encode()) == document
    assert decode_object(json.dumps(document, indent=1, separators=(" ,", " : "))) == document
