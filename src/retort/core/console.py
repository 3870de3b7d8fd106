"""What a run prints, between two of its answers: decoded, merged and capped (spec R10)."""

from __future__ import annotations

import codecs
import enum
from collections.abc import Iterable


class Stream(enum.Enum):
    """The two console streams of a batch run (spec 5.3)."""

    STDOUT = "stdout"
    STDERR = "stderr"


ConsoleItem = tuple[str, str]  #: (stream's name, text)

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Recording:
    """What was fed to a console: bytes by stream, in their order.

    Args:
        max_bytes: of both streams together; with more, `is_whole` is False and nothing is kept.
    """

    __slots__ = ("_left", "is_whole", "items")

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self.is_whole = True
        self.items: list[tuple[Stream, bytes]] = []

    def add(self, stream: Stream, data: bytes | bytearray | memoryview) -> None:
        """Write down one piece."""
        self._left -= len(data)
        if self._left < 0:
            self.is_whole = False
            self.items.clear()
        elif self.is_whole:
            self.items.append((stream, bytes(data)))


class Console:
    """Collect output until the next answer takes it.

    Text is decoded as it comes, one decoder per stream, so a character that is split between two
    reads arrives whole. What exceeds the cap of one answer is dropped and counted, never kept for
    the next one: nothing a program prints can grow the server.

    Args:
        cap_chars: code points of each stream kept for one answer.
    """

    __slots__ = ("_cap", "_decoders", "_items", "_record", "_room", "cut_chars")

    def __init__(self, cap_chars: int) -> None:
        self._cap = cap_chars
        self._decoders = {stream: _new_decoder("replace") for stream in Stream}
        self._items: list[tuple[Stream, list[str]]] = []
        self._room = dict.fromkeys(Stream, cap_chars)
        self._record: Recording | None = None
        self.cut_chars = 0  #: dropped since the console was made

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take."""
        return not self._items

    def feed(self, stream: Stream, data: bytes | bytearray | memoryview) -> None:
        """Take bytes in the order they were read."""
        if self._record is not None:
            self._record.add(stream, data)
        self._append(stream, self._decoders[stream].decode(data))

    def record(self) -> Recording:
        """Write down what is fed from now on, besides: as much as one answer can hold."""
        self._record = Recording(self._cap)
        return self._record

    def stop_recording(self) -> None:
        """Write nothing down any more."""
        self._record = None

    def end_phase(self) -> None:
        """End a step: half a character left over becomes U+FFFD, and decoders start afresh."""
        for stream, decoder in self._decoders.items():
            self._append(stream, decoder.decode(b"", final=True))
            decoder.reset()

    def take(self) -> tuple[ConsoleItem, ...]:
        """Give what is there and make room for the next answer."""
        items = self.peek()
        self._items.clear()
        for stream in Stream:
            self._room[stream] = self._cap
        return items

    def is_full(self, stream: Stream) -> bool:
        """Whether everything more of a stream is dropped until the next `take`."""
        return not self._room[stream]

    def pending(self, stream: Stream) -> bytes:
        """Give the bytes of a character that is not whole yet."""
        return self._decoders[stream].getstate()[0]

    def set_pending(self, stream: Stream, data: bytes) -> None:
        """Make a decoder stand behind such bytes."""
        self._decoders[stream].setstate((data, 0))

    def peek(self) -> tuple[ConsoleItem, ...]:
        """Give what is there, and leave it."""
        return tuple((stream.value, "".join(parts)) for stream, parts in self._items)

    def put_back(self, items: Iterable[ConsoleItem]) -> None:
        """Put what an undelivered answer held in front of what came since; caps stay."""
        newer, self._items = self._items, []
        for stream in Stream:
            self._room[stream] = self._cap
        for name, text in items:
            self._append(Stream(name), text)
        for stream, parts in newer:
            self._append(stream, "".join(parts))

    def _append(self, stream: Stream, text: str) -> None:
        if not text:
            return
        room = self._room[stream]
        if len(text) > room:
            self.cut_chars += len(text) - room
            if not room:
                return
            text = text[:room]
        self._room[stream] = room - len(text)
        if self._items and self._items[-1][0] is stream:
            self._items[-1][1].append(text)
        else:
            self._items.append((stream, [text]))
