"""`python -m bench.vfolders [--mib N] [--rounds N]`: bytes in and out of a folder, beside floors.

Floors, in the same rounds: a bare server of one thread that takes the same bytes from a loopback
socket and writes and syncs them to a file on the same disk (upload), or sends a file by sendfile
(download); the other side is the same in both. The budget is 2 x (DESIGN 10).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tests.e2e.conftest import Server, running_server

CHUNK = 16 * 1024 * 1024  # the client's
PIECE = 256 * 1024
BUDGET = 2.0


def main() -> int:
    """Measure; exit 0 when both medians keep the budget and memory stays flat."""
    parser = argparse.ArgumentParser(prog="python -m bench.vfolders", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    size = options.mib * 1024 * 1024
    print(f"host: {os.uname().release}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as name, running_server(Path(name, "state")) as server:
        call(server, "POST", "/folders", {"name": "bench"})
        before = memory_mib(server)
        rounds = [one_round(server, Path(name), size) for _ in range(options.rounds)]
        grown = peak_mib(server) - before
    is_kept = True
    for what in ("upload", "download"):
        floor = statistics.median(times[f"bare {what}"] for times in rounds)
        ours = statistics.median(times[what] for times in rounds)
        ratio = ours / floor
        is_kept &= ratio <= BUDGET
        print(
            f"{what:9} {options.mib} MiB: floor {floor:6.2f} s, Retort {ours:6.2f} s, "
            f"{ratio:.2f} x, budget {BUDGET} x: {'kept' if ratio <= BUDGET else 'MISSED'}"
        )
    print(f"server's peak memory: {grown:.1f} MiB above its start")
    return 0 if is_kept and grown < 64 else 1


def one_round(server: Server, folder: Path, size: int) -> dict[str, float]:
    """Time each way once, bare and through Retort."""
    path = folder / "bare"
    times = {
        "bare upload": timed(lambda: bare_upload(path, size)),
        "bare download": timed(lambda: bare_download(path, size)),
    }
    path.unlink()
    times["upload"] = timed(lambda: upload(server, size))
    times["download"] = timed(lambda: download(server, size))
    call(server, "DELETE", "/folders/bench/delete-files", {"files": ["file"]})
    return times


def timed(work: Callable[[], None]) -> float:
    """Give the seconds that something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bare_upload(path: Path, size: int) -> None:
    """Send bytes to a thread that writes them to a file and syncs it."""

    def take(taken: socket.socket) -> None:
        buffer = bytearray(PIECE)
        with path.open("wb", buffering=0) as file:
            while count := taken.recv_into(buffer):
                file.write(memoryview(buffer)[:count])
            os.fsync(file.fileno())

    def give(given: socket.socket) -> None:
        piece = os.urandom(PIECE)
        for _ in range(size // PIECE):
            given.sendall(piece)

    _between(give, take)


def bare_download(path: Path, size: int) -> None:
    """Take bytes from a thread that sends a file within the kernel."""

    def give(given: socket.socket) -> None:
        with path.open("rb") as file:
            given.sendfile(file)

    def take(taken: socket.socket) -> None:
        buffer = bytearray(PIECE)
        count = 0
        while got := taken.recv_into(buffer):
            count += got
        assert count == size

    _between(give, take)


def _between(give: Callable[[socket.socket], None], take: Callable[[socket.socket], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with listening.accept()[0] as accepted:
                give(accepted)

        giving = threading.Thread(target=serve)
        giving.start()
        with socket.create_connection(listening.getsockname()) as taken:
            take(taken)
        giving.join()


def upload(server: Server, size: int) -> None:
    """Send a file in chunks as the client does, on one connection."""
    given = call(server, "POST", "/folders/bench/request-upload", {"path": "file", "size": size})
    address = f"/storage/upload?token={given['token']}"
    connection = connect(server)
    piece = os.urandom(PIECE)
    for offset in range(0, size, CHUNK):
        length = min(CHUNK, size - offset)
        connection.putrequest("PATCH", address)
        connection.putheader("Upload-Offset", str(offset))
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        for _ in range(length // PIECE):
            connection.send(piece)
        answer = connection.getresponse()
        assert answer.status == 204, answer.read()
        answer.read()
    connection.close()


def download(server: Server, size: int) -> None:
    """Fetch the file."""
    given = call(server, "POST", "/folders/bench/request-download", {"path": "file"})
    connection = connect(server)
    connection.request("GET", f"/storage/download?token={given['token']}")
    answer = connection.getresponse()
    buffer = bytearray(PIECE)
    count = 0
    while got := answer.readinto(buffer):
        count += got
    assert count == size
    connection.close()


def connect(server: Server) -> http.client.HTTPConnection:
    """Open a connection to the server."""
    place = urlsplit(server.url)
    return http.client.HTTPConnection(place.hostname or "", place.port, timeout=600)


def call(server: Server, method: str, path: str, body: dict[str, object]) -> dict[str, str]:
    """Make one call with the server's first key."""
    connection = connect(server)
    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}
    connection.request(method, path, json.dumps(body), headers)
    answer = connection.getresponse()
    assert answer.status < 300, answer.read()
    result: dict[str, str] = json.loads(answer.read() or b"{}")
    connection.close()
    return result


def memory_mib(server: Server) -> float:
    """Give the server's memory at the moment."""
    return _status(server, "VmRSS")


def peak_mib(server: Server) -> float:
    """Give the most memory that the server ever had."""
    return _status(server, "VmHWM")


def _status(server: Server, name: str) -> float:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


if __name__ == "__main__":
    sys.exit(main())
