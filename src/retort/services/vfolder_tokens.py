"""Tokens that stand for one upload or download: whoever has one needs no key (spec 10.4, 10.5).

A token is its contents, readable, and their HMAC. It names the folder, the path, the size and what
may be done; it ends by itself, and with the key it was given to.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import secrets
import uuid

import msgspec

from retort.core.moment import Moment, moment_of
from retort.errors import NotPermitted

_RANDOM_BYTES = 16  # of an upload's id
_MAX_CHARS = 16 * 1024  # a path has 4095 bytes, each up to six characters in JSON, some of them


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """What a token allows.

    Attributes:
        operation: "upload" or "download".
        access_key: of the caller it was given to.
        ends: from then on it is good for nothing.
        size: of an upload.
        upload_id: of an upload, hex digits.
        is_archive: a directory is sent as a zip.
    """

    operation: str
    access_key: str
    folder_id: uuid.UUID
    path: str
    ends: Moment
    size: int = 0
    upload_id: str = ""
    is_archive: bool = False


class Tokens:
    """Signs and reads tokens.

    Args:
        secret: of this server; a key of its own is derived from it.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"retort: vfolder transfers", "sha256")
        self._decoder = msgspec.json.Decoder(Transfer)

    def sign(self, transfer: Transfer) -> str:
        """Make the token of a transfer: letters that stand in a query as they are."""
        said = _encode(msgspec.json.encode(transfer))
        return f"{said}.{_encode(self._mac(said))}"

    def read(self, token: str, operation: str, now: Moment) -> Transfer:
        """Give what a token allows.

        Raises:
            NotPermitted: it is none of ours, for something else, or has ended.
        """
        said, _, mac = token.partition(".")
        if len(token) > _MAX_CHARS or not hmac.compare_digest(
            _encode(self._mac(said)).encode(), mac.encode("utf-8", "replace")
        ):
            raise NotPermitted("The token is not valid")
        try:
            transfer = self._decoder.decode(_decode(said))
        except msgspec.DecodeError:  # signed by an earlier version
            raise NotPermitted("The token is not valid") from None
        if transfer.operation != operation:
            raise NotPermitted("The token is not for this")
        if transfer.ends.is_over(now):
            raise NotPermitted("The token has ended")
        return transfer

    def _mac(self, said: str) -> bytes:
        return hmac.digest(self._key, said.encode("utf-8", "replace"), hashlib.sha256)


def draw_upload_id(ends: Moment) -> str:
    """Draw an id that tells when the upload's token ends, so that what is left can be removed."""
    return secrets.token_hex(_RANDOM_BYTES) + ends.hex()


def end_of_upload(upload_id: str) -> Moment | None:
    """Give when an upload ends; None: it is not an id of ours."""
    return moment_of(upload_id[2 * _RANDOM_BYTES :])


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise NotPermitted("The token is not valid") from None
