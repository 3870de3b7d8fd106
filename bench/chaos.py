"""`python -m bench.chaos`: mixed clients, and a server that is killed again and again beneath them.

Each life of the server ends by SIGKILL: at a named point of retort.core.faults, where it sends
that to itself, or at a random instant. The clients repeat what broke, and check that no session, no
file, no run and no byte was lost or came twice; at the end nothing may be left. Exit code 1: a
promise was broken. A seed draws the same clients and the same deaths again; the instants at which
calls meet deaths are the machine's. `--sabotage` is a control: with a fault built into the server,
a promise must be broken, and the first one ends it.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.chaos_client import Client, Shared
from bench.chaos_folders import FolderClient
from bench.chaos_programs import KINDS
from bench.chaos_server import SABOTAGES
from bench.leftovers import Held, held, settled
from bench.server import Server
from retort.core.faults import Point

UID_COUNT = 65_536
RANDOM = "random instant"
QUIET_S = 3.0  # of the first life; all of it that there is without deaths
LIFE_S = 10.0  # of a server that does not come to its point
AFTER = 6  # a server dies at its first to sixth arrival at a point
END_S = 120.0  # clients must have ended so long after the last death
START_TRIES = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Death:
    """How a server shall die: at a point's `after`th arrival, or `at_s` after it listens."""

    place: str
    after: int = 0
    at_s: float = 0.0


IMMORTAL = Death(RANDOM)


class DoesNotStart(Exception):
    """The server does not start again, whatever is tried."""


def main() -> int:
    """Run; exit 0 when every promise was kept and nothing is left."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=560, help="deaths of the server [560]")
    parser.add_argument("--clients", type=int, default=8, help="at the same time [8]")
    parser.add_argument("--folders", type=int, default=4, help="clients of virtual folders [4]")
    parser.add_argument("--seed", type=int, default=None, help="draws the same again")
    parser.add_argument("--only", action="append", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument(
        "--at", action="append", metavar="PLACE",
        help=f"places of deaths: of {', '.join(point.value for point in Point)}, {RANDOM}",
    )  # fmt: skip
    parser.add_argument(
        "--sabotage", choices=SABOTAGES, help="build a fault into the server; must end with 1"
    )
    parser.add_argument("--log", default=os.devnull, help="add what the server says to this file")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    places = options.at or [*(point.value for point in Point), RANDOM]
    print(
        f"host: {platform.release()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f};"
        f" {options.kills} deaths at {len(places)} places, {options.clients} clients"
        f" and {options.folders} of folders, seed {seed}",
        flush=True,
    )
    chaos = Chaos(
        seed, options.clients, options.folders, options.only or list(KINDS), options.log,
        options.sabotage or "",
    )  # fmt: skip
    return chaos.run(deaths(random.Random(seed), options.kills, places))


def deaths(rng: random.Random, count: int, places: list[str]) -> collections.deque[Death]:
    """Draw as many deaths at each place, in any order."""
    drawn = [places[number % len(places)] for number in range(count)]
    rng.shuffle(drawn)
    return collections.deque(
        Death(place, at_s=rng.uniform(0.0, 1.5))
        if place == RANDOM
        else Death(place, after=rng.randrange(1, AFTER + 1))
        for place in drawn
    )


class Chaos:
    """One run of this bench."""

    def __init__(
        self,
        seed: int,
        clients: int,
        folder_clients: int,
        kinds: list[str],
        log: str,
        sabotage: str = "",
    ) -> None:
        # Not by the seed: whoever runs the same at the same time must not look like a leftover.
        first_uid = 1_000_000_000 + random.SystemRandom().randrange(10_000) * UID_COUNT
        self._uids = range(first_uid, first_uid + UID_COUNT)
        self._seed = seed
        self._client_count = clients
        self._folder_client_count = folder_clients
        self._kinds = kinds
        self._log = log
        self._sabotage = sabotage
        self._kills: collections.Counter[str] = collections.Counter()
        self._starts_s: list[float] = []
        self._began_at = time.monotonic()

    def run(self, deaths: collections.deque[Death]) -> int:
        """Let clients work and servers die; gives the exit code."""
        with tempfile.TemporaryDirectory() as folder, Path(self._log).open("ab") as log:
            server = Server(
                folder,
                "bench.chaos_server",
                log=log.fileno(),
                settings={
                    "RETORT_SANDBOX_HOST_UID_FIRST": str(self._uids.start),
                    "RETORT_POOL_SIZE": "0",  # what it holds would look like something left
                    "CHAOS_SABOTAGE": self._sabotage,
                },
            )
            assert server.start()
            bench = server.bench()
            name = bench.session()  # what the server opens once and keeps is open now
            bench.run(name, build="true", exec="true")
            bench.destroy(name)
            before = held(bench, self._uids, (), is_alone=False)
            bench.http.close()
            shared = Shared(server.url, server.token)
            clients = self._clients(shared)
            time.sleep(QUIET_S)
            try:
                self._kill_all(server, shared, deaths)
            except DoesNotStart:
                for wrong in shared.wrongs:
                    print(f"WRONG {wrong}")
                return 1
            shared.is_over.set()
            if self._are_late(clients):
                shared.wrong(f"clients have not ended {END_S:.0f} s after the last death")
            after, left = settled(server.bench(), self._uids, shared.ids, before, is_alone=False)
            server.stop()
        return self._told(shared, before, after, left)

    def _clients(self, shared: Shared) -> list[Client | FolderClient]:
        clients: list[Client | FolderClient] = [
            Client(shared, f"{self._seed}:{number}", uses_tokens=number % 2 == 0, kinds=self._kinds)
            for number in range(self._client_count)
        ]
        clients += [
            FolderClient(shared, f"{self._seed}:f{number}", uses_tokens=number % 2 == 0)
            for number in range(self._folder_client_count)
        ]
        for client in clients:
            client.start()
        return clients

    def _are_late(self, clients: list[Client | FolderClient]) -> bool:
        until = time.monotonic() + END_S
        for client in clients:
            client.join(max(0.0, until - time.monotonic()))
        return any(client.is_alive() for client in clients)

    def _kill_all(self, server: Server, shared: Shared, deaths: collections.deque[Death]) -> None:
        """Kill the server at every place; one that it does not come to is tried again later."""
        tries = len(deaths) * 2
        death = Death(RANDOM)  # the first server was told of no point
        while deaths and tries > 0 and not (self._sabotage and shared.wrongs):
            self._die(server, death, deaths)
            death, tries = deaths.popleft(), tries - 1
            death = self._start(server, shared, death)
        if self._kills:
            self._die(server, death, deaths)
            self._start(server, shared, IMMORTAL)

    def _start(self, server: Server, shared: Shared, death: Death) -> Death:
        """Start the server again; gives the death that is before it."""
        shared.life += 1
        if (count := sum(self._kills.values())) % 20 == 0:
            last = f", last: {shared.wrongs[-1]}" if shared.wrongs else ""
            print(f"{count} deaths, {len(shared.wrongs)} promises broken{last}", flush=True)
        for _ in range(START_TRIES):
            more = {"CHAOS_POINT": death.place, "CHAOS_AFTER": str(death.after)}
            began_at = time.monotonic()
            if server.start(**more if death.after else {}):
                self._starts_s.append(time.monotonic() - began_at)
                return death
            if death.after:  # its point lay before it listened
                self._kills[death.place] += 1
                death = Death(RANDOM)
            else:
                shared.wrong("the server does not start again")
        raise DoesNotStart

    def _die(self, server: Server, death: Death, deaths: collections.deque[Death]) -> None:
        if not death.after:
            time.sleep(death.at_s)
            server.kill()
            self._kills[RANDOM] += 1
        elif server.wait(LIFE_S) is None:
            server.kill()
            self._kills[f"{RANDOM}, for want of a point"] += 1
            deaths.append(dataclasses.replace(death, after=1))
        else:
            self._kills[death.place] += 1

    def _told(self, shared: Shared, before: Held, after: Held, left: str) -> int:
        for place, count in sorted(self._kills.items()):
            print(f"{place:32} {count:5} deaths")
        for what, count in sorted(shared.counts.items()):
            print(f"{what:32} {count:5}")
        for name, value in dataclasses.asdict(after).items():
            print(f"{name:14} {getattr(before, name)} before, {value} after")
        for wrong in shared.wrongs:
            print(f"WRONG {wrong}")
        starts = sorted(self._starts_s) or [0.0]
        print(
            f"{sum(self._kills.values())} deaths in {time.monotonic() - self._began_at:.0f} s, seed"
            f" {self._seed}: {len(shared.wrongs)} promises broken, left: {left or 'nothing'};"
            f" start to listening p50 {statistics.median(starts):.2f} s, most {starts[-1]:.2f} s"
        )
        return 1 if shared.wrongs or left else 0


if __name__ == "__main__":
    sys.exit(main())
