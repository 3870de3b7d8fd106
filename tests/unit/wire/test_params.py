import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.errors import InvalidRequest, MalformedBody
from retort.wire.params import Params


def refused(name, problem):
    return pytest.raises(InvalidRequest, match=f"^{name}: {problem}")


def test_body_and_query_are_merged_body_first():
    params = Params.merge(b'{"a": "body"}', {"a": ["query"], "b": ["query"]})
    assert (params.string("a"), params.string("b")) == ("body", "query")
    assert repr(params) == "Params(['a', 'b'])"


def test_a_malformed_body_is_refused_and_an_empty_one_is_not():
    assert Params.merge(b"", {}).value("a") is None
    with pytest.raises(MalformedBody):
        Params.merge(b"[]", {})


def test_null_counts_as_missing_but_the_key_is_there():
    params = Params({"a": None, "alias": "x"}, {"a": ["query"]})
    assert params.has("a")
    assert not params.has("b")
    assert params.string("a") == "query"
    assert params.string("a", "alias") == "x"
    assert Params({"a": None}).string("a") is None


def test_the_first_name_wins_and_errors_bear_it():
    params = Params({"session_name": "two", "name": "one", "clientSessionToken": 3})
    assert params.string("name", "session_name") == "one"
    assert params.string("missing", "session_name") == "two"
    with refused("name2", "must be a string"):
        params.string("name2", "clientSessionToken")


def test_required_strings_must_have_characters():
    assert Params({"a": "x"}).required("a") == "x"
    for params in (Params(), Params({"a": ""}), Params({"a": None})):
        with refused("a", "is required") as caught:
            params.required("a")
        assert caught.value.data == {"a": "is required"}


@pytest.mark.parametrize("value", [1, True, [], {}, 1.5])
def test_other_types_are_no_strings(value):
    with refused("a", "must be a string"):
        Params({"a": value}).string("a")


def test_a_repeated_query_key_is_no_string():
    with refused("a", "must be a string"):
        Params(query={"a": ["1", "2"]}).string("a")


@pytest.mark.parametrize("value", [True, 1, "true", "YES", " 1", "Y", "On"])
def test_true_has_many_spellings(value):
    assert Params({"a": value}).boolean("a", default=False) is True


@pytest.mark.parametrize("value", [False, 0, "False", "no", "0", "n", "OFF"])
def test_false_has_many_spellings(value):
    assert Params({"a": value}).boolean("a", default=True) is False


@pytest.mark.parametrize("value", [2, "", "maybe", 1.0, [], {}])
def test_other_values_are_no_booleans(value):
    with refused("a", "must be a boolean"):
        Params({"a": value}).boolean("a")


def test_missing_booleans_have_their_default():
    assert [Params().boolean("a", default=value) for value in (True, False)] == [True, False]


@pytest.mark.parametrize(("value", "number"), [(3, 3), (3.0, 3), ("3", 3), (" 3 ", 3), (0, 0)])
def test_integers_are_read_from_numbers_and_text(value, number):
    assert Params({"a": value}).integer("a", default=7, maximum=3) == number


@pytest.mark.parametrize("value", [True, 1.5, "x", "", "1.0", "٣", "9" * 50, "--1", "1_0", []])
def test_other_values_are_no_integers(value):
    with refused("a", "must be an integer"):
        Params({"a": value}).integer("a", default=0)


def test_integers_have_bounds_and_defaults():
    assert Params().integer("a", default=7, maximum=3) == 7
    assert Params().optional_integer("a") is None
    assert Params({"a": "-2"}).integer("a", default=0, minimum=-2) == -2
    for value in (-1, 4):
        with refused("a", "must be from 0 to 3"):
            Params({"a": value}).integer("a", default=0, maximum=3)


def test_string_lists_come_from_the_body_or_from_query_keys():
    assert Params({"a": ["x", "y"]}, {"a": ["z"]}).string_list("a") == ["x", "y"]
    assert Params(query={"a": ["x"]}).string_list("a") == ["x"]
    assert Params(query={"a": ["x", "y"]}).string_list("b", "a") == ["x", "y"]
    assert Params({"a": []}).string_list("a") == []
    assert Params().string_list("a") is None


@pytest.mark.parametrize("value", ["x", 1, {}, [1], ["x", None], [["x"]]])
def test_other_values_are_no_string_lists(value):
    with refused("a", "must be a list of strings"):
        Params({"a": value}).string_list("a")


def test_objects_and_objects_of_strings():
    params = Params({"o": {"x": 1}, "s": {"x": "1"}, "l": []})
    assert params.mapping("o") == {"x": 1}
    assert params.string_map("s") == {"x": "1"}
    assert (params.mapping("none"), params.string_map("none")) == (None, {})
    with refused("l", "must be an object"):
        params.mapping("l")
    with refused("o", "must be an object of strings"):
        params.string_map("o")
    with refused("q", "must be an object"):
        Params(query={"q": ["{}"]}).mapping("q")


def test_errors_within_an_object_bear_its_name():
    inner = Params({"config": {"mounts": 3}}).inner("config")
    with refused("config.mounts", "must be a list of strings"):
        inner.string_list("mounts")
    assert Params().inner("config").value("mounts") is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(VALUES, st.none() | st.lists(st.text(), min_size=1, max_size=3))
def test_any_value_is_read_as_its_type_or_refused_by_name(value, words):
    params = Params({"a": value}, {"a": words} if words else {})
    named = []
    for getter, kind in [
        (params.string, str | None),
        (params.required, str),
        (params.boolean, bool),
        (params.optional_integer, int | None),
        (params.string_list, list | None),
        (params.mapping, dict | None),
        (params.string_map, dict),
    ]:
        try:
            read = getter("a")
        except InvalidRequest as exc:
            named.append(list(exc.data))
            continue
        assert isinstance(read, kind)
    assert all(names == ["a"] for names in named)
