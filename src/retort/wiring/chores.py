"""What a server does by itself, over and over, beside answering."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import secrets
from collections.abc import Callable, Coroutine

import structlog

from retort.errors import Fault, RetortError
from retort.services.keypairs import KeyRing
from retort.sql.sessions import SqlSessions
from retort.wiring.store import SystemClock

log = structlog.get_logger()

AGAIN_S = 5.0  # after a chore failed
KEYS_REFRESH_S = 3.0  # a key revoked by another process is refused at the latest after this
RECORDS_SWEEP_S = 3600.0
RECORDS_KEPT = dt.timedelta(days=30)

Chore = Callable[[], Coroutine[None, None, None]]


async def keep_on(name: str, chore: Chore) -> None:
    """Do a chore until it returns; one that fails is begun again after `AGAIN_S`.

    What nobody foresaw, such as descriptors that run out in the midst of it, must not end for good
    what enforces quotas, ends idle sessions or fills the pool. It is logged, as our own fault.
    """
    while True:
        try:
            return await chore()
        except Exception as exc:
            log.error(
                "chore.failed",
                fault=secrets.token_hex(8),
                chore=name,
                exc_info=None if isinstance(exc, Fault) else exc,
                reason=str(exc),
            )
            await asyncio.sleep(AGAIN_S)


async def stop(task: asyncio.Future[None]) -> None:
    """End a chore, and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def refresh_forever(keys: KeyRing) -> None:
    """See what other processes did to the keys."""
    while True:
        await asyncio.sleep(KEYS_REFRESH_S)
        with contextlib.suppress(RetortError):  # the database may be back the next time
            await keys.refresh()


async def forget_forever(store: SqlSessions, clock: SystemClock) -> None:
    """Delete old records of ended sessions."""
    while True:
        await asyncio.sleep(RECORDS_SWEEP_S)
        with contextlib.suppress(RetortError):
            await store.forget_ended_before(clock.now() - RECORDS_KEPT)
