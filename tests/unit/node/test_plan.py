from __future__ import annotations

from typing import Any

import pytest

from retort.core.image import Image, ImageKind, ImageRef
from retort.core.run import Mode, Phase, RunRequest
from retort.errors import InvalidRequest
from retort.node.plan import MAX_COMMAND_BYTES, plan_of

IMAGE = Image(ImageRef.parse("gcc:12"), ImageKind.C)


def plan(**fields: Any) -> dict[Phase, tuple[str, ...]]:
    return dict(plan_of(RunRequest(Mode.BATCH, **fields), IMAGE).commands)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("command", ["echo 'a b'", " ", "**", "* ", "ü\n"])
def test_a_command_is_handed_to_bash_as_it_is(phase: Phase, command: str) -> None:
    assert plan(**{phase.value: command}) == {phase: ("/bin/bash", "-c", command)}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("command", [None, ""])
def test_no_command_is_no_step(phase: Phase, command: str | None) -> None:
    assert plan(**{phase.value: command}) == {}


@pytest.mark.parametrize("phase", Phase)
def test_a_star_is_the_images_own_command(phase: Phase) -> None:
    own = getattr(IMAGE, phase.value)
    assert plan(**{phase.value: "*"}) == {phase: ("/bin/bash", "-c", own)}


@pytest.mark.parametrize("has_clean", [False, True])
def test_clean_is_reported_when_it_was_named(has_clean: bool) -> None:
    made = plan_of(RunRequest(Mode.BATCH, has_clean=has_clean), IMAGE)
    assert (made.reports_clean, made.reports_build) == (has_clean, True)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(
    "command", ["a\0b", "x" * (MAX_COMMAND_BYTES + 1), "ü" * MAX_COMMAND_BYTES, "\ud800"]
)
def test_a_command_that_cannot_be_executed_is_refused(phase: Phase, command: str) -> None:
    with pytest.raises(InvalidRequest, match=f"options.{phase.value}"):
        plan(**{phase.value: command})


def test_the_longest_command_is_taken() -> None:
    assert plan(exec="x" * MAX_COMMAND_BYTES)


def test_a_query_has_one_step_and_one_report() -> None:
    made = plan_of(RunRequest(Mode.QUERY, "int main(){}"), IMAGE)
    assert list(made.commands) == [Phase.EXEC]
    assert made.commands[Phase.EXEC][-1] == "int main(){}"
    assert not made.reports_clean
    assert not made.reports_build


@pytest.mark.parametrize("code", ["a\0b", "x" * (MAX_COMMAND_BYTES + 1), "\ud800"])
def test_code_that_cannot_be_handed_over_is_refused(code: str) -> None:
    with pytest.raises(InvalidRequest, match="code"):
        plan_of(RunRequest(Mode.QUERY, code), IMAGE)
