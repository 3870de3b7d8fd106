"""`retort selftest`: attack a server of its own on this host, and say which walls held."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from retort import __version__
from retort.cli.attack_programs import PRELUDE
from retort.cli.attacks import ATTACKS, Attack
from retort.cli.terminal import harmless
from retort.errors import RetortError

if TYPE_CHECKING:
    from retort.client.client import Client, SessionHandle

T = TypeVar("T")

PASS, FAIL, NOT_ENFORCED = "pass", "FAIL", "not enforced"
COULD_NOT_RUN = 2  #: exit status
ROW_S = 30.0  # a row that takes longer has failed
AT_ONCE = 2
TOLD_CHARS = 300  # of what a program says
IDLE_PEAK_BYTES = 40 << 20  # more than `true` can need, less than the program before it did
FILE_ANSWER_S = 5.0

#: Smaller than a server's own: what is tested is that they hold, and the host has to keep working.
SIZES = {
    "RETORT_SANDBOX_SCRATCH_BYTES": str(64 << 20),
    "RETORT_SANDBOX_TMP_BYTES": str(16 << 20),
    "RETORT_SANDBOX_SHM_BYTES": str(16 << 20),
    "RETORT_SANDBOX_FILE_BYTES": str(64 << 20),
    "RETORT_SANDBOX_PROCESSES": "128",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What became of one attack; `seconds` is 0 when it was not made."""

    row: str
    name: str
    result: str
    seconds: float
    detail: str


class Broken(Exception):
    """A wall did not hold, or a verdict was wrong; the text says what was seen."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON report.")
@click.option("--only", "only", multiple=True, metavar="ROW", help="Only this row, such as A1.")
def selftest(as_json: bool, only: tuple[str, ...]) -> None:
    """Attack sandboxes of this host and say which walls held.

    A temporary server runs hostile programs, as `retort run` runs yours. Exit code 1: a wall
    failed. 2: nothing could be run. A wall that this host lacks the means for does not fail.
    """
    known = {attack.row for attack in ATTACKS}
    if unknown := sorted(set(only) - known):
        raise click.BadParameter(f"no such row: {', '.join(unknown)}", param_hint="--only")
    chosen = [attack for attack in ATTACKS if not only or attack.row in only]

    # Imported here, not above: `retort selftest --help` must not pay for it.
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            walls, rows = runner.run(_tested(chosen))
    except (RetortError, OSError) as exc:
        click.echo(f"retort: {harmless(str(exc))}", err=True)
        raise SystemExit(COULD_NOT_RUN) from exc
    if as_json:
        click.echo(json.dumps(report(walls, rows), indent=2))
    else:
        _print(walls, rows)
    raise SystemExit(1 if any(row.result == FAIL for row in rows) else 0)


def report(walls: Mapping[str, str], rows: list[Row]) -> dict[str, Any]:
    """Give the whole report as JSON-able values."""
    # Imported here: the facts are probed only for a report.
    from retort.cli.doctor import as_data
    from retort.wiring.host import host_facts

    facts, findings = host_facts()
    return {
        "version": __version__,
        "host": as_data(facts, findings, None)["facts"],
        "walls": dict(walls),
        "rows": [dataclasses.asdict(row) for row in rows],
        "counts": dict(Counter(row.result for row in rows)),
    }


def _print(walls: Mapping[str, str], rows: list[Row]) -> None:
    # Imported here: a report for a script needs no tables.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if os.isatty(1) else 120)
    colours = {PASS: "green", FAIL: "bold red", NOT_ENFORCED: "yellow"}
    table = Table("row", "attack", "result", "time", "seen", box=None)
    for row in rows:
        took = f"{row.seconds:.2f} s" if row.seconds else ""
        table.add_row(
            row.row, row.name, Text(row.result, colours[row.result]), took, Text(row.detail)
        )
    console.print(table)
    told = ", ".join(f"{name} {means}" for name, means in walls.items())
    counts = Counter(row.result for row in rows)
    console.print(Text(f"walls: {told}"))
    console.print(Text(", ".join(f"{count} {result}" for result, count in counts.items())))


async def _tested(attacks: list[Attack]) -> tuple[Mapping[str, str], list[Row]]:
    from retort.cli.temporary import temporary_server
    from retort.client.client import Client

    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(temporary_server({**os.environ, **SIZES}))
        client = await stack.enter_async_context(Client(server.url, token=server.token))
        bench = _Bench(client, server.url, server.secret_key)
        walls = await bench.walls()
        gate = asyncio.Semaphore(AT_ONCE)

        async def row(attack: Attack) -> Row:
            async with gate:
                return await bench.row(attack, walls)

        return walls, list(await asyncio.gather(*map(row, attacks)))


class _Bench:
    """Runs attacks on one server."""

    def __init__(self, client: Client, url: str, secret: str) -> None:
        self._client = client
        self._port = str(urlsplit(url).port)
        self._secret = secret

    async def walls(self) -> Mapping[str, str]:
        """Say what this host enforces, as every verdict does."""
        async with self._session("128m", {}) as session:
            walls: Mapping[str, str] = (await self._run(session, "true", {}))["walls"]
            return walls

    async def row(self, attack: Attack, walls: Mapping[str, str]) -> Row:
        """Make one attack, unless this host lacks the wall: then it might hit the host."""
        if reason := missing(attack, walls):
            return Row(attack.row, attack.name, NOT_ENFORCED, 0.0, reason)
        began_at = time.monotonic()
        try:
            async with asyncio.timeout(ROW_S):
                result, detail = PASS, await self._attack(attack, walls)
        except Broken as exc:
            result, detail = FAIL, str(exc)
        except TimeoutError:
            result, detail = FAIL, f"no end after {ROW_S:.0f} s"
        except (RetortError, OSError, KeyError) as exc:
            result, detail = FAIL, f"{type(exc).__name__}: {exc}"
        took = round(time.monotonic() - began_at, 3)
        return Row(attack.row, attack.name, result, took, harmless(detail))

    async def _attack(self, attack: Attack, walls: Mapping[str, str]) -> str:
        mark = f"attack-{secrets.token_hex(8)}.py"
        with tempfile.NamedTemporaryFile() as secret_file:
            secret_file.write(self._secret.encode())
            secret_file.flush()
            environ = {
                "SELFTEST_PORT": self._port,
                "SELFTEST_TOKEN": self._secret[::-1],
                "SELFTEST_FILE": secret_file.name,
            }
            async with self._session(attack.memory, environ) as session:
                await session.upload({mark: (PRELUDE + attack.program).encode()})
                answer = await self._run(session, f"exec python3 {mark}", attack.limits)
                if left := _processes_with(mark):
                    raise Broken(f"{left} processes outlived the run")
                detail = judged(attack, answer, walls)
                detail += await self._afterwards(attack, session, answer, secret_file.name)
        return detail

    async def _afterwards(
        self, attack: Attack, session: SessionHandle, answer: Mapping[str, Any], secret_path: str
    ) -> str:
        from retort.client.errors import ApiError

        try:
            after = await self._run(session, "echo fine", {"wallSeconds": 10})
        except ApiError as exc:
            if attack.row == "C2" and exc.status == 404:
                return "; its session ended with it"  # nothing but init was left to be killed
            raise
        if (after["outcome"], after["exitCode"], after["text"]) != ("exited", 0, "fine\n") and (
            # What fills its session's memory with files has filled it for good.
            attack.row != "C2" or after["outcome"] == "infrastructure"
        ):
            raise Broken(f"the next run: {after['outcome']}, exit code {after['exitCode']}")
        match attack.then:
            case "links":
                return await self._links(session, Path(secret_path).name)
            case "fifos":
                return await self._fifos(session)
            case "peak":
                peak = after["usage"]["peakMemoryBytes"]
                if peak is not None and peak > IDLE_PEAK_BYTES:
                    raise Broken(f"the next run has a peak of {peak >> 20} MiB")
                return "; the next run: " + ("not known" if peak is None else f"{peak >> 20} MiB")
            case "output":
                seen = len(answer["text"]) + answer["usage"]["cutChars"]
                if seen != 32 << 20:
                    raise Broken(f"{seen} characters are accounted for")
                return f", {len(answer['text'])} characters kept, the rest counted"
        return ""

    async def _links(self, session: SessionHandle, secret_name: str) -> str:
        secret = self._secret.encode()
        paths = ["file", "folder", "environ", "root", "chain"]
        for path in [*paths, f"folder/{secret_name}", "/proc/self/environ"]:
            data = await _refused(session.read(path))
            if data is not None:
                raise Broken(f"{path} was downloaded" + (" from the host" * (secret in data)))
        with tempfile.TemporaryDirectory() as folder:
            for path in [*paths, "planted"]:
                got = await _refused(session.download([path], Path(folder)))
                if got is not None and any(secret in file.read_bytes() for file in got.files):
                    raise Broken(f"{path} was archived from the host")
        return f": {len(paths) + 2} downloads refused"

    async def _fifos(self, session: SessionHandle) -> str:
        for path in ("fifo", "socket", "folder", "/dev/zero"):
            try:
                async with asyncio.timeout(FILE_ANSWER_S):
                    data = await _refused(session.read(path))
            except TimeoutError:
                raise Broken(f"the download of {path} hangs") from None
            if data is not None:
                raise Broken(f"{path} was downloaded")
        return ": 4 downloads refused"

    @contextlib.asynccontextmanager
    async def _session(
        self, memory: str, environ: Mapping[str, str]
    ) -> AsyncIterator[SessionHandle]:
        session = await self._client.create_session(
            "python", resources={"cpu": 1, "mem": memory}, environ=dict(environ)
        )
        try:
            yield session
        finally:
            with contextlib.suppress(RetortError):  # it may have ended by itself
                await session.destroy()

    async def _run(
        self, session: SessionHandle, command: str, limits: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Run a command to its end; gives the last answer, with all it printed as `text`."""
        options = {"build": None, "exec": command, "limits": dict(limits)}
        path, texts = f"/session/{session.name}", []
        body: dict[str, Any] = {"mode": "batch", "code": "", "options": options}
        while True:
            answer: dict[str, Any] = (await self._client.call("POST", path, json=body))["result"]
            texts += [text for _, text in answer["console"]]
            if answer["status"] in ("finished", "exec-timeout"):
                return answer | {"text": "".join(texts)}
            body = {"mode": "continue", "code": "", "runId": answer["runId"]}


def missing(attack: Attack, walls: Mapping[str, str]) -> str | None:
    """Say why an attack is not made here; None when its wall stands."""
    means = walls.get(attack.wall, "none")
    if means in ("none", "host") or (
        means == "rlimit" and attack.wall == "cpuTime" and attack.by_rlimit is None
    ):
        return f"this host has no wall for it ({attack.wall}: {means})"
    return None


def judged(attack: Attack, answer: Mapping[str, Any], walls: Mapping[str, str]) -> str:
    """Check an answer against what the attack must get; gives a line of detail.

    Raises:
        Broken: it got something else.
    """
    by_rlimit = walls.get(attack.wall) == "rlimit" and attack.by_rlimit is not None
    outcomes = (attack.by_rlimit,) if by_rlimit else attack.outcomes
    told = answer["text"][-TOLD_CHARS:].strip().splitlines()[-1:] or [""]
    seen = f"{answer['outcome']}, exit code {answer['exitCode']}"
    if answer["limit"]:
        seen += f", limit {answer['limit']}"
    if answer["outcome"] not in outcomes or answer["limit"] != attack.limit:
        raise Broken(f"{seen}: {told[0][-TOLD_CHARS:]}")
    if attack.exit_code is not None and answer["exitCode"] != attack.exit_code:
        raise Broken(f"{seen}: {told[0]}")
    word, _, text = told[0].partition(" ")
    if attack.is_told and word != "held":
        raise Broken(f"{seen}: {told[0]}")
    if answer["retrySafe"]:
        raise Broken(f"{seen}, and called safe to run again")
    return text if attack.is_told and text else seen


async def _refused(call: Awaitable[T]) -> T | None:
    """Give what a call gives; None when the server refused it by a 4xx."""
    from retort.client.errors import ApiError

    try:
        return await call
    except ApiError as exc:
        if exc.status >= 500:
            raise Broken(f"status {exc.status}") from exc
        return None


def _processes_with(mark: str) -> int:
    """Count this host's processes that were started for an attack."""
    found = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found += mark.encode() in Path(entry.path, "cmdline").read_bytes()
    return found
