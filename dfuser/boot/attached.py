"""Tables of parts that come after boot: what is attached to the host, as ``/kern`` shows it.

``/kern`` is filled when the kernel boots; the bridge to the host is made later and goes earlier. A
part that wants to be seen there gives itself to the kernel among its owners (`Kernel.add_owner`)
and derives from `Attached`; the table asks for it by name at every reading, and is empty while
there is none.

Counterpart: none.
Token/lock order: takes none.
Invariants: no table is kept; each reading asks the living part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .kernel import Kernel

#: The tables there may be: name, what it shows, columns.
TABLES: Final = (
    (
        "fuse", "connections to the host",
        ("connection", "type", "number", "transport", "protocol", "served", "parked", "nodes",
         "lookups", "opens", "refused", "garbled", "path"),
    ),
    ("fuse_ops", "requests by connection and operation", ("connection", "op", "count")),
    ("fuse_flags", "what was negotiated, and why", ("connection", "flag", "on", "reason")),
)  # fmt: skip


class Attached(ABC):
    """A part with tables."""

    @abstractmethod
    def table(self, name: str) -> Iterable[dict[str, Any]]:
        """The rows of a table of `TABLES`; none for a name it does not know. Must not wait."""


def attached_view(kernel: Kernel, name: str) -> Callable[[], Iterable[dict[str, Any]]]:
    """What ``/kern`` asks for a table's rows."""

    def rows() -> Iterable[dict[str, Any]]:
        for owner in kernel.owners():
            if isinstance(owner, Attached):
                yield from owner.table(name)

    return rows
