import json

import pytest

from retort import errors
from retort.errors import RetortError
from retort.wire.errors import ROWS, TITLES, TYPE_PREFIX, Operation, problem


def classes(root=RetortError):
    return [root, *(leaf for child in root.__subclasses__() for leaf in classes(child))]


OURS = [cls for cls in classes() if cls.__module__ == errors.__name__]
ARGUMENTS = {
    errors.MethodNotAllowed: ("PUT", ("GET", "POST")),
    errors.SessionExists: ("0b8f2f6e",),
    errors.SandboxFault: ("launch", "/secret/path: EPERM"),
}


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_every_exception_has_its_row_and_a_full_problem(cls):
    assert cls.code in ROWS
    answer = problem(cls(*ARGUMENTS.get(cls, ())), fault_id="f1")
    assert (answer.status, answer.document["type"]) == (
        ROWS[cls.code][0],
        TYPE_PREFIX + ROWS[cls.code][1],
    )
    assert answer.document["title"]
    assert "{" not in answer.document["title"]
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert json.loads(answer.body) == answer.document


def test_the_table_has_no_rows_without_exceptions_and_no_unused_types():
    assert len(OURS) > 30
    assert set(ROWS) == {cls.code for cls in OURS}
    used = {kind for _, kind in ROWS.values()}
    of_sandbox = {f"kernel-{operation.value}-failed" for operation in Operation}
    assert set(TITLES) == used | of_sandbox


@pytest.mark.parametrize(
    ("cls", "title"),
    [
        (errors.SessionNotFound, "No such session."),
        (errors.RunNotFound, "No such run."),
        (errors.ImageNotFound, "No such environment image."),
        (errors.PathNotFound, "No such file or directory."),
    ],
)
def test_titles_name_the_missing_thing(cls, title):
    assert problem(cls()).document["title"] == title


def test_an_invalid_field_is_in_msg_and_data():
    answer = problem(errors.InvalidRequest.field("name", "is required"))
    assert (answer.status, answer.document) == (
        400,
        {
            "type": "https://api.backend.ai/probs/invalid-api-params",
            "title": "Missing or invalid API parameters.",
            "msg": "name: is required",
            "data": {"name": "is required"},
        },
    )


def test_an_existing_session_is_named():
    answer = problem(errors.SessionExists("0b8f"))
    assert answer.document["type"].endswith("/session-already-exists")
    assert answer.document["data"] == {"existingSessionId": "0b8f"}


def test_method_not_allowed_names_the_allowed_ones():
    answer = problem(errors.MethodNotAllowed("PUT", ("GET", "POST")))
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, POST"


@pytest.mark.parametrize(
    "exc",
    [
        errors.Fault("disk /dev/secret broke", data={"password": "secret"}),
        RuntimeError("secret"),
        RetortError("secret"),
        errors.SandboxFault("launch", "secret"),
    ],
)
def test_a_fault_tells_the_caller_only_its_id(exc):
    answer = problem(exc, fault_id="f00d")
    assert answer.status == 500
    assert "Retry-After" not in answer.headers
    assert "secret" not in answer.body.decode()
    assert answer.document == {
        "type": "https://api.backend.ai/probs/internal-server-error",
        "title": "Internal server error.",
        "msg": "error id: f00d",
    }


@pytest.mark.parametrize("fault", [errors.StoreFault, errors.HostShort])
def test_a_fault_that_passes_says_when_to_ask_again_and_no_more(fault):
    answer = problem(fault("secret"), fault_id="f00d")
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.document == {
        "type": "https://api.backend.ai/probs/service-unavailable",
        "title": "Service unavailable.",
        "msg": "error id: f00d",
    }


@pytest.mark.parametrize("operation", Operation)
def test_a_sandbox_fault_names_the_operation(operation):
    answer = problem(errors.SandboxFault("launch", "secret"), fault_id="f00d", operation=operation)
    assert answer.status == 500
    assert answer.document["type"].endswith(f"/kernel-{operation.value}-failed")
    assert answer.document["title"] == f"Kernel {operation.value} has failed."
    assert answer.document["agent-details"]["type"].endswith("/agent-failure")
    assert answer.document["agent-details"]["title"]
    assert "secret" not in answer.body.decode()


def test_an_operation_does_not_rename_other_faults():
    answer = problem(errors.StoreFault(), fault_id="1", operation=Operation.CREATION)
    assert answer.document["type"].endswith("/service-unavailable")


def test_stray_bytes_and_foreign_objects_do_not_break_the_answer():
    stray = b"\xff".decode("utf-8", "surrogateescape")
    data = {stray: [stray, {"x": object}, 1, None, True]}
    answer = problem(errors.PathRefused(f"{stray}: not allowed", data=data))
    document = json.loads(answer.body)
    assert document["msg"] == "\ufffd: not allowed"
    assert document["data"] == {"\ufffd": ["\ufffd", {"x": str(object)}, 1, None, True]}
