"""A scripted init: every step starts and ends when the test says so; and a runner's calls."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any

from retort.core.image import Image, ImageKind, ImageRef
from retort.core.run import Mode, RunRequest, Status
from retort.node.places import Place
from retort.node.run_settings import RunSettings
from retort.node.runner import Runner
from retort.sandbox.protocol import Phase, Scope
from retort.sandbox.step_values import ExecStep, Started, StepExit, StepNotStarted, StepUsage

SOON = 0.02  # seconds that a call waits when it shall find nothing


class ScriptedStep:
    """A step that has been asked for."""

    def __init__(self, program: ExecStep, on_exit: Callable[[StepExit], None]) -> None:
        self.number = program.number
        self.argv = program.argv
        self.stdin, self.stdout, self.stderr = (os.dup(end) for end in program.stdio)
        self.held = [os.dup(end) for end in program.held]
        self.future: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._on_exit = on_exit
        self.is_over = False

    def start(self) -> None:
        self.future.set_result(Started(self.number, 2))

    def refuse(self, phase: Phase, error: int = errno.ENOENT) -> None:
        self.future.set_exception(StepNotStarted(phase, error))
        self.close()

    def print(self, text: str) -> None:
        os.write(self.stdout, text.encode())

    async def end(self, code: int = 0) -> None:
        if not self.future.done():
            self.start()
        await settle()
        self.close()
        usage = StepUsage(1000, 2000, 64, 0, 0, 0, 0, 0, 0)
        self._on_exit(StepExit(self.number, code << 8, usage, 0, 10))
        await settle()

    def close(self) -> None:
        if not self.is_over:
            self.is_over = True
            for end in (self.stdin, self.stdout, self.stderr, *self.held):
                os.close(end)


class ScriptedInit:
    """As much of `InitClient` as a runner uses."""

    def __init__(self) -> None:
        self.steps: list[ScriptedStep] = []
        self.kills: list[tuple[int, int, Scope]] = []
        self.released: list[int] = []
        self.failure: Exception | None = None
        self.is_reading = False
        self.prepared = 0  #: times that it was asked for a standby child
        self.no_standby = errno.EBUSY  #: why there is none

    def exec(
        self, program: ExecStep, on_exit: Callable[[StepExit], None]
    ) -> asyncio.Future[Started]:
        if self.failure is not None:
            raise self.failure
        self.steps.append(ScriptedStep(program, on_exit))
        return self.steps[-1].future

    def feed(self, number: int, data: bytes) -> asyncio.Future[int]:
        if self.failure is not None:
            raise self.failure
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        step = next(step for step in self.steps if step.number == number)
        try:
            done.set_result(os.write(step.held[0], data))
        except BlockingIOError:
            done.set_result(0)
        return done

    def kill(self, number: int, signal: int, scope: Scope) -> asyncio.Future[None]:
        if self.failure is not None:
            raise self.failure
        self.kills.append((number, signal, scope))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_exception(ProcessLookupError())
        return done

    def release(self, number: int) -> asyncio.Future[None]:
        self.released.append(number)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def prepare(self) -> asyncio.Future[Any]:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.prepared += 1
        done.set_exception(OSError(self.no_standby, "no standby in this script"))
        return done

    async def is_waiting(self, number: int) -> bool:
        return self.is_reading

    async def open(self, path: bytes, flags: int) -> int:
        raise self.failure or FileNotFoundError(path)


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(10):
        await asyncio.sleep(0)


def make(init: ScriptedInit, place: Place | None = None, **settings: Any) -> Runner:
    image = Image(ImageRef.parse("bash:5"), ImageKind.BASH)
    return Runner(init, image, {}, (), RunSettings(**settings), place)  # type: ignore[arg-type]


def batch(run_id: str = "r", *, command: str | None = "x", **more: Any) -> RunRequest:
    return RunRequest(Mode.BATCH, run_id=run_id, exec=command, **more)


def going_on(run_id: str = "r") -> RunRequest:
    return RunRequest(Mode.CONTINUE, run_id=run_id)


def typing(text: str, run_id: str = "r") -> RunRequest:
    return RunRequest(Mode.INPUT, text, run_id=run_id)


async def begun(runner: Runner, run_id: str = "r") -> None:
    """Start a run and take its `build-finished`."""
    answer = await runner.execute(batch(run_id), SOON)
    assert answer.status is Status.BUILD_FINISHED


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        for _ in iter(condition, True):
            await asyncio.sleep(0.001)
