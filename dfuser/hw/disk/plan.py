"""Fault plans as text: what a user writes to have a disk fail.

A plan is lines, or parts of a line divided by ``;``. Each is a rule (`faultrule`)::

    eio read 1m-2m p=0.01          one in a hundred reads there fails
    eio write nth=7 errno=28       the seventh write finds no space
    short write times=1            one write is cut short
    torn write grain=4096 silent   every write is torn, and said to be fine
    delay read,write 5ms-20ms      reads and writes take so long
    delay flush 1s

The commands are read, write, flush, trim, zero or any. A range is bytes (k, m, g, t) from the first
to the one behind the last; of a delay it is the shortest and the longest time (ns, us, ms, s).

Counterpart: none in DragonFly.
Token/lock order: takes none.
Invariants: parse_rule(format_rule(r)) == r.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import attrs

from dfuser.libkern.errno import EINVAL, KError

from .disk import DiskCmd
from .faultrule import Fault, FaultRule
from .spec import parse_size

_TIMES: Final = MappingProxyType({"ns": 1, "us": 1000, "ms": 1_000_000, "s": 1_000_000_000})


def parse_plan(text: str) -> list[FaultRule]:
    """Read a plan; empty lines and what follows ``#`` count for nothing.

    Raises:
        KError: EINVAL, with the line that is wrong.
    """
    lines = [
        part.partition("#")[0].strip() for line in text.splitlines() for part in line.split(";")
    ]
    return [parse_rule(line) for line in lines if line]


def parse_rule(line: str) -> FaultRule:
    """Read one rule.

    Raises:
        KError: EINVAL, with the word that is wrong.
    """
    words = line.split()
    try:
        action = Fault(words[0])
        cmds = _commands(words[1])
    except (IndexError, ValueError):
        raise KError(EINVAL, f"{line!r}: a rule is an action, commands and options") from None
    rule = FaultRule(action, cmds)
    for word in words[2:]:
        try:
            rule = _with(rule, word)
        except (ValueError, KError):
            raise KError(EINVAL, f"{line!r}: what is {word!r}?") from None
    if action is Fault.DELAY and not rule.delay_ns[1]:
        raise KError(EINVAL, f"{line!r}: a delay of how long?")
    return rule


def _commands(text: str) -> frozenset[DiskCmd]:
    """The commands a rule names.

    Raises:
        ValueError: one is none.
    """
    if text == "any":
        return frozenset(DiskCmd)
    known = {cmd.name.lower(): cmd for cmd in DiskCmd}
    if unknown := set(text.split(",")) - known.keys():
        raise ValueError(unknown)
    return frozenset(known[name] for name in text.split(","))


def _with(rule: FaultRule, word: str) -> FaultRule:
    """The rule with one more option."""
    key, _, value = word.partition("=")
    changes: dict[str, Any]
    if word == "silent":
        changes = {"silent": True}
    elif key == "p":
        changes = {"probability": float(value)}
        if not 0.0 <= float(value) <= 1.0:
            raise ValueError(word)
    elif key in ("nth", "times", "grain"):
        changes = {key: parse_size(value)}
    elif key == "errno":
        changes = {"error": parse_size(value)}
    elif rule.action is Fault.DELAY:
        low, _, high = word.partition("-")
        changes = {"delay_ns": (_time(low), _time(high or low))}
    else:
        low, _, high = word.partition("-")
        changes = {"start": parse_size(low), "end": parse_size(high) if high else None}
    return attrs.evolve(rule, **changes)


def _time(text: str) -> int:
    """Nanoseconds of a time such as ``5ms``.

    Raises:
        ValueError: it is none.
    """
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(number) :]
    if unit not in _TIMES:
        raise ValueError(text)
    return round(float(number) * _TIMES[unit])


def format_rule(rule: FaultRule) -> str:
    """A rule as text."""
    every = len(rule.cmds) == len(DiskCmd)
    words = [
        rule.action.value,
        "any" if every else ",".join(cmd.name.lower() for cmd in sorted(rule.cmds)),
    ]
    if rule.action is Fault.DELAY:
        words.append(f"{rule.delay_ns[0]}ns-{rule.delay_ns[1]}ns")
    elif rule.start or rule.end is not None:
        words.append(f"{rule.start}-{rule.end if rule.end is not None else ''}")
    plain = FaultRule(rule.action)
    for key, name in (("p", "probability"), ("nth", "nth"), ("times", "times"),
                      ("grain", "grain"), ("errno", "error")):  # fmt: skip
        if getattr(rule, name) != getattr(plain, name):
            words.append(f"{key}={getattr(rule, name)}")
    return " ".join([*words, "silent"] if rule.silent else words)
