"""Opening the database and what is kept in it; light, because `retort keys` waits for it."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import time
from collections.abc import AsyncIterator
from pathlib import Path

from retort.config import Config
from retort.core.moment import Moment
from retort.services.keypairs import KeyRing
from retort.sql.engine import Database, sqlite_url
from retort.sql.keypairs import SqlKeyPairs
from retort.sql.migrations import migrate

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """The host's clock, as a `core.ports.Clock`."""

    def now(self) -> dt.datetime:
        """Give the present time, aware UTC."""
        return dt.datetime.now(dt.UTC)


class SteadyClock:
    """A clock that nobody sets, for how long ago something was; it goes on over server restarts.

    It begins anew with the host: times of before are in its future then.
    """

    def now(self) -> dt.datetime:
        """Give the time since the host's start, as aware UTC since 1970."""
        return dt.datetime.fromtimestamp(time.clock_gettime(time.CLOCK_BOOTTIME), dt.UTC)


def host_moment() -> Moment:
    """Give the present time by both of the host's clocks."""
    return Moment(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), _boot())


@functools.cache
def _boot() -> str:
    return _BOOT_ID.read_text("ascii")[:8]


def open_database(config: Config) -> Database:
    """Open the configured database; still to be migrated. Raises StoreFault."""
    url = config.database.url or sqlite_url(config.state.folder)
    return Database(url, busy_s=config.database.busy_s)


@contextlib.asynccontextmanager
async def open_keyring(config: Config) -> AsyncIterator[KeyRing]:
    """Open the key pairs of a state folder, beside a running server or without one.

    Nothing is in memory yet: `lookup` and changes work, `find` only after `load`.

    Raises:
        StoreFault: the database cannot be opened or brought to the present schema.
    """
    async with open_database(config) as database:
        await migrate(database)
        yield KeyRing(SqlKeyPairs(database), SystemClock(), policy=config.keys.policy)
