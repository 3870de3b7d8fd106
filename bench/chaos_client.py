"""A client of a server that dies: it goes on where it was, and knows what it must be answered."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from bench.chaos_programs import KINDS, Program
from bench.http import Connection, multipart

ANSWER_S = 30.0  # no call takes longer on a server that lives
PATIENCE_S = 90.0  # with a call and its repetitions, over the deaths of any servers
RUN_S = 100.0  # with a run
MAX_SESSIONS = 3  # of one client at a time
PAUSE_S = 0.02


class Wrong(Exception):
    """The server broke a promise."""


class CutOff(Exception):
    """A call that is not to be repeated was cut off: it may be done or not."""


class Shared:
    """What all clients know and tell."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token
        self.life = 0  #: which life of the server this is, counted by whoever kills it
        self.is_over = threading.Event()
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrongs: list[str] = []
        self.ids: set[str] = set()
        self._lock = threading.Lock()

    def count(self, what: str) -> None:
        """Count one more of something."""
        with self._lock:
            self.counts[what] += 1

    def wrong(self, what: str) -> None:
        """Take down a broken promise."""
        with self._lock:
            self.wrongs.append(f"life {self.life}: {what}"[:600])


@dataclasses.dataclass(slots=True, eq=False)
class Held:
    """A session that was acknowledged: it must be there, with these files."""

    name: str
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    runs: int = 0


class Patient:
    """Calls that are repeated until they are answered, with their token when they have one."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._http: Connection | None = None

    def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        kind: str = "application/json",
        *,
        has_token: bool = False,
        headers: str = "",
        once: bool = False,
    ) -> tuple[int, bytes, int]:
        """Give status, body and how many times it was sent.

        Raises:
            CutOff: `once`, and it was sent and not answered.
            Wrong: it is not answered in time.
        """
        if has_token:
            headers += f"X-BackendAI-Client-Token: {uuid.uuid4().hex}\r\n"
        until = time.monotonic() + PATIENCE_S
        tries = 0
        while time.monotonic() < until:
            if self._http is None and not self._connect():
                time.sleep(PAUSE_S)
                continue
            assert self._http is not None
            tries += 1
            try:
                status, answer = self._http.call(method, path, body, kind, headers)
            except TimeoutError:
                self.close()
                raise Wrong(f"{method} {path}: no answer in {ANSWER_S:.0f} s") from None
            except (OSError, IndexError, ValueError):  # cut off, perhaps within the head
                self.close()
                if once:
                    raise CutOff from None
                self._shared.count("calls repeated")
                continue
            if status in (429, 503):
                self._shared.count(f"calls answered {status}")
                time.sleep(PAUSE_S)
                continue
            self._shared.count("calls")
            return status, answer, tries
        raise Wrong(f"{method} {path}: not answered in {PATIENCE_S:.0f} s")

    def close(self) -> None:
        """Hang up."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def _connect(self) -> bool:
        with contextlib.suppress(OSError):
            self._http = Connection(self._shared.url, self._shared.token, ANSWER_S)
        return self._http is not None


class Client(threading.Thread):
    """Does one thing after another, drawn by its own seed, until all is over; then checks all.

    Args:
        uses_tokens: whether its calls carry tokens; those of programs that ask do in any case.
        kinds: names of programs to run.
    """

    def __init__(self, shared: Shared, seed: str, *, uses_tokens: bool, kinds: list[str]) -> None:
        super().__init__(name=f"client {seed}", daemon=True)
        self._shared = shared
        self._rng = random.Random(seed)
        self._uses_tokens = uses_tokens
        self._kinds = kinds
        self._http = Patient(shared)
        self._held: list[Held] = []
        self._gone: list[str] = []
        self._number = 0

    def run(self) -> None:
        """Be a client."""
        while not self._shared.is_over.is_set():
            self._something()
        while self._held:
            self._guarded(self._last_look, self._held[-1])
        for name in self._gone:
            self._guarded(self._look_for_gone, Held(name))
        self._http.close()

    def _guarded(self, act: Callable[[Held], None], session: Held) -> None:
        """Do something with a session; leave one that is not as it must be."""
        try:
            act(session)
        except (Wrong, AssertionError, KeyError, ValueError) as exc:
            self._shared.wrong(f"{self.name}: {exc!r}")
            if session in self._held:
                self._held.remove(session)
            with contextlib.suppress(Wrong):
                self._http.call("DELETE", f"/session/{session.name}")

    def _something(self) -> None:
        if len(self._held) < self._rng.randrange(1, MAX_SESSIONS + 1):
            self._guarded(self._create, Held(f"chaos-{self._rng.getrandbits(64):016x}"))
            return
        session = self._rng.choice(self._held)
        acts: list[tuple[Callable[[Held], None], int]] = [
            (self._run, 50), (self._upload, 25), (self._look, 13), (self._destroy, 12),
        ]  # fmt: skip
        (act,) = self._rng.choices([a for a, _ in acts], [weight for _, weight in acts])
        self._guarded(act, session)

    # --- sessions -----------------------------------------------------------------------

    def _create(self, session: Held) -> None:
        name = session.name
        body = json.dumps({"name": name, "image": "gcc"}).encode()
        status, answer, tries = self._http.call(
            "POST", "/session", body, has_token=self._uses_tokens
        )
        if status not in ((201,) if tries == 1 else (200, 201)):
            raise Wrong(f"create {name}: {status} {answer!r} at try {tries}")
        self._shared.ids.add(json.loads(answer)["sessionId"])
        self._shared.count("sessions created")
        self._held.append(session)

    def _destroy(self, session: Held) -> None:
        status, answer, tries = self._http.call(
            "DELETE", f"/session/{session.name}", has_token=self._uses_tokens
        )
        if status != 200 and not (status in (404, 410) and tries > 1):
            raise Wrong(f"destroy {session.name}: {status} {answer!r} at try {tries}")
        self._shared.count("sessions destroyed")
        self._held.remove(session)
        self._gone.append(session.name)

    def _last_look(self, session: Held) -> None:
        self._look(session)
        for name in session.files:
            self._download(session, name)
        self._destroy(session)

    def _look_for_gone(self, session: Held) -> None:
        status, _, _ = self._http.call("GET", f"/session/{session.name}")
        if status < 400:
            raise Wrong(f"{session.name} was destroyed, and is there")

    # --- files --------------------------------------------------------------------------

    def _upload(self, session: Held) -> None:
        files: dict[str, bytes] = {}
        for _ in range(self._rng.randrange(1, 6)):
            number = self._rng.randrange(8)
            name = self._rng.choice((f"u{number}", f"some/folder/u{number}"))
            files[name] = self._rng.randbytes(self._rng.randrange(1, 100_000))
        body, kind = multipart(files)
        path = f"/session/{session.name}/upload"
        status, answer, tries = self._http.call(
            "POST", path, body, kind, has_token=self._uses_tokens
        )
        if status != 204:
            raise Wrong(f"upload to {session.name}: {status} {answer!r} at try {tries}")
        self._shared.count("uploads")
        session.files |= files

    def _look(self, session: Held) -> None:
        """Check that a session has the files that it must have, no more and no less."""
        status, answer, _ = self._http.call("GET", f"/session/{session.name}/files")
        if status != 200:
            raise Wrong(f"list {session.name}: {status} {answer!r}")
        found = {entry["filename"] for entry in json.loads(json.loads(answer)["files"])}
        wanted = {name.partition("/")[0] for name in session.files}
        if found != wanted:
            raise Wrong(f"{session.name} has {sorted(found)}, not {sorted(wanted)}")
        self._shared.count("listings")
        if session.files:
            self._download(session, self._rng.choice(sorted(session.files)))

    def _download(self, session: Held, name: str) -> None:
        body = json.dumps({"file": name}).encode()
        path = f"/session/{session.name}/download_single"
        status, content, _ = self._http.call("GET", path, body)
        if status != 200:
            raise Wrong(f"download {name} of {session.name}: {status} {content!r}")
        if (wanted := session.files[name]) and content != wanted:
            raise Wrong(f"{name} of {session.name} has {len(content)} bytes, not {len(wanted)}")
        self._shared.count("downloads")

    # --- runs ---------------------------------------------------------------------------

    def _run(self, session: Held) -> None:
        self._number += 1
        kind = self._rng.choice(self._kinds)
        program = KINDS[kind](self._rng, f"r{session.runs}")
        session.runs += 1
        run = _Run(self._http, self._shared, session.name, program, has_tokens=self._uses_tokens)
        try:
            run.to_its_end()
            self._check_mark(session, program)
        except Wrong as exc:
            tokens = "with tokens" if run.has_tokens else "without tokens"
            raise Wrong(f"{kind} {program.mark} of {session.name} {tokens}: {exc}") from None
        self._shared.count(f"runs of {kind}")

    def _check_mark(self, session: Held, program: Program) -> None:
        """See which steps ran how often; remember the files that the run made."""
        body = json.dumps({"file": program.mark}).encode()
        path = f"/session/{session.name}/download_single"
        status, content, _ = self._http.call("GET", path, body)
        if program.may_be_cut and (status == 404 or program.steps.startswith(content.decode())):
            if status == 200:
                session.files[program.mark] = content
            return
        if status != 200 or content.decode() != program.steps:
            raise Wrong(f"steps that ran: {status} {content!r}")
        session.files[program.mark] = content
        if program.build_prints.startswith("built"):
            session.files |= {f"{program.mark}.c": b"", f"{program.mark}.bin": b""}


class _Run:
    """One run, its answers joined and compared as they come.

    Without tokens the answer that was on its way when the server died may come again, and nothing
    else may.
    """

    def __init__(
        self, http: Patient, shared: Shared, name: str, program: Program, *, has_tokens: bool
    ) -> None:
        self.has_tokens = has_tokens or bool(program.lines)
        self._http = http
        self._shared = shared
        self._path = f"/session/{name}"
        self._program = program
        self._run_id = uuid.uuid4().hex
        self._lines = list(program.lines)
        self._life = shared.life
        self._wanted = {
            "stdout": program.build_prints + program.stdout,
            "stderr": program.stderr,
        }
        self._had = {"stdout": 0, "stderr": 0}  # characters, the newest answer's among them
        self._had_before = dict(self._had)  # without the newest answer's
        self._is_built = False

    def to_its_end(self) -> None:
        """Run it; Wrong when anything is not as it must be."""
        began_at = time.monotonic()
        answer = self._call("batch", options=self._program.options)
        while answer["status"] not in ("finished", "exec-timeout"):
            if time.monotonic() - began_at > RUN_S:
                raise Wrong(f"it does not end; now {answer}")
            if answer["status"] == "waiting-input":
                if not self._lines:
                    raise Wrong("it waits for more input than it reads")
                answer = self._call("input", code=self._lines.pop(0))
            else:
                answer = self._call("continue")
        self._check_end(answer)

    def _call(self, mode: str, code: str = "", options: Any = None) -> Any:
        body = {"mode": mode, "code": code, "runId": self._run_id, "options": options}
        life = self._shared.life
        status, text, tries = self._http.call(
            "POST", self._path, json.dumps(body).encode(), has_token=self.has_tokens
        )
        if status != 200:
            raise Wrong(f"{mode}: {status} {text!r} at try {tries}, had {self._had}")
        answer = json.loads(text)["result"]
        self._join(answer)
        self._see_built(answer)
        self._life = life
        return answer

    def _join(self, answer: Any) -> None:
        new = {"stdout": "", "stderr": ""}
        for stream, text in answer["console"]:
            new[stream] += text
        if self._follows(self._had, new):
            self._had_before = dict(self._had)
        elif not self.has_tokens and self._may_repeat() and self._follows(self._had_before, new):
            self._shared.count("answers repeated, without tokens")
            self._had = dict(self._had_before)
        else:
            told = {stream: (text[:40], text[-40:]) for stream, text in new.items()}
            raise Wrong(f"after {self._had} characters came {told}, {answer['status']}")
        for stream, text in new.items():
            self._had[stream] += len(text)

    def _follows(self, had: dict[str, int], new: dict[str, str]) -> bool:
        return all(
            self._wanted[stream].startswith(text, had[stream]) for stream, text in new.items()
        )

    def _may_repeat(self) -> bool:
        return self._shared.life != self._life

    def _see_built(self, answer: Any) -> None:
        if answer["status"] != "build-finished":
            return
        if self._is_built and (self.has_tokens or not self._may_repeat()):
            raise Wrong("it was built twice")
        self._is_built = True
        wanted = 2 if not self._program.steps.endswith("exec ") else 0
        if answer["exitCode"] != wanted:
            raise Wrong(f"its build ended with {answer['exitCode']}")

    def _check_end(self, answer: Any) -> None:
        program = self._program
        told = (answer["status"], answer.get("outcome"), answer["exitCode"])
        if told != (program.status, program.outcome, program.exit_code):
            raise Wrong(f"it ended as {told}")
        if program.may_be_cut:
            return
        if not self._is_built and program.steps.endswith("exec "):
            raise Wrong("the end of its build was not told")
        wanted = {stream: len(text) for stream, text in self._wanted.items()}
        if self._had != wanted:
            raise Wrong(f"it printed {wanted} characters, {self._had} came")
