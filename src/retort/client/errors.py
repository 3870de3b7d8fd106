"""What can go wrong between a client and its server.

ClientError
├── ApiError          the server answered with a problem object (specification 4.1)
├── ServerUnreachable the connection could not be made
│   └── ConnectionBroke   or broke: the request may have been done
└── UnsafeArchive     a download holds names that do not belong to what was asked for
"""

from __future__ import annotations

from typing import Any

from retort.errors import RetortError


class ClientError(RetortError):
    """The server could not be used."""

    code = "client-error"


class ApiError(ClientError):
    """The server refused a request.

    Attributes:
        status: of HTTP.
        type: the problem's, e.g. "https://api.backend.ai/probs/auth-failed".
        title: of that type.
        msg: what was wrong this time; "" if the server does not say.
        retry_after_s: seconds after which a repeat may help, if the server says so.
    """

    code = "api-error"

    def __init__(
        self,
        status: int,
        type_: str,
        title: str,
        msg: str = "",
        *,
        data: Any = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(msg or title, data=data)
        self.status = status
        self.type = type_
        self.title = title
        self.msg = msg
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> str:
        """The end of the type, e.g. "auth-failed"."""
        return self.type.rsplit("/", 1)[-1]

    def __repr__(self) -> str:
        return f"<ApiError {self.status} {self.kind}: {self.message}>"


class ServerUnreachable(ClientError):
    """The server cannot be reached."""

    code = "server-unreachable"


class ConnectionBroke(ServerUnreachable):
    """The connection to the server broke."""

    code = "connection-broke"


class UnsafeArchive(ClientError):
    """The download holds something that was not asked for."""

    code = "unsafe-archive"
