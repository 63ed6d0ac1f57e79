"""Twins: the same random calls on the mount and on the host's tmpfs, answer by answer.

Each walk is drawn from the test's seed (replayed with DFUSER_SEED) and goes on a file of the mount
and a file of the host side by side. Every answer is compared: the result, or the errno. After each
burst the bytes, the sizes, the pieces of data and the locks are compared as well. What tmpfs cannot
do (ZERO_RANGE) is done there by hand. On pyfuse3, which carries neither fallocate nor SEEK_HOLE,
the walks leave those steps out.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.posix import linux
from tests.posix.cases.copying import copy
from tests.posix.cases.seeking import pieces
from tests.posix.locking import READ, UNLOCK, WRITE, ask, locked, shape, shape_of_bytes
from tests.posix.peer import Peer

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]

STEPS, BURST = 2000, 50
SPAN = 600_000  # bytes that a walk goes over: many pages, and several runs of 64 KiB
PUNCH = linux.FALLOC_PUNCH_HOLE | linux.FALLOC_KEEP_SIZE
NEW = os.O_RDWR | os.O_CREAT
TURNS = pytest.mark.parametrize("turn", range(3))


class Pair(NamedTuple):
    """A descriptor on the mount and its twin on the host."""

    mount: int
    host: int

    def call(self, what: Callable[..., Any], *args: Any) -> Any:
        """Make a call on both; the common answer."""
        ours, theirs = _answer(what, self.mount, *args), _answer(what, self.host, *args)
        if ours != theirs:
            asked = f"{what.__name__}{args!r:.80}"
            pytest.fail(f"{asked}: {ours!r:.300} on the mount, {theirs!r:.300} on the host")
        return ours

    def agree(self) -> None:
        """Both have the same size and the same bytes."""
        _, size = self.call(_size)
        ours, theirs = (os.pread(descriptor, size + 1, 0) for descriptor in self)
        if ours != theirs:
            first = next(n for n in range(size) if ours[n : n + 1] != theirs[n : n + 1])
            pytest.fail(f"the bytes differ from {first} on, of {size}")


def _answer(what: Callable[..., Any], *args: Any) -> tuple[str, Any]:
    try:
        return "ok", what(*args)
    except OSError as error:
        return "errno", error.errno


def _size(descriptor: int) -> int:
    return os.fstat(descriptor).st_size


@contextmanager
def _pair(place: Path, twin: Path, name: str) -> Iterator[Pair]:
    with ExitStack() as stack:
        pair = Pair(*(os.open(where / name, NEW, 0o644) for where in (place, twin)))
        for descriptor in pair:
            stack.callback(os.close, descriptor)
        yield pair


def _range(rng: random.Random) -> tuple[int, int]:
    """A start and a length, often on the borders of pages and runs, sometimes odd."""
    unit = rng.choice((1, 1, 4096, 4096, 65536))
    start = rng.randrange(SPAN // unit) * unit
    length = max(1, min(rng.randrange(1, 8) * unit, 200_000))
    return start, length if rng.random() < 0.8 else rng.randrange(1, 100_000)


def _write(pair: Pair, rng: random.Random) -> None:
    start, length = _range(rng)
    pair.call(os.pwrite, rng.randbytes(length), start)


def _read(pair: Pair, rng: random.Random) -> None:
    start, length = _range(rng)
    pair.call(os.pread, length, start)


def _truncate(pair: Pair, rng: random.Random) -> None:
    pair.call(os.ftruncate, rng.choice((0, *_range(rng), *_range(rng), SPAN)))


def _punch(pair: Pair, rng: random.Random) -> None:
    pair.call(linux.fallocate, PUNCH, *_range(rng))


def _allocate(pair: Pair, rng: random.Random) -> None:
    pair.call(linux.fallocate, rng.choice((0, linux.FALLOC_KEEP_SIZE)), *_range(rng))


def _zero(pair: Pair, rng: random.Random) -> None:
    start, length = _range(rng)
    keep = rng.random() < 0.5
    mode = linux.FALLOC_ZERO | (linux.FALLOC_KEEP_SIZE if keep else 0)
    linux.fallocate(pair.mount, mode, start, length)
    _zero_by_hand(pair.host, start, length, keep)


def _zero_by_hand(descriptor: int, start: int, length: int, keep: bool) -> None:
    linux.fallocate(descriptor, PUNCH, start, length)
    if not keep and start + length > _size(descriptor):
        os.ftruncate(descriptor, start + length)


def _refused(pair: Pair, rng: random.Random) -> None:
    start, length = rng.choice(((-1, 5), (5, 0), (5, -5), (2**63 - 5, 10)))
    pair.call(linux.fallocate, rng.choice((0, PUNCH, linux.FALLOC_PUNCH_HOLE)), start, length)


def _seek(pair: Pair, rng: random.Random) -> None:
    at = rng.choice((rng.randrange(SPAN), rng.randrange(SPAN // 4096) * 4096))
    pair.call(os.lseek, at, rng.choice((os.SEEK_DATA, os.SEEK_HOLE)))


#: Steps, and how often each is taken.
Steps = tuple[tuple[Callable[[Pair, random.Random], None], int], ...]
BASIC: Steps = ((_write, 6), (_read, 3), (_truncate, 2))
HOLES: Steps = (*BASIC, (_punch, 3), (_refused, 1))
ALLOCATIONS: Steps = (*HOLES, (_allocate, 3), (_zero, 3))


def _walk(pair: Pair, rng: random.Random, steps: Steps, judge: Callable[[], None]) -> None:
    kinds, weights = zip(*steps, strict=True)
    for n in range(1, STEPS + 1):
        rng.choices(kinds, weights)[0](pair, rng)
        if n % BURST == 0:
            judge()


@TURNS
def test_holes(place: Path, twin: Path, rng: random.Random, turn: int, transport: str) -> None:
    """What if writes, cuts and punches in some order left other bytes or other holes?"""
    with _pair(place, twin, "f") as pair:

        def judge() -> None:
            pair.agree()
            if transport == "device":
                pair.call(pieces)
                pair.call(_blocks)

        _walk(pair, rng, (*HOLES, (_seek, 4)) if transport == "device" else BASIC, judge)


def _blocks(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks


@TURNS
def test_allocations(
    place: Path, twin: Path, rng: random.Random, turn: int, transport: str
) -> None:
    """What if room that was made, kept, zeroed or punched gave other bytes or another size?"""
    if transport != "device":
        pytest.skip("pyfuse3 has no fallocate handler")
    with _pair(place, twin, "f") as pair:
        _walk(pair, rng, ALLOCATIONS, pair.agree)
        pair.call(os.ftruncate, 0)
        pair.call(_blocks)


# --- copy_file_range ---------------------------------------------------------------------------


@TURNS
def test_copies(place: Path, twin: Path, rng: random.Random, turn: int, transport: str) -> None:
    """What if ranges copied within and between three files, in some order, came out otherwise?

    Whether a hole is copied as a hole is open, so the pieces of data are not compared.
    """
    with ExitStack() as stack:
        pairs = [stack.enter_context(_pair(place, twin, name)) for name in "abc"]
        steps = HOLES if transport == "device" else BASIC
        kinds, weights = zip(*steps, strict=True)
        for n in range(1, STEPS + 1):
            if rng.random() < 0.4:
                rng.choices(kinds, weights)[0](rng.choice(pairs), rng)
            else:
                _copy(rng.choice(pairs), rng.choice(pairs), rng)
            if n % BURST == 0:
                for pair in pairs:
                    pair.agree()


def _copy(source: Pair, target: Pair, rng: random.Random) -> None:
    (start, length), (to, _) = _range(rng), _range(rng)
    answers = [_answer(copy, a, b, length, start, to) for a, b in zip(source, target, strict=True)]
    assert answers[0] == answers[1], (start, length, to)


# --- record locks ------------------------------------------------------------------------------

BYTES = 64


class Locker(NamedTuple):
    """A process with one file open on the mount and its twin on the host."""

    peer: Peer
    files: list[int]
    paths: list[Path]

    def both(self, what: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
        """The answers of the mount and of the host."""
        ours, theirs = (_answer(self.peer, what, file, *args) for file in self.files)
        return ours, theirs

    def reopen(self) -> None:
        """Close both files, which drops the locks, and open them anew."""
        for n, path in enumerate(self.paths):
            self.peer(os.close, self.files[n])
            self.files[n] = self.peer(os.open, path, os.O_RDWR)


@contextmanager
def _lockers(place: Path, twin: Path, count: int) -> Iterator[list[Locker]]:
    paths = [place / "f", twin / "f"]
    for path in paths:
        path.write_bytes(bytes(BYTES))
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer()) for _ in range(count)]
        yield [
            Locker(peer, [peer(os.open, path, os.O_RDWR) for path in paths], paths)
            for peer in peers
        ]


@TURNS
def test_locks(place: Path, twin: Path, rng: random.Random, turn: int) -> None:
    """What if three processes that lock and unlock at random were answered otherwise?

    Record locks and OFD locks in one file: each process is two owners.
    """
    with _lockers(place, twin, 3) as lockers:
        for n in range(1, STEPS + 1):
            _lock_step(rng.choice(lockers), rng, 0.2)
            if n % (BURST * 2) == 0:
                for locker in lockers:
                    for at in range(BYTES):
                        _ask(locker, WRITE, at, 1)
        for locker in lockers[1:]:
            locker.reopen()
        ours, theirs = lockers[1].both(shape_of_bytes, BYTES)
        assert ours == theirs, "the last one's locks"
        lockers[0].reopen()
        assert lockers[1].both(shape) == (("ok", ""), ("ok", ""))


def _lock_step(locker: Locker, rng: random.Random, descriptions: float) -> None:
    """One call: mostly F_SETLK, of the open file description with the probability given."""
    start = rng.randrange(BYTES)
    length = rng.choice((0, 1, 1, rng.randrange(1, BYTES), rng.randrange(1, 8)))
    kind = rng.choice((READ, READ, WRITE, WRITE, UNLOCK, UNLOCK))
    ofd, draw = rng.random() < descriptions, rng.random()
    if draw < 0.02:
        locker.reopen()
    elif draw < 0.3:
        _ask(locker, rng.choice((READ, WRITE)), start, length)
    else:
        ours, theirs = locker.both(_locked, kind, start, length, ofd)
        assert ours == theirs, (kind, start, length, ofd)


def _locked(file: int, kind: int, start: int, length: int, ofd: bool) -> bool:
    return locked(file, kind, start, length, ofd=ofd)


def _ask(locker: Locker, kind: int, start: int, length: int) -> None:
    """F_GETLK: the same lock; where several are in the way, which one is told is open.

    FUSE does not tell an OFD lock from a process's, so it has a process there.
    """
    (ours_is, ours), (theirs_is, theirs) = locker.both(ask, kind, start, length)
    assert (ours_is, ours is None) == (theirs_is, theirs is None), (ours, theirs)
    if ours is None or ours == theirs:
        return
    if theirs.owner == -1 and ours[:4] == theirs[:4]:
        return
    for told in (ours, theirs):
        assert kind == WRITE or told.kind == WRITE
        assert not length or told.start < start + length
        assert not told.length or told.start + told.length > start
    if length == 1:
        assert ours.kind == theirs.kind == READ, f"two owners of one byte: {ours}, {theirs}"


@TURNS
def test_two_lockers(place: Path, twin: Path, rng: random.Random, turn: int) -> None:
    """What if one process's ranges, split and joined at random, had another shape for a second?"""
    with _lockers(place, twin, 2) as (owner, watcher):
        for n in range(1, STEPS // 2 + 1):
            _lock_step(owner, rng, 0.0)
            if n % 10 == 0:
                ours, theirs = watcher.both(shape)
                assert ours == theirs, n
