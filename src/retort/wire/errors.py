"""What each exception is on the wire: status, problem type, title (specification 4.1, 4.2).

One table, by the exception's `code`. A class without a row fails tests/unit/wire/test_errors.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from retort.errors import Fault, MethodNotAllowed, NotFound, RetortError, SandboxFault
from retort.wire.percent import printable

TYPE_PREFIX = "https://api.backend.ai/probs/"
CONTENT_TYPE = "application/problem+json"

#: Problem type -> title. `object-not-found` completes it with the thing that is missing.
TITLES: Mapping[str, str] = {
    "url-not-found": "Unknown URL path.",
    "method-not-allowed": "HTTP Method Not Allowed.",
    "generic-bad-request": "Bad request.",
    "invalid-api-params": "Missing or invalid API parameters.",
    "invalid-auth-params": "Missing or invalid authorization parameters.",
    "auth-failed": "Credential/signature mismatch.",
    "generic-forbidden": "Forbidden operation.",
    "insufficient-privilege": "Insufficient privilege.",
    "object-not-found": "No such {thing}.",
    "too-many-sessions-matched": "Too many sessions matched.",
    "session-already-exists": (
        "The session already exists but you requested not to reuse existing one."
    ),
    "vfolder-already-exists": "The virtual folder already exists with the same name.",
    "vfolder-operation-failed": "Virtual folder operation has failed.",
    "graphql-error": "GraphQL-generated error.",
    "quota-exceeded": "You have reached your resource limit.",
    "rate-limit-exceeded": "You have reached your API query rate limit.",
    "kernel-creation-failed": "Kernel creation has failed.",
    "kernel-execution-failed": "Kernel execution has failed.",
    "kernel-restart-failed": "Kernel restart has failed.",
    "kernel-destruction-failed": "Kernel destruction has failed.",
    "internal-server-error": "Internal server error.",
    "service-unavailable": "Service unavailable.",
    "not-implemented": "This API is not implemented.",
}

#: Code of the exception -> status and problem type.
ROWS: Mapping[str, tuple[int, str]] = {
    "error": (500, "internal-server-error"),
    "request-error": (400, "generic-bad-request"),
    "invalid-request": (400, "invalid-api-params"),
    "malformed-body": (400, "invalid-api-params"),
    "bad-http": (400, "generic-bad-request"),
    "unsupported-version": (400, "generic-bad-request"),
    "invalid-auth": (400, "invalid-auth-params"),
    "clock-skew": (400, "invalid-auth-params"),
    "too-many-files": (400, "invalid-api-params"),
    "file-too-large": (400, "invalid-api-params"),
    "path-refused": (400, "invalid-api-params"),
    "file-not-found": (400, "invalid-api-params"),
    "graphql-failed": (400, "graphql-error"),
    "body-too-slow": (408, "generic-bad-request"),
    "not-authenticated": (401, "auth-failed"),
    "access-key-unknown": (401, "auth-failed"),
    "signature-mismatch": (401, "auth-failed"),
    "not-permitted": (403, "generic-forbidden"),
    "insufficient-privilege": (403, "insufficient-privilege"),
    "not-found": (404, "object-not-found"),
    "route-not-found": (404, "url-not-found"),
    "session-not-found": (404, "object-not-found"),
    "run-not-found": (404, "object-not-found"),
    "image-not-found": (404, "object-not-found"),
    "path-not-found": (404, "object-not-found"),
    "method-not-allowed": (405, "method-not-allowed"),
    "vfolder-not-found": (404, "object-not-found"),
    "invitation-not-found": (404, "object-not-found"),
    "task-not-found": (404, "object-not-found"),
    "vfolder-exists": (400, "vfolder-already-exists"),
    "vfolder-operation": (400, "vfolder-operation-failed"),
    "offset-mismatch": (409, "vfolder-operation-failed"),  # as TUS says
    "conflict": (400, "invalid-api-params"),  # the original knows no 409
    "session-exists": (400, "session-already-exists"),
    "token-reused": (409, "invalid-api-params"),  # only who sends tokens meets it
    "ambiguous-session": (404, "too-many-sessions-matched"),
    "limit-exceeded": (412, "quota-exceeded"),
    "quota-exceeded": (412, "quota-exceeded"),
    "scratch-full": (412, "quota-exceeded"),
    "vfolder-full": (412, "quota-exceeded"),
    "rate-limited": (429, "rate-limit-exceeded"),
    "unavailable": (503, "service-unavailable"),
    "not-supported": (503, "not-implemented"),
    "fault": (500, "internal-server-error"),
    "sandbox-fault": (500, "internal-server-error"),
    "store-fault": (503, "service-unavailable"),
    "host-short": (503, "service-unavailable"),
    "image-fault": (500, "internal-server-error"),
}


#: Codes of what passes by itself: a caller who asks again later may be served.
PASSING = frozenset({"unavailable", "store-fault", "host-short"})
RETRY_AFTER_S = 2  #: what they are told to wait


class Operation(Enum):
    """What was being done to a session when its sandbox failed; the value is on the wire."""

    CREATION = "creation"
    EXECUTION = "execution"
    RESTART = "restart"
    DESTRUCTION = "destruction"


@dataclass(frozen=True, slots=True)
class Problem:
    """A failure as an answer."""

    status: int
    document: dict[str, Any]
    headers: dict[str, str]

    @property
    def body(self) -> bytes:
        """The document as JSON."""
        try:
            return msgspec.json.encode(self.document)
        except (UnicodeEncodeError, TypeError):  # a stray byte or a foreign object in `data`
            return msgspec.json.encode(_readable(self.document))


def problem(exc: Exception, *, fault_id: str = "", operation: Operation | None = None) -> Problem:
    """Turn an exception into an answer.

    Args:
        exc: any. What is not a `RetortError` is a bug, and tells the caller no more than a Fault.
        fault_id: under which the log has a Fault or a bug; all that the caller sees of it.
        operation: names what failed when `exc` is a `SandboxFault`.
    """
    if not isinstance(exc, RetortError) or isinstance(exc, Fault) or type(exc) is RetortError:
        return _fault(exc, fault_id, operation)
    status, kind = ROWS[exc.code]
    document = _document(kind, exc.thing if isinstance(exc, NotFound) else "")
    document["msg"] = exc.message
    if exc.data is not None:
        document["data"] = exc.data
    headers = _headers(exc.code)
    if isinstance(exc, MethodNotAllowed):
        headers["Allow"] = ", ".join(exc.allowed)
    return Problem(status, document, headers)


def _fault(exc: Exception, fault_id: str, operation: Operation | None) -> Problem:
    code = exc.code if isinstance(exc, RetortError) else Fault.code
    status, kind = ROWS[code]
    of_sandbox = isinstance(exc, SandboxFault) and operation is not None
    if of_sandbox and operation is not None:
        kind = f"kernel-{operation.value}-failed"
    document = _document(kind)
    document["msg"] = f"error id: {fault_id}" if fault_id else "see the server's log"
    if of_sandbox:
        document["agent-details"] = {
            "type": TYPE_PREFIX + "agent-failure",
            "title": "Agent-side failure has occurred.",
        }
    return Problem(status, document, _headers(code))


def _headers(code: str) -> dict[str, str]:
    headers = {"Content-Type": CONTENT_TYPE}
    return headers | ({"Retry-After": str(RETRY_AFTER_S)} if code in PASSING else {})


def _document(kind: str, thing: str = "") -> dict[str, Any]:
    return {"type": TYPE_PREFIX + kind, "title": TITLES[kind].format(thing=thing)}


def _readable(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_readable(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return printable(str(value))
