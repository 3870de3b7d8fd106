"""A journal that is read again: what left an earlier server leaves this one untold."""

from __future__ import annotations

from pathlib import Path

from retort.core.run import Answer, Phase, Plan, RunLimits, RunState, Status
from retort.node.journal import Journal, read_journal
from retort.node.live_run import LiveRun
from retort.node.records import CancelledRun, Opened, Sent, Taken
from retort.node.replay import Replay
from retort.node.run_book import RunBook, StepNow
from retort.node.run_settings import RunSettings


def test_an_answer_that_was_taken_is_not_on_its_way_a_second_time() -> None:
    told: list[Answer] = []

    def tell(run: LiveRun, answer: Answer, is_closed: bool, token: str | None) -> Answer:
        told.append(answer)
        return answer

    def make(
        run_id: str, state: RunState, limits: RunLimits, keeps: bool, is_watched: bool
    ) -> LiveRun:
        return LiveRun(run_id, state, output_chars=100, limits=limits, on_take=tell)

    replay = Replay(make)
    plan = Plan({}, reports_clean=False, reports_build=True)
    replay.read(
        [
            Opened("one", plan, RunLimits(), False, False),
            CancelledRun("one"),
            Taken(1, "one", True, None),
        ]
    )
    assert list(replay.on_their_way) == [1]
    assert not replay.runs
    assert not told


PLAN = Plan({}, reports_clean=False, reports_build=True)


def new_book(path: Path) -> RunBook:
    return RunBook(Journal(path), RunSettings(), {})


def cancelled_in(book: RunBook) -> LiveRun:
    """Open a run and end it."""
    run = book.make("one", RunState(PLAN), RunLimits(), False, False)
    book.open(run)
    replay = Replay(book.make)
    replay.runs, replay.queue = {"one": run}, [run]
    replay.read([CancelledRun("one")])
    return run


def read_again(path: Path) -> Replay:
    replay = Replay(new_book(path.with_suffix(".other")).make)
    replay.read(read_journal(path)[0])
    return replay


async def _no(token: str) -> bool:
    return False


async def test_an_end_on_its_way_when_the_journal_began_anew_can_be_asked_for_again(
    tmp_path: Path,
) -> None:
    book = new_book(tmp_path / "journal")
    run = cancelled_in(book)
    assert run.take() is not None
    book.taken(run)
    book.shorten([], 1, keeps_background=False, always=True)
    replay = read_again(tmp_path / "journal")
    assert not replay.runs
    await replay.settle(_no)
    end = replay.runs["one"].take()
    assert end is not None
    assert (end.status, end.exit_code) == (Status.FINISHED, 130)


def test_a_program_that_dies_is_known_although_its_run_is_forgotten_and_its_name_another_s(
    tmp_path: Path,
) -> None:
    """Or the next one would be sent to an init that is not done with it."""
    book = new_book(tmp_path / "journal")
    gone = cancelled_in(book)
    book.forget("one")
    queued = book.make("one", RunState(PLAN), RunLimits(), False, False)
    book.open(queued)
    step = StepNow(Sent("one", 7, Phase.EXEC, None), gone)
    book.shorten([queued], 7, keeps_background=False, step=step, always=True)
    replay = read_again(tmp_path / "journal")
    assert replay.sent_run is not None
    assert replay.sent_run.is_ended
    assert [run.run_id for run in replay.queue] == ["one"]
    assert replay.queue[0] is not replay.sent_run
    assert list(replay.runs.values()) == replay.queue
