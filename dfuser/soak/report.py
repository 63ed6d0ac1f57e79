"""What the testers of this package say: a failure, one load's result, the whole report.

Counterpart: none; DragonFly's fsx and fsstress end with a core dump and a listing.
Differs from DragonFly: everything that is needed to run a failure again (tester, seed, number of
operations) is in the failure itself, and its log is short enough to read.
Token/lock order: takes none.
Invariants: records are frozen; a report is good exactly when no result and no rule complains.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

LOG_LENGTH = 40


class SoakFailure(AssertionError):
    """A file system answered otherwise than the model.

    Attributes:
        tester: the name of the tester.
        seed: the seed that replays the failure.
        operations: how many operations ran, the failing one included.
        log: the last operations, oldest first.
    """

    def __init__(self, tester: str, seed: int, operations: int, what: str, log: list[str]) -> None:
        """Keep the parts and build one readable text of them."""
        super().__init__(
            f"{tester}, seed {seed}, operation {operations}: {what}\n  " + "\n  ".join(log)
        )
        self.tester, self.seed, self.operations = tester, seed, operations
        self.what, self.log = what, tuple(log)


class OperationLog:
    """The last operations of a tester, so that a failure shows what led to it."""

    __slots__ = ("_lines", "count")

    def __init__(self, length: int = LOG_LENGTH) -> None:
        """Remember at most `length` lines; `count` goes on."""
        self._lines: deque[str] = deque(maxlen=length)
        self.count = 0

    def add(self, line: str) -> None:
        """Note one operation before it is done, so that the last line is the failing one."""
        self.count += 1
        self._lines.append(f"{self.count} {line}")

    def lines(self) -> list[str]:
        """The remembered lines, oldest first."""
        return list(self._lines)


class LoadResult(NamedTuple):
    """What one load did: its operations, and what it found wrong (empty when nothing)."""

    load: str
    seed: int
    seconds: float
    operations: int
    failure: str

    @property
    def ok(self) -> bool:
        """Whether the load found nothing wrong."""
        return not self.failure


class InvariantReport(NamedTuple):
    """What a walk of the tree found: how much there is, and which rules are broken."""

    directories: int
    files: int
    names: int
    bytes_in_files: int
    bytes_in_use: int
    violations: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every rule holds."""
        return not self.violations


class SoakReport(NamedTuple):
    """The whole soak: its loads and the rules that were checked after them."""

    directory: str
    seed: int
    seconds: float
    results: tuple[LoadResult, ...]
    invariants: InvariantReport

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong at all."""
        return self.invariants.ok and all(result.ok for result in self.results)

    @property
    def operations(self) -> int:
        """The operations of all loads together."""
        return sum(result.operations for result in self.results)

    def lines(self) -> list[str]:
        """The report for people: a line a load, a line for the rules, then the failures."""
        rows = [f"{'load':<10}{'runs':>6}{'operations':>12}{'per second':>12}  outcome"]
        rows += map(self._load_line, dict.fromkeys(result.load for result in self.results))
        walk = self.invariants
        outcome = "ok" if walk.ok else f"{len(walk.violations)} broken"
        rows.append(
            f"invariants: {walk.directories} directories, {walk.files} files, "
            f"{walk.names} names, {walk.bytes_in_files} bytes: {outcome}"
        )
        rows += [f"failed: {result.failure}" for result in self.results if not result.ok]
        rows += [f"broken: {violation}" for violation in walk.violations]
        rows.append(f"seed {self.seed}, {self.seconds:.1f} s, {'ok' if self.ok else 'FAILED'}")
        return rows

    def _load_line(self, load: str) -> str:
        mine = [result for result in self.results if result.load == load]
        operations = sum(result.operations for result in mine)
        rate = operations / max(sum(result.seconds for result in mine), 1e-9)
        failed = sum(not result.ok for result in mine)
        outcome = f"{failed} of {len(mine)} failed" if failed else "ok"
        return f"{load:<10}{len(mine):>6}{operations:>12}{rate:>12.0f}  {outcome}"

    def as_dict(self) -> dict[str, object]:
        """The report as plain values, for JSON."""
        return {
            **self._asdict(),
            "ok": self.ok,
            "results": [result._asdict() for result in self.results],
            "invariants": self.invariants._asdict(),
        }
