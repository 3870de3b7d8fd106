"""`python -m bench.growth FOLDER`: how costs grow, as plots: sessions, output, files, clients.

Each point is a median; both axes of a plot are logarithmic, so that a straight line of slope one is
a cost that grows with its cause.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from bench.load import built_sessions, race, run_of
from bench.measure import once
from bench.server import Bench, running

Points = list[tuple[int, float]]

WIDTH, HEIGHT, EDGE = 420, 240, 44


def main() -> int:
    """Measure every growth and write one SVG each."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sessions", type=int, default=1000, help="at most so many")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with running() as bench:
        for name, (title, cause, measure) in GROWTHS.items():
            points = list(measure(bench, options.sessions))
            print(title, " ".join(f"{x}:{y:.3g}" for x, y in points), flush=True)
            (options.folder / f"{name}.svg").write_text(plot(title, cause, points))
    return 0


def _median(work: Callable[[], object], count: int) -> float:
    work()
    return statistics.median(once(work) for _ in range(count))


def by_sessions(bench: Bench, most: int) -> Iterator[tuple[int, float]]:
    """Time a trivial run with ever more idle sessions beside it."""
    with built_sessions(bench, 1) as (name,):
        made: list[str] = []
        for count in (1, 10, 100, 1000):
            if count > most:
                break
            made += [bench.session("bash") for _ in range(count - 1 - len(made))]
            yield count, _median(lambda: bench.run(name, build=None, exec="./hello"), 100)
        for one in made:
            bench.destroy(one)


def by_output(bench: Bench, most: int) -> Iterator[tuple[int, float]]:
    """Time a run by what it prints; beyond the cap of an answer it is drained and counted."""
    del most
    name = bench.session("bash")
    for power in range(0, 27, 2):
        size = 1 << power
        command = f"head -c {size} /dev/zero"
        yield size, _median(lambda text=command: bench.run(name, build=None, exec=text), 7)  # type: ignore[misc]
    bench.destroy(name)


def by_files(bench: Bench, most: int) -> Iterator[tuple[int, float]]:
    """Time a listing by the number of files in the folder."""
    del most
    name = bench.session("bash")
    for count in (1, 10, 100, 1000, 10_000):
        bench.run(name, build=None, exec=f"mkdir d{count}; cd d{count}; touch {{1..{count}}}")
        path = f"/session/{name}/files?path=d{count}"
        yield count, _median(lambda text=path: bench.http.json("GET", text), 15)  # type: ignore[misc]
    bench.destroy(name)


def by_clients(bench: Bench, most: int) -> Iterator[tuple[int, float]]:
    """Time a trivial run, of all that are made at once, by the number of clients."""
    del most
    with built_sessions(bench, 64) as names:
        for count in (1, 2, 4, 8, 16, 32, 64):
            clients = [run_of(bench, one, build=None, exec="./hello") for one in names[:count]]
            yield count, race(list(clients), max(2, 128 // count))


#: File name -> title, what grows, how it is measured.
GROWTHS: dict[str, tuple[str, str, Callable[[Bench, int], Iterator[tuple[int, float]]]]] = {
    "sessions": ("a trivial run, ms", "sessions", by_sessions),
    "output": ("a run that prints, ms", "bytes printed", by_output),
    "files": ("a listing, ms", "files", by_files),
    "clients": ("ms for each run of many at once", "clients", by_clients),
}


def plot(title: str, cause: str, points: Points) -> str:
    """Draw a line through points, on logarithmic axes."""
    left, right = _bounds([x for x, _ in points])
    low, high = _bounds([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - left) / (right - left)
        up = (math.log10(y) - low) / (high - low)
        return EDGE + across * (WIDTH - 2 * EDGE), HEIGHT - EDGE - up * (HEIGHT - 2 * EDGE)

    line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
    dots = "".join(
        '<circle cx="{:.1f}" cy="{:.1f}" r="2.5"/>'.format(*place(x, y)) for x, y in points
    )
    marks = "".join(
        '<text x="{:.1f}" y="{:.1f}">{}</text>'.format(
            place(10.0**power, 10.0**low)[0] - 8, HEIGHT - EDGE + 14, f"1e{power}"
        )
        for power in range(left, right + 1)
    ) + "".join(
        f'<text x="4" y="{place(10.0**left, 10.0**power)[1] + 4:.1f}">{10.0**power:g}</text>'
        for power in range(low, high + 1)
    )
    frame = f'x="{EDGE}" y="{EDGE}" width="{WIDTH - 2 * EDGE}" height="{HEIGHT - 2 * EDGE}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="10"><rect width="100%" height="100%" fill="white"/>'
        f'<rect {frame} fill="none" stroke="#999"/>'
        f'<text x="{EDGE}" y="24" font-size="13">{escape(title)}</text>{marks}'
        f'<text x="{WIDTH // 2}" y="{HEIGHT - 10}">{escape(cause)}</text>'
        f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="1.5"/>{dots}</svg>\n'
    )


def _bounds(values: list[int] | list[float]) -> tuple[int, int]:
    low = math.floor(math.log10(min(values)))
    return low, max(low + 1, math.ceil(math.log10(max(values))))


if __name__ == "__main__":
    sys.exit(main())
