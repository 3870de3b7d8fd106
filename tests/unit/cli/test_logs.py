"""Log lines: when they are written, and that none is lost."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import structlog

from retort.cli import logs
from retort.cli.logs import Lines


class Sink:
    """Where lines go."""

    def __init__(self) -> None:
        self.writes: list[str] = []
        self.is_written = asyncio.Event()

    def write(self, text: str) -> int:
        self.writes.append(text)
        self.is_written.set()
        return len(text)

    def flush(self) -> None:
        pass

    @property
    def lines(self) -> list[str]:
        return "".join(self.writes).splitlines()


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def lines(sink: Sink) -> Lines:
    render = structlog.processors.KeyValueRenderer(key_order=["event"])
    return Lines(render, sink)  # type: ignore[arg-type]


def say(lines: Lines, method: str, event: str) -> None:
    with pytest.raises(structlog.DropEvent):
        lines(None, method, {"event": event})


async def test_what_only_tells_is_written_together_and_soon(sink: Sink, lines: Lines) -> None:
    say(lines, "info", "one")
    say(lines, "debug", "two")
    assert sink.writes == []
    async with asyncio.timeout(10):
        await sink.is_written.wait()
    assert sink.writes == ["event='one'\nevent='two'\n"]


@pytest.mark.parametrize("method", ["warning", "error", "critical", "exception"])
async def test_a_warning_is_written_at_once_after_what_was_said_before(
    sink: Sink, lines: Lines, method: str
) -> None:
    say(lines, "info", "first")
    say(lines, method, "bad")
    assert sink.lines == ["event='first'", "event='bad'"]


def test_without_a_loop_nothing_waits(sink: Sink, lines: Lines) -> None:
    say(lines, "info", "start")
    assert sink.lines == ["event='start'"]


async def test_no_more_than_so_many_wait(sink: Sink, lines: Lines) -> None:
    for number in range(logs.MOST):
        say(lines, "info", str(number))
    assert len(sink.lines) == logs.MOST


async def test_lines_of_threads_are_whole_and_none_is_lost(sink: Sink, lines: Lines) -> None:
    def talk(name: str) -> None:
        for number in range(2000):
            say(lines, "info", f"{name}{number}")

    threads = [threading.Thread(target=talk, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        say(lines, "info", "loop")
        await asyncio.sleep(0)
    lines.flush()
    told = [line for line in sink.lines if "loop" not in line]
    assert sorted(told) == sorted(f"event='{name}{n}'" for name in "abc" for n in range(2000))


async def test_a_line_keeps_the_time_at_which_it_was_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(logs.atexit, "register", kept.append)
    before = structlog.get_config()
    try:
        logs.configure_logs()
        structlog.get_logger().info("said")
        assert capsys.readouterr().err == ""
        kept[0]()  # as at the end of the process
        line = capsys.readouterr().err
    finally:
        structlog.configure(**before)
    assert line.startswith("timestamp='20")
    assert line.endswith("level='info' event='said'\n")
