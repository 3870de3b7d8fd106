import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.errors import InvalidRequest, RequestError, RouteNotFound
from retort.wire.targets import Target, effective_method, route_target


@pytest.mark.parametrize(
    ("raw", "path", "generation"),
    [
        ("/", "/", None),
        ("/session", "/session", None),
        ("/session/", "/session", None),
        ("/v2/kernel/", "/session", 2),
        ("/v2/kernel/demo", "/session/demo", 2),
        ("/v4/session/demo/files", "/session/demo/files", 4),
        ("/v7/folders/", "/folders", 7),
        ("/v2/stream/kernel/demo/execute", "/stream/session/demo/execute", 2),
        ("/stream/kernel/demo/pty", "/stream/session/demo/pty", None),
        ("/etcd/resource-slots", "/config/resource-slots", None),
        ("/v5/etcd/vfolder-types/", "/config/vfolder-types", 5),
        ("/v3", "/v3", 3),
        ("/v7/", "/v7", 7),
        ("/session/kernel", "/session/kernel", None),
        ("/session/v9/files", "/session/v9/files", None),
        ("http://host:1/session/a", "/session/a", None),
        ("HTTP://host", "/", None),
    ],
)
def test_aliases_lead_to_canonical_paths(raw, path, generation):
    target = route_target(raw)
    assert (target.path, target.generation) == (path, generation)


@pytest.mark.parametrize("raw", ["/session/create", "/session/_/create", "/v2/kernel/create/"])
def test_create_is_an_alias_for_post_only(raw):
    assert route_target(raw, "POST").segments == ("session",)
    assert route_target(raw, "GET").segments[-1] == "create"


@pytest.mark.parametrize("raw", ["/stream/kernel/_/events", "/v6/stream/session/_/events/"])
def test_the_old_event_path_is_remembered(raw):
    target = route_target(raw + "?sessionId=demo")
    assert target.segments == ("events", "session")
    assert target.is_old_events
    assert not route_target("/events/session").is_old_events


@pytest.mark.parametrize(
    "raw", ["/v1", "/v8", "/v9/session", "/v10/session", "/v07/session", "/v2/v3", "/v2/v3/session"]
)
def test_unknown_generations_are_not_found(raw):
    with pytest.raises(RouteNotFound) as caught:
        route_target(raw)
    assert caught.value.data == raw


def test_an_escaped_slash_stays_within_its_segment():
    assert route_target("/session/a%2Fb%20c/files").segments == ("session", "a/b c", "files")


def test_an_escaped_word_is_the_word():
    assert route_target("/%6bernel/x").segments == ("session", "x")


def test_escapes_are_decoded_once():
    assert route_target("/session/%2541").segments == ("session", "%41")


@pytest.mark.parametrize("name", ["%FF", "%ff", b"\xff".decode("utf-8", "surrogateescape")])
def test_bytes_that_are_not_utf8_become_replacement_characters(name):
    assert route_target(f"/session/{name}").segments == ("session", "\ufffd")


def test_empty_and_dot_segments_are_kept_and_so_match_no_route():
    assert route_target("//session").segments == ("", "session")
    assert route_target("/session//").segments == ("session", "")
    assert route_target("/session/../x").segments == ("session", "..", "x")


def test_the_query_is_decoded_in_order_and_by_key():
    target = route_target("/session/a/download?files=a%2Fb&x=&files=c+d%25&flag")
    assert target.pairs == (("files", "a/b"), ("x", ""), ("files", "c d%"), ("flag", ""))
    assert target.query == {"files": ["a/b", "c d%"], "x": [""], "flag": [""]}


def test_a_query_of_many_fields_is_refused():
    assert len(route_target("/?" + "a&" * 999 + "a").pairs) == 1000
    with pytest.raises(InvalidRequest, match="too many fields"):
        route_target("/?" + "a&" * 1000 + "a")


def test_a_base_path_is_stripped():
    assert route_target("/base/v2/kernel/x", base="/base").path == "/session/x"
    assert route_target("/base", base="/base/").path == "/"
    assert route_target("/a/b/v7", base="/a/b").segments == ("v7",)
    for raw in ("/session/x", "/basement/x", "/"):
        with pytest.raises(RouteNotFound):
            route_target(raw, base="/base")


@pytest.mark.parametrize("raw", ["", "*", "session", "ftp://x/y"])
def test_a_target_without_a_path_is_not_found(raw):
    with pytest.raises(RouteNotFound):
        route_target(raw)


@pytest.mark.parametrize(
    ("method", "override", "effective"),
    [
        ("POST", "PATCH", "PATCH"),
        ("POST", " report ", "GET"),
        ("POST", None, "POST"),
        ("POST", "", "POST"),
        ("POST", "GET /", "POST"),
        ("GET", "DELETE", "GET"),
        ("REPORT", None, "GET"),
    ],
)
def test_method_override_counts_on_post_only(method, override, effective):
    assert effective_method(method, override) == effective


@given(st.text(st.characters()), st.sampled_from(["GET", "POST"]))
def test_any_target_is_routed_or_refused(text, method):
    for raw in (text, "/" + text, "/v2/" + text, "/session?" + text):
        try:
            target = route_target(raw, method)
        except RequestError:
            continue
        assert isinstance(target, Target)
        repr(target.query).encode()
        target.path.encode()  # fit for JSON: no lone surrogates


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_name_escaped_in_full_comes_back(names):
    raw = "/session/" + "/".join(
        "".join(f"%{byte:02x}" for byte in name.encode()) for name in names
    )
    assert route_target(raw).segments == ("session", *names)
