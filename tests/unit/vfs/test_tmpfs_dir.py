from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dfuser.vfs.tmpfs.dir import CHUNK, COOKIE_DOTDOT, TmpfsDir, TmpfsDirent
from dfuser.vfs.tmpfs.node import TmpfsReg

NODE = TmpfsReg(3, 0o644, 0, 0, 0)


def make() -> TmpfsDir:
    return TmpfsDir(2, 0o755, 0, 0, 0, None)


def list_all(directory: TmpfsDir, limit: int) -> list[TmpfsDirent]:
    cookie, found = COOKIE_DOTDOT, []
    while part := directory.after(cookie, limit):
        found += part
        cookie = part[-1].cookie
    return found


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=200),
    st.integers(1, 9),
)
def test_against_model(steps: list[tuple[int, int]], limit: int) -> None:
    # What if names are added, removed and renamed at random: do names, order and listing hold?
    directory, model, cookie = make(), {}, 3
    for what, which in steps:
        name = b"%d" % which
        if what == 0 and name not in model:
            directory.attach(name, NODE, cookie)
            model[name] = cookie
            cookie += 1
        elif what == 1 and name in model:
            directory.detach(directory.names[name])
            del model[name]
        elif what == 2 and name in model:
            new = b"r%d" % which
            if new not in model:
                directory.rename(directory.names[name], new)
                model[new] = model.pop(name)
        elif what == 3:
            wanted = sorted((c, n) for n, c in model.items() if c > which)[:limit]
            got = directory.after(which, limit)
            assert [(e.cookie, e.name) for e in got] == wanted
        directory.check()
    assert {e.name: e.cookie for e in list_all(directory, limit)} == model


def test_chunks_fill_and_go() -> None:
    # What if a directory grows over many chunks and shrinks again from either end or the middle?
    rng = random.Random(5)
    for order in ("front", "back", "random"):
        directory = make()
        for i in range(CHUNK * 4 + 7):
            directory.attach(b"%d" % i, NODE, i + 3)
        directory.check()
        names = list(directory.names)
        if order == "back":
            names.reverse()
        elif order == "random":
            rng.shuffle(names)
        for i, name in enumerate(names):
            directory.detach(directory.names[name])
            if i % 97 == 0:
                directory.check()
        assert directory.after(0, 10) == []
        assert directory.size == 0
        directory.attach(b"again", NODE, 10**6)
        assert [e.name for e in directory.after(0, 10)] == [b"again"]


def test_listed_while_changed() -> None:
    # What if 100,000 entries are listed while others come and go: is each that stays seen once?
    rng = random.Random(11)
    directory, cookie = make(), 3
    stay = {b"s%d" % i for i in range(50_000)}
    go = [b"g%d" % i for i in range(50_000)]
    mixed = [*stay, *go]
    rng.shuffle(mixed)
    for name in mixed:
        directory.attach(name, NODE, cookie)
        cookie += 1
    rng.shuffle(go)
    seen: list[bytes] = []
    at = COOKIE_DOTDOT
    while part := directory.after(at, 100):
        seen += [entry.name for entry in part]
        at = part[-1].cookie
        for _ in range(80):
            if go:
                directory.detach(directory.names[go.pop()])
        if len(seen) < 60_000:
            directory.attach(b"new%d" % cookie, NODE, cookie)
            cookie += 1
    assert len(seen) == len(set(seen))
    assert stay <= set(seen)
    directory.check()


def test_cost_of_rm_r() -> None:
    # What if a large directory is emptied the way rm -r does it, from the start again each time?
    directory = make()
    for i in range(30_000):
        directory.attach(b"%d" % i, NODE, i + 3)
    looked = 0
    while part := directory.after(COOKIE_DOTDOT, 64):
        looked += len(part)
        for entry in part:
            directory.detach(entry)
    assert looked == 30_000
    assert directory.chunks == []
    assert directory.heads == []


def test_is_below() -> None:
    # What if a directory is asked whether it lies inside another?
    top = make()
    middle = TmpfsDir(3, 0, 0, 0, 0, top)
    bottom = TmpfsDir(4, 0, 0, 0, 0, middle)
    assert bottom.is_below(top)
    assert bottom.is_below(bottom)
    assert not top.is_below(bottom)
