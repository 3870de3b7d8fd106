"""Access keys: making and revoking them, and finding one without a query.

The rules of signatures are in wire/signature.py; who may call what is decided by each service.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re
import secrets
import string
import uuid
from collections.abc import Awaitable, Callable, Sequence

from retort.core.keypair import KeyPair, KeyPolicy, NewKeyPair
from retort.core.ports import Clock, KeyPairStore
from retort.errors import InvalidRequest, NotFound

_TOKEN = re.compile(r"rt_[A-Za-z0-9_-]{40}")
_ACCESS_KEY = re.compile(r"[\x21-\x7e]{1,64}")  # also keys that were made elsewhere
_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,255}")
_ACCESS_KEY_ALPHABET = string.ascii_uppercase + string.digits
_USERS = uuid.UUID("5c9a1ab0-8f0c-4f6c-9a71-3a5b9f5f0d7e")  # namespace of user ids

_MISS_S = 1.0  # an unknown key is not asked for again so soon
_MISSES_KEPT = 4096  # unknown keys remembered at most
_ASKS_PER_S = 50.0  # misses that may reach the store; beyond, unknown is unknown until `refresh`
_ASKS_BURST = 50.0


class KeyRing:
    """Every key pair in memory, so that a request is authenticated without a query.

    The store stays the truth, and other processes write to it (`retort keys`). A key they make is
    found by `lookup` at once; one they revoke is refused from the next `refresh` on.

    Args:
        store: where key pairs are kept.
        clock: time of creation, and how long a miss is remembered.
        policy: what new keys may use.
    """

    def __init__(
        self, store: KeyPairStore, clock: Clock, *, policy: KeyPolicy | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._policy = policy or KeyPolicy()
        self._by_key: dict[str, KeyPair] = {}  # inactive ones too: they need no second look
        self._by_token: dict[str, KeyPair] = {}  # by the hex digest
        self._changing = asyncio.Lock()  # store and memory change in the same order
        self._generation = 0  # counts changes of memory
        self._misses = _Misses()

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self._by_key)} keys>"

    def __len__(self) -> int:
        """Keys in memory, inactive ones too."""
        return len(self._by_key)

    # --- finding: the hot path ---------------------------------------------------------------

    def find(self, access_key: str) -> KeyPair | None:
        """Find an active key pair in memory."""
        return _active(self._by_key.get(access_key))

    def find_token(self, token: str) -> KeyPair | None:
        """Find the active key pair of a bearer token in memory.

        Only the token's digest is compared, so the time it takes says nothing about tokens.
        """
        return _active(self._by_token.get(_digest(token)))

    async def lookup(self, access_key: str) -> KeyPair | None:
        """Find an active key pair; one that is not in memory is asked for in the store.

        Unknown keys cannot hammer the store: each is remembered for a second, and only some fifty
        a second are asked for at all.

        Raises:
            StoreFault: the key is not in memory and the database failed.
        """
        if (pair := self._by_key.get(access_key)) is not None:
            return _active(pair)
        if not _ACCESS_KEY.fullmatch(access_key) or not self._may_ask(access_key):
            return None
        return await self._ask(access_key, lambda: self._store.get(access_key))

    async def lookup_token(self, token: str) -> KeyPair | None:
        """Find the active key pair of a bearer token; otherwise as `lookup`."""
        if not _TOKEN.fullmatch(token):
            return None
        digest = _digest(token)
        if (pair := self._by_token.get(digest)) is not None:
            return _active(pair)
        if not self._may_ask(digest):
            return None
        return await self._ask(digest, lambda: self._store.get_by_token(digest))

    async def user_of(self, email: str) -> KeyPair | None:
        """Find a user by e-mail, letter case aside: the active key pair made first.

        Asked in the store: who was just given a key is known, too. Raises StoreFault.
        """
        for pair in await self._store.all():
            if pair.is_active and pair.email.casefold() == email.casefold():
                return pair
        return None

    async def email_of(self, user_id: uuid.UUID) -> str | None:
        """Find a user's e-mail. Raises StoreFault."""
        pairs = await self._store.all()
        return next((pair.email for pair in pairs if pair.user_id == user_id), None)

    # --- keeping up with the store -----------------------------------------------------------

    async def load(self) -> None:
        """Read every key pair; call once before the first request. Raises StoreFault."""
        await self.refresh()

    async def refresh(self) -> None:
        """Read every key pair again, to see what other processes changed.

        To be called every few seconds: so long does a key revoked elsewhere stay valid here.

        Raises:
            StoreFault: the database failed; memory stays as it was.
        """
        async with self._changing:
            pairs = await self._store.all()
            self._by_key = {pair.access_key: pair for pair in pairs}
            self._by_token = {pair.token_sha256: pair for pair in pairs}
            self._generation += 1

    # --- changing ----------------------------------------------------------------------------

    async def create(self, email: str | None = None, is_admin: bool = False) -> NewKeyPair:
        """Make a key pair with a bearer token; secret and token are drawn by `secrets`.

        Args:
            email: the owner; keys of the same address (letter case aside) have the same user id.
                None: an owner of its own.

        Raises:
            InvalidRequest: `email` is not an address.
            StoreFault: the database failed.
        """
        if email is not None and not _EMAIL.fullmatch(email):
            raise InvalidRequest.field("email", "is not an address")
        new = self._draw(email, is_admin)
        async with self._changing:
            await self._store.add(new.keypair)
            self._keep(new.keypair)
        return new

    async def deactivate(self, access_key: str) -> None:
        """Refuse a key from now on. Raises NotFound, StoreFault."""
        await self._set_active(access_key, is_active=False)

    async def activate(self, access_key: str) -> None:
        """Accept a key again. Raises NotFound, StoreFault."""
        await self._set_active(access_key, is_active=True)

    async def remove(self, access_key: str) -> None:
        """Forget a key for good; sessions that it made stay. Raises NotFound, StoreFault."""
        async with self._changing:
            await self._store.remove(access_key)
            self._drop(access_key)

    async def list(self) -> Sequence[KeyPair]:
        """Give every key pair of the store, oldest first. Raises StoreFault."""
        return await self._store.all()

    async def _set_active(self, access_key: str, *, is_active: bool) -> None:
        async with self._changing:
            pair = await self._store.get(access_key)
            if pair is None:
                raise NotFound(f"no access key {access_key}")
            pair = dataclasses.replace(pair, is_active=is_active)
            await self._store.update(pair)
            self._keep(pair)

    def _draw(self, email: str | None, is_admin: bool) -> NewKeyPair:
        drawn = "".join(secrets.choice(_ACCESS_KEY_ALPHABET) for _ in range(18))
        access_key = f"AK{drawn}"
        email = email or f"{access_key.lower()}@localhost"
        token = f"rt_{secrets.token_urlsafe(30)}"  # 30 bytes are 40 characters
        pair = KeyPair(
            access_key=access_key,
            secret_key=secrets.token_urlsafe(30),
            token_sha256=_digest(token),
            # Derived, not looked up: two processes agree, and an owner whose last key was removed
            # finds everything again with the next one.
            user_id=uuid.uuid5(_USERS, email.casefold()),
            email=email,
            created_at=self._clock.now(),
            is_admin=is_admin,
            policy=self._policy,
        )
        return NewKeyPair(pair, token)

    # --- memory ------------------------------------------------------------------------------

    def _may_ask(self, key: str) -> bool:
        return self._misses.may_ask(key, self._clock.now().timestamp())

    async def _ask(self, key: str, ask: Callable[[], Awaitable[KeyPair | None]]) -> KeyPair | None:
        before = self._generation
        pair = await ask()
        if pair is None:
            self._misses.remember(key, self._clock.now().timestamp())
        elif before == self._generation:
            # Otherwise memory changed meanwhile, perhaps by the removal of this very key.
            self._keep(pair)
        return _active(pair)

    def _keep(self, pair: KeyPair) -> None:
        self._drop(pair.access_key)
        self._by_key[pair.access_key] = pair
        self._by_token[pair.token_sha256] = pair
        self._generation += 1

    def _drop(self, access_key: str) -> None:
        if (old := self._by_key.pop(access_key, None)) is not None:
            self._by_token.pop(old.token_sha256, None)
        self._generation += 1


class _Misses:
    """Unknown keys: how long each is remembered, and how many may be asked for per second."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}  # oldest first, as all are kept equally long
        self._allowance = _ASKS_BURST  # a token bucket
        self._filled_at = 0.0

    def may_ask(self, key: str, now: float) -> bool:
        """Whether the store may be asked for a key; takes one from the allowance if so."""
        until = self._until.get(key, 0.0)
        if now < until <= now + _MISS_S:  # further ahead: the clock was set back meanwhile
            return False
        grown = (now - self._filled_at) * _ASKS_PER_S
        if grown > 0:
            self._allowance = min(_ASKS_BURST, self._allowance + grown)
        self._filled_at = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True

    def remember(self, key: str, now: float) -> None:
        """Note that the store does not know a key."""
        self._until.pop(key, None)
        if len(self._until) >= _MISSES_KEPT:
            del self._until[next(iter(self._until))]
        self._until[key] = now + _MISS_S


def _active(pair: KeyPair | None) -> KeyPair | None:
    return pair if pair is not None and pair.is_active else None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
