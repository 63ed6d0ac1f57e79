"""What commands print: tables for people, JSON for programs.

Data goes to stdout and nothing else does. A table has a heading; texts that come from file names
are shown without control characters, so that a name cannot play with the terminal. Bold and colour
are used on a terminal only, never with ``NO_COLOR``.

JSON documents are one object with a ``schema`` number and the data under one key; keys are whole
words, numbers are raw, times are seconds or nanoseconds as their key says. Additions keep the
number, changes raise it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

#: Version of the shapes of all JSON documents.
SCHEMA: Final = 1
_BOLD: Final = "\x1b[1m"
_PLAIN: Final = "\x1b[0m"
COLOURS: Final = (("ok", "\x1b[32m"), ("warn", "\x1b[33m"), ("fail", "\x1b[31m"))


class Column(NamedTuple):
    """One column of a table."""

    key: str
    title: str
    right: bool = False
    show: Callable[[Any], str] = str


def clean(text: object) -> str:
    """A text made safe for one line of a terminal: control characters are escaped."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() else _escape(char) for char in shown)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def colourful(stream: Any = None) -> bool:
    """Whether ``stream`` (stdout) may get bold and colour."""
    stream = stream or sys.stdout
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(word: str) -> str:
    """A verdict word in its colour."""
    colour = dict(COLOURS).get(word, "") if colourful() else ""
    return f"{colour}{word}{_PLAIN}" if colour else word


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> list[str]:
    """Rows as aligned lines under a heading; the heading stands also when there are no rows."""
    cells = [[clean(col.show(row.get(col.key, ""))) for col in columns] for row in rows]
    titles = [col.title for col in columns]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    lines = []
    for line in (titles, *cells):
        parts = [
            text.rjust(width) if col.right else text.ljust(width)
            for text, width, col in zip(line, widths, columns, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return lines


def print_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> None:
    """Print rows; the heading in bold on a terminal."""
    head, *body = table(rows, columns)
    print(f"{_BOLD}{head}{_PLAIN}" if colourful() else head)
    for line in body:
        print(line)


def print_json(key: str, data: Any, **more: Any) -> None:
    """Print one JSON document with ``data`` under ``key``."""
    print(json.dumps({"schema": SCHEMA, key: data, **more}, indent=2))


def size(value: Any) -> str:
    """Bytes for people: 512, 1.5K, 20M."""
    number = float(value)
    for unit in ("", "K", "M", "G", "T"):
        if number < 1024 or unit == "T":
            text = f"{number:.1f}" if unit and number < 10 else f"{number:.0f}"
            return f"{text.removesuffix('.0')}{unit}"
        number /= 1024
    return str(value)


def dash(value: Any) -> str:
    """A value, or "-" for none."""
    return "-" if value in ("", None, b"") else str(value)


def warn(text: str) -> None:
    """One line on stderr."""
    print(f"dfuser: {clean(text)}", file=sys.stderr)
