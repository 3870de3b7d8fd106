"""`retort run`: build and run files as if here, but in a sandbox.

Against a server, or without one against a server that this command makes for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retort.cli.project import Project, ProjectError, collect
from retort.cli.terminal import Lines, Notes, Sink, harmless
from retort.errors import RetortError
from retort.units import format_bytes, format_duration

if TYPE_CHECKING:
    from retort.client.client import Client, SessionHandle
    from retort.client.run import Run

OUR_FAILURE = 125  #: exit code when not the program but Retort failed, as other wrappers do
TIMED_OUT = 124  #: exit code when the program's time ran out, as timeout(1)'s
INTERRUPT_S = 2.0  #: an interrupted program gets so long to end
DESTROY_S = 10.0
STDIN_BYTES = 1024 * 1024  #: what every server takes as a file

# The API cannot end a program's input, so --stdin sends it as a file. bash sources what BASH_ENV
# names before it starts the command, whatever that is (specification 5.7: commands are bash's).
STDIN_FILE, STDIN_SCRIPT = ".retort-stdin", ".retort-stdin.sh"
STDIN_REDIRECT = f"unset BASH_ENV\nexec < /home/work/{STDIN_FILE}\n".encode()


class Failure(click.ClickException):
    """Retort failed, not the program."""

    exit_code = OUR_FAILURE


class _Command(click.Command):
    """A command whose own mistakes never look like the program's exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as exc:
            exc.exit_code = OUR_FAILURE  # type: ignore[misc] # the stubs call it a class's
            raise


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """What to do, as the command line says."""

    project: Project
    image: str
    build: str
    exec: str
    environ: dict[str, str]
    fetch: tuple[str, ...]
    into: Path
    is_kept: bool
    takes_stdin: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """Which server, and by which key; no endpoint: one of our own."""

    endpoint: str | None
    access_key: str | None
    secret_key: str | None
    token: str | None


@click.command(cls=_Command)
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--image", help="Environment; guessed from the files when left out.")
@click.option("--build", default="*", metavar="COMMAND", help='Build by this ["*": as usual].')
@click.option("--exec", "exec_", metavar="COMMAND", help='Run this ["*": the built program].')
@click.option("--env", multiple=True, metavar="K=V", help="Variable of the session; K: from here.")
@click.option(
    "--fetch", multiple=True, metavar="PATH", help="Fetch this file or folder afterwards."
)
@click.option("--to", "into", type=click.Path(file_okay=False, exists=True, path_type=Path),
              default=".", metavar="DIR", help="Where to put what is fetched.")  # fmt: skip
@click.option("--base", type=click.Path(file_okay=False, exists=True, path_type=Path),
              metavar="DIR", help="Folder that becomes /home/work.")  # fmt: skip
@click.option("-i", "--stdin", "takes_stdin", is_flag=True,
              help="Give the program all of standard input, with its end.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Leave the session on the server.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--local", is_flag=True, help="Use no server, even if BACKEND_ENDPOINT is set.")
@click.option("--endpoint", envvar="BACKEND_ENDPOINT", metavar="URL", show_envvar=True)
@click.option("--access-key", envvar="BACKEND_ACCESS_KEY", metavar="KEY", show_envvar=True)
@click.option("--secret-key", envvar="BACKEND_SECRET_KEY", metavar="KEY", show_envvar=True)
@click.option("--token", envvar="RETORT_TOKEN", metavar="TOKEN", show_envvar=True)
def run(files: tuple[Path, ...], quiet: bool, local: bool, **options: Any) -> None:
    """Build and run FILES in a sandbox.

    Folders are sent whole. Without a server this command runs one for itself. Standard output and
    the exit code are the program's; everything else goes to standard error. 127: the build
    failed. 125: Retort failed. Input is passed on line by line when the program waits for it.
    """
    notes = Notes(is_quiet=quiet)
    access = Access(*(options[k] for k in ("endpoint", "access_key", "secret_key", "token")))
    if local or not access.endpoint:
        access = Access(None, None, None, None)
    elif not access.token and not (access.access_key and access.secret_key):
        raise Failure(f"{access.endpoint} needs a key: BACKEND_ACCESS_KEY and BACKEND_SECRET_KEY")
    order = _order(files, options, notes)
    if order.is_kept and access.endpoint is None:
        raise Failure("--keep needs a server: this command's own ends with it")

    # Imported here, not above: `retort run --help` must not pay for it.
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_supervised(_Job(order, access, notes)))
    except (RetortError, OSError) as exc:
        if isinstance(exc, BrokenPipeError):
            code = 128 + signal.SIGPIPE  # nobody reads what the program prints
        else:
            raise Failure(harmless(str(exc))) from exc
    sys.exit(code)


def _order(files: tuple[Path, ...], options: dict[str, Any], notes: Notes) -> Order:
    try:
        project = collect(files, options["base"])
    except (ProjectError, OSError) as exc:
        raise Failure(harmless(str(exc))) from exc
    for line in project.left_out:
        notes.say(f"left out {line}")
    image = options["image"] or project.image()
    if image is None:
        raise Failure("the files do not tell their language: choose an --image, such as gcc")
    exec_ = options["exec_"] or (project.exec() if options["image"] is None else "*")
    return Order(
        project,
        image,
        options["build"],
        exec_,
        _environ(options["env"]),
        options["fetch"],
        options["into"],
        options["keep"],
        options["takes_stdin"],
    )


def _environ(words: tuple[str, ...]) -> dict[str, str]:
    environ = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or (not equals and name not in os.environ):
            raise Failure(f"--env {harmless(word)}: must be NAME=VALUE, or a variable that is set")
        environ[name] = value if equals else os.environ[name]
    return environ


async def _supervised(job: _Job) -> int:
    """Do the job; SIGINT interrupts the program first, anything else ends it, always tidily."""
    task = asyncio.ensure_future(job.done())
    loop = asyncio.get_running_loop()
    caught: list[int] = []

    def stop() -> None:
        # Once only: a second one would break into the tidying up.
        if not task.done() and not task.cancelling():
            task.cancel()

    def on_signal(signum: int) -> None:
        caught.append(signum)
        if signum == signal.SIGINT and len(caught) == 1 and job.interrupt():
            loop.call_later(INTERRUPT_S, stop)
        else:
            stop()

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, on_signal, signum)
    try:
        code = await task
    except (asyncio.CancelledError, RetortError, OSError):
        if not caught:
            raise
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(signum)
    return 128 + caught[0] if caught else code


class _Job:
    """One `retort run`."""

    def __init__(self, order: Order, access: Access, notes: Notes) -> None:
        self._order = order
        self._access = access
        self._notes = notes
        self._stdin = Lines(0)
        self._run: Run | None = None
        self._is_starved = False  # the program wanted more input than there is
        self._interrupting: asyncio.Future[None] | None = None

    def interrupt(self) -> bool:
        """Interrupt the program; False when none runs."""
        if self._run is None:
            return False
        self._notes.say("interrupting the program")
        self._interrupting = asyncio.ensure_future(_quietly(self._run.interrupt()))
        return True

    async def done(self) -> int:
        """Do everything; gives the exit code."""
        began_at = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            client = await self._client(stack)
            session = await self._session(client, stack)
            await self._upload(session)
            order, size = self._order, format_bytes(self._order.project.size)
            self._notes.say(
                f"{len(order.project.files)} files, {size}, in {order.image}"
                f" after {format_duration(time.monotonic() - began_at)}"
            )
            code = await self._ran(session)
            if not await self._fetched(session) and code == 0:
                return OUR_FAILURE
        return code

    async def _client(self, stack: contextlib.AsyncExitStack) -> Client:
        from retort.client.client import Client

        access = self._access
        if access.endpoint is None:
            # Imported here, not above: with a server nothing of this is needed.
            from retort.cli.temporary import temporary_server

            server = await stack.enter_async_context(temporary_server(os.environ))
            client = Client(server.url, token=server.token)
        else:
            client = Client(
                access.endpoint,
                access_key=access.access_key,
                secret_key=access.secret_key,
                token=access.token,
            )
        return await stack.enter_async_context(client)

    async def _session(self, client: Client, stack: contextlib.AsyncExitStack) -> SessionHandle:
        """Make the session; it is ended with the stack, unless it is to be kept."""
        name = f"run-{secrets.token_hex(8)}"
        environ = dict(self._order.environ)
        if self._order.takes_stdin:
            environ["BASH_ENV"] = f"/home/work/{STDIN_SCRIPT}"
        if not self._order.is_kept:
            # By name and before it is made: we may be stopped between its making and its answer.
            stack.push_async_callback(_destroy, client, name)
        session = await client.create_session(self._order.image, name, environ=environ)
        if self._order.is_kept:
            self._notes.say(f"session {session.name} is kept")
        return session

    async def _upload(self, session: SessionHandle) -> None:
        files: dict[str, Path | bytes] = dict(self._order.project.files)
        if self._order.takes_stdin:
            data = await self._stdin.rest(STDIN_BYTES)
            if data is None:
                raise RetortError(f"--stdin takes {format_bytes(STDIN_BYTES)} at most")
            files |= {STDIN_FILE: data, STDIN_SCRIPT: STDIN_REDIRECT}
        await session.upload(files)

    async def _ran(self, session: SessionHandle) -> int:
        """Run the program and pass on what it prints; gives the exit code."""
        from retort.client.events import Finished, Output, PhaseEnded, WaitingInput

        began_at = time.monotonic()
        out, err = Sink(1), Sink(2)
        feeding: asyncio.Future[None] | None = None
        try:
            async with session.run(build=self._order.build, exec=self._order.exec) as run:
                self._run = run
                async for event in run:
                    match event:
                        case Output(stream, text, is_program):
                            # What a build prints is not the program's output.
                            is_out = is_program and stream == "stdout"
                            await _pass_on(out if is_out else err, text)
                        case PhaseEnded("build", 0):
                            took = format_duration(time.monotonic() - began_at)
                            self._notes.say(f"built in {took}")
                        case PhaseEnded("build", code):
                            self._notes.error(f"the build failed with exit code {code}")
                        case WaitingInput() if feeding is None or feeding.done():
                            feeding = asyncio.ensure_future(self._feed(run))
                        case Finished():
                            return self._verdict(event, feeding, time.monotonic() - began_at)
        finally:
            self._run = None
            if feeding is not None:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
        raise AssertionError("a run ends with Finished")

    async def _feed(self, run: Run) -> None:
        """Give a waiting program the next line; without one it would wait for ever."""
        line = await self._stdin.next()
        if line is not None:
            await run.send(line)
            return
        self._notes.error(
            "the program waits for input and there is no more; --stdin passes its end"
        )
        self._is_starved = True
        await run.interrupt()

    def _verdict(self, end: Any, feeding: object, took_s: float) -> int:
        names = ", ".join(file.name for file in end.files)
        if names:
            self._notes.say(f"results in .output: {names}")
        if self._is_starved:
            return OUR_FAILURE
        if end.exit_code is None:
            self._notes.error(f"the program's time ran out after {format_duration(took_s)}")
            return TIMED_OUT
        if end.exit_code < 0:
            self._notes.error("the server failed to run the program")
            return OUR_FAILURE
        self._notes.say(f"exit code {end.exit_code} after {format_duration(took_s)}")
        code: int = end.exit_code
        return code

    async def _fetched(self, session: SessionHandle) -> bool:
        """Fetch what was asked for; False when something could not be."""
        from retort.client.errors import ClientError

        for path in self._order.fetch:
            try:
                got = await session.download([path], self._order.into)
            except (ClientError, OSError) as exc:
                self._notes.error(f"--fetch {path}: {exc}")
                return False
            for name in got.left_out:
                self._notes.say(f"left out {name}: a link or a device")
            self._notes.say(f"fetched {path}: {len(got.files)} files")
        return True


async def _pass_on(sink: Sink, text: str) -> None:
    data = text.encode("utf-8", "replace")
    try:
        await sink.write(data)
    except BrokenPipeError:
        raise
    except OSError:  # closed from the start: the program may print into nothing
        return


async def _destroy(client: Client, name: str) -> None:
    with contextlib.suppress(RetortError, TimeoutError):
        async with asyncio.timeout(DESTROY_S):
            await client.call("DELETE", f"/session/{name}")


async def _quietly(call: Any) -> None:
    with contextlib.suppress(RetortError):
        await call
