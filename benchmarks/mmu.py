"""The MMU's speed against a bare walk, interleaved in one run.

    python -m benchmarks.mmu [--rounds N] [--json]

The yardstick is the least that any walk in Python costs: four loads, unrolled, with a test of the
present bit after each, and nothing else (no rights, no flags, no reserved bits, no canonical
check). All rows translate the same 1,024 addresses in the same random order and are measured in
turn, round by round; the ratio is the median of the ratios within a round. The scans are told in
millions of entries a second, best round, with numpy where it is installed and without it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dfuser.hw.mmu.batch import BatchScanner, TableRun
from dfuser.hw.mmu.fault import ACCESS_USER, ACCESS_WRITE
from dfuser.hw.mmu.pte import (
    PG_FRAME,
    X86_PG_A,
    X86_PG_M,
    X86_PG_PS,
    X86_PG_RW,
    X86_PG_U,
    X86_PG_V,
    PageTables,
    pte_index,
)
from dfuser.hw.mmu.unit import Mmu
from dfuser.hw.physmem import PhysMem

PAGES = 1024
SPACING = 3 << 12
BASE = 0x7F00_0000_0000
LARGE_BASE = 0x7E00_0000_0000
ROOT = 0x10000
FULL = X86_PG_V | X86_PG_RW | X86_PG_U
USED = X86_PG_A | X86_PG_M
STORE = ACCESS_USER | ACCESS_WRITE
SCANNED = 1 << 19
HIT_GOAL_US = 0.5
WALK_GOAL = 3.5
SCAN_GOAL = 20.0


class Row(NamedTuple):
    """One thing to measure: what makes the tables ready, and the body, which walks all pages."""

    prepare: Callable[[], None]
    body: Callable[[], None]


class World:
    """Tables with 1,024 small pages, one large page, and half a million entries to scan."""

    def __init__(self) -> None:
        self.physmem = PhysMem(32 << 20)
        self.tables = PageTables(self.physmem)
        self.next = ROOT + 0x1000
        self.addresses = [BASE + SPACING * n for n in range(PAGES)]
        self.places = [
            self.map(va, n << 12 | FULL | USED) >> 3 for n, va in enumerate(self.addresses)
        ]
        self.map(LARGE_BASE, FULL | USED | X86_PG_PS, level=2)
        random.Random(1).shuffle(self.addresses)
        self.mmu = Mmu(self.tables)
        self.mmu.mov_cr3(ROOT)

    def map(self, va: int, leaf: int, level: int = 1) -> int:
        """Write a leaf, with the tables above it; returns where it is."""
        table = ROOT
        for step in range(4, level, -1):
            at = table + 8 * pte_index(va, step)
            if not self.tables.pte_load(at):
                self.tables.pte_store(at, self.next | FULL | X86_PG_A)
                self.next += 0x1000
            table = self.tables.pte_load(at) & PG_FRAME
        at = table + 8 * pte_index(va, level)
        self.tables.pte_store(at, leaf)
        return at

    def flags(self, clear: int, add: int) -> Callable[[], None]:
        """A preparation: clear and set bits in every leaf."""

        def prepare() -> None:
            words = self.tables.words
            for place in self.places:
                words[place] = words[place] & ~clear | add

        return prepare

    def close(self) -> None:
        self.tables.close()
        self.physmem.close()


def bare_walk(words: memoryview, root: int, va: int) -> int:
    """The yardstick."""
    entry = words[root + (va >> 39 & 511)]
    if not entry & 1:
        return -1
    entry = words[((entry & PG_FRAME) >> 3) + (va >> 30 & 511)]
    if not entry & 1:
        return -1
    entry = words[((entry & PG_FRAME) >> 3) + (va >> 21 & 511)]
    if not entry & 1:
        return -1
    entry = words[((entry & PG_FRAME) >> 3) + (va >> 12 & 511)]
    if not entry & 1:
        return -1
    return entry & PG_FRAME | va & 0xFFF


def rows(world: World) -> dict[str, Row]:
    """All that is measured in turn."""
    addresses, words = world.addresses, world.tables.words
    walk, translate = world.mmu.walker.walk, world.mmu.translate
    large = [LARGE_BASE + (n << 11) for n in range(PAGES)]

    def bare() -> None:
        for va in addresses:
            bare_walk(words, ROOT >> 3, va)

    def walks(which: Sequence[int]) -> Callable[[], None]:
        def body() -> None:
            for va in which:
                walk(va, STORE)

        return body

    def hits() -> None:
        for va in addresses:
            translate(va, STORE)

    def fill() -> None:
        world.flags(0, FULL | USED)()
        hits()

    def empty() -> None:
        world.mmu.tlb.flush()

    good = world.flags(0, FULL | USED)
    small = walks(addresses)
    return {
        "bare walk": Row(good, bare),
        "TLB hit": Row(fill, hits),
        "TLB miss": Row(empty, hits),
        "walk": Row(good, small),
        "walk, sets A and D": Row(world.flags(USED, FULL), small),
        "walk, 2 MiB page": Row(good, walks(large)),
        "walk, refused": Row(world.flags(X86_PG_RW, X86_PG_V), small),
        "walk, absent": Row(world.flags(X86_PG_V, 0), small),
        "walk, reserved bit": Row(world.flags(0, FULL | 1 << 51), small),
        "end": Row(world.flags(1 << 51, FULL | USED), lambda: None),
    }


def measure(world: World, rounds: int) -> dict[str, list[float]]:
    """Microseconds a translation, by row and round."""
    todo = rows(world)
    samples: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(rounds):
        for name, row in todo.items():
            row.prepare()
            started = time.perf_counter_ns()
            row.body()
            samples[name].append((time.perf_counter_ns() - started) / PAGES / 1000)
    del samples["end"]
    return samples


def measure_scans(world: World, rounds: int) -> dict[str, float]:
    """Millions of entries a second: counting and changing whole tables, and looking many up."""
    best: dict[str, float] = {}
    first = 16 << 20
    runs = [TableRun(0, at, 512, 1) for at in range(first, first + 8 * SCANNED, 4096)]
    world.tables.words[first >> 3 : (first >> 3) + 512] = memoryview(
        b"".join((n << 12 | FULL | USED).to_bytes(8, "little") for n in range(512))
    ).cast("Q")
    for run in runs[1:]:
        world.physmem.mem[run.address : run.address + 4096] = world.physmem.mem[
            first : first + 4096
        ]
    for vectorised in (True, False):
        try:
            scanner = BatchScanner(world.tables, vectorised)
        except ImportError:
            continue
        way = "numpy" if vectorised else "plain"
        for _ in range(rounds):
            for name, count, body in scans(world, scanner, runs):
                started = time.perf_counter_ns()
                body()
                spent = time.perf_counter_ns() - started
                key = f"{name}, {way}"
                best[key] = max(best.get(key, 0.0), count / spent * 1000)
        scanner.close()
    return best


def scans(
    world: World, scanner: BatchScanner, runs: list[TableRun]
) -> list[tuple[str, int, Callable[[], Any]]]:
    """What is scanned: a name, how many entries, and the work."""

    def count() -> None:
        for run in runs:
            scanner.count(run, X86_PG_M, X86_PG_M)

    def update() -> None:
        for run in runs:
            scanner.update(run, X86_PG_V, X86_PG_V, clear=X86_PG_RW)
        for run in runs:
            scanner.update(run, X86_PG_V, X86_PG_V, add=X86_PG_RW)

    addresses: Any = world.addresses * 64
    if scanner.vectorised:
        addresses = importlib.import_module("numpy").array(addresses, dtype="uint64")
    return [
        ("scan, count dirty", SCANNED, count),
        ("scan, write-protect and back", 2 * SCANNED, update),
        (
            "probe_many",
            len(addresses),
            lambda: scanner.probe_many(world.mmu.walker, addresses),
        ),
    ]


def report(samples: dict[str, list[float]], scanned: dict[str, float]) -> list[str]:
    """The results as lines."""
    lines = []
    base = samples["bare walk"]
    for name, times in samples.items():
        ratio = statistics.median(a / b for a, b in zip(times, base, strict=True))
        line = f"{name:<36}{min(times):8.3f} us {ratio:7.2f} x bare walk"
        if name.startswith("walk"):
            line += f"  (goal {WALK_GOAL}: {'met' if ratio <= WALK_GOAL else 'MISSED'})"
        if name == "TLB hit":
            met = "met" if min(times) <= HIT_GOAL_US else "MISSED"
            line += f"  (goal {HIT_GOAL_US} us: {met})"
        lines.append(line)
    for name, rate in scanned.items():
        line = f"{name:<36}{rate:8.1f} million entries a second"
        if name.endswith("numpy"):
            line += f"  (goal {SCAN_GOAL}: {'met' if rate >= SCAN_GOAL else 'MISSED'})"
        lines.append(line)
    if not any(name.endswith("numpy") for name in scanned):
        lines.append("numpy is not installed: the vectorised scans were not measured")
    return lines


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    world = World()
    try:
        samples = measure(world, args.rounds)
        scanned = measure_scans(world, max(3, args.rounds // 5))
    finally:
        world.close()
    if args.json:
        print(json.dumps({"us": samples, "million_entries_a_second": scanned}))
    else:
        print("\n".join(report(samples, scanned)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
