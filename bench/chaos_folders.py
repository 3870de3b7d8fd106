"""A client of virtual folders on a server that dies: what was acknowledged is there, whole."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from bench.chaos_client import ANSWER_S, PATIENCE_S, PAUSE_S, CutOff, Patient, Shared, Wrong

MAX_FOLDERS = 4  # of one client at a time
AT_ONCE = 4  # folders that one client deletes together
CHUNK = 1_500_000  # the server writes whenever it has a mebibyte
CLONE_S = 60.0

Files = dict[str, bytes]


class FolderClient(threading.Thread):
    """Does one thing with folders after another until all is over; then checks and deletes all.

    It is alone with its folders: it knows of every name and byte in them. Several threads may call
    for it, each on a connection of its own.
    """

    def __init__(self, shared: Shared, seed: str, *, uses_tokens: bool) -> None:
        super().__init__(name=f"folder client {seed}", daemon=True)
        self._shared = shared
        self._rng = random.Random(seed)
        self._uses_tokens = uses_tokens
        self._local = threading.local()
        self._prefix = f"f{uuid.uuid4().hex[:8]}"
        self._number = 0
        self._folders: dict[str, Files] = {}

    def run(self) -> None:
        """Be a client."""
        while not self._shared.is_over.is_set():
            self._something()
        for name in list(self._folders):
            self._guarded(self._check_held, name)
        for name in list(self._folders):
            self._guarded(self._destroy, name)
        self._guarded(self._check_names, "")
        self._http.close()

    @property
    def _http(self) -> Patient:
        """The connection of the present thread."""
        if not hasattr(self._local, "http"):
            self._local.http = Patient(self._shared)
        http: Patient = self._local.http
        return http

    def _something(self) -> None:
        if len(self._folders) < self._rng.randrange(1, MAX_FOLDERS + 1):
            self._guarded(self._create, self._new_name())
            return
        acts: list[tuple[Callable[[str], None], int]] = [
            (self._upload, 30), (self._clone, 15), (self._rename, 15), (self._destroy, 15),
            (self._remove_directory, 15), (self._move, 10), (self._look, 10), (self._burst, 15),
        ]  # fmt: skip
        (act,) = self._rng.choices([a for a, _ in acts], [weight for _, weight in acts])
        self._guarded(act, self._rng.choice(sorted(self._folders)))

    def _guarded(self, act: Callable[[str], None], name: str) -> None:
        """Do something with a folder; leave one that is not as it must be."""
        try:
            act(name)
            self._check_names("")
        except (Wrong, AssertionError, KeyError, ValueError) as exc:
            self._shared.wrong(f"{self.name}: {act.__name__} {name}: {exc!r}")
            self._folders.pop(name, None)
            with contextlib.suppress(Wrong):
                for left in self._names() - self._folders.keys():
                    self._http.call("DELETE", f"/folders/{left}")

    def _new_name(self) -> str:
        self._number += 1
        return f"{self._prefix}-{self._number}"

    def _call(
        self, method: str, path: str, body: Any = None, *, ok: int, repeated: tuple[int, ...] = ()
    ) -> Any:
        """Make a call; one that was sent more than once may be answered by `repeated` too."""
        status, answer, tries = self._http.call(
            method, path, json.dumps(body or {}).encode(),
            has_token=self._uses_tokens and method != "GET",
        )  # fmt: skip
        if status == ok:
            return json.loads(answer) if answer else None
        if status in repeated and tries > 1:
            return None
        raise Wrong(f"{method} {path}: {status} {answer!r} at try {tries}")

    # --- folders ------------------------------------------------------------------------

    def _create(self, name: str) -> None:
        self._call("POST", "/folders", {"name": name}, ok=201, repeated=(400,))
        self._folders[name] = {}
        self._shared.count("folders created")

    def _destroy(self, name: str) -> None:
        if self._uses_tokens:
            self._call("DELETE", f"/folders/{name}", ok=204, repeated=(404,))
            files = self._folders.pop(name)
        else:
            files = self._folders.pop(name)
            self._take_away(name, files)
        if (state := self._state(name)) != "gone":
            raise Wrong(f"{name} was deleted, and is {state}")
        self._shared.count("folders deleted")

    def _take_away(self, name: str, files: Files) -> None:
        """Delete a folder; whenever a death cuts that off, it is whole or it is gone."""
        while True:
            try:
                status, answer, _ = self._http.call("DELETE", f"/folders/{name}", once=True)
            except CutOff:
                self._shared.count("deletions cut off")
                if self._state(name) == "gone":
                    if name in self._names():
                        raise Wrong(f"half deleted: {name} is listed, and gone") from None
                    return
                try:
                    self._check_all(name, files)
                except Wrong as exc:
                    raise Wrong(f"half deleted: {exc}") from exc
                self._shared.count("deletions undone by a death")
            else:
                if status != 204:
                    raise Wrong(f"DELETE of {name}: {status} {answer!r}")
                return

    def _burst(self, name: str) -> None:
        """Delete several folders and copy one of all, at the same time."""
        source = self._rng.choice(sorted(self._folders))
        count = min(len(self._folders), self._rng.randrange(2, AT_ONCE + 1))
        others = sorted(self._folders.keys() - {name})
        going = {one: self._folders[one] for one in [name, *self._rng.sample(others, count - 1)]}
        files, copy = self._folders[source], self._new_name()
        for one in going:
            del self._folders[one]
        with concurrent.futures.ThreadPoolExecutor(count + 1) as hands:
            copying = hands.submit(
                self._by_hand, self._copied, source, copy, files, is_going=source in going
            )
            deletions = [
                hands.submit(self._by_hand, self._take_away, one, held)
                for one, held in going.items()
            ]
        for deletion in deletions:
            deletion.result()
            self._shared.count("folders deleted at once")
        if copying.result():
            self._folders[copy] = dict(files)
            self._shared.count("folders cloned while others went")

    def _by_hand(self, act: Callable[..., Any], *given: Any, **more: Any) -> Any:
        """Do something in a thread that ends with it."""
        try:
            return act(*given, **more)
        finally:
            self._http.close()

    def _rename(self, name: str) -> None:
        new = self._new_name()
        self._call("POST", f"/folders/{name}/rename", {"new_name": new}, ok=201, repeated=(404,))
        self._folders[new] = self._folders.pop(name)
        self._shared.count("folders renamed")

    def _clone(self, name: str) -> None:
        """Copy a folder: the copy is whole, or it is not there and can be made again."""
        if len(self._folders) > MAX_FOLDERS:  # a key has 30, for all clients together
            return
        new = self._new_name()
        self._copied(name, new, self._folders[name], is_going=False)
        self._folders[new] = dict(self._folders[name])
        self._shared.count("folders cloned")

    def _copied(self, source: str, new: str, files: Files, *, is_going: bool) -> bool:
        """Copy a folder and compare; False: one that `is_going` went before it was copied."""
        until = time.monotonic() + CLONE_S
        while True:
            body = json.dumps({"target_name": new}).encode()
            status, answer, tries = self._http.call(
                "POST", f"/folders/{source}/clone", body, has_token=self._uses_tokens
            )
            while (state := self._state(new)) == "cloning":
                time.sleep(PAUSE_S)
            if state == "ready":
                break
            if is_going and status in (201, 400, 404):
                if self._state(source) == "gone":
                    return False
            elif status != 201 and not (status == 400 and tries > 1):
                raise Wrong(f"clone of {source}: {status} {answer!r} at try {tries}")
            self._shared.count("clones given up by a death")
            if time.monotonic() > until:
                raise Wrong("no copy comes to be")
        self._check_all(new, files)
        return True

    def _state(self, name: str) -> str:
        status, answer, _ = self._http.call("GET", f"/folders/{name}")
        if status == 404:
            return "gone"
        if status != 200:
            raise Wrong(f"about {name}: {status} {answer!r}")
        return str(json.loads(answer)["status"])

    def _names(self) -> set[str]:
        found = {item["name"] for item in self._call("GET", "/folders", ok=200)}
        return {name for name in found if name.startswith(f"{self._prefix}-")}

    def _check_names(self, _: str) -> None:
        mine = self._names()
        if mine != set(self._folders):
            raise Wrong(f"there are {sorted(mine)}, not {sorted(self._folders)}")

    # --- files --------------------------------------------------------------------------

    def _upload(self, name: str) -> None:
        path = self._rng.choice(("a", "b", "dir/c", "dir/sub/d", f"dir/e{self._rng.randrange(9)}"))
        content = self._rng.randbytes(self._rng.randrange(3)) + self._rng.randbytes(
            self._rng.choice((10, 100_000, 2_500_000))
        )
        asked = {"path": path, "size": len(content)}
        given = self._call("POST", f"/folders/{name}/request-upload", asked, ok=200)
        address = f"/storage/upload?token={given['token']}"
        offset = 0
        while offset < len(content):
            piece = content[offset : offset + CHUNK]
            status, answer, tries = self._http.call(
                "PATCH", address, piece, "application/offset+octet-stream",
                headers=f"Upload-Offset: {offset}\r\nTus-Resumable: 1.0.0\r\n",
            )  # fmt: skip
            if status == 204:
                offset += len(piece)
            elif status == 409 and tries > 1:
                offset = self._stands(address)
                self._shared.count("uploads resumed")
            else:
                raise Wrong(f"upload of {path}: {status} {answer!r} at try {tries}")
        self._folders[name][path] = content
        self._check_file(name, path, content)
        self._shared.count("files uploaded")

    def _stands(self, address: str) -> int:
        """Ask where an upload stands."""
        place = urlsplit(self._shared.url)
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            asking = http.client.HTTPConnection(place.hostname or "", place.port, timeout=ANSWER_S)
            try:
                asking.request("HEAD", address)
                answer = asking.getresponse()
                if answer.status == 200:
                    return int(answer.headers["Upload-Offset"])
                if answer.status != 503:
                    raise Wrong(f"an upload is lost: {answer.status}")
            except (OSError, http.client.HTTPException):
                self._shared.count("calls repeated")
            finally:
                asking.close()
            time.sleep(PAUSE_S)
        raise Wrong("nobody says where an upload stands")

    def _move(self, name: str) -> None:
        files = self._folders[name]
        if not files:
            return
        old, new = self._rng.choice(sorted(files)), f"moved{self._rng.randrange(1000)}"
        if new in files:
            return
        body = {"src": old, "dst": new}
        self._call("POST", f"/folders/{name}/move-file", body, ok=200, repeated=(404,))
        files[new] = files.pop(old)
        self._check_file(name, new, files[new])
        self._shared.count("files moved")

    def _remove_directory(self, name: str) -> None:
        files = self._folders[name]
        if not any(path.startswith("dir/") for path in files):
            return
        body = {"files": ["dir"], "recursive": True}
        self._call("DELETE", f"/folders/{name}/delete-files", body, ok=200, repeated=(404,))
        self._folders[name] = {p: c for p, c in files.items() if not p.startswith("dir/")}
        # A file that was moved out of it left it empty, and it was deleted all the same.
        self._check_listing(name, ".", self._top(name))
        self._shared.count("directories deleted")

    def _look(self, name: str) -> None:
        files = self._folders[name]
        self._check_listing(name, ".", self._top(name), may_have={"dir"})
        if files:
            path = self._rng.choice(sorted(files))
            self._check_file(name, path, files[path])

    def _check_held(self, name: str) -> None:
        self._check_all(name, self._folders[name])

    def _check_all(self, name: str, files: Files) -> None:
        top = {path.partition("/")[0] for path in files}
        self._check_listing(name, ".", top, may_have={"dir"})
        for path, wanted in files.items():
            self._check_file(name, path, wanted)

    def _top(self, name: str) -> set[str]:
        return {path.partition("/")[0] for path in self._folders[name]}

    def _check_listing(
        self,
        name: str,
        path: str,
        wanted: set[str],
        may_have: frozenset[str] | set[str] = frozenset(),
    ) -> None:
        """See that exactly these names are there; `may_have` may be empty directories."""
        answer = self._call("GET", f"/folders/{name}/files", {"path": path}, ok=200)
        found = {item["name"] for item in answer["items"]}
        if not wanted <= found <= wanted | may_have:
            raise Wrong(f"{name} has {sorted(found)}, not {sorted(wanted)}")
        self._shared.count("folder listings")

    def _check_file(self, name: str, path: str, wanted: bytes) -> None:
        given = self._call("POST", f"/folders/{name}/request-download", {"path": path}, ok=200)
        status, content, _ = self._http.call("GET", f"/storage/download?token={given['token']}")
        if status != 200 or content != wanted:
            raise Wrong(f"{path} of {name}: {status}, {len(content)} bytes, not {len(wanted)}")
        self._shared.count("folder files compared")
