from __future__ import annotations

import pytest

from retort.errors import InvalidRequest
from retort.wire.repeats import CLIENT_TOKEN, client_token, derived_id, request_digest


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_a_token_counts_where_something_changes(method):
    assert client_token(method, {CLIENT_TOKEN: "abc"}) == "abc"
    assert client_token(method, {}) is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_token_of_a_reading_call_is_ignored(method):
    assert client_token(method, {CLIENT_TOKEN: "abc"}) is None


@pytest.mark.parametrize("token", ["", " ", "a b", "x" * 129, "\x7f", "é", "a\n"])
def test_a_token_that_is_none_is_refused(token):
    with pytest.raises(InvalidRequest):
        client_token("POST", {CLIENT_TOKEN: token})


def test_the_longest_token_is_taken():
    assert client_token("POST", {CLIENT_TOKEN: "x" * 128}) == "x" * 128


def test_requests_that_differ_have_digests_that_differ():
    asked = [
        ("POST", "/a", b""),
        ("POST", "/a", None),
        ("POST", "/a", b"1"),
        ("POST", "/a1", b""),
        ("DELETE", "/a", b""),
        ("POST", "/\udcff", b""),
    ]
    assert len({request_digest(*request) for request in asked}) == len(asked)


def test_what_a_token_names_is_its_owners_and_of_its_kind():
    assert derived_id("A", "t", "run") == derived_id("A", "t", "run")
    names = {
        derived_id("A", "t", "run"),
        derived_id("A", "t", "session"),
        derived_id("B", "t", "run"),
    }
    assert len(names) == 3
