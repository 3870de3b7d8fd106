"""An answer as it was given, kept so that a repeated request gets it again (DESIGN 6)."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class ReplyKey:
    """What names a kept answer.

    Attributes:
        owner: the access key that signed the request.
        token: what the caller named the request.
    """

    owner: str
    token: str

    def __str__(self) -> str:
        """Give both as one text, for what remembers a call by it; neither holds a blank."""
        return f"{self.owner} {self.token}"

    @classmethod
    def parse(cls, text: str) -> ReplyKey:
        """Undo `str`."""
        owner, _, token = text.partition(" ")
        return cls(owner, token)


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Attributes:
        status: of HTTP.
        request: digest of what was asked; the same token with another one is a mistake.
        content_type: "" for an answer without a body.
    """

    request: bytes
    status: int
    content_type: str = ""
    body: bytes = b""

    @property
    def size_bytes(self) -> int:
        """What it counts for, its row included."""
        return len(self.body) + 512
