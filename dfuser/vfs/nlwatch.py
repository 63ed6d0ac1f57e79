"""Watching a walk: what each step of `nlookup` found and what it cost.

An observer hangs on `NlookupData.observer` and is called once for each component, also for the one
at which the walk fails. It sees the namecache as it was before the step and as it is after it. It
has no influence: what is watched is the walk itself, and a walk that nobody watches pays one test
a component.

Counterpart: none; DragonFly logs single lookups with KTR.
Token/lock order: none.
Invariants: an observer is called in the order of the walk; after a `Block` the walk, and with it
    the sequence of calls, begins again from the top. What a step names is borrowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.libkern.errno import EINVAL, KError

from .namecache import NCF, NamecacheEntry, NcHandle

if TYPE_CHECKING:
    from collections.abc import Callable

    from .nlookup import NlookupData
    from .vnode import Vnode

_DOTS: Final = (b".", b"..")


class NlookupStep(NamedTuple):
    """One component of a walk."""

    name: bytes
    before: str
    """What the namecache knew: absent, unresolved, positive, negative; "-" for ``.`` and ``..``."""
    after: str
    """What it knows now."""
    place: NcHandle
    """Where the walk stands: at the component, or in its directory after a link or an error."""
    crossed: bool
    """Whether the component led to another mount."""
    vp: Vnode | None
    """What the component means; for a link the link."""
    target: bytes
    """Where the link that was followed leads."""
    error: int
    """0, or the errno that ends the walk."""
    ns: int
    """Nanoseconds spent."""


def entry_state(ncp: NamecacheEntry | None) -> str:
    """What the namecache knows by an entry, in a word."""
    if ncp is None:
        return "absent"
    if ncp.flags & NCF.UNRESOLVED:
        return "unresolved"
    return "positive" if ncp.vp is not None else "negative"


def observed(
    nd: NlookupData,
    step: Callable[[NlookupData, bytes], bytes],
    path: bytes,
    observer: Callable[[NlookupStep], None],
) -> bytes:
    """Do one ``step`` of a walk and tell ``observer`` of it; gives what the step gives.

    A slash at the front of the path is no component and is not told.

    Raises:
        KError: what the step raises, after the observer has been told.
        Block: what the step raises; the observer is not told.
    """
    name, slash, rest = path.partition(b"/")
    if not name:
        return step(nd, path)
    before = _Before(nd, name)
    try:
        left = step(nd, path)
    except KError as exc:
        observer(before.step(nd, b"", exc.errno or EINVAL))
        raise
    target = b""
    if nd.loopcnt != before.links:
        target = left.removesuffix(slash + rest)
    observer(before.step(nd, target, 0))
    return left


class _Before:
    """A walk in front of a component."""

    __slots__ = ("here", "links", "name", "start", "state")

    def __init__(self, nd: NlookupData, name: bytes) -> None:
        self.name = name
        self.here = nd.found
        self.links = nd.loopcnt
        self.state = "-" if name in _DOTS else entry_state(self._entry())
        self.start = nd.vfs.clock.monotonic_ns()

    def _entry(self) -> NamecacheEntry | None:
        return (self.here.ncp.children or {}).get(self.name)

    def step(self, nd: NlookupData, target: bytes, error: int) -> NlookupStep:
        """The step that was done meanwhile."""
        spent = nd.vfs.clock.monotonic_ns() - self.start
        dots = self.name in _DOTS
        entry = None if dots else self._entry()
        place = self.here if error else nd.found
        arrived = not error and not target
        if arrived:
            vp = place.ncp.vp
        else:
            vp = entry.vp if entry is not None else None
        return NlookupStep(
            name=self.name,
            before=self.state,
            after="-" if dots else entry_state(entry),
            place=place,
            crossed=place.mount is not self.here.mount,
            vp=vp,
            target=target,
            error=error,
            ns=spent,
        )
