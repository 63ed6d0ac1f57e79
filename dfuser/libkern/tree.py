"""A sorted map, for what DragonFly keeps in red-black trees.

Kernel structures are full of ordered sets: map entries by address, locks by offset,
directory entries by cookie. DragonFly declares a red-black tree for each; here one typed
class does the job, with RB's verbs, over sortedcontainers' SortedDict. The third-party
package has no types of its own, so this is the only module that imports it.

Finding, inserting and removing cost O(log n) with a small constant; `scan` finds the
first key of a range the same way and then walks, and allows the callback to change the
tree.

Counterpart: sys/tree.h (RB_*), without the nodes.
Differs from DragonFly: keys are compared by Python's order instead of a function; a
    value is found by its key, so it need not carry links.
Token/lock order: takes none.
Invariants: keys are unique and their order does not change while they are in the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from sortedcontainers import SortedDict

K = TypeVar("K")
V = TypeVar("V")


class SortedMap(Generic[K, V]):
    """Keys in order, each with one value.

    Counterpart: RB_HEAD (sys/tree.h).
    """

    __slots__ = ("_map",)

    def __init__(self) -> None:
        """Make an empty map."""
        # Any: the package is untyped; every value that leaves here is K, V or int.
        self._map: Any = SortedDict()

    def insert(self, key: K, value: V) -> V | None:
        """Add a value, unless the key is there: then nothing changes.

        Counterpart: RB_INSERT.

        Returns:
            None when it was added, else the value that is there.
        """
        if key in self._map:
            present: V = self._map[key]
            return present
        self._map[key] = value
        return None

    def remove(self, key: K) -> V | None:
        """Take a key out and return its value; None if it was not there.

        Counterpart: RB_REMOVE.
        """
        value: V | None = self._map.pop(key, None)
        return value

    def find(self, key: K) -> V | None:
        """The value of a key, or None.

        Counterpart: RB_FIND.
        """
        value: V | None = self._map.get(key)
        return value

    def nfind(self, key: K) -> tuple[K, V] | None:
        """The entry of the smallest key that is at least `key`.

        Counterpart: RB_NFIND.
        """
        return self._at(self._map.bisect_left(key))

    def pfind(self, key: K) -> tuple[K, V] | None:
        """The entry of the largest key that is at most `key`."""
        index = self._map.bisect_right(key)
        return self._at(index - 1) if index else None

    def next(self, key: K) -> tuple[K, V] | None:
        """The entry after a key, whether that key is there or not.

        Counterpart: RB_NEXT.
        """
        return self._at(self._map.bisect_right(key))

    def prev(self, key: K) -> tuple[K, V] | None:
        """The entry before a key, whether that key is there or not.

        Counterpart: RB_PREV.
        """
        index = self._map.bisect_left(key)
        return self._at(index - 1) if index else None

    def first(self) -> tuple[K, V] | None:
        """The entry of the smallest key.

        Counterpart: RB_MIN.
        """
        return self._at(0)

    def last(self) -> tuple[K, V] | None:
        """The entry of the largest key.

        Counterpart: RB_MAX.
        """
        return self._at(len(self._map) - 1) if self._map else None

    def scan(self, low: K, high: K, callback: Callable[[K, V], int]) -> int:
        """Call back for each entry of a range in order.

        The callback may insert and remove; an entry is visited at most once, and if it
        is there throughout, exactly once.

        Counterpart: RB_SCAN.

        Args:
            low: first key of the range.
            high: last key of the range, included.
            callback: gives a count that is added up; a negative one ends the scan.

        Returns:
            The sum of the counts, or the negative answer that ended the scan.
        """
        total = 0
        entry = self.nfind(low)
        while entry is not None and not high < entry[0]:  # type: ignore[operator]
            count = callback(entry[0], entry[1])
            if count < 0:
                return count
            total += count
            entry = self.next(entry[0])
        return total

    def range(self, low: K, high: K) -> list[tuple[K, V]]:
        """The entries from low up to, not including, high."""
        keys = self._map.irange(low, high, inclusive=(True, False))
        return [(key, self._map[key]) for key in keys]

    def clear(self) -> None:
        """Take everything out."""
        self._map.clear()

    def keys(self) -> Iterator[K]:
        """The keys in order; the map must not change meanwhile."""
        return iter(self._map)

    def values(self) -> Iterator[V]:
        """The values in the order of their keys; the map must not change meanwhile."""
        return iter(self._map.values())

    def items(self) -> Iterator[tuple[K, V]]:
        """The entries in order; the map must not change meanwhile."""
        return iter(self._map.items())

    def __setitem__(self, key: K, value: V) -> None:
        self._map[key] = value

    def __contains__(self, key: object) -> bool:
        return key in self._map

    def __len__(self) -> int:
        return len(self._map)

    def __iter__(self) -> Iterator[K]:
        return iter(self._map)

    def _at(self, index: int) -> tuple[K, V] | None:
        """The entry at a place in the order; None behind the end."""
        if index >= len(self._map):
            return None
        entry: tuple[K, V] = self._map.peekitem(index)
        return entry
