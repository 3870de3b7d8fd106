"""Doing a request once, however often it is sent: the same token gets the same answer again."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

import structlog

from retort.core import faults
from retort.core.ports import ReplyStore
from retort.core.reply import Reply, ReplyKey
from retort.errors import StoreFault, TokenReused, Unavailable

log = structlog.get_logger()


Do = Callable[[], Awaitable["Done"]]


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """What came of a request that was done now.

    Attributes:
        undo: takes back what the answer took away, when it cannot be kept: output that would be
            lost with it. None: it took nothing away.
        confirm: lets go for good of what it took away, once it is kept.
    """

    reply: Reply
    undo: Callable[[], Awaitable[None]] | None = None
    confirm: Callable[[], Awaitable[None]] | None = None


class Replies:
    """Answers by token.

    An answer is stored before anybody gets to see it: so a server that is killed at any moment has
    either not given it, or still knows it.

    Args:
        answer_bytes: larger answers are not kept.
    """

    def __init__(self, store: ReplyStore, *, answer_bytes: int) -> None:
        self._store = store
        self._answer_bytes = answer_bytes
        self._running: dict[ReplyKey, tuple[bytes, asyncio.Future[Reply | None]]] = {}

    async def once(self, key: ReplyKey, request: bytes, do: Do) -> Reply:
        """Give the answer of a request, doing it only if it was not done before.

        A repeat that comes while the first one is being done waits for its answer.

        Args:
            request: digest of what is asked.

        Raises:
            TokenReused: this token came with another request.
            Unavailable: the answer cannot be kept; what it took was put back.
            StoreFault: kept answers cannot be looked at; nothing was done.

        What `do` raises is nobody's answer: the next repeat does it again.
        """
        while (running := self._running.get(key)) is not None:
            first, future = running
            _check(first, request)
            if (reply := await asyncio.shield(future)) is not None:
                return reply  # else the first one broke off: this one takes its place
        future = asyncio.get_running_loop().create_future()
        self._running[key] = (request, future)
        reply = None
        try:
            reply = await self._store.get(key)
            if reply is not None:
                _check(reply.request, request)
            else:
                reply = await self._do(key, do)
            return reply
        finally:
            del self._running[key]
            future.set_result(reply if reply is not None and reply.request == request else None)

    async def keeps(self, call: str) -> bool:
        """Whether the answer to a call is kept; `call` is its `ReplyKey` as text."""
        return await self._store.get(ReplyKey.parse(call)) is not None

    async def _do(self, key: ReplyKey, do: Do) -> Reply:
        done = await do()
        faults.reached(faults.Point.REQUEST_DONE)
        reply = done.reply
        try:
            if len(reply.body) <= self._answer_bytes:
                await self._store.put(key, reply)
            faults.reached(faults.Point.ANSWER_KEPT)
        except StoreFault as exc:
            log.error("reply.unkept", reason=str(exc), is_undone=done.undo is not None)
            if done.undo is not None:
                await done.undo()
                raise Unavailable("The answer could not be kept; ask again") from exc
        if done.confirm is not None:
            await done.confirm()
        return reply


def _check(known: bytes, asked: bytes) -> None:
    if known != asked:
        raise TokenReused
