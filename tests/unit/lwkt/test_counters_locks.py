"""Every counter of the locks, counted once more by somebody outside, on both thread drivers.

Whether a request had to wait is told by the requests themselves: their thread has been elected
again meanwhile. Who holds what is told by the holders, who sleep with the lock, so that the state
of a machine that is idle must be what they say.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from dfuser.libkern.errno import EBUSY, EDEADLK, EWOULDBLOCK
from dfuser.lwkt import spinlock as spinlock_mod
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.lockmgr import (
    LK_DOWNGRADE,
    LK_EXCLUPGRADE,
    LK_EXCLUSIVE,
    LK_NOWAIT,
    LK_SHARED,
    LK_TIMELOCK,
    LK_UPGRADE,
    Lock,
)
from dfuser.lwkt.mtx import Mtx
from dfuser.lwkt.spinlock import Spinlock
from dfuser.lwkt.synch import tsleep
from dfuser.lwkt.thread import cpu_pause, lwkt_yield

from .observe import SEEDS, noted, sleepers_on, turns
from .vtime import TimedDriver, clock_of


@SEEDS
async def test_lockmgr(timed: TimedDriver, rng: random.Random) -> None:
    """What if requests of every kind wait, give up, fail and upgrade: the state and collisions?"""
    lwkt = timed.lwkt
    lwkt.ktr.master("lockmgr").mask = -1
    lock = Lock("lkobs", timo=2)
    holds: dict[str, int] = {}
    waiting: set[str] = set()
    did: Counter[str] = Counter()

    async def ask(who: str, flags: int) -> int:
        before = turns()
        waiting.add(who)
        error = await lock.lockmgr(flags)
        waiting.remove(who)
        did["waited"] += turns() != before
        did["timeouts"] += error == EWOULDBLOCK
        did["refused"] += error == EBUSY
        return error

    async def change(who: str) -> bool:
        """Upgrade or downgrade; whether the lock is still held."""
        if holds[who] == LK_EXCLUSIVE:
            assert await lock.lockmgr(LK_DOWNGRADE) == 0
            holds[who] = LK_SHARED
            return True
        del holds[who]
        did["upgrades"] += 1
        if await ask(who, rng.choice((LK_UPGRADE, LK_EXCLUPGRADE))):
            return False
        holds[who] = LK_EXCLUSIVE
        return True

    async def user(who: str) -> None:
        for _ in range(12):
            kind = rng.choice((LK_SHARED, LK_SHARED, LK_EXCLUSIVE))
            if not await ask(who, kind | rng.choice((0, 0, LK_TIMELOCK, LK_NOWAIT))):
                holds[who] = kind
                if rng.random() < 0.5 or await change(who):
                    await tsleep("hold", 0, "hold", rng.randrange(1, 4))
                    del holds[who]
                    lock.unlock()
            await tsleep("rest", 0, "rest", 1)

    users = [timed.create(user, f"u{n}", name=f"u{n}", cpu=n % 4) for n in range(8)]
    while any(td.state != "Z" for td in users):
        await timed.ticks(1)
        stats = lock.statistics()
        modes = Counter(holds.values())
        assert (stats.xcount, stats.scount) == (modes[LK_EXCLUSIVE], modes[LK_SHARED])
        owners = [who for who, kind in holds.items() if kind == LK_EXCLUSIVE]
        assert [stats.holder] == (owners or [""])
        assert stats.waiters == len(waiting) == sleepers_on(lwkt, "lkobs")
        assert stats.collisions == did["waited"] + len(waiting)
    assert noted(lwkt, "lockmgr") == {"wait": did["waited"], "got": did["waited"]}
    for what in ("waited", "timeouts", "refused", "upgrades"):
        assert did[what] > 0, what


@SEEDS
async def test_mtx(timed: TimedDriver, rng: random.Random) -> None:
    """What if requests of both kinds recurse, wait, give up and change: state and collisions?"""
    lwkt = timed.lwkt
    lwkt.ktr.master("mtx").mask = -1
    mtx = Mtx("mtxobs")
    holds: dict[str, tuple[str, int]] = {}
    waiting: dict[str, str] = {}
    did: Counter[str] = Counter()

    async def ask(who: str, mode: str, timo: int) -> int:
        before = turns()
        waiting[who] = mode
        error = await (mtx.lock_ex if mode == "X" else mtx.lock_sh)(0, timo)
        del waiting[who]
        did["waited"] += turns() != before
        did["timeouts"] += error == EWOULDBLOCK
        return error

    def change(who: str) -> None:
        mode, count = holds[who]
        if mode == "X":
            mtx.downgrade()
            holds[who] = ("S", count)
            did["downgrades"] += 1
        elif mtx.upgrade_try() == 0:
            holds[who] = ("X", count)
            did["upgrades"] += 1
        else:
            assert mtx.upgrade_try() == EDEADLK

    async def user(who: str) -> None:
        for _ in range(20):
            mode = rng.choice("SSX")
            if not await ask(who, mode, rng.choice((0, 0, 2))):
                depth = rng.randrange(1, 4) if mode == "X" else 1
                for _ in range(depth - 1):
                    assert await mtx.lock_ex() == 0
                holds[who] = (mode, depth)
                for _ in range(rng.randrange(3)):
                    change(who)
                await tsleep("hold", 0, "hold", rng.randrange(1, 4))
                for _ in range(holds.pop(who)[1]):
                    mtx.unlock()
            await tsleep("rest", 0, "rest", rng.randrange(1, 9))

    users = [timed.create(user, f"u{n}", name=f"u{n}", cpu=n % 4) for n in range(8)]
    while any(td.state != "Z" for td in users):
        await timed.ticks(1)
        stats = mtx.statistics()
        owners = [who for who, (mode, _) in holds.items() if mode == "X"]
        assert stats.count == sum(count for _, count in holds.values())
        assert stats.exclusive == bool(owners)
        assert [stats.owner] == (owners or [""])
        modes = Counter(waiting.values())
        assert (stats.exlinks, stats.shlinks) == (modes["X"], modes["S"])
        assert sleepers_on(lwkt, "mtxobs") == len(waiting)
        assert stats.collisions == did["waited"] + len(waiting)
    assert noted(lwkt, "mtx") == {"wait": did["waited"]}
    for what in ("waited", "timeouts", "downgrades", "upgrades"):
        assert did[what] > 0, what


@SEEDS
async def test_spinlock(
    timed: TimedDriver, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if both kinds of takers spin, some for seconds: each turn, warning and holder?

    Nobody sleeps with a spinlock, so each thread looks after each of its turns.
    """
    lwkt = timed.lwkt
    lwkt.ktr.master("spin").mask = -1
    spin = Spinlock("spinobs")
    holds: dict[str, str] = {}
    asks: dict[str, str] = {}
    spinning: set[str] = set()
    did: Counter[str] = Counter()

    async def turn() -> None:
        who = _thread.curthread.name
        did["contested"] += who not in spinning
        did["spins"] += 1
        spinning.add(who)
        await cpu_pause()

    monkeypatch.setattr(spinlock_mod, "cpu_pause", turn)

    def check() -> None:
        stats = spin.statistics()
        assert stats.holders == len(holds)
        assert stats.shared == ("S" in holds.values())
        assert stats.excl_wait == sum(asks[who] == "X" for who in spinning)
        for counter in ("contested", "spins"):
            assert getattr(stats, counter) == did[counter], counter
        assert stats.indefinite == lwkt.msgbuf.text().count("indefinite wait")

    async def user(who: str) -> None:
        for _ in range(20):
            asks[who] = rng.choice("SX")
            await (spin.spin_lock_shared_wait if asks[who] == "S" else spin.spin_lock_wait)()
            spinning.discard(who)
            holds[who] = asks.pop(who)
            for _ in range(rng.randrange(4)):
                check()
                await cpu_pause()
                if rng.random() < 0.1:
                    clock_of(lwkt).advance(1_000_000_000)
            (spin.spin_unlock_shared if holds.pop(who) == "S" else spin.spin_unlock)()
            check()
            await lwkt_yield()

    users = [timed.create(user, f"u{n}", name=f"u{n}", cpu=n % 4) for n in range(8)]
    await timed.idle()
    assert all(td.state == "Z" for td in users)
    check()
    assert noted(lwkt, "spin") == {"beg": did["contested"], "end": did["contested"]}
    assert min(did["contested"], spin.statistics().indefinite) > 0
