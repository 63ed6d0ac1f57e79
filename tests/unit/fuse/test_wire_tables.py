"""The tables of docs/fuse-protocol.md against the tables of the code."""

from __future__ import annotations

from pathlib import Path

from dfuser.fuse.wire.flags import ALWAYS, FLAGS, NEVER
from dfuser.fuse.wire.notify import NOTIFICATIONS
from dfuser.fuse.wire.operations import OPERATIONS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "fuse-protocol.md"


def rows(head: str) -> list[list[str]]:
    """The rows of the table that begins with a head line."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(head) + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_operations() -> None:
    # What if the page promised another answer than the code gives?
    assert rows("| opcode | name | since | request | reply | dfuser |") == [
        [
            str(row.opcode.value),
            row.opcode.name,
            f"7.{row.since}",
            row.request,
            row.reply or "none",
            row.answer + ("; ENOSYS" if row.refuse else ""),
        ]
        for row in OPERATIONS
    ]


def test_flags() -> None:
    # What if the page told another decision than the table makes?
    wanted = {ALWAYS: "yes", NEVER: "no"}
    table = rows("| bit | flag | since | wanted | why | depends |")
    assert [row[:5] for row in table] == [
        [
            str(flag.bit.bit_length() - 1),
            flag.name,
            f"7.{flag.since}",
            wanted.get(flag.wish, f"if `{flag.wish}`"),
            flag.why,
        ]
        for flag in FLAGS
    ]
    for row, flag in zip(table, FLAGS, strict=True):
        depends = [name for name in (*flag.needs, *flag.yields) if name != "INIT_EXT"]
        assert all(name in row[5] for name in depends)
        assert ("only announced" in row[5]) is flag.told


def test_notifications() -> None:
    # What if the page named another version than the code checks?
    assert rows("| code | name | since | sent when |") == [
        [
            str(rule.code.value),
            rule.code.name,
            f"7.{rule.since}" + (f" and {rule.flag}" if rule.flag else ""),
            rule.use,
        ]
        for rule in NOTIFICATIONS
    ]
