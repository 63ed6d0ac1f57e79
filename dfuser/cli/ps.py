"""``dfuser ps``: processes and threads of the kernel. Counterpart: ps(1)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import click

from dfuser.client import Connection

from .output import Column, dash, print_json, print_table
from .talk import talks
from .verb import verb

SHORT: Final = (
    Column("pid", "PID", True),
    Column("ppid", "PPID", True),
    Column("tid", "TID", True),
    Column("cpu", "CPU", True, lambda cpu: "-" if cpu == -1 else str(cpu)),
    Column("pri", "PRI", True, lambda pri: "-" if pri == -1 else str(pri)),
    Column("state", "STAT"),
    Column("wmesg", "WMESG", False, dash),
    Column("comm", "COMMAND"),
)
LONG: Final = (
    Column("uid", "UID", True),
    *SHORT[:-1],
    Column("switches", "SWITCHES", True),
    Column("host_pid", "HOSTPID", True, lambda pid: str(pid) if pid else "-"),
    Column("start", "STARTED", False, lambda ns: f"{datetime.fromtimestamp(ns / 1e9):%H:%M:%S}"),
    SHORT[-1],
)


def one_a_process(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kernel threads, and of every other process the thread that tells most."""
    chosen: dict[tuple[int, int], dict[str, Any]] = {}
    for row in rows:
        key = (0, row["tid"]) if row["pid"] <= 0 else (row["pid"], 0)
        known = chosen.get(key)
        if known is None or (row["state"] == "R" and known["state"] != "R"):
            chosen[key] = row
    return list(chosen.values())


@verb()
@click.option("-H", "every_thread", is_flag=True, help="Show every thread of a process.")
@click.option("-l", "long", is_flag=True, help="Long: user, switches, host process, start.")
@talks
def command(kernel: Connection, every_thread: bool, long: bool, as_json: bool) -> None:
    """List processes and threads of the kernel.

    Kernel threads belong to process 0. A request of the host that has to wait is a process of its
    own, called as its operation; -l shows the host process behind it. STAT is R for runnable, S
    for asleep, I for asleep until a signal, T for stopped, Z for exited; WMESG says what for.

    Examples:
      dfuser ps
      dfuser ps -l -m /mnt
      dfuser ps --json | jq '.processes[] | select(.wmesg != "")'
    """
    rows = kernel.domsg("ps", "list")
    if as_json:
        print_json("processes", rows)
        return
    print_table(rows if every_thread else one_a_process(rows), LONG if long else SHORT)
