"""`python -m benchmarks.fuse`: what a FUSE request costs here, beside a file system written in C.

The peers, all mounted at the same time and measured in turn: libfuse's ``passthrough_ll -s`` over
the host's tmpfs ("C", the yardstick), the same with its threads ("C-threads"), the host's tmpfs
itself, dfuser through its own loop ("device"), through stock pyfuse3 ("pyfuse3"), and through its
own loop on a connection that never hears of opens ("no-open"). What cannot run here is left out,
with the reason printed.

The tables: best times, server CPU and the ratio of the bests; the latency of single requests under
four parallel clients; every goal with what came of it, the number of requests that a workload may
take among them; and what requests these were.

    python -m benchmarks.fuse                      everything, some minutes
    python -m benchmarks.fuse --quick              less of everything
    python -m benchmarks.fuse --rows getattr,requests --peers C,device --rounds 9 --json

Lookup of known names and the cold ls -l need root, to make the host forget one mount's names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

from benchmarks import client
from benchmarks.field import Field, places
from benchmarks.fuse_counts import BUDGETS, Budget, Counts, count
from benchmarks.fuse_goals import (
    DEVICE,
    LEAN,
    NO_OPEN,
    REFERENCE,
    TMPFS,
    C,
    lines,
    measured,
    verdicts,
)
from benchmarks.fuse_latency import Latencies
from benchmarks.fuse_rows import LONG, ROWS, SHORT_ROUNDS
from benchmarks.fuse_rows import NO_OPEN as NO_OPEN_ROWS
from benchmarks.harness import Rounds, table
from benchmarks.peers import Peer, Unavailable, mount_help
from benchmarks.rows import Sizes

QUICK = Sizes(calls=500, files=100, listed=2000, mebibytes=8)
FULL = Sizes(calls=2000)
UNITS = "us a call; reading and writing 1M: a MiB; ls -l: an entry; programs: a run"
LATENCY, REQUESTS = "latency", "requests"


def peers() -> list[Peer]:
    """The contestants; without a choice of transports dfuser has the reference transport only."""
    try:
        chosen = ("--transport", REFERENCE) if "--transport" in mount_help() else ()
    except (Unavailable, subprocess.CalledProcessError):
        chosen = ()
    device = ("--transport", DEVICE)
    return [
        Peer(C, program="passthrough_ll", words=("-s",)),
        Peer("C-threads", program="passthrough_ll"),
        Peer(TMPFS),
        Peer(DEVICE, program="dfuser", words=device, needs=("--transport",)),
        Peer(LEAN, program="dfuser", words=(*device, "-o", "noxattr"),
             needs=("--transport", "noxattr")),
        Peer(REFERENCE, program="dfuser", words=chosen),
        Peer(NO_OPEN, program="dfuser", words=(*device, "-o", "noopen,noxattr"),
             needs=("--transport", "noopen"), rows=NO_OPEN_ROWS),
    ]  # fmt: skip


def count_requests(field: Field) -> Counts:
    """All budgets on all connections of dfuser."""
    counts: Counts = {}
    for budget in BUDGETS:
        for name in (NO_OPEN,) if budget.no_open else (DEVICE, LEAN, REFERENCE):
            if name in field.places and name not in field.stalled:
                _count_one(field, budget, name, counts)
    return counts


def _count_one(field: Field, budget: Budget, name: str, counts: Counts) -> None:
    _, path, contestant = field.places[name]
    assert contestant.pid is not None, "dfuser is a process"
    with field.guarded(f"requests: {budget.name}", contestant):
        counts[budget.name, name] = count(budget, contestant.pid, path, field.sizes, field.work)


def measure(options: argparse.Namespace) -> tuple[Field, Rounds, Latencies, Counts]:
    """Mount everybody, measure, and unmount, whatever happens in between."""
    names = options.peers.split(",") if options.peers else None
    wanted = options.rows.split(",") if options.rows else None
    rows = [row for row in ROWS if wanted is None or row.name in wanted]
    short = [row for row in rows if row.name not in LONG]
    latencies, counts = Latencies(), Counts()
    with places() as (work, host), contextlib.ExitStack() as stack:
        field = Field(work, QUICK if options.quick else FULL)
        field.enter([p for p in peers() if names is None or p.name in names], host, stack)
        stack.callback(_ignore_signals)  # leaving unmounts, and is not interrupted
        results = field.run([*rows, *short * (SHORT_ROUNDS - 1)], options.rounds)
        if wanted is None or LATENCY in wanted:
            latencies.measure(field, options.rounds)
        if wanted is None or REQUESTS in wanted:
            counts = count_requests(field)
    return field, results, latencies, counts


def main() -> int:
    """Run the benchmark and print the tables.

    The exit status is 2 for a wrong command line, 1 without the client, 130 when interrupted.
    """
    options = _options()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # passthrough_ll: one an inode
    try:
        client.library()
    except Unavailable as reason:
        print(f"the client cannot be compiled: {reason}", file=sys.stderr)
        return 1
    try:
        _print(*measure(options), as_json=options.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """Ctrl-C and a polite kill unwind, so that nothing stays mounted; once is enough."""
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _print(
    field: Field, results: Rounds, latencies: Latencies, counts: Counts, *, as_json: bool
) -> None:
    found = measured(verdicts(results, latencies, counts, BUDGETS))
    summaries = results.summary(C, of_bests=True)
    failed = {f"{row} on {name}": why for (row, name), why in field.failed.items()}
    if as_json:
        record = {
            "rows": [summary._asdict() for summary in summaries],
            "latency": {
                name: [sample._asdict() for sample in samples]
                for name, samples in latencies.samples.items()
            },
            "requests": {f"{b} on {name}": spent for (b, name), spent in counts.items()},
            "goals": [{**verdict._asdict(), "verdict": verdict.word} for verdict in found],
            "skipped": field.skipped,
            "failed": failed,
        }
        json.dump(record, sys.stdout, indent=1)
        return
    parts = []
    if summaries:
        parts.append([*table(summaries, list(field.places), C), UNITS])
    parts += [latencies.lines(), lines(found) if found else []]
    parts.append([f"requests, {name:<8} {what:<28} {_kinds(spent)}"
                  for (what, name), spent in counts.items()])  # fmt: skip
    parts.append([f"skipped {name}: {why}" for name, why in field.skipped.items()])
    parts.append([f"failed {what}: {why}" for what, why in failed.items()])
    print("\n\n".join("\n".join(part) for part in parts if part))


def _kinds(spent: dict[str, float]) -> str:
    kinds = sorted(spent.items(), key=lambda item: -item[1])
    named = ", ".join(f"{op} {number:.2f}" for op, number in kinds if number >= 0.005)
    return f"{sum(spent.values()):.2f}" + (f": {named}" if named else "")


def _options() -> argparse.Namespace:
    choices = [*(row.name for row in ROWS), LATENCY, REQUESTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuse")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default="", help="comma-separated; default: all")
    parser.add_argument("--rows", default="", help=f"comma-separated, of: {', '.join(choices)}")
    parser.add_argument("--quick", action="store_true", help="do less of everything")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    unknown = [name for name in options.rows.split(",") if name and name not in choices]
    if unknown or options.rounds < 1:
        parser.error(f"no such row: {', '.join(unknown)}" if unknown else "--rounds is at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
