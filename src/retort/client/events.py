"""What a run tells its caller while it goes on."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """Something was printed.

    Attributes:
        stream: "stdout" or "stderr".
        text: decoded by the server; bytes that are not UTF-8 came as U+FFFD.
        is_program: printed by exec, rather than by clean or build (specification R5).
    """

    stream: str
    text: str
    is_program: bool


@dataclasses.dataclass(frozen=True, slots=True)
class PhaseEnded:
    """Clean or build has ended; `phase` is "clean" or "build"."""

    phase: str
    exit_code: int


@dataclasses.dataclass(frozen=True, slots=True)
class WaitingInput:
    """The program reads its standard input and there is nothing: call `Run.send`."""

    is_password: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ResultFile:
    """A file that the run left under `.output`; `url` can be fetched without a key."""

    name: str
    url: str


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """The run is over; always the last event.

    Attributes:
        exit_code: 0-255, 127 when the build failed, 128+n after signal n, negative when the
            server failed; None when it ran out of its time limit.
    """

    exit_code: int | None
    files: tuple[ResultFile, ...] = ()

    @property
    def is_timed_out(self) -> bool:
        """Whether the server ended the program because its time was up."""
        return self.exit_code is None


Event = Output | PhaseEnded | WaitingInput | Finished
