"""The views that /kern shows: a name, a line of description, and what gives the contents.

Whoever owns a structure registers a view of it at boot; the file system only lists and prints what
is registered, so it depends on nobody. A view is one of three:

* **rows**: a callable that gives records of one kind (named tuples, attrs records or mappings).
  Printed as a table, or as the owner likes (``text``);
* **text**: a callable that gives lines;
* **control**: a text that says what can be done, and a callable that is given commands.

Each has a twin ``<name>.json`` for programs. A view gives at most ``limit`` rows, and says how many
it left out; it is computed at each open, from the structures of that moment.

Counterpart: none in DragonFly, where kvm(3) readers and ddb do this.
Differs from DragonFly: an addition.
Token and lock order: takes none; callables must not wait.
Invariants: a name is registered once; nothing printed here is remembered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs

from dfuser.libkern.errno import EEXIST, EINVAL, EMSGSIZE, ENOENT, KError
from dfuser.libkern.sysctl import INT, RD, RW, Sysctl

if TYPE_CHECKING:
    from dfuser.libkern.ucred import Ucred

#: Gives the records of a view.
Rows = Callable[[], Iterable[Any]]
#: Prints one record, where a table is not what people expect.
RowText = Callable[[Any], str]
#: Gives the lines of a view.
Lines = Callable[[], Iterable[str]]
#: Is given one command, without the newline at its end, and who wrote it.
Obey = Callable[[str, "Ucred"], str | None]

LIMIT: Final = 10_000
#: Longest command.
COMMAND_MAX: Final = 8192
VIEWS_MAX: Final = 512


class KernView(NamedTuple):
    """One registered view."""

    name: str
    descr: str
    rows: Rows | None = None
    row_text: RowText | None = None
    lines: Lines | None = None
    obey: Obey | None = None
    columns: tuple[str, ...] = ()
    """Names of the columns, so that a table without rows has its head; else of the first row."""


class KernViewStatistics(NamedTuple):
    """How many views there are, and how often they were worked out."""

    views: int
    statistics_sources: int
    renders: int
    rows: int
    commands: int


def record_items(record: Any) -> dict[str, Any]:
    """The fields of a record of any of the kinds allowed, in their order."""
    if isinstance(record, Mapping):
        return dict(record)
    if hasattr(record, "_asdict"):
        return dict(record._asdict())
    if attrs.has(type(record)):
        return {a.name: getattr(record, a.name) for a in attrs.fields(type(record))}
    raise KError(EINVAL, f"{type(record).__name__} is no record")


def plain(value: Any) -> Any:
    """A value as JSON can carry it. Records become objects, bytes and the rest become text."""
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return {str(plain(k)): plain(v) for k, v in value.items()}
    if hasattr(value, "_asdict") or attrs.has(type(value)):
        return {k: plain(v) for k, v in record_items(value).items()}
    if isinstance(value, Iterable):
        return [plain(v) for v in value]
    return str(value)


def cell(value: Any, blanks: bool = False) -> str:
    """A value as one column of a table: never empty, no control characters, no blanks.

    Args:
        value: anything.
        blanks: leave blanks in, for the last column of a line.
    """
    if value is None or value == "" or value == b"":
        return "-"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    text = str(value)
    if text.isprintable() and (blanks or " " not in text):
        return text
    keep = " " if blanks else ""
    return "".join(
        c if c == keep or (c.isprintable() and c != " ") else f"\\x{ord(c):02x}" for c in text
    )


def table(rows: list[dict[str, Any]], columns: tuple[str, ...] = ()) -> list[str]:
    """Rows as aligned columns under a line of names; numbers to the right.

    Only the last column may contain blanks, so a line can be split into its columns.
    """
    names = columns or tuple(rows[0] if rows else ())
    if not names:
        return []
    last = names[-1]
    texts = [[cell(row.get(name), name == last) for name in names] for row in rows]
    widths = [max([len(n), *(len(t[i]) for t in texts)]) for i, n in enumerate(names)]
    numeric = [all(isinstance(row.get(name), int) for row in rows) for name in names]
    lines = []
    for line in ([n.upper() for n in names], *texts):
        parts = [
            t.rjust(w) if num else t.ljust(w)
            for t, w, num in zip(line, widths, numeric, strict=True)
        ]
        lines.append(" ".join(parts).rstrip())
    return lines


class KernViews:
    """The views of one kernel."""

    sysctls = (
        Sysctl("vfs.kernfs.limit", "Most rows one view shows", attr="limit", kind=INT, flags=RW,
               minimum=1, maximum=1_000_000),
        Sysctl("vfs.kernfs.views", "Views that are registered", getter="count", kind=INT,
               flags=RD),
        Sysctl("vfs.kernfs.renders", "Views worked out since boot", attr="renders", kind=INT,
               flags=RD),
    )  # fmt: skip

    def __init__(self, limit: int = LIMIT) -> None:
        """Begin with ``README`` and ``stats``, which are about the views themselves."""
        self.limit = limit
        self.renders = 0
        self.rows_shown = 0
        self.commands = 0
        self._views: dict[str, KernView] = {}
        self._sources: dict[str, Callable[[], Any]] = {}
        self.register(KernView("README", "what is here", lines=self.readme))
        self.register(KernView("stats", "counters of every subsystem", lines=self.stats_lines))

    # --- registering -------------------------------------------------------------------------

    def register(self, view: KernView) -> None:
        """Show a view.

        Raises:
            KError: EEXIST, the name is taken; EINVAL, it is no file name, or there are too many.
        """
        name = view.name
        if not name or "/" in name or name.endswith(".json") or len(self._views) >= VIEWS_MAX:
            raise KError(EINVAL, f"{name!r} cannot be a view")
        if name in self._views:
            raise KError(EEXIST, f"view {name} exists")
        self._views[name] = view

    def add_rows(
        self,
        name: str,
        descr: str,
        rows: Rows,
        text: RowText | None = None,
        columns: tuple[str, ...] = (),
    ) -> None:
        """Show records. See `register`."""
        self.register(KernView(name, descr, rows=rows, row_text=text, columns=columns))

    def add_lines(self, name: str, descr: str, lines: Lines) -> None:
        """Show a text. See `register`."""
        self.register(KernView(name, descr, lines=lines))

    def add_control(self, name: str, descr: str, lines: Lines, obey: Obey) -> None:
        """Show a text and obey commands. See `register`."""
        self.register(KernView(name, descr, lines=lines, obey=obey))

    def add_statistics(self, name: str, source: Callable[[], Any]) -> None:
        """Show a ``statistics`` method in the view ``stats``. Raises KError EEXIST."""
        if name in self._sources:
            raise KError(EEXIST, f"statistics {name} exist")
        self._sources[name] = source

    def unregister(self, name: str) -> None:
        """Take a view (or a source of statistics) away. Raises KError ENOENT."""
        view = self._views.pop(name, None)
        source = self._sources.pop(name, None)
        if view is None and source is None:
            raise KError(ENOENT)

    # --- looking -----------------------------------------------------------------------------

    def find(self, name: str) -> KernView | None:
        """A view by its name."""
        return self._views.get(name)

    def __iter__(self) -> Iterator[KernView]:
        return iter(tuple(self._views.values()))

    def count(self) -> int:
        """Views that are registered."""
        return len(self._views)

    def render(self, view: KernView) -> str:
        """The text of a view at this moment."""
        self.renders += 1
        if view.rows is None:
            lines = [line.rstrip("\n") for line in view.lines()] if view.lines else []
        else:
            rows, omitted = self._collect(view.rows)
            if view.row_text is not None:
                lines = [view.row_text(row) for row in rows]
            else:
                lines = table([record_items(row) for row in rows], view.columns)
            if omitted:
                lines.append(f"# more than {len(rows)} rows; raise vfs.kernfs.limit to see them")
        return "".join(line + "\n" for line in lines)

    def render_json(self, view: KernView) -> str:
        """The same as one JSON object and a newline.

        ``{"view": ..., "rows": [...], "omitted": bool}`` for records, ``"lines"`` for a text,
        ``"stats"`` for the view of that name.
        """
        self.renders += 1
        body: dict[str, Any] = {"view": view.name}
        if view.name == "stats":
            body["stats"] = self.stats()
        elif view.rows is not None:
            rows, omitted = self._collect(view.rows)
            body["rows"] = [plain(record_items(row)) for row in rows]
            body["omitted"] = omitted
        else:
            body["lines"] = [line.rstrip("\n") for line in view.lines()] if view.lines else []
        return json.dumps(body, ensure_ascii=False) + "\n"

    def obey(self, view: KernView, data: bytes, cred: Ucred) -> bytes | None:
        """Hand a command to a view.

        Raises:
            KError: EMSGSIZE, it is too long; EINVAL, it is empty or not one line of text; or its
                own error.
        """
        if len(data) > COMMAND_MAX:
            raise KError(EMSGSIZE)
        try:
            text = data.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise KError(EINVAL, "a command is text") from None
        if view.obey is None or not text or "\n" in text or "\0" in text:
            raise KError(EINVAL, "one write is one command of one line")
        answer = view.obey(text, cred)
        self.commands += 1
        return answer.encode() if answer is not None else None

    def _collect(self, rows: Rows) -> tuple[list[Any], bool]:
        """At most ``limit`` records, and whether there were more."""
        collected = list(islice(rows(), self.limit + 1))
        omitted = len(collected) > self.limit
        del collected[self.limit :]
        self.rows_shown += len(collected)
        return collected, omitted

    # --- the views every kernel has ----------------------------------------------------------

    def readme(self) -> Iterable[str]:
        """The text of README: made from what is registered."""
        yield "/kern shows the kernel as it is at this moment. Every file is computed when it is"
        yield "opened, from the structures themselves. NAME.json is the same for programs."
        yield ""
        width = max(len(view.name) for view in self)
        for view in sorted(self, key=lambda view: view.name):
            mark = "w" if view.obey is not None else " "
            yield f"  {view.name.ljust(width)} {mark} {view.descr}"
        yield ""
        yield "Files marked w take commands: one write is one command, the error of the write is"
        yield "the error of the command, and reading such a file shows what it understands."
        yield "Tunable numbers are under /sysctl, processes under /proc, devices under /dev."

    def stats(self) -> dict[str, Any]:
        """Every source of statistics, as JSON can carry it."""
        return {name: plain(source()) for name, source in sorted(self._sources.items())}

    def stats_lines(self) -> Iterable[str]:
        """``subsystem.counter value``, one a line."""
        yield from _flatten(self.stats(), "")

    def statistics(self) -> KernViewStatistics:
        """How many views there are, and how often they were worked out."""
        return KernViewStatistics(
            views=len(self._views),
            statistics_sources=len(self._sources),
            renders=self.renders,
            rows=self.rows_shown,
            commands=self.commands,
        )


def _flatten(value: Any, name: str) -> Iterator[str]:
    """Nested values as dotted names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        for index, inner in enumerate(value):
            yield from _flatten(inner, f"{name}.{index}")
    elif isinstance(value, list):
        yield f"{name} {' '.join(map(str, value)) or '-'}"
    else:
        yield f"{name} {cell(value)}"
