"""Execute: requests, results, stream messages (specification 5.1, 5.2, 6.2, 9.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from retort.errors import InvalidRequest
from retort.wire.bodies import decode_object
from retort.wire.params import Params

MAX_RUN_ID = 128  #: characters; clients draw 32 or 64
MAX_MESSAGE_BYTES = 3_670_016  #: 3.5 MiB; the client drops a connection above 4 MiB

_PIECE = 65_536  #: characters into which texts are cut where a message must be split
_encode = msgspec.json.Encoder().encode

#: [type, data] of specification 5.3; data is text for stdout and stderr.
ConsoleItem = tuple[str, Any]


class Mode(Enum):
    """What a call wants; the value is on the wire."""

    BATCH = "batch"
    QUERY = "query"
    CONTINUE = "continue"
    INPUT = "input"
    COMPLETE = "complete"


class Status(Enum):
    """Where a run is; the value is on the wire (specification 5.2)."""

    CONTINUED = "continued"  #: goes on, maybe with output
    WAITING_INPUT = "waiting-input"  #: the program reads its standard input
    CLEAN_FINISHED = "clean-finished"
    BUILD_FINISHED = "build-finished"
    FINISHED = "finished"  #: the last answer
    EXEC_TIMEOUT = "exec-timeout"  #: the last answer of a run that ran into the server's limit


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """Commands of a batch run (specification 5.1); None or "" skips, "*" is the image's own.

    `has_clean` tells whether the key was there: only then `clean-finished` is sent (R6).
    """

    has_clean: bool = False
    clean: str | None = None
    build: str | None = None
    exec: str | None = None


@dataclass(frozen=True, slots=True)
class CompleteOptions:
    """Where the cursor is, for completions (specification 7.9)."""

    row: int = 0
    col: int = 0
    line: str = ""
    post: str = ""


@dataclass(frozen=True, slots=True)
class ExecuteRequest:
    """A valid execute request; `options` is of BATCH and COMPLETE only."""

    mode: Mode
    code: str = ""
    run_id: str | None = None  #: None: the server draws one; never None for CONTINUE and INPUT
    options: BatchOptions | CompleteOptions | None = None


def parse_execute(params: Params) -> ExecuteRequest:
    """Read the body of POST /session/:id (specification 6.2).

    Raises:
        InvalidRequest: with the messages of 6.2.
    """
    mode = _mode(params)
    run_id = _run_id(params)
    if run_id is None and mode in (Mode.CONTINUE, Mode.INPUT):
        raise InvalidRequest("continuation requires explicit run ID")
    code = params.string("code") or ""
    options = params.mapping("options")
    return ExecuteRequest(mode, code, run_id, _options(mode, options))


def parse_complete(params: Params) -> ExecuteRequest:
    """Read the body of POST /session/:id/complete (specification 7.9)."""
    options = _options(Mode.COMPLETE, params.mapping("options"))
    return ExecuteRequest(Mode.COMPLETE, params.string("code") or "", None, options)


def parse_stream_start(message: bytes | str) -> ExecuteRequest:
    """Read the first message of a stream, which starts its run (specification 9.1).

    Raises:
        InvalidRequest: answer it with `stream_error`.
    """
    params = Params(decode_object(message))
    mode = _mode(params)
    if mode not in (Mode.BATCH, Mode.QUERY):
        raise InvalidRequest("mode has an invalid value.")
    code = params.string("code") or ""
    return ExecuteRequest(mode, code, None, _options(mode, params.mapping("options")))


def _mode(params: Params) -> Mode:
    word = params.value("mode", "type")  # the examples of the v2 page say "type"
    if not word:
        raise InvalidRequest("mode is missing or empty!")
    try:
        return Mode(word)
    except ValueError:
        raise InvalidRequest("mode has an invalid value.") from None


def _run_id(params: Params) -> str | None:
    run_id = params.string("runId")
    if run_id is not None and not 1 <= len(run_id) <= MAX_RUN_ID:
        raise params.refuse("runId", f"must have 1 to {MAX_RUN_ID} characters")
    return run_id


def _options(mode: Mode, raw: dict[str, Any] | None) -> BatchOptions | CompleteOptions | None:
    options = Params(raw, where="options.")
    if mode is Mode.BATCH:
        return _batch_options(options)
    if mode is Mode.COMPLETE:
        return CompleteOptions(
            options.integer("row", default=0),
            options.integer("col", default=0),
            options.string("line") or "",
            options.string("post") or "",
        )
    return None


def _batch_options(options: Params) -> BatchOptions:
    if not isinstance(options.value("buildLog"), bool | None):
        raise options.refuse("buildLog", "must be a boolean")  # checked, not acted on (D5)
    return BatchOptions(
        options.has("clean"),
        _command(options, "clean"),
        _command(options, "build"),
        _command(options, "exec"),
    )


def _command(options: Params, name: str) -> str | None:
    command = options.string(name)
    if command and "\0" in command:
        raise options.refuse(name, "must not have a null character")
    return command


class ResultFile(msgspec.Struct, frozen=True):
    """A file the run made (specification 5.4): name below .output, absolute URL."""

    name: str
    url: str


class _Message(msgspec.Struct, frozen=True):
    status: str
    exit_code: int | None = msgspec.field(name="exitCode")
    console: Sequence[ConsoleItem]
    options: dict[str, Any] | None
    files: Sequence[ResultFile]


class _Result(msgspec.Struct, frozen=True):
    run_id: str = msgspec.field(name="runId")
    status: str
    exit_code: int | None = msgspec.field(name="exitCode")
    console: Sequence[ConsoleItem]
    options: dict[str, Any] | None
    files: Sequence[ResultFile]


class _Answer(msgspec.Struct, frozen=True):
    result: _Result


@dataclass(frozen=True, slots=True)
class Result:
    """One answer of a run (specification 5.2). Texts in `console` hold no lone surrogates."""

    status: Status
    exit_code: int | None = None
    console: Sequence[ConsoleItem] = ()
    files: Sequence[ResultFile] = ()

    @property
    def options(self) -> dict[str, Any] | None:
        """What the client insists on with `waiting-input`; else null."""
        return {"is_password": False} if self.status is Status.WAITING_INPUT else None


def execute_answer(run_id: str, result: Result) -> bytes:
    """Answer execute: ``{"result": {...}}`` (specification 6.2)."""
    return _encode(
        _Answer(
            _Result(
                run_id,
                result.status.value,
                result.exit_code,
                result.console,
                result.options,
                result.files,
            )
        )
    )


def destroyed_answer(run_id: str) -> bytes:
    """Answer a call during which the session was destroyed (rule R15)."""
    return _encode(_Answer(_Result(run_id, Status.FINISHED.value, 130, (), {}, ())))


def complete_answer(completions: Sequence[str]) -> bytes:
    """Answer complete (specification 7.9, D19)."""
    return _encode({"result": list(completions)})


def stream_messages(result: Result, *, limit: int = MAX_MESSAGE_BYTES) -> list[bytes]:
    """Encode one answer for a stream, as several when it is above the limit (specification 9.1).

    All but the last say `continued`. Only texts are cut; files stay whole in the last message.
    """
    message = _message(result, result.console)
    if len(message) <= limit:
        return [message]
    # What the last message has besides its console bounds what fits beside it.
    parts = list(_portions(result.console, limit - len(_message(result, ()))))
    going_on = Result(Status.CONTINUED)
    return [
        *(_message(going_on, part) for part in parts[:-1]),
        _message(result, parts[-1] if parts else ()),
    ]


def _message(result: Result, console: Sequence[ConsoleItem]) -> bytes:
    return _encode(
        _Message(result.status.value, result.exit_code, console, result.options, result.files)
    )


def _portions(console: Iterable[ConsoleItem], room: int) -> Iterator[list[ConsoleItem]]:
    """Group a console's pieces so that each group takes at most `room` bytes, or is one piece."""
    portion: list[ConsoleItem] = []
    used = 0
    for item in _pieces(console):
        size = len(_encode(item)) + 1  # and the comma
        if portion and used + size > room:
            yield portion
            portion, used = [], 0
        _append(portion, item)
        used += size
    if portion:
        yield portion


def _pieces(console: Iterable[ConsoleItem]) -> Iterator[ConsoleItem]:
    for kind, data in console:
        if not isinstance(data, str):
            yield kind, data
            continue
        for start in range(0, len(data), _PIECE):
            yield kind, data[start : start + _PIECE]


def _append(portion: list[ConsoleItem], item: ConsoleItem) -> None:
    """Append, merging with a neighbour of the same type (rule R10)."""
    kind, data = item
    if portion and portion[-1][0] == kind and isinstance(data, str):
        portion[-1] = (kind, portion[-1][1] + data)
    else:
        portion.append(item)


def stream_error(message: str) -> bytes:
    """Tell that the first message was bad; close after it (specification 9.1)."""
    return _encode({"status": "error", "msg": message, "console": []})


def stream_stopping(message: str = "The server is stopping.") -> bytes:
    """Tell that the server stops; close after it (specification 9.1)."""
    return _encode({"status": "server-restarting", "msg": message, "console": []})
