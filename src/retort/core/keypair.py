"""Access keys, their owners and what a key may use at most."""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid


@dataclasses.dataclass(frozen=True, slots=True)
class KeyPolicy:
    """What one key may have at the same time.

    Attributes:
        max_sessions: live sessions (spec 7.1: 412 above it).
        rate_limit: requests in a rolling window of 900 s (spec 4.3).
        max_memory_bytes, max_cpus: of one session; None: as much as the server gives.
        max_vfolders: virtual folders of its owner (spec 10.2: 412 above it).
        max_vfolder_bytes: what one of them may hold; None: as much as the disk has.
    """

    max_sessions: int = 30
    rate_limit: int = 30_000
    max_memory_bytes: int | None = None
    max_cpus: float | None = None
    max_vfolders: int = 30
    max_vfolder_bytes: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class KeyPair:
    """One access key. `secret_key` signs requests (spec 3.2); `token_sha256` is for Bearer.

    Attributes:
        access_key: 20 characters, shown to everybody.
        secret_key: 40 characters; kept in clear because HMAC needs it.
        token_sha256: hex digest of the bearer token; the token itself is printed once, never kept.
        user_id: the owner; several keys may have the same.
        is_active: an inactive key is answered like an unknown one (spec 3.3).
        is_admin: may name another owner and call the administrator's routes.
    """

    access_key: str
    secret_key: str
    token_sha256: str
    user_id: uuid.UUID
    email: str
    created_at: dt.datetime
    is_active: bool = True
    is_admin: bool = False
    policy: KeyPolicy = KeyPolicy()


@dataclasses.dataclass(frozen=True, slots=True)
class NewKeyPair:
    """A key pair as it is shown once, at its making: with its bearer token in clear."""

    keypair: KeyPair
    token: str
