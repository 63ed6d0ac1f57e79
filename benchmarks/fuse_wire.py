"""The FUSE codec's speed against bare struct calls, interleaved in one run.

    python -m benchmarks.fuse_wire [--rounds N] [--repeats N] [--json]

For each hot operation: its head and body parsed, and its reply emitted, each beside the least that
Python could do for the same bytes: one prepared ``unpack_from`` for the head and one for the body,
a slice for a name; one ``pack`` and a concatenation for a reply. Everything is measured several
times in turn, the best of each counts, and the ratio to the bare calls is what is compared from
machine to machine. The goals in microseconds (0.6 to parse a request with its head, 0.5 to emit a
reply) are for a machine where one bare ``unpack_from`` of a head takes about a tenth of that.

Listings are told per entry; they pack a hundred entries at a time.
"""

from __future__ import annotations

import argparse
import json
import stat
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from dfuser.fuse.wire import inputs, reply
from dfuser.fuse.wire.attr import pack_entry
from dfuser.fuse.wire.const import Opcode
from dfuser.fuse.wire.dirent import pack_direntplus, pack_dirents
from dfuser.fuse.wire.inputs import IN_HEADER
from dfuser.fuse.wire.kernel import SHAPES, emit_request
from dfuser.fuse.wire.outputs import OUT_HEADER
from dfuser.fuse.wire.request import PARSERS, parse_header

PARSE_GOAL, EMIT_GOAL = 0.6, 0.5
ENTRIES = 100
BODIES: dict[Opcode, tuple[Any, bytes]] = {
    Opcode.LOOKUP: (b"Makefile.am", b""),
    Opcode.GETATTR: (inputs.GetattrIn(0, 0), b""),
    Opcode.READ: (inputs.ReadIn(5, 1 << 33, 131072, 0, 0, 0x8000), b""),
    Opcode.WRITE: (inputs.WriteIn(5, 1 << 33, 4096, 0, 0, 0x8001), bytes(4096)),
    Opcode.OPEN: (inputs.OpenIn(0x8000, 0), b""),
    Opcode.READDIRPLUS: (inputs.ReadIn(5, 0, 4096, 0, 0, 0), b""),
    Opcode.FORGET: (1, b""),
}


class Row(NamedTuple):
    """One measurement: ours, the bare calls, what the goal is in microseconds."""

    name: str
    ours: Callable[[], Any]
    bare: Callable[[], Any]
    goal: float | None
    per: int = 1


def parse_rows() -> list[Row]:
    """A row for the body of each hot request, and one for head and body together."""
    rows = []
    head = IN_HEADER.struct.unpack_from
    buffer = bytearray(1 << 20)
    raw = emit_request(Opcode.GETATTR, inputs.GetattrIn(0, 0), unique=2)
    buffer[: len(raw)] = raw
    size = len(raw)
    rows.append(Row("parse head", lambda: parse_header(buffer, size), lambda: head(buffer), None))
    for opcode, (body, data) in BODIES.items():
        rows += _parse_rows(opcode, body, data)
    return rows


def _parse_rows(opcode: Opcode, body: Any, data: bytes) -> list[Row]:
    raw = emit_request(opcode, body, unique=77777777, nodeid=1 << 40, uid=1, pid=4711, data=data)
    buffer = bytearray(1 << 20)
    size = len(raw)
    buffer[:size] = raw
    parse, head, layout = PARSERS[opcode], IN_HEADER.struct.unpack_from, SHAPES[opcode].layout

    def whole() -> Any:
        header = parse_header(buffer, size)
        return PARSERS[header[1]](buffer, size)

    if layout is None:
        bare: Callable[[], Any] = lambda: bytes(buffer[40 : size - 1])  # noqa: E731
    else:
        unpack = layout.struct.unpack_from
        bare = lambda: unpack(buffer, 40)  # noqa: E731
    return [
        Row(f"parse {opcode.name}", lambda: parse(buffer, size), bare, PARSE_GOAL),
        Row("  and its head", whole, lambda: (head(buffer), bare()), PARSE_GOAL),
    ]  # fmt: skip


def emit_rows() -> list[Row]:
    """A row for the reply to each hot request, and for listings by entry."""
    packed = pack_entry(
        1 << 40, 1, 86400, 86400, ino=1 << 40, size=4096, blocks=8, atime=1, mtime=2, ctime=3,
        mode=stat.S_IFREG | 0o644, nlink=1, uid=0, gid=0,
    )  # fmt: skip
    page = memoryview(bytearray(4096))
    pack = OUT_HEADER.struct.pack
    rows = [
        ("LOOKUP", lambda: reply.emit_entry(77, packed), lambda: pack(144, 0, 77) + packed),
        ("GETATTR", lambda: reply.emit_attr(77, packed), lambda: pack(120, 0, 77) + packed[24:]),
        ("READ", lambda: reply.emit_data(77, page), lambda: (pack(4112, 0, 77), page)),
        ("WRITE", lambda: reply.emit_write(77, 4096), lambda: pack(16, 0, 77)),
        ("OPEN", lambda: reply.emit_open(77, 5, 2), lambda: pack(16, 0, 77)),
        ("error", lambda: reply.emit_error(77, 2), lambda: pack(16, -2, 77)),
        ("success", lambda: reply.emit_ok(77), lambda: pack(16, 0, 77)),
    ]
    found = [Row(f"emit {name}", ours, bare, EMIT_GOAL) for name, ours, bare in rows]
    names = [b"file with a name %d" % number for number in range(ENTRIES)]
    plain = [(n, n, 8, name) for n, name in enumerate(names)]
    plus = [(packed, n, n, 8, name) for n, name in enumerate(names)]

    def bare() -> None:
        for _row in plus:
            pack(16, 0, 77)

    found.append(Row("READDIR entry", lambda: pack_dirents(plain, 1 << 20), bare, EMIT_GOAL,
                     ENTRIES))  # fmt: skip
    found.append(Row("READDIRPLUS entry", lambda: pack_direntplus(plus, 1 << 20), bare,
                     EMIT_GOAL, ENTRIES))  # fmt: skip
    found.append(Row("BATCH_FORGET pair", *_batch(), None, ENTRIES))
    return found


def _batch() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A batch parsed, beside the one iter_unpack it consists of."""
    raw = bytearray(emit_request(Opcode.BATCH_FORGET, [(n, 1) for n in range(ENTRIES)], unique=2))
    parse, size = PARSERS[Opcode.BATCH_FORGET], len(raw)
    pairs, body = inputs.FORGET_ONE.struct.iter_unpack, bytes(raw[48:])
    return lambda: parse(raw, size), lambda: list(pairs(body))


def timed(call: Callable[[], Any], rounds: int) -> float:
    """Microseconds of one call, the loop included."""
    begin = time.perf_counter_ns()
    for _ in range(rounds):
        call()
    return (time.perf_counter_ns() - begin) / rounds / 1000


def nothing() -> None:
    """Does nothing: what its call and the loop cost is taken off every measurement."""


def measure(rounds: int, repeats: int) -> dict[str, dict[str, float | None]]:
    """Best microseconds and ratio of every row."""
    rows = parse_rows() + emit_rows()
    best: dict[tuple[int, str], float] = {}
    empty = 1e9
    for _ in range(repeats):
        empty = min(empty, timed(nothing, rounds))
        for at, row in enumerate(rows):
            count = max(rounds // row.per, 1)
            for kind, call in (("ours", row.ours), ("bare", row.bare)):
                best[at, kind] = min(best.get((at, kind), 1e9), timed(call, count))
    result: dict[str, dict[str, float | None]] = {}
    name = ""
    for at, row in enumerate(rows):
        name = name + row.name[1:] if row.name.startswith(" ") else row.name
        ours, bare = ((best[at, kind] - empty) / row.per for kind in ("ours", "bare"))
        result[name] = {"us": ours, "bare_us": bare, "ratio": ours / bare, "goal": row.goal}
    return result


def report(result: dict[str, dict[str, float | None]]) -> list[str]:
    """The results as lines."""
    lines = [f"{'':<34}{'us':>8}{'bare us':>9}{'ratio':>8}"]
    for name, row in result.items():
        line = f"{name:<34}{row['us']:8.3f}{row['bare_us']:9.3f}{row['ratio']:8.2f}"
        if row["goal"] is not None and row["us"] is not None:
            line += f"  goal {row['goal']} us: {'met' if row['us'] <= row['goal'] else 'MISSED'}"
        lines.append(line)
    return lines


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = measure(args.rounds, args.repeats)
    print(json.dumps(result, indent=1) if args.json else "\n".join(report(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
