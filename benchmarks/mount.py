"""`python -m benchmarks.mount`: the mounted dfuser beside its peers, in one interleaved run.

The peers: the host's tmpfs; pyfuse3's own passthroughfs example, out of its source distribution; a
minimal pyfuse3 server, which is the floor under anything built on pyfuse3; and libfuse's C
passthrough_ll, compiled from the sources that Debian's libfuse3-dev brings. What cannot run here is
left out, with the reason printed.

    python -m benchmarks.mount                     the whole table
    python -m benchmarks.mount --quick             less of everything, one minute
    python -m benchmarks.mount --peers tmpfs,dfuser --rows "getattr sync,untar" --rounds 9 --json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys

from benchmarks.field import Field, places
from benchmarks.harness import Rounds, geometric_mean, table
from benchmarks.peers import PEERS
from benchmarks.rows import APPLICATIONS, ROWS, Sizes

QUICK = Sizes(calls=300, files=100, listed=1000, mebibytes=8)
YARDSTICK = "tmpfs"


def targets(results: Rounds) -> dict[str, float | None]:
    """The numbers that dfuser is measured by, each a ratio (None: not measured)."""
    summaries = {(s.row, s.contestant): s for s in results.summary(YARDSTICK)}
    versus = results.summary("passthroughfs")
    applications = [
        s.ratio for s in versus
        if s.contestant == "dfuser" and s.row in APPLICATIONS and s.ratio is not None
    ]  # fmt: skip
    floor = {(s.row, s.contestant): s for s in results.summary("minimal")}

    def ratio(row: str) -> float | None:
        found = summaries.get((row, "dfuser"))
        return found.ratio if found else None

    sync = floor.get(("getattr sync", "dfuser"))
    return {
        "getattr sync, wall, to the minimal server (<= 1.3)": sync.ratio if sync else None,
        "getattr sync, server CPU, to the minimal server (<= 1.3)": results.cpu_ratio(
            "getattr sync", "dfuser", "minimal"
        ),
        "cached stat to tmpfs (<= 1.1)": ratio("stat cached"),
        "cached negative lookup to tmpfs (<= 1.1)": ratio("negative cached"),
        "applications to passthroughfs, geometric mean (<= 0.5)": geometric_mean(applications),
        "applications to passthroughfs, slowest (<= 1.0)": max(applications, default=None),
    }


def main() -> int:
    """Run the benchmark and print the table; the exit status is 2 for a wrong command line."""
    options = _options()
    peers = [peer for peer in PEERS if not options.peers or peer.name in options.peers.split(",")]
    rows = [row for row in ROWS if not options.rows or row.name in options.rows.split(",")]
    with places() as (work, host):
        field = Field(work, QUICK if options.quick else Sizes())
        with contextlib.ExitStack() as stack:
            field.enter(peers, host, stack)
            results = field.run(rows, options.rounds)
    _print(field, results, as_json=options.json)
    return 0


def _print(field: Field, results: Rounds, *, as_json: bool) -> None:
    summaries, reached = results.summary(YARDSTICK), targets(results)
    if as_json:
        record = {
            "rows": [summary._asdict() for summary in summaries],
            "targets": reached,
            "skipped": field.skipped,
            "failed": {f"{row} on {name}": why for (row, name), why in field.failed.items()},
        }
        json.dump(record, sys.stdout, indent=1)
        return
    print("\n".join(table(summaries, list(field.places), YARDSTICK)))
    for name, value in reached.items():
        print(f"{'-' if value is None else f'{value:.2f}':>6}  {name}")
    for name, why in field.skipped.items():
        print(f"skipped {name}: {why}")
    for (row, name), why in field.failed.items():
        print(f"failed {row} on {name}: {why}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mount")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default="", help="comma-separated; default: all")
    parser.add_argument("--rows", default="", help="comma-separated; default: all")
    parser.add_argument("--quick", action="store_true", help="do less of everything")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
