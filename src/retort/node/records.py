"""What a session's journal can say, each a value: what happened to its runs, in its order.

A record tells of something that is about to have an effect, and is written before it. Replayed
from the first to the last, they give the runs as the server had them (replay.py).
"""

from __future__ import annotations

import dataclasses

import msgspec

from retort.core.console import ConsoleItem, Stream
from retort.core.limits import Usage
from retort.core.run import (
    Answer,
    OutputFile,
    Phase,
    Plan,
    RunLimits,
    RunState,
    StepResult,
    Stop,
)
from retort.sandbox.session_group import Counted


@dataclasses.dataclass(frozen=True, slots=True)
class Printed:
    """Output of the current run; in the file it is no record but the bytes themselves."""

    stream: Stream
    data: bytes


class _Record(msgspec.Struct, array_like=True, tag=lambda name: name.lower()):
    """A record; its fields are stored by their order."""


class Opened(_Record):
    """A run was accepted.

    Attributes:
        is_watched: by a stream, whose end is the run's (spec 9.1).
    """

    run_id: str
    plan: Plan
    limits: RunLimits
    keeps_background: bool
    is_watched: bool
    caches_build: bool | None = None


class Recalled(_Record):
    """A stored build stands for the run's own: what it printed."""

    run_id: str
    printed: tuple[tuple[Stream, bytes], ...]


class Began(_Record):
    """A run became the first of its session's queue.

    Attributes:
        at: in seconds since 1970, for what its files are compared with.
        at_ns: by the monotonic clock, for its time limit.
    """

    run_id: str
    at: float
    at_ns: int


class Sent(_Record):
    """A step is about to be sent to init.

    Attributes:
        counted: what the session's group had counted before it.
    """

    run_id: str
    number: int
    phase: Phase
    counted: Counted | None


class Ended(_Record):
    """A step ended; `number` 0: it never was one of init's."""

    run_id: str
    number: int
    result: StepResult
    files: tuple[OutputFile, ...]


class TimedOut(_Record):
    """A run's time ran out."""

    run_id: str
    stop: Stop


class CancelledRun(_Record):
    """A run was cancelled: its session was restarted, or its watcher left."""

    run_id: str


class Stopped(_Record):
    """The present step is being killed for a limit of its own."""

    stop: Stop


class Cut(_Record):
    """Output was dropped (R10).

    Attributes:
        chars: how many, since the console was made.
        pending: bytes of a character that is not whole yet.
    """

    stream: Stream
    chars: int
    pending: bytes


class Typed(_Record):
    """Input was accepted; `token` names the call that brought it, if it had one."""

    run_id: str
    data: bytes
    token: str | None


class Taken(_Record):
    """An answer left its run: a closed one, or what was printed so far.

    Attributes:
        ticket: names the delivery.
        is_closed: a closed answer, rather than the output so far.
        token: of the call that asked; None when it had none.
    """

    ticket: int
    run_id: str
    is_closed: bool
    token: str | None


class Delivered(_Record):
    """An answer reached its caller."""

    ticket: int


class PutBack(_Record):
    """An answer did not reach its caller, and is the run's next one again."""

    ticket: int


class Forgotten(_Record):
    """A run is known no more."""

    run_id: str


class BackgroundEnded(_Record):
    """What runs were asked to leave running was killed."""


class RunRecord(_Record):
    """A run as it stands, instead of all that led to it.

    Attributes:
        answers: closed and not taken.
        taken: left the run and on their way, with their tickets and tokens.
        console: printed since the last closed answer, with bytes of characters not whole yet.
        is_listed: calls can name it; else only what is on its way is left of it.
    """

    run_id: str
    state: RunState
    limits: RunLimits
    keeps_background: bool
    is_watched: bool
    is_listed: bool
    began_at: float
    began_ns: int
    cpu_us: int
    typed: bytes
    answers: tuple[Answer, ...]
    taken: tuple[tuple[int, Answer, str | None], ...]
    console: tuple[ConsoleItem, ...]
    pending: dict[Stream, bytes]
    cut_chars: int
    caches_build: bool | None = None
    has_step: bool = False


class SessionRecord(_Record):
    """A session as it stands, without its runs; always the first record.

    Attributes:
        runs: started so far.
        number: of the last step.
        ticket: of the last delivery.
        sent: the step that init has now.
        stop: why it is being killed.
        fed: bytes of input that are known to be in its pipe, or read.
        unfed: what follows them; init knows how much of it is in the pipe by now.
        tokens: of calls that brought input, the oldest first.
    """

    runs: int = 0
    usage: Usage = Usage()
    number: int = 0
    ticket: int = 0
    keeps_background: bool = False
    sent: Sent | None = None
    stop: Stop | None = None
    fed: int = 0
    unfed: bytes = b""
    tokens: tuple[str, ...] = ()


Record = (
    Opened
    | Recalled
    | Began
    | Sent
    | Ended
    | TimedOut
    | CancelledRun
    | Stopped
    | Cut
    | Typed
    | Taken
    | Delivered
    | PutBack
    | Forgotten
    | BackgroundEnded
    | RunRecord
    | SessionRecord
)

ENCODER = msgspec.msgpack.Encoder()
DECODER: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)
