"""The sorted map against a plain dictionary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dfuser.libkern.tree import SortedMap

KEYS = st.integers(0, 30)


@given(st.lists(st.tuples(st.sampled_from("irs"), KEYS, st.integers())), KEYS, KEYS)
def test_against_a_dictionary(ops: list[tuple[str, int, int]], low: int, high: int) -> None:
    # What if a neighbour were off by one, or an insert replaced what was there?
    tree: SortedMap[int, list[int]] = SortedMap()
    model: dict[int, list[int]] = {}
    for op, key, number in ops:
        if op == "i":
            value = model[key] if key in model and number % 2 else [number]
            assert tree.insert(key, value) is model.get(key)
            model.setdefault(key, value)
        elif op == "r":
            assert tree.remove(key) is model.pop(key, None)
        else:
            tree[key] = model[key] = [number]
    items = sorted(model.items())
    keys = [key for key, _ in items]
    assert list(tree.items()) == items
    assert (list(tree), list(tree.keys()), len(tree)) == (keys, keys, len(keys))
    assert list(tree.values()) == [value for _, value in items]
    assert tree.first() == (items[0] if items else None)
    assert tree.last() == (items[-1] if items else None)
    assert tree.find(low) is model.get(low)
    assert (low in tree) == (low in model)
    assert tree.nfind(low) == next((i for i in items if i[0] >= low), None)
    assert tree.next(low) == next((i for i in items if i[0] > low), None)
    assert tree.pfind(low) == next((i for i in items[::-1] if i[0] <= low), None)
    assert tree.prev(low) == next((i for i in items[::-1] if i[0] < low), None)
    assert tree.range(low, high) == [i for i in items if low <= i[0] < high]


@given(st.sets(KEYS), st.sets(KEYS), KEYS, KEYS)
def test_a_scan_may_change_the_tree(keys: set[int], extra: set[int], low: int, high: int) -> None:
    # What if removing the entry a scan stands on ended or repeated the scan?
    tree: SortedMap[int, int] = SortedMap()
    for key in keys:
        tree.insert(key, key)
    seen: list[int] = []

    def visit(key: int, value: int) -> int:
        seen.append(key)
        tree.remove(key)
        for new in extra:
            if new < key:
                tree.insert(new, new)
        return value

    wanted = sorted(key for key in keys if low <= key <= high)
    assert tree.scan(low, high, visit) == sum(wanted)
    assert seen == wanted


def test_a_scan_ends_at_a_negative_answer() -> None:
    # What if a callback that found its entry could not stop?
    tree: SortedMap[int, str] = SortedMap()
    for key in range(5):
        tree.insert(key, "x")
    assert tree.scan(0, 4, lambda key, _: -7 if key == 2 else 1) == -7
    tree.clear()
    assert tree.scan(0, 4, lambda *_: 1) == 0
