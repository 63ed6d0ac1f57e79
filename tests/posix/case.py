"""How a case is written down, and how all of them are found.

A case is a plain function that takes a fresh, empty directory, does something to it through the
host's system calls, and returns. It raises `CaseFailed` (through `same`, `true` or `refuse`) when
the file system is wrong, and `NotApplicable` when the question makes no sense here (no root, no
such kernel, too little space). `@case` marks it; `@table` makes one case of each row. Nothing is
registered anywhere: the cases are found by walking the modules of `tests.posix.cases`, so that the
list is always what the files say.
"""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.posix import cases

Body = TypeVar("Body", bound=Callable[..., None])
MARK = "__posix_case__"


class CaseFailed(AssertionError):
    """The file system did not do what the case asks for."""


class NotApplicable(Exception):
    """The case cannot be asked here; the text says why."""


class Marks(NamedTuple):
    """What a decorator wrote on a case: who may run it, how long, and with which rows."""

    root: bool
    limit: float
    rows: Sequence[tuple[str, tuple[Any, ...]]]


class Case(NamedTuple):
    """One runnable case: `subject.name`, its body and its time limit in seconds."""

    subject: str
    name: str
    body: Callable[..., None]
    row: tuple[Any, ...]
    root: bool
    limit: float

    @property
    def title(self) -> str:
        """The name under which reports and the list of differences know the case."""
        return f"{self.subject}.{self.name}"

    def run(self, directory: Path) -> None:
        """Run the body in `directory`.

        Raises:
            CaseFailed: the promise is broken.
            NotApplicable: the question makes no sense here.
            OSError: a call failed that had to succeed.
        """
        self.body(directory, *self.row)


def case(*, root: bool = False, limit: float = 10.0) -> Callable[[Body], Body]:
    """Mark a function as one case; `root` when it must change users or make devices."""
    return table({"": ()}, root=root, limit=limit)


def table(
    rows: dict[str, tuple[Any, ...]], *, root: bool = False, limit: float = 10.0
) -> Callable[[Body], Body]:
    """Mark a function as one case for each row; the row's values follow the directory."""

    def mark(body: Body) -> Body:
        setattr(body, MARK, Marks(root, limit, tuple(rows.items())))
        return body

    return mark


def all_cases() -> Iterator[Case]:
    """Yield every case of every subject, in the order of the files."""
    for module in pkgutil.iter_modules(cases.__path__):
        yield from cases_of(module.name)


def cases_of(subject: str) -> Iterator[Case]:
    """Yield the cases of one subject, in the order in which they are written."""
    namespace = vars(importlib.import_module(f"{cases.__name__}.{subject}"))
    for name, body in namespace.items():
        marks: Marks | None = getattr(body, MARK, None)
        if marks is None or body.__module__ != namespace["__name__"]:
            continue
        for label, row in marks.rows:
            title = f"{name}[{label}]" if label else name
            yield Case(subject, title, body, row, marks.root, marks.limit)


def true(condition: object, what: str) -> None:
    """Fail the case with `what` unless `condition` holds."""
    if not condition:
        raise CaseFailed(what)


def same(got: object, want: object, what: str) -> None:
    """Fail the case unless `got` equals `want`."""
    if got != want:
        raise CaseFailed(f"{what}: {got!r:.300}, not {want!r:.300}")


def refuse(number: int | tuple[int, ...], call: Callable[..., Any], *args: Any, **kw: Any) -> None:
    """Fail the case unless `call(*args)` raises OSError with one of the errno `number`."""
    allowed = (number,) if isinstance(number, int) else number
    wanted = " or ".join(errno.errorcode[n] for n in allowed)
    name = getattr(call, "__name__", str(call))
    try:
        result = call(*args, **kw)
    except OSError as error:
        if error.errno in allowed:
            return
        got = errno.errorcode.get(error.errno or 0, str(error.errno))
        raise CaseFailed(f"{name}: {got}, not {wanted}") from error
    raise CaseFailed(f"{name} returned {result!r:.100}, not {wanted}")


def until_refused(number: int, call: Callable[..., int], *args: Any, seconds: float = 5) -> None:
    """The call fails with ``number`` at the latest after ``seconds``; what it opens is closed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.close(call(*args))
        except OSError as error:
            if error.errno == number:
                return
            raise
        time.sleep(0.005)
    raise CaseFailed(f"still answered after {seconds} s, not {errno.errorcode[number]}")


def eventually(check: Callable[[], bool], text: str, seconds: float = 5) -> None:
    """``check`` comes true at the latest after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise CaseFailed(f"not within {seconds} s: {text}")
        time.sleep(0.005)


def settled(look: Callable[[], int]) -> int:
    """A figure once two looks 20 ms apart agree: what was removed before is given back by then."""
    before, now = -1, look()
    while before != now:
        time.sleep(0.02)
        before, now = now, look()
    return now
