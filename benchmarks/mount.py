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
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Contestant, Rounds, geometric_mean, rotate, table
from benchmarks.peers import PEERS, Peer, Unavailable, served
from benchmarks.rows import APPLICATIONS, ROWS, Row, Sizes

HOST_TMPFS = Path("/dev/shm")
QUICK = Sizes(calls=300, files=100, listed=1000, mebibytes=8)
YARDSTICK = "tmpfs"


class Field:
    """The mounted contestants of a run and where each of them is."""

    def __init__(self, work: Path, sizes: Sizes) -> None:
        """Prepare an empty field; `work` is for archives and logs."""
        self.work, self.sizes = work, sizes
        self.places: dict[str, tuple[Peer, Path, Contestant]] = {}
        self.skipped: dict[str, str] = {}
        self.failed: dict[tuple[str, str], str] = {}

    def enter(self, peers: list[Peer], host: Path, stack: contextlib.ExitStack) -> None:
        """Mount all peers that can be mounted, for as long as `stack` lives."""
        for peer in peers:
            try:
                path, pid = stack.enter_context(served(peer, self.work, host))
            except Unavailable as reason:
                self.skipped[peer.name] = str(reason)
                continue
            self.places[peer.name] = (peer, path, Contestant(peer.name, pid))

    def run(self, rows: list[Row], rounds: int) -> Rounds:
        """Measure all rows on all contestants, round after round."""
        results = Rounds()
        everybody = [contestant for _, _, contestant in self.places.values()]
        for number in range(rounds):
            for row in rows:
                for contestant in rotate(everybody, number):
                    self._one(results, row, contestant)
        return results

    def _one(self, results: Rounds, row: Row, contestant: Contestant) -> None:
        """Measure one row on one contestant; what fails once is not tried again."""
        peer, path, _ = self.places[contestant.name]
        key = (row.name, contestant.name)
        if key in self.failed or (peer.read_only and not row.read_only):
            return
        try:
            body = row.prepare(path, self.sizes, self.work)
            results.measure(row.name, contestant, body)
        except (OSError, subprocess.CalledProcessError) as error:
            self.failed[key] = f"{type(error).__name__}: {error}"


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
    work = Path(tempfile.mkdtemp(prefix="dfuser-bench-"))
    host = Path(tempfile.mkdtemp(prefix="dfuser-bench-", dir=HOST_TMPFS))
    field = Field(work, QUICK if options.quick else Sizes())
    try:
        with contextlib.ExitStack() as stack:
            field.enter(peers, host, stack)
            results = field.run(rows, options.rounds)
    finally:
        shutil.rmtree(host, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
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
