"""Every exception of Retort, drawn as a tree.

RetortError
├── RequestError                 the caller can act on it; the text is safe to show
│   ├── InvalidRequest           a field is missing, malformed or out of range
│   │   ├── MalformedBody        ├── BadHttp             ├── UnsupportedVersion
│   │   ├── InvalidAuth          ├── ClockSkew
│   │   ├── TooManyFiles         ├── FileTooLarge        ├── PathRefused
│   │   ├── FileNotFound         ├── GraphqlFailed       └── BodyTooSlow
│   ├── NotAuthenticated         (also: AccessKeyUnknown, SignatureMismatch)
│   ├── NotPermitted             (also: InsufficientPrivilege)
│   ├── NotFound                 RouteNotFound, SessionNotFound, RunNotFound, ImageNotFound,
│   │                            PathNotFound, VFolderNotFound, InvitationNotFound, TaskNotFound,
│   │                            MethodNotAllowed
│   ├── Conflict                 SessionExists, AmbiguousSession, VFolderExists, VFolderOperation,
│   │                            OffsetMismatch
│   ├── LimitExceeded            QuotaExceeded, RateLimited, ScratchFull,
│   │                            VFolderFull
│   └── Unavailable              NotSupported
└── Fault                        we or the host broke; logged whole, the caller sees an id
    ├── SandboxFault             launcher, init or the kernel's side of a session
    ├── StoreFault               the database
    ├── HostShort                of descriptors, processes, memory or disk
    └── ImageFault               an image that cannot be used

What a *program* does (fails, is killed, runs over a limit) is never an exception: it is an Outcome
(core/run.py). Status numbers and problem types of the wire are in wire/errors.py, by `code`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class RetortError(Exception):
    """Something went wrong.

    Args:
        message: what the caller reads; without it, the first line of the class's docstring.
        data: JSON-able details for the caller, e.g. ``{"name": "is required"}``.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str | None = None, *, data: Any = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip().split("\n")[0]
        self.data = data
        super().__init__(self.message)


# --- the caller can act on it ---------------------------------------------------------------


class RequestError(RetortError):
    """The request cannot be done as it stands."""

    code = "request-error"


class InvalidRequest(RequestError):
    """Missing or invalid parameters."""

    code = "invalid-request"

    @classmethod
    def field(cls, name: str, problem: str) -> InvalidRequest:
        """Refuse one field by name: the message and `data` both say which and why."""
        return cls(f"{name}: {problem}", data={name: problem})


class MalformedBody(InvalidRequest):
    """Malformed body"""

    code = "malformed-body"


class BadHttp(InvalidRequest):
    """Bad request."""

    code = "bad-http"


class UnsupportedVersion(InvalidRequest):
    """Unsupported API version."""

    code = "unsupported-version"


class InvalidAuth(InvalidRequest):
    """Missing or invalid authorization parameters."""

    code = "invalid-auth"


class ClockSkew(InvalidAuth):
    """Date/time sync error"""

    code = "clock-skew"


class TooManyFiles(InvalidRequest):
    """Too many files"""

    code = "too-many-files"


class FileTooLarge(InvalidRequest):
    """Too large file"""

    code = "file-too-large"


class PathRefused(InvalidRequest):
    """The path is not allowed."""

    code = "path-refused"


class FileNotFound(InvalidRequest):
    """The file is not found."""

    code = "file-not-found"  # a download's missing file is a 400, spec 6.4


class GraphqlFailed(InvalidRequest):
    """GraphQL-generated error."""

    code = "graphql-failed"


class BodyTooSlow(InvalidRequest):
    """The request body came too slowly."""

    code = "body-too-slow"


class NotAuthenticated(RequestError):
    """Unauthorized access"""

    code = "not-authenticated"


class AccessKeyUnknown(NotAuthenticated):
    """Access key not found"""

    code = "access-key-unknown"


class SignatureMismatch(NotAuthenticated):
    """Signature mismatch"""

    code = "signature-mismatch"


class NotPermitted(RequestError):
    """Forbidden operation."""

    code = "not-permitted"


class InsufficientPrivilege(NotPermitted):
    """Insufficient privilege."""

    code = "insufficient-privilege"


class NotFound(RequestError):
    """No such object."""

    code = "not-found"
    thing: ClassVar[str] = "object"  #: completes the title "No such ..." (spec 4.2)


class RouteNotFound(NotFound):
    """Unknown URL path."""

    code = "route-not-found"
    thing = "path"


class MethodNotAllowed(RequestError):
    """HTTP Method Not Allowed."""

    code = "method-not-allowed"

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{method} is not allowed here")
        self.allowed = allowed


class SessionNotFound(NotFound):
    """No such session."""

    code = "session-not-found"
    thing = "session"


class SessionLost(SessionNotFound):
    """The session ended without being asked to."""


class RunNotFound(NotFound):
    """No such run: it never was, or it has ended."""

    code = "run-not-found"
    thing = "run"


class ImageNotFound(NotFound):
    """No such environment image."""

    code = "image-not-found"
    thing = "environment image"


class PathNotFound(NotFound):
    """No such file or directory."""

    code = "path-not-found"
    thing = "file or directory"


class VFolderNotFound(NotFound):
    """No such virtual folder."""

    code = "vfolder-not-found"
    thing = "virtual folder"


class InvitationNotFound(NotFound):
    """No such invitation."""

    code = "invitation-not-found"
    thing = "vfolder invitation"


class TaskNotFound(NotFound):
    """No such background task."""

    code = "task-not-found"
    thing = "background task"


class Conflict(RequestError):
    """The request contradicts what exists."""

    code = "conflict"


class SessionExists(Conflict):
    """The session already exists but you requested not to reuse existing one."""

    code = "session-exists"

    def __init__(self, existing_id: str) -> None:
        super().__init__(data={"existingSessionId": existing_id})


class AmbiguousSession(Conflict):
    """Too many sessions matched."""

    code = "ambiguous-session"


class VFolderExists(Conflict):
    """The virtual folder already exists with the same name."""

    code = "vfolder-exists"


class VFolderOperation(Conflict):
    """Virtual folder operation has failed."""

    code = "vfolder-operation"


class OffsetMismatch(Conflict):
    """The upload goes on at another offset."""

    code = "offset-mismatch"


class TokenReused(Conflict):
    """This client token was sent with another request before."""

    code = "token-reused"


class LimitExceeded(RequestError):
    """A limit is reached."""

    code = "limit-exceeded"


class QuotaExceeded(LimitExceeded):
    """You have reached your resource limit."""

    code = "quota-exceeded"


class RateLimited(LimitExceeded):
    """You have reached your API query rate limit."""

    code = "rate-limited"


class ScratchFull(LimitExceeded):
    """The session's disk space is used up."""

    code = "scratch-full"


class VFolderFull(LimitExceeded):
    """The virtual folder is full."""

    code = "vfolder-full"


class Unavailable(RequestError):
    """The service is unavailable for the moment."""

    code = "unavailable"


class NotSupported(Unavailable):
    """This server does not offer that."""

    code = "not-supported"


# --- we or the host broke -------------------------------------------------------------------


class Fault(RetortError):
    """Internal server error."""

    code = "fault"


class SandboxFault(Fault):
    """A sandbox could not be made, or its init stopped making sense.

    Args:
        phase: what was being done, e.g. "launch", "hello", "exec".
        reason: object and cause, e.g. "/usr/bin/bwrap: exit 1 (No permissions to create ...)".
    """

    code = "sandbox-fault"

    def __init__(self, phase: str, reason: str) -> None:
        super().__init__(f"{phase}: {reason}")
        self.phase = phase
        self.reason = reason


class StoreFault(Fault):
    """The database failed."""

    code = "store-fault"


class HostShort(Fault):
    """The host is short of something for the moment."""

    code = "host-short"


class ImageFault(Fault):
    """An image cannot be used on this host."""

    code = "image-fault"
