"""Debugger commands, declared by the classes whose structures they show.

The kernel debugger reads live structures. Only their owner knows how to print them, so
the command is a method of the owner, marked with its name::

    @ddb_show("threads")
    def ddb_show_threads(self, *args: str) -> Iterable[str]:
        "One line a thread."

``@ddb_command("ps")`` does the same for a command without ``show`` in front. The method
gets the words typed after the name and gives lines of text; it must only read, never
wait, and cope with a kernel that has just panicked.

`DdbCommands` is the table of one kernel. As in DDB a name may be shortened as far as it
stays unique.

Counterpart: DB_SHOW_COMMAND, DB_COMMAND (ddb/ddb.h), db_command.c.
Differs from DragonFly: commands return text, somebody else prints it; output is cut at
    `LINES_MAX` lines, with a last line that says so.
Token/lock order: takes none; a debugger command takes none either.
Invariants: a full name belongs to one method of one object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, NamedTuple, Protocol, TypeVar

from dfuser.libkern.errno import EINVAL, ENOENT, KError

LINES_MAX: Final = 10_000
_MARK: Final = "__ddb__"


class DdbMethod(Protocol):
    """A bound command: words in, lines out."""

    def __call__(self, *args: str) -> Iterable[str]:
        """Print the structure; raises KError for arguments it does not understand."""
        ...


class DdbEntry(NamedTuple):
    """A command in the table of a kernel."""

    name: str
    help: str
    func: DdbMethod


class DdbStatistics(NamedTuple):
    """Size and use of the table."""

    commands: int
    runs: int
    errors: int


_F = TypeVar("_F", bound=Callable[..., Iterable[str]])


def ddb_command(name: str) -> Callable[[_F], _F]:
    """Mark a method as the debugger command of that name."""

    def note(func: _F) -> _F:
        setattr(func, _MARK, name)
        return func

    return note


def ddb_show(name: str) -> Callable[[_F], _F]:
    """Mark a method as the debugger command ``show <name>``."""
    return ddb_command(f"show {name}")


class DdbCommands:
    """The debugger commands of one kernel.

    Counterpart: db_command_table and db_show_cmds (ddb/db_command.c).
    """

    def __init__(self) -> None:
        """Make an empty table."""
        self._entries: dict[str, DdbEntry] = {}
        self._owned: dict[int, tuple[object, list[str]]] = {}
        self._runs = 0
        self._errors = 0

    def register(self, owner: object) -> None:
        """Add the commands an object declares, all of them or none.

        Raises:
            ValueError: one of the names is taken, or the object is registered already.
        """
        found: dict[str, DdbEntry] = {}
        for base in type(owner).__mro__:
            for key, entry in vars(base).items():
                name = getattr(entry, _MARK, None) if callable(entry) else None
                if name is not None and name not in found:
                    doc = (entry.__doc__ or "").strip().partition("\n")[0]
                    found[name] = DdbEntry(name, doc, getattr(owner, key))
        taken = sorted(found.keys() & self._entries.keys())
        if taken or id(owner) in self._owned:
            raise ValueError(f"ddb commands taken: {taken or owner!r}")
        self._entries.update(found)
        self._owned[id(owner)] = (owner, list(found))

    def unregister(self, owner: object) -> None:
        """Take an object's commands out again.

        Raises:
            KError: ENOENT, the object is not registered.
        """
        entry = self._owned.pop(id(owner), None)
        if entry is None:
            raise KError(ENOENT, "not registered")
        for name in entry[1]:
            del self._entries[name]

    def entries(self) -> list[DdbEntry]:
        """All commands in alphabetical order."""
        return [self._entries[name] for name in sorted(self._entries)]

    def find(self, words: list[str]) -> tuple[DdbEntry, list[str]]:
        """Find the command that typed words mean, and the words left for it.

        Raises:
            KError: ENOENT, no such command; EINVAL, the shortened name fits several.
        """
        split = 2 if words and "show".startswith(words[0]) and len(words) > 1 else 1
        typed, rest = words[:split], words[split:]
        fits = [entry for name, entry in self._entries.items() if _fits(typed, name.split(" "))]
        exact = [entry for entry in fits if entry.name == " ".join(typed)]
        if exact:
            return exact[0], rest
        if not fits:
            raise KError(ENOENT, f"no such command: {' '.join(words)[:60]!r}")
        if len(fits) > 1:
            names = ", ".join(sorted(entry.name for entry in fits))
            raise KError(EINVAL, f"ambiguous: {names}")
        return fits[0], rest

    def run(self, line: str) -> list[str]:
        """Run one typed line and give what it prints, at most LINES_MAX lines.

        Raises:
            KError: ENOENT or EINVAL for the name, or the command's own error.
        """
        words = line.split()
        if not words:
            return []
        self._runs += 1
        try:
            entry, rest = self.find(words)
            lines = list(islice(entry.func(*rest), LINES_MAX + 1))
        except KError:
            self._errors += 1
            raise
        if len(lines) > LINES_MAX:
            lines[LINES_MAX:] = [f"(cut after {LINES_MAX} lines)"]
        return lines

    def statistics(self) -> DdbStatistics:
        """How many commands there are and how often they were used."""
        return DdbStatistics(len(self._entries), self._runs, self._errors)


def _fits(typed: list[str], name: list[str]) -> bool:
    """Whether each typed word begins the word of the name at its place."""
    return len(typed) == len(name) and all(
        word.startswith(part) for part, word in zip(typed, name, strict=True)
    )
