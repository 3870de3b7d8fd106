"""`python -m bench [ROW ...]`: run rows, print a table, write a JSON record."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from bench.measure import Row
from bench.rows import ROWS
from bench.server import ROOT, running

LATEST = ROOT / "build" / "bench.json"  #: of the last whole run here
GIVEN = ROOT / "bench" / "record.json"  #: of the machine that RESULTS.md tells of


def main() -> int:
    """Run the wanted rows; exit 0 when every median keeps its budget."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="write the samples as JSON [of a whole run: build/bench.json]",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="an earlier record to compare [build/bench.json, else bench/record.json]",
    )
    parser.add_argument("--cpus", default="", metavar="N,N", help="pin everything to these")
    options = parser.parse_args()
    if options.cpus:  # server, load and floor inherit it
        os.sched_setaffinity(0, {int(number) for number in options.cpus.split(",")})
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    print(f"host: {platform.release()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}")
    print(f"{'row':30} {'floor':>7} {'Retort':>7} {'p99':>7} {'':4}{'ratio':>7}  budget")
    rows = []
    record = options.record or (None if options.rows else LATEST)
    against = options.against or next((file for file in (LATEST, GIVEN) if file.exists()), None)
    earlier = _ratios(against)
    with running() as bench:
        for name in options.rows or ROWS:
            rows.append(ROWS[name](bench))
            _print(rows[-1], earlier.get(rows[-1].name))
    if record is not None:
        _write(record, rows)
    return 0 if all(row.is_within for row in rows) else 1


def _ratios(record: Path | None) -> dict[str, float]:
    """Read the ratios of an earlier record: times of another hour say little, ratios do."""
    if record is None:
        return {}
    rows = [Row(**row) for row in json.loads(record.read_text())["rows"]]
    return {row.name: row.ratio for row in rows}


def _print(row: Row, before: float | None) -> None:
    was = "" if before is None else f", was {before:.2f}x"
    kept = "kept" if row.is_within else "MISSED"
    print(
        f"{row.name:30} {row.floor:7.2f} {row.median:7.2f} {row.p99:7.2f} {row.unit:4}"
        f"{row.ratio:6.2f}x  {row.budget}: {kept} (load {row.load:.2f}{was})",
        flush=True,
    )


def _write(path: Path, rows: list[Row]) -> None:
    record = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "host": platform.release(),
        "cores": os.cpu_count(),
        "rows": [_short(dataclasses.asdict(row)) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Give the same with samples to a tenth of a microsecond."""
    return {
        key: [round(sample, 4) for sample in value] if isinstance(value, list) else value
        for key, value in row.items()
    }


if __name__ == "__main__":
    sys.exit(main())
