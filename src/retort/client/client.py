"""The client: sessions of one server, their files and their runs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import functools
import json
import posixpath
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from retort.client.errors import ApiError, ConnectionBroke, ServerUnreachable
from retort.client.extract import extract
from retort.client.run import Run
from retort.wire.files import MAX_DOWNLOADS, MAX_UPLOADS
from retort.wire.repeats import CLIENT_TOKEN, METHODS
from retort.wire.signature import sign
from retort.wire.versions import CURRENT

CONNECT_S = 10.0
READ_S = 60.0  # between two bytes of an answer; an execute call takes 2 s
PING_S = 30.0
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
CHUNK_BYTES = 256 * 1024
PATIENCE_S = 30.0  # for a server that was there and went away
FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 1.0

MakeForm = Callable[[], aiohttp.FormData]


@dataclasses.dataclass(frozen=True, slots=True)
class FileInfo:
    """A line of a listing; `name` is a program's choice: it may hold terminal escapes."""

    name: str
    size: int
    mode: str
    mtime: float


@dataclasses.dataclass(frozen=True, slots=True)
class Downloaded:
    """What a download made here, and which links and devices it left out."""

    files: tuple[Path, ...]
    left_out: tuple[str, ...]


class Client:
    """Calls to one server, with a key pair or a bearer token; use it in an ``async with``.

    Args:
        endpoint: URL of the server, with the path it is mounted under.
        access_key: with `secret_key`: requests are signed.
        token: instead of a key pair.
        patience_s: seconds for which a call is repeated after its connection broke.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        access_key: str | None = None,
        secret_key: str | None = None,
        token: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        if not token and not (access_key and secret_key):
            raise ValueError("a client needs a token, or an access key with its secret key")
        self._base = endpoint.rstrip("/")
        self._access_key = access_key or ""
        self._secret_key = secret_key or ""
        self._token = token
        self._patience_s = patience_s
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        self._http = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def create_session(
        self, image: str, name: str | None = None, **config: Any
    ) -> SessionHandle:
        """Make a session, or take up the live one of that name.

        Args:
            image: e.g. "gcc" or "python:3.11".
            name: None lets the server draw one.
            config: of the new session, e.g. ``environ={"A": "1"}`` (specification 5.8).

        Raises:
            ApiError: no such image, too many sessions, ...
            ServerUnreachable: there is no server.
        """
        body = {"image": image, "config": config} | ({"name": name} if name else {})
        made = await self.call("POST", "/session", json=body)
        return SessionHandle(
            self, made["sessionId"], made["sessionName"], is_new=bool(made["created"])
        )

    async def call(
        self, method: str, path: str, *, json: Any = None, form: MakeForm | None = None
    ) -> Any:
        """Make any call; gives the JSON of the answer, or None if it has no body.

        A call whose connection broke is repeated, also while the server is away for a moment. It
        carries a client token, so that the server does it only once.

        Args:
            form: makes the body, for each sending anew.

        Raises:
            ApiError: the answer is a problem object.
            ServerUnreachable: there was none: no server at all, or none came back in time.
        """
        token = secrets.token_urlsafe(16)
        loop = asyncio.get_running_loop()
        until, pause_s = loop.time() + self._patience_s, FIRST_PAUSE_S
        is_repeat = False
        while True:
            try:
                return await self._call_once(method, path, json, form and form(), token)
            except (ServerUnreachable, ApiError) as exc:
                wait_s = _pause_before_repeat(exc, pause_s, is_repeat=is_repeat)
                if wait_s is None or loop.time() + wait_s > until:
                    raise
            is_repeat = True
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
            await asyncio.sleep(wait_s)

    async def _call_once(
        self, method: str, path: str, json: Any, form: aiohttp.FormData | None, token: str
    ) -> Any:
        async with self.answer(method, path, json=json, form=form, token=token) as answer:
            return await answer.json() if answer.content_type == "application/json" else None

    @contextlib.asynccontextmanager
    async def answer(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        form: aiohttp.FormData | None = None,
        token: str | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make any call, once, and give the answer to be read; errors as `call`.

        Args:
            token: the same for each repeat of what is to be done once.
        """
        url = URL(self._base + path, encoded=True)
        content_type = None
        if form is not None:
            content_type = "multipart/form-data"
        elif json is not None or method != "GET":
            content_type = "application/json"
        headers = self._headers(method, url, content_type)
        if form is None and content_type:
            headers["Content-Type"] = content_type
        if token is not None and method in METHODS:
            headers[CLIENT_TOKEN] = token
        body = form if form is not None else _json(json)
        try:
            async with self._session.request(
                method, url, headers=headers, data=body, allow_redirects=False
            ) as answer:
                if answer.status >= 300:
                    raise await _api_error(answer)
                yield answer
        except aiohttp.ClientConnectorError as exc:
            raise ServerUnreachable(f"{self._base}: {exc}") from exc
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as exc:
            raise ConnectionBroke(f"{self._base}: {str(exc) or type(exc).__name__}") from exc

    async def connect(self, path: str) -> aiohttp.ClientWebSocketResponse | None:
        """Open a stream; None when the server, or a proxy before it, upgrades no connections."""
        url = URL(self._base + path, encoded=True)
        try:
            return await self._session.ws_connect(
                url,
                headers=self._headers("GET", url, None),
                heartbeat=PING_S,
                max_msg_size=MAX_MESSAGE_BYTES,
            )
        except aiohttp.WSServerHandshakeError:
            return None  # if it was an error of the API, polling will say which
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as exc:
            raise ServerUnreachable(f"{self._base}: {str(exc) or type(exc).__name__}") from exc

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("the client is used outside its `async with`")
        return self._http

    def _headers(self, method: str, url: URL, content_type: str | None) -> dict[str, str]:
        if self._token:
            return {
                "Authorization": f"Bearer {self._token}",
                "X-BackendAI-Version": str(CURRENT),
            }
        host = url.host_port_subcomponent or ""
        return {"Host": host} | sign(
            method,
            url.raw_path_qs,
            host=host,
            content_type=content_type,
            when=dt.datetime.now(dt.UTC),
            access_key=self._access_key,
            secret=self._secret_key,
        )


class SessionHandle:
    """One session of a server.

    Attributes:
        id: its UUID.
        name: chosen by the caller or the server.
        is_new: it was made by this call, not taken up.
    """

    def __init__(self, client: Client, session_id: str, name: str, *, is_new: bool = True) -> None:
        self._client = client
        self._path = f"/session/{quote(session_id, safe='')}"
        self.id = session_id
        self.name = name
        self.is_new = is_new

    def __repr__(self) -> str:
        return f"<SessionHandle {self.name} {self.id}>"

    async def upload(self, files: Mapping[str, Path | bytes]) -> None:
        """Store files, by their path below `/home/work`; streamed, 20 to a request.

        Raises:
            ApiError: a file is too large, or its path is refused; that request stored nothing.
            OSError: a file cannot be read here.
        """
        for batch in _batched(list(files.items()), MAX_UPLOADS):
            await self._upload(dict(batch))

    async def _upload(self, files: Mapping[str, Path | bytes]) -> None:
        with contextlib.ExitStack() as opened:
            await self._client.call(
                "POST", f"{self._path}/upload", form=lambda: _form(files, opened)
            )

    def run(
        self,
        *,
        build: str | None = "*",
        exec: str | None = "*",  # noqa: A002 the API's word
        clean: str | None = None,
    ) -> Run:
        """Prepare a run of shell commands: "*" is the image's default, None skips the step."""
        options = {"build": build, "exec": exec} | ({} if clean is None else {"clean": clean})
        return Run(
            functools.partial(self._client.connect, f"/stream{self._path}/execute"),
            self._execute,
            self.interrupt,
            options,
        )

    async def _execute(self, body: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = (await self._client.call("POST", self._path, json=body))["result"]
        return result

    async def interrupt(self) -> None:
        """Send SIGINT to the running program; nothing happens when there is none."""
        await self._client.call("POST", f"{self._path}/interrupt")

    async def list(self, path: str = "/home/work") -> list[FileInfo]:
        """List a folder, in no particular order."""
        answer = await self._client.call("GET", f"{self._path}/files", json={"path": path})
        return [
            FileInfo(entry["filename"], entry["size"], entry["mode"], entry["mtime"])
            for entry in json.loads(answer["files"])
        ]

    async def download(self, paths: Sequence[str], into: Path) -> Downloaded:
        """Fetch files and folders into a folder, each under its base name; streamed.

        Links are left out, and nothing is written outside `into` or through a link within it.

        Raises:
            ApiError: one does not exist, or is too large; nothing of its request was fetched.
            UnsafeArchive: the server sent something else than was asked for.
            OSError: it cannot be written here.
        """
        made: list[Path] = []
        left_out: list[str] = []
        for batch in _batched(paths, MAX_DOWNLOADS):
            async with self._client.answer(
                "GET", f"{self._path}/download", json={"files": list(batch)}
            ) as answer:
                parts = aiohttp.MultipartReader.from_response(answer)
                for path in batch:
                    part = await parts.next()
                    if not isinstance(part, aiohttp.BodyPartReader):
                        raise ServerUnreachable("The download was cut short")
                    with tempfile.TemporaryFile() as archive:
                        while chunk := await part.read_chunk(CHUNK_BYTES):
                            archive.write(chunk)
                        archive.seek(0)
                        name = posixpath.basename(posixpath.normpath(f"/home/work/{path}"))
                        files, others = await asyncio.to_thread(extract, archive, name, into)
                    made += files
                    left_out += others
        return Downloaded(tuple(made), tuple(left_out))

    async def read(self, path: str) -> bytes:
        """Fetch one regular file as it is, held in memory."""
        body = {"file": path}
        async with self._client.answer("GET", f"{self._path}/download_single", json=body) as got:
            return await got.read()

    async def destroy(self) -> dict[str, Any]:
        """End the session and everything in it; gives its statistics."""
        answer = await self._client.call("DELETE", self._path)
        return (answer or {}).get("stats") or {}


def _form(files: Mapping[str, Path | bytes], opened: contextlib.ExitStack) -> aiohttp.FormData:
    form = aiohttp.FormData()
    for path, content in files.items():
        data: bytes | IO[bytes] = (
            content if isinstance(content, bytes) else opened.enter_context(content.open("rb"))
        )
        form.add_field("src", data, filename=path, content_type="application/octet-stream")
    return form


def _pause_before_repeat(
    exc: ServerUnreachable | ApiError, pause_s: float, *, is_repeat: bool
) -> float | None:
    """Give the seconds after which a call may be repeated; None when that would not help."""
    if isinstance(exc, ApiError):
        return exc.retry_after_s
    # Where there never was a connection, there is nothing to go on with.
    return pause_s if is_repeat or isinstance(exc, ConnectionBroke) else None


def _batched(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _json(value: Any) -> bytes | None:
    return None if value is None else json.dumps(value).encode()


async def _api_error(answer: aiohttp.ClientResponse) -> ApiError:
    """Read a problem object; whatever else comes becomes one."""
    try:
        problem = await answer.json(content_type=None)
    except (ValueError, aiohttp.ClientError):
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    after = answer.headers.get("Retry-After", "") if answer.status == 503 else ""
    return ApiError(
        answer.status,
        str(problem.get("type", "")),
        str(problem.get("title") or f"HTTP status {answer.status}"),
        str(problem.get("msg") or ""),
        data=problem.get("data"),
        retry_after_s=float(after) if after.isdigit() else None,
    )
