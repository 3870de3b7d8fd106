import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.core.run import Answer, Mode, OutputFile, RunRequest, Status
from retort.errors import InvalidRequest, MalformedBody, RequestError
from retort.wire.params import Params
from retort.wire.runs import (
    MAX_MESSAGE_BYTES,
    MAX_RUN_ID,
    CompleteRequest,
    execute_answer,
    parse_complete,
    parse_execute,
    parse_stream_start,
    stream_messages,
)


def url(name):
    return f"http://h/{name}"


def messages_of(status, exit_code=None, console=(), files=(), **others):
    answer = Answer("r1", status, exit_code, tuple(console), tuple(files))
    return stream_messages(answer, file_url=url, **others)


def execute(**keys):
    return parse_execute(Params(keys))


def refused(message):
    return pytest.raises(InvalidRequest, match=f"^{message}$")


def test_a_batch_of_the_reference_client():
    options = {"clean": None, "build": "*", "buildLog": False, "exec": "./main"}
    assert execute(mode="batch", code="", runId="r1", options=options) == RunRequest(
        Mode.BATCH, "", "r1", True, None, "*", "./main"
    )


def test_the_clean_key_counts_also_when_it_is_null():
    for options, has_clean in [({"clean": None}, True), ({"clean": ""}, True), ({}, False)]:
        assert execute(mode="batch", options=options).has_clean is has_clean
    assert execute(mode="batch", options=None) == RunRequest(Mode.BATCH)
    assert execute(mode="batch") == RunRequest(Mode.BATCH)


def test_type_stands_in_for_a_missing_mode_only():
    assert execute(type="batch").mode is Mode.BATCH
    assert execute(mode="query", type="batch").mode is Mode.QUERY
    with refused("mode is missing or empty!"):
        execute(mode="", type="batch")


def test_a_missing_mode_has_its_message():
    for keys in ({}, {"mode": ""}, {"mode": None}):
        with refused("mode is missing or empty!"):
            execute(**keys)


@pytest.mark.parametrize("mode", ["BATCH", "run", " batch", 7, ["batch"], {"a": 1}, True])
def test_an_unknown_mode_has_its_message(mode):
    with refused("mode has an invalid value."):
        execute(mode=mode)


@pytest.mark.parametrize("mode", ["continue", "input"])
def test_continuation_needs_a_run_id(mode):
    with refused("continuation requires explicit run ID"):
        execute(mode=mode, code="x")
    with refused("continuation requires explicit run ID"):
        execute(mode=mode, runId=None)
    request = execute(mode=mode, code="x", runId="r")
    assert request == RunRequest(Mode(mode), "x", "r")


def test_run_ids_are_any_strings_within_bounds():
    assert execute(mode="batch").run_id is None
    for run_id in ("r", "ä \n", "x" * MAX_RUN_ID):
        assert execute(mode="batch", runId=run_id).run_id == run_id
    for run_id in ("", "x" * (MAX_RUN_ID + 1), 5, ["r"]):
        with pytest.raises(InvalidRequest, match=r"^runId: "):
            execute(mode="batch", runId=run_id)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("options", "x"),
        ("options", []),
        ("options.clean", {"clean": 1}),
        ("options.build", {"build": ["make"]}),
        ("options.exec", {"exec": True}),
        ("options.exec", {"exec": "a\0b"}),
        ("options.buildLog", {"buildLog": "yes"}),
        ("options.buildLog", {"buildLog": 0}),
    ],
)
def test_options_of_other_types_are_refused(field, options):
    with pytest.raises(InvalidRequest, match=rf"^{field}: "):
        execute(mode="batch", options=options)


def test_other_options_are_ignored():
    options = {"unheard": [], "exec": "x"}
    assert execute(mode="batch", options=options) == RunRequest(Mode.BATCH, exec="x")
    query = execute(mode="query", code="1", options={"exec": 5, "clean": None})
    assert query == RunRequest(Mode.QUERY, "1")


def test_code_must_be_text():
    assert execute(mode="query", code=None).code == ""
    with pytest.raises(InvalidRequest, match=r"^code: "):
        execute(mode="query", code=5)


def test_completion_has_a_cursor_and_makes_no_run():
    raw = {"code": "pri", "options": {"row": 1, "col": 3, "line": "pri", "post": ""}}
    assert parse_complete(Params(raw)) == CompleteRequest("pri", 1, 3, "pri", "")
    assert parse_complete(Params()) == CompleteRequest()
    assert execute(mode="complete", **raw) is None
    with pytest.raises(InvalidRequest, match=r"^options\.row: "):
        execute(mode="complete", options={"row": "x"})


def test_a_stream_starts_a_batch_or_a_query():
    text = '{"code": "", "mode": "batch", "options": {"clean": "*", "exec": "*"}}'
    expected = RunRequest(Mode.BATCH, "", None, True, "*", None, "*")
    assert parse_stream_start(text) == parse_stream_start(text.encode()) == expected
    query = parse_stream_start('{"code": "1", "mode": "query", "options": {}}')
    assert query == RunRequest(Mode.QUERY, "1")
    for mode in ("continue", "input", "complete", "other"):
        with refused("mode has an invalid value."):
            parse_stream_start(json.dumps({"mode": mode}))
    with refused("mode is missing or empty!"):
        parse_stream_start("")
    for text in ("hello", "[]", "1"):
        with pytest.raises(MalformedBody):
            parse_stream_start(text)


@given(st.text())
def test_any_stream_start_is_read_or_refused(text):
    for message in (text, json.dumps({"mode": text}), json.dumps({"mode": "query", "code": text})):
        try:
            request = parse_stream_start(message)
        except RequestError:
            continue
        assert request.code == text


@pytest.mark.parametrize("status", Status)
def test_options_are_an_object_only_while_waiting_for_input(status):
    result = json.loads(execute_answer(Answer("r", status), file_url=url))["result"]
    expected = {"is_password": False} if status is Status.WAITING_INPUT else None
    assert (result["status"], result["options"]) == (status.value, expected)
    assert (result["console"], result["files"]) == ([], [])


def joined(messages):
    """Put the texts of decoded messages together, by stream."""
    texts = {}
    for message in messages:
        for kind, data in message["console"]:
            texts[kind] = texts.get(kind, "") + data
    return texts


def test_small_answers_are_one_message_without_run_id():
    [message] = messages_of(Status.FINISHED, 0, [("stdout", "hi")])
    assert json.loads(message) == {
        "status": "finished",
        "exitCode": 0,
        "console": [["stdout", "hi"]],
        "options": None,
        "files": [],
    }


def test_two_full_streams_of_escapes_are_split_below_the_limit():
    console = [("stdout", "\x01" * 524_288), ("stderr", "\U0001f600" * 524_288)]
    files = [OutputFile("a")]
    messages = messages_of(Status.BUILD_FINISHED, 2, console, files)
    assert len(messages) > 1
    assert all(len(message) <= MAX_MESSAGE_BYTES for message in messages)
    decoded = [json.loads(message) for message in messages]
    assert [message["status"] for message in decoded[:-1]] == ["continued"] * (len(decoded) - 1)
    assert [message["exitCode"] for message in decoded[:-1]] == [None] * (len(decoded) - 1)
    assert [message["files"] for message in decoded[:-1]] == [[]] * (len(decoded) - 1)
    assert (decoded[-1]["status"], decoded[-1]["exitCode"]) == ("build-finished", 2)
    assert decoded[-1]["files"] == [{"name": "a", "url": "http://h/a"}]
    assert joined(decoded) == dict(console)
    # within a message the pieces of a text are one item again
    assert all(len(message["console"]) <= 2 for message in decoded)


def test_a_message_of_bmp_text_is_not_split():
    console = [("stdout", "€" * 524_288), ("stderr", "x" * 524_288)]
    assert len(messages_of(Status.CONTINUED, None, console)) == 1


def test_a_file_name_that_is_not_utf8_is_shown_with_replacement_characters():
    name = b"a\xff".decode("utf-8", "surrogateescape")
    answer = Answer("r", Status.FINISHED, 0, (), (OutputFile(name),))
    [file] = json.loads(execute_answer(answer, file_url=lambda _: "u"))["result"]["files"]
    assert file == {"name": "a\ufffd", "url": "u"}


@given(
    st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.text(min_size=1))),
    st.integers(1, 400),
)
def test_splitting_keeps_all_text_and_the_one_final_status(console, limit):
    decoded = [
        json.loads(message) for message in messages_of(Status.FINISHED, 1, console, limit=limit)
    ]
    expected = {}
    for kind, text in console:
        expected[kind] = expected.get(kind, "") + text
    assert joined(decoded) == expected
    assert [message["status"] for message in decoded].count("finished") == 1
    assert decoded[-1]["status"] == "finished"
