"""Build steps on their way through the cache: from the order to start one to its program.

The order of steps is runner.py's, what is cached is build_cache.py's. Here is what may happen to a
run while its build is looked up: it is cancelled, interrupted, out of time, or its session breaks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Sequence
from typing import Protocol

from retort.core.console import Stream
from retort.core.limits import Usage
from retort.core.run import Outcome, Phase, StartStep, StepResult, Stop
from retort.core.verdict import Counters, judge
from retort.errors import SandboxFault
from retort.node.build_cache import Build, SessionBuilds
from retort.node.live_run import LiveRun
from retort.node.places import Place
from retort.node.step import Step, Stepper

OUT_OF_TIME = StepResult(Outcome.TIMED_OUT, 0, stop=Stop.WALL)


class Steps(Protocol):
    """What a runner does with the outcome of a look-up."""

    def start_built(self, run: LiveRun, order: StartStep, build: Build) -> None:
        """Start the program; `build` is to be kept when it ends."""
        ...

    def recall(self, run: LiveRun, printed: Sequence[tuple[Stream, bytes]]) -> None:
        """Have the run print what a stored build printed."""
        ...

    def conclude(self, run: LiveRun, result: StepResult, number: int = 0) -> None:
        """Go on after a step ended; `number` 0: it never was one of init's."""
        ...

    def fail(self, run: LiveRun, reason: str) -> None:
        """End a step as a failure of ours."""
        ...

    def looked_up(self) -> None:
        """Go on after a look-up; its run may have ended meanwhile."""
        ...


@dataclasses.dataclass(slots=True, eq=False)
class _LookUp:
    run: LiveRun
    order: StartStep
    task: asyncio.Task[None] | None = None
    is_interrupted: bool = False


class BuildSteps:
    """The build steps of one session.

    Args:
        builds: None when this node has no cache.
    """

    def __init__(
        self, builds: SessionBuilds | None, steps: Steps, stepper: Stepper, place: Place
    ) -> None:
        self._builds = builds
        self._steps = steps
        self._stepper = stepper
        self._place = place
        self._look_up: _LookUp | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a build is looked up: its files may just be put in place."""
        return self._look_up is not None

    def wants(self, run: LiveRun, order: StartStep) -> bool:
        """Whether a step goes through the cache."""
        if self._builds is None or order.phase is not Phase.BUILD:
            return False
        return self._builds.is_default if run.caches_build is None else run.caches_build

    def begin(self, run: LiveRun, order: StartStep) -> None:
        """Look a build up, and have its result or its program started."""
        self._look_up = look_up = _LookUp(run, order)
        look_up.task = asyncio.get_running_loop().create_task(self._look(look_up))

    def stop(self, run: LiveRun | None = None) -> None:
        """End the look-up of a run, or of whatever run; what is being put in place still is."""
        look_up = self._look_up
        if look_up is not None and look_up.task is not None and run in (None, look_up.run):
            look_up.task.cancel()

    def interrupt(self) -> None:
        """End the look-up as an interrupt ends a program."""
        if self._look_up is not None:
            self._look_up.is_interrupted = True
            self.stop()

    def drop(self, run: LiveRun, build: Build | None) -> None:
        """Forget a build that came to nothing."""
        if build is not None and self._builds is not None:
            run.console.stop_recording()
            self._builds.drop(build)

    async def keep(self, step: Step, build: Build, result: StepResult) -> None:
        """Keep what a step built, and go on."""
        run = step.run
        run.console.stop_recording()
        if self._builds is not None:
            is_pure = not (
                self._stepper.met_limit or self._stepper.keeps_background or step.is_interrupted
            )
            result = await self._builds.keep(
                build, result, is_pure=is_pure, is_valid=lambda: not run.is_ended
            )
        if run.state.is_timed_out:
            result = OUT_OF_TIME
        self._steps.conclude(run, result, step.number)

    async def _look(self, look_up: _LookUp) -> None:
        run, build, failure = look_up.run, None, None
        assert self._builds is not None
        try:
            if self._place.placed is not None:
                await asyncio.wait((self._place.placed,))
            build = await self._builds.look(
                look_up.order.argv, run.limits, is_alone=not self._stepper.keeps_background
            )
        except asyncio.CancelledError:
            failure = "the look-up was cancelled"  # by `stop`, of a run that ends otherwise
        except (SandboxFault, OSError) as exc:
            failure = str(exc)
        self._look_up = None
        if build is not None and (self._is_over(look_up) or build.hit is not None):
            self._builds.drop(build)
        self._go_on(look_up, build, failure)
        self._steps.looked_up()

    def _go_on(self, look_up: _LookUp, build: Build | None, failure: str | None) -> None:
        run = look_up.run
        if run.is_ended:
            return
        if run.state.is_timed_out:
            self._steps.conclude(run, OUT_OF_TIME)
        elif look_up.is_interrupted:
            self._steps.conclude(run, judge(signal.SIGINT, Usage(), Counters(), None))
        elif build is None:
            self._steps.fail(run, failure or "")
        elif build.hit is not None:
            self._steps.recall(run, build.printed)
            # As if it had been run, of the run's limit; the session's own usage is what was used.
            run.cpu_us += build.hit.usage.user_us + build.hit.usage.system_us
            self._steps.conclude(run, build.hit)
        else:
            if build.refusal is None:
                build.recording = run.console.record()
            self._steps.start_built(run, look_up.order, build)

    def _is_over(self, look_up: _LookUp) -> bool:
        run = look_up.run
        return run.is_ended or run.state.is_timed_out or look_up.is_interrupted
