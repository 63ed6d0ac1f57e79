"""How many requests a workload takes: the cheapest request is the one that the host need not make.

Counted by dfuser itself, whichever transport serves, and asked for over the control socket, so that
asking adds nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import client, rows
from benchmarks.fuse_rows import (
    BLOCK,
    counted,
    git_status,
    grep,
    ls_cold,
    open_close,
    reread,
    unlink,
)
from benchmarks.harness import Body
from benchmarks.rows import Sizes
from dfuser.client import Connection, instances

#: Seconds until what the host sends afterwards (RELEASE, FORGET) has come.
SETTLING = 0.05


#: What was counted, by the budget's name and the contestant's: requests an operation, by kind.
Counts = dict[tuple[str, str], dict[str, float]]


class Budget(NamedTuple):
    """How many requests something may take.

    `prepare` gives a body, as a row does. `op` is the one operation that is counted, "" for all;
    `limit` is None for what is only listed. `no_open` is for the connection that hears of no opens.
    """

    name: str
    prepare: Callable[[Path, Sizes, Path], Body]
    limit: float | None
    op: str = ""
    no_open: bool = False

    @property
    def label(self) -> str:
        """What the table of goals calls it."""
        return f"requests: {self.name}" + (f": {self.op.upper()}" if self.op else "")

    def of(self, spent: dict[str, float] | None) -> float | None:
        """The number that is judged, to a tenth; None of None."""
        if spent is None:
            return None
        return round(spent.get(self.op, 0.0) if self.op else sum(spent.values()), 1)


def requests(pid: int) -> Counter[str]:
    """Requests that the dfuser of this process has had so far, by operation.

    The records called "by_operation" of its statistics, those of all connections together.

    Raises:
        LookupError: no such dfuser runs, or it does not count.
    """
    instance = next((item for item in instances() if item.pid == pid), None)
    if instance is None:
        raise LookupError(f"no dfuser has the process id {pid}")
    with Connection(instance.socket, "benchmark") as kernel:
        tables = list(_tables(kernel.domsg("kernel", "statistics")))
    if not tables:
        raise LookupError("its statistics do not count requests by operation")
    total: Counter[str] = Counter()
    for table in tables:
        total.update({op.lower(): int(number) for op, number in table.items()})
    return total


def _tables(record: Any) -> Iterator[dict[str, int]]:
    """Every table "by_operation" inside a record."""
    inner = record.items() if isinstance(record, dict) else enumerate(record)
    for name, value in inner:
        if name == "by_operation":
            yield value
        elif isinstance(value, dict | list):
            yield from _tables(value)


def count(budget: Budget, pid: int, place: Path, sizes: Sizes, work: Path) -> dict[str, float]:
    """Requests for each operation of the budget's body, by their kind.

    The body runs once before, so that what the host asks only once (whether there are extended
    attributes, say) is not counted.
    """
    budget.prepare(place, sizes, work)()
    body = budget.prepare(place, sizes, work)
    time.sleep(SETTLING)
    before = requests(pid)
    number = body()
    time.sleep(SETTLING)
    spent = requests(pid) - before
    return {op: spent[op] / number for op in sorted(spent)}


def write_small(directory: Path, sizes: Sizes, work: Path) -> Body:
    """Creating files of 4 KiB with one write each."""
    place = rows.fresh(directory, "counted")
    return counted(sizes.files, partial(client.create, place, "", sizes.files, BLOCK))


BUDGETS = (
    Budget("create+write+close", write_small, 4),
    Budget("stat, cached", rows.stat_cached, 0),
    Budget("missing name, cached", rows.negative, 0),
    Budget("git status, warm", git_status, 0, "read"),
    Budget("grep -r, warm", grep, None),
    Budget("ls -l, an entry", rows.ls_l, None),
    Budget("ls -l cold, an entry", ls_cold, None),
    Budget("unlink", unlink, None),
    Budget("open+close", open_close, None),
    Budget("re-read 4K", reread, None),
    Budget("open+close, no-open", open_close, 0, no_open=True),
    Budget("re-read 4K, no-open", reread, 0, no_open=True),
    Budget("create+write+close, no-open", write_small, 4, no_open=True),
)
