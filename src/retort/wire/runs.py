"""Execute: requests, results, stream messages (specification 5.1, 5.2, 6.2, 9.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from retort.core.console import ConsoleItem
from retort.core.run import Answer, Mode, Status
from retort.core.run import RunRequest as RunRequest  # what parsing gives, so part of this room
from retort.errors import InvalidRequest
from retort.wire.bodies import decode_object
from retort.wire.params import Params
from retort.wire.percent import printable
from retort.wire.verdicts import UsageObject, Verdict, parse_limits, verdict_of

MAX_RUN_ID = 128  #: characters; clients draw 32 or 64
MAX_MESSAGE_BYTES = 3_670_016  #: 3.5 MiB; the client drops a connection above 4 MiB

_COMPLETE = "complete"  #: a mode of the wire that makes no run (specification 7.9)
_PIECE = 65_536  #: characters into which texts are cut where a message must be split
_encode = msgspec.json.Encoder().encode

FileUrl = Callable[[str], str]  #: from a result file's name to its absolute address (5.4)


@dataclass(frozen=True, slots=True)
class CompleteRequest:
    """What to complete, and where the cursor is (specification 7.9)."""

    code: str = ""
    row: int = 0
    col: int = 0
    line: str = ""
    post: str = ""


def parse_execute(params: Params) -> RunRequest | None:
    """Read the body of POST /session/:id (specification 6.2).

    Returns:
        RunRequest: with a `run_id` when the mode is CONTINUE or INPUT; None for mode
        ``complete``, which `parse_complete` reads.

    Raises:
        InvalidRequest: with the messages of 6.2.
    """
    mode = _mode(params)
    run_id = _run_id(params)
    if mode is None:
        parse_complete(params)
        return None
    if run_id is None and not mode.starts:
        raise InvalidRequest("continuation requires explicit run ID")
    return _request(mode, run_id, params)


def parse_complete(params: Params) -> CompleteRequest:
    """Read the body of POST /session/:id/complete (specification 7.9)."""
    options = params.inner("options")
    return CompleteRequest(
        params.string("code") or "",
        options.integer("row", default=0),
        options.integer("col", default=0),
        options.string("line") or "",
        options.string("post") or "",
    )


def parse_stream_start(message: bytes | str) -> RunRequest:
    """Read the first message of a stream, which starts its run (specification 9.1).

    Raises:
        InvalidRequest: answer it with `stream_error`.
    """
    params = Params(decode_object(message))
    mode = _mode(params)
    if mode is None or not mode.starts:
        raise InvalidRequest("mode has an invalid value.")
    return _request(mode, None, params)


def _request(mode: Mode, run_id: str | None, params: Params) -> RunRequest:
    code = params.string("code") or ""
    options = params.inner("options")
    if mode is not Mode.BATCH:
        return RunRequest(mode, code, run_id)
    if not isinstance(options.value("buildLog"), bool | None):
        raise options.refuse("buildLog", "must be a boolean")  # checked, not acted on (D5)
    return RunRequest(
        mode,
        code,
        run_id,
        options.has("clean"),
        _command(options, "clean"),
        _command(options, "build"),
        _command(options, "exec"),
        parse_limits(options),
        options.boolean("keepBackground"),
        caches_build=options.boolean("cache") if options.value("cache") is not None else None,
    )


def _mode(params: Params) -> Mode | None:
    word = params.value("mode", "type")  # the examples of the v2 page say "type"
    if not word:
        raise InvalidRequest("mode is missing or empty!")
    if word == _COMPLETE:
        return None
    try:
        return Mode(word)
    except ValueError:
        raise InvalidRequest("mode has an invalid value.") from None


def _run_id(params: Params) -> str | None:
    run_id = params.string("runId")
    if run_id is not None and not 1 <= len(run_id) <= MAX_RUN_ID:
        raise params.refuse("runId", f"must have 1 to {MAX_RUN_ID} characters")
    return run_id


def _command(options: Params, name: str) -> str | None:
    command = options.string(name)
    if command and "\0" in command:
        raise options.refuse(name, "must not have a null character")
    return command


class _Additive(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Keys that the original does not know; they come with the end of a step (docs/wire.md)."""

    outcome: str | msgspec.UnsetType = msgspec.UNSET
    signal: str | msgspec.UnsetType | None = msgspec.UNSET
    limit: str | msgspec.UnsetType | None = msgspec.UNSET
    retry_safe: bool | msgspec.UnsetType = msgspec.UNSET
    usage: UsageObject | msgspec.UnsetType = msgspec.UNSET
    walls: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET
    cached: bool | msgspec.UnsetType = msgspec.UNSET
    cache_key: str | msgspec.UnsetType | None = msgspec.UNSET
    uncacheable: str | msgspec.UnsetType | None = msgspec.UNSET


def _additive(verdict: Verdict | None) -> dict[str, Any]:
    return {} if verdict is None else msgspec.structs.asdict(verdict)


class _File(msgspec.Struct, frozen=True):
    name: str
    url: str


class _Message(_Additive, frozen=True):
    """What a stream sends."""

    status: str
    exit_code: int | None = msgspec.field(name="exitCode")
    console: Sequence[ConsoleItem]
    options: dict[str, Any] | None
    files: Sequence[_File]


class _Result(_Additive, frozen=True):
    """What a call is answered (specification 5.2)."""

    run_id: str = msgspec.field(name="runId")
    status: str
    exit_code: int | None = msgspec.field(name="exitCode")
    console: Sequence[ConsoleItem]
    options: dict[str, Any] | None
    files: Sequence[_File]


class _Envelope(msgspec.Struct, frozen=True):
    result: _Result


def execute_answer(answer: Answer, *, file_url: FileUrl) -> bytes:
    """Answer execute: ``{"result": {...}}`` (specification 6.2)."""
    return _encode(
        _Envelope(
            _Result(
                answer.run_id,
                answer.status.value,
                answer.exit_code,
                answer.console,
                _options(answer),
                _files(answer, file_url),
                **_additive(verdict_of(answer)),
            )
        )
    )


def _options(answer: Answer) -> dict[str, Any] | None:
    """Give what the client insists on: an object while waiting for input, or as rule R15 says."""
    if answer.status is Status.WAITING_INPUT:
        return {"is_password": False}
    return {} if answer.is_cancelled else None


def _files(answer: Answer, file_url: FileUrl) -> tuple[_File, ...]:
    return tuple(_File(printable(file.name), file_url(file.name)) for file in answer.files)


def complete_answer(completions: Sequence[str]) -> bytes:
    """Answer complete (specification 7.9, D19)."""
    return _encode({"result": list(completions)})


def stream_messages(
    answer: Answer, *, file_url: FileUrl, limit: int = MAX_MESSAGE_BYTES
) -> list[bytes]:
    """Encode one answer for a stream, as several when it is above the limit (specification 9.1).

    All but the last say `continued`. Only texts are cut; files stay whole in the last message.
    """
    last = _Message(
        answer.status.value,
        answer.exit_code,
        answer.console,
        _options(answer),
        _files(answer, file_url),
        **_additive(verdict_of(answer)),
    )
    message = _encode(last)
    if len(message) <= limit:
        return [message]
    # What the last message has besides its console bounds what fits beside it.
    room = limit - len(_encode(msgspec.structs.replace(last, console=())))
    parts = list(_portions(answer.console, room))
    return [
        *(_encode(_Message(Status.CONTINUED.value, None, part, None, ())) for part in parts[:-1]),
        _encode(msgspec.structs.replace(last, console=parts[-1] if parts else ())),
    ]


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
    for kind, text in console:
        for start in range(0, len(text), _PIECE):
            yield kind, text[start : start + _PIECE]


def _append(portion: list[ConsoleItem], item: ConsoleItem) -> None:
    """Append, merging with a neighbour of the same type (rule R10)."""
    kind, text = item
    if portion and portion[-1][0] == kind:
        portion[-1] = (kind, portion[-1][1] + text)
    else:
        portion.append(item)


def stream_error(message: str) -> bytes:
    """Tell that the first message was bad; close after it (specification 9.1)."""
    return _encode({"status": "error", "msg": message, "console": []})


def stream_stopping(message: str = "The server is stopping.") -> bytes:
    """Tell that the server stops; close after it (specification 9.1)."""
    return _encode({"status": "server-restarting", "msg": message, "console": []})
