"""lockmgr: who may hold it, who gets it next, and every way a request can fail."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dfuser.libkern.errno import (
    EBUSY,
    EINTR,
    ENOLCK,
    EWOULDBLOCK,
    Panic,
)
from dfuser.lwkt import thread as thread_mod
from dfuser.lwkt.block import run_blocking
from dfuser.lwkt.lockmgr import (
    LK_CANCEL_BEG,
    LK_CANCEL_END,
    LK_CANCELABLE,
    LK_CANRECURSE,
    LK_DOWNGRADE,
    LK_EXCLOTHER,
    LK_EXCLUPGRADE,
    LK_EXCLUSIVE,
    LK_NOWAIT,
    LK_PCATCH,
    LK_RELEASE,
    LK_SHARED,
    LK_SLEEPFAIL,
    LK_TIMELOCK,
    LK_UPGRADE,
    LKC_CANCEL,
    LKC_EXREQ,
    LKC_SHARED,
    LKC_SSHIFT,
    LKC_UPREQ,
    TDF_DEADLKTREAT,
    Lock,
)
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.sleepq import synch_of
from dfuser.lwkt.synch import abort_sleep, tsleep, wakeup
from dfuser.lwkt.thread import Thread, cpu_pause, lwkt_yield

from .conftest import Driver, make_lwkt
from .test_synch import Choices
from .vtime import run_ticks


class Actor:
    """A thread that does lock requests one at a time, when told to, and notes their results."""

    def __init__(self, lwkt: Lwkt, lock: Lock, cpu: int = 0, lwp: Any = None) -> None:
        self.lwkt = lwkt
        self.lock = lock
        self.results: list[int] = []
        self.todo: list[int] = []
        self.quit = False
        self.td: Thread = lwkt.create(self._main, cpu=cpu)
        self.td.lwp = lwp
        lwkt.run_until_idle()

    async def _main(self) -> None:
        while not self.quit:
            if self.todo:
                self.results.append(await self.lock.lockmgr(self.todo.pop(0)))
            else:
                await tsleep(self, 0, "idle")

    def do(self, flags: int) -> int | None:
        """Ask for something and let the machine run; the result, None when it still waits."""
        before = len(self.results)
        self.todo.append(flags)
        self.td.cpu.interrupt(wakeup, self)
        self.lwkt.run_until_idle()
        return self.results[-1] if len(self.results) > before else None

    def take_result(self) -> int | None:
        """The result of a request that had to wait."""
        return self.results[-1] if not self.todo and self.td.wmesg == "idle" else None


def actors(lwkt: Lwkt, lock: Lock, n: int) -> list[Actor]:
    return [Actor(lwkt, lock, cpu % 4) for cpu in range(n)]


# --- the rules -------------------------------------------------------------------------------


def test_shared_and_exclusive_exclude(lwkt: Lwkt) -> None:
    """What if two share it and a third wants it alone, and others come after him?"""
    lock = Lock("test")
    a, b, c, d = actors(lwkt, lock, 4)
    assert a.do(LK_SHARED) == 0
    assert b.do(LK_SHARED) == 0
    assert c.do(LK_EXCLUSIVE) is None
    assert c.td.wmesg == "test"
    assert lock.lk_count & LKC_EXREQ
    assert d.do(LK_SHARED) is None, "a new shared request goes behind the exclusive one"
    assert lock.statistics().waiters == 2
    assert a.do(LK_RELEASE) == 0
    assert c.take_result() is None
    assert b.do(LK_RELEASE) == 0
    assert c.take_result() == 0
    assert lock.lockholder is c.td
    assert lock.lockstatus(c.td) == LK_EXCLUSIVE
    assert lock.lockstatus(a.td) == LK_EXCLOTHER
    assert c.do(LK_RELEASE) == 0
    assert d.take_result() == 0
    assert lock.lockstatus() == LK_SHARED
    assert d.do(LK_RELEASE) == 0
    assert not lock.lockinuse()
    assert lock.statistics().collisions == 2


def test_deadlktreat_may_share_past_an_exclusive_request(lwkt: Lwkt) -> None:
    """What if a thread that could deadlock otherwise wants another shared count?"""
    lock = Lock("test")
    a, b = actors(lwkt, lock, 2)
    assert a.do(LK_SHARED) == 0
    assert b.do(LK_EXCLUSIVE) is None
    assert a.do(LK_SHARED | LK_NOWAIT) == EBUSY
    a.td.flags |= TDF_DEADLKTREAT
    assert a.do(LK_SHARED) == 0
    assert lock.lk_count >> LKC_SSHIFT == 2
    a.do(LK_RELEASE)
    a.do(LK_RELEASE)
    assert b.take_result() == 0
    b.do(LK_RELEASE)


def test_recursion(lwkt: Lwkt) -> None:
    """What if the holder asks again, with and without leave to recurse?"""
    lock = Lock("test", flags=LK_CANRECURSE)
    a, b = actors(lwkt, lock, 2)
    for _ in range(3):
        assert a.do(LK_EXCLUSIVE) == 0
    assert a.do(LK_SHARED) == 0
    assert lock.lockcount() == 4
    assert b.do(LK_EXCLUSIVE) is None
    for left in (3, 2, 1):
        assert a.do(LK_RELEASE) == 0
        assert lock.xcount == left
        assert b.take_result() is None
    a.do(LK_RELEASE)
    assert b.take_result() == 0
    strict = Lock("strict")
    caught: list[str] = []

    async def again() -> None:
        assert await strict.lockmgr(LK_EXCLUSIVE) == 0
        assert strict.lock_nowait(LK_EXCLUSIVE) == EBUSY
        assert strict.lock_nowait(LK_SHARED) == EBUSY
        try:
            await strict.lockmgr(LK_EXCLUSIVE)
        except Panic as exc:
            caught.append(str(exc))
        strict.unlock()

    lwkt.create(again, cpu=0)
    lwkt.run_until_idle()
    assert caught == ["lockmgr: strict: locking against myself"]


def test_upgrade_goes_before_exclusive_requests(lwkt: Lwkt) -> None:
    """What if a shared holder upgrades while another shares and a third wants it exclusively?"""
    lock = Lock("test")
    a, b, c = actors(lwkt, lock, 3)
    a.do(LK_SHARED)
    b.do(LK_SHARED)
    assert c.do(LK_EXCLUSIVE) is None
    assert a.do(LK_UPGRADE) is None
    assert lock.lk_count & LKC_UPREQ
    b.do(LK_RELEASE)
    assert a.take_result() == 0
    assert lock.lockholder is a.td
    assert a.do(LK_UPGRADE) == 0, "upgrading what is exclusive is nothing to do"
    assert c.take_result() is None
    a.do(LK_RELEASE)
    assert c.take_result() == 0
    c.do(LK_RELEASE)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_exclupgrade_of_two_holders(lwkt: Lwkt, order: tuple[int, int]) -> None:
    """What if two shared holders both insist on upgrading in place?"""
    lock = Lock("test")
    both = actors(lwkt, lock, 2)
    first, second = both[order[0]], both[order[1]]
    first.do(LK_SHARED)
    second.do(LK_SHARED)
    assert first.do(LK_EXCLUPGRADE) is None
    assert second.do(LK_EXCLUPGRADE) == EBUSY
    assert first.take_result() == 0
    assert lock.lockholder is first.td
    assert lock.lockcount() == 1
    first.do(LK_RELEASE)
    assert not lock.lockinuse()


def test_exclupgrade_in_every_interleaving() -> None:
    """What if the two, on two CPUs, are interleaved in every possible way?"""
    choices = Choices()
    schedules = 0
    outcomes: set[tuple[int, ...]] = set()
    while True:
        lwkt = make_lwkt(2)
        lock = Lock("test")
        results: dict[int, int] = {}

        async def upgrader(who: int, lock: Lock = lock, results: dict[int, int] = results) -> None:
            assert await lock.lockmgr(LK_SHARED) == 0
            await cpu_pause()
            error = await lock.lockmgr(LK_EXCLUPGRADE)
            results[who] = error
            await cpu_pause()
            if not error:
                assert lock.owned()
                assert lock.lockcount() == 1
                lock.unlock()

        for cpu in (0, 1):
            lwkt.create(upgrader, cpu, cpu=cpu)
        lwkt.run_until_idle(choose=lambda ready: ready[choices.pick(len(ready))])
        schedules += 1
        assert len(results) == 2, choices.taken
        outcomes.add((results[0], results[1]))
        assert not lock.lockinuse()
        lwkt.shutdown_nowait()
        if not choices.next():
            break
    # Both succeed only when the first has done before the second has begun to share.
    assert outcomes == {(0, EBUSY), (EBUSY, 0), (0, 0)}
    assert schedules > 10


def test_plain_upgrade_of_two_holders(lwkt: Lwkt) -> None:
    """What if two shared holders upgrade and the second does not insist?"""
    lock = Lock("test")
    a, b = actors(lwkt, lock, 2)
    a.do(LK_SHARED)
    b.do(LK_SHARED)
    assert a.do(LK_UPGRADE) is None
    assert b.do(LK_UPGRADE) is None, "it gave its share up and queued for the lock"
    assert a.take_result() == 0
    a.do(LK_RELEASE)
    assert b.take_result() == 0
    b.do(LK_RELEASE)


def test_failed_upgrade_releases(lwkt: Lwkt) -> None:
    """What if an upgrade may not wait?"""
    lock = Lock("test")
    a, b = actors(lwkt, lock, 2)
    a.do(LK_SHARED)
    b.do(LK_SHARED)
    assert a.do(LK_UPGRADE | LK_NOWAIT) == EBUSY
    assert lock.scount == 1
    assert b.do(LK_UPGRADE | LK_NOWAIT) == 0
    b.do(LK_RELEASE)


def test_downgrade_lets_the_shared_in(lwkt: Lwkt) -> None:
    """What if shared and exclusive requests wait while the holder downgrades?"""
    lock = Lock("test")
    a, b, c, d = actors(lwkt, lock, 4)
    a.do(LK_EXCLUSIVE)
    assert b.do(LK_SHARED) is None
    assert c.do(LK_EXCLUSIVE) is None
    assert d.do(LK_SHARED) is None
    assert a.do(LK_DOWNGRADE) == 0
    assert b.take_result() == 0
    assert d.take_result() == 0
    assert c.take_result() is None
    assert lock.lk_count & LKC_SHARED
    for actor in (a, b, d):
        actor.do(LK_RELEASE)
    assert c.take_result() == 0
    c.do(LK_RELEASE)


# --- ways to fail ----------------------------------------------------------------------------


def test_nowait(lwkt: Lwkt) -> None:
    """What if a request may not wait?"""
    lock = Lock("test")
    a, b = actors(lwkt, lock, 2)
    a.do(LK_EXCLUSIVE)
    assert b.do(LK_SHARED | LK_NOWAIT) == EBUSY
    assert b.do(LK_EXCLUSIVE | LK_NOWAIT) == EBUSY
    a.do(LK_DOWNGRADE)
    assert b.do(LK_EXCLUSIVE | LK_NOWAIT) == EBUSY
    assert b.do(LK_SHARED | LK_NOWAIT) == 0
    a.do(LK_RELEASE)
    b.do(LK_RELEASE)


@pytest.mark.parametrize("kind", [LK_EXCLUSIVE, LK_SHARED])
def test_time_limit(lwkt: Lwkt, kind: int) -> None:
    """What if the lock is not released in time, and what if it is in the last moment?"""
    lock = Lock("test", timo=10)
    a, b, c = actors(lwkt, lock, 3)
    a.do(LK_EXCLUSIVE)
    assert b.do(kind | LK_TIMELOCK) is None
    run_ticks(lwkt, 10)
    assert b.take_result() == EWOULDBLOCK
    assert lock.statistics().waiters == 0
    assert b.do(kind | LK_TIMELOCK) is None
    run_ticks(lwkt, 9)
    a.do(LK_RELEASE)
    assert b.take_result() == 0
    assert c.do(LK_EXCLUSIVE | LK_NOWAIT) == EBUSY
    b.do(LK_RELEASE)


def test_giving_up_lets_those_behind_pass(lwkt: Lwkt) -> None:
    """What if the exclusive request that held shared ones back times out?"""
    lock = Lock("test", timo=5)
    a, b, c = actors(lwkt, lock, 3)
    a.do(LK_SHARED)
    assert b.do(LK_EXCLUSIVE | LK_TIMELOCK) is None
    assert c.do(LK_SHARED) is None
    run_ticks(lwkt, 5)
    assert b.take_result() == EWOULDBLOCK
    assert c.take_result() == 0
    a.do(LK_RELEASE)
    c.do(LK_RELEASE)


def test_upgrade_that_times_out_has_lost_its_share(lwkt: Lwkt) -> None:
    """What if an upgrade times out while exclusive requests wait behind it?"""
    lock = Lock("test", timo=5)
    a, b, c = actors(lwkt, lock, 3)
    a.do(LK_SHARED)
    b.do(LK_SHARED)
    assert c.do(LK_EXCLUSIVE) is None
    assert a.do(LK_UPGRADE | LK_TIMELOCK) is None
    run_ticks(lwkt, 5)
    assert a.take_result() == EWOULDBLOCK
    assert lock.scount == 1
    b.do(LK_RELEASE)
    assert c.take_result() == 0
    c.do(LK_RELEASE)


def test_signal(lwkt: Lwkt) -> None:
    """What if a signal comes for one waiter with LK_PCATCH and one without?"""
    lock = Lock("test")
    a, b, c = actors(lwkt, lock, 3)
    a.do(LK_EXCLUSIVE)
    assert b.do(LK_EXCLUSIVE | LK_PCATCH) is None
    assert c.do(LK_EXCLUSIVE) is None
    assert abort_sleep(b.td, EINTR)
    assert not abort_sleep(c.td, EINTR)
    lwkt.run_until_idle()
    assert b.take_result() == EINTR
    a.do(LK_RELEASE)
    assert c.take_result() == 0
    c.do(LK_RELEASE)


def test_sleepfail(lwkt: Lwkt) -> None:
    """What if a request shall fail when it had to sleep, though it was granted?"""
    lock = Lock("test")
    a, b, c = actors(lwkt, lock, 3)
    a.do(LK_EXCLUSIVE)
    assert b.do(LK_EXCLUSIVE | LK_SLEEPFAIL) is None
    assert c.do(LK_SHARED | LK_SLEEPFAIL) is None
    a.do(LK_RELEASE)
    assert b.take_result() == ENOLCK
    assert c.take_result() == ENOLCK
    assert not lock.lockinuse()


def test_cancel(lwkt: Lwkt) -> None:
    """What if the holder cancels the requests that wait, and those to come?"""
    lock = Lock("test")
    a, b, c, d = actors(lwkt, lock, 4)
    a.do(LK_EXCLUSIVE)
    assert b.do(LK_EXCLUSIVE | LK_CANCELABLE) is None
    assert c.do(LK_EXCLUSIVE) is None
    assert a.do(LK_CANCEL_BEG) == 0
    assert b.take_result() == ENOLCK
    assert c.take_result() is None
    assert lock.lk_count & LKC_CANCEL
    assert d.do(LK_SHARED | LK_CANCELABLE) == ENOLCK
    assert a.do(LK_CANCEL_END) == 0
    assert d.do(LK_SHARED | LK_CANCELABLE) is None
    assert a.do(LK_CANCEL_BEG) == 0
    assert d.take_result() == ENOLCK
    a.do(LK_RELEASE)
    assert not lock.lk_count & LKC_CANCEL, "the release ends the cancellation"
    assert c.take_result() == 0
    c.do(LK_RELEASE)


def test_cancelled_exclusive_frees_the_shared_behind_it(lwkt: Lwkt) -> None:
    """What if the cancelled request was what held shared requests back?"""
    lock = Lock("test")
    a, b, c = actors(lwkt, lock, 3)
    a.do(LK_SHARED)
    assert b.do(LK_EXCLUSIVE | LK_CANCELABLE) is None
    assert c.do(LK_SHARED) is None
    a.do(LK_CANCEL_BEG)
    assert b.take_result() == ENOLCK
    assert c.take_result() == 0
    a.do(LK_CANCEL_END)
    a.do(LK_RELEASE)
    c.do(LK_RELEASE)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (LK_RELEASE, "no lock held"),
        (LK_UPGRADE, "is not held"),
        (LK_DOWNGRADE, "not held exclusively"),
        (0x0F, "unknown locktype"),
    ],
)
def test_misuse_panics(flags: int, text: str) -> None:
    """What if a lock that nobody holds is released, upgraded or downgraded?"""
    lock = Lock("test")
    with pytest.raises(Panic, match=text):
        lock.lock_nowait(flags)


def test_release_by_a_stranger_panics(lwkt: Lwkt) -> None:
    """What if a thread releases the exclusive lock of another, and what after kernproc?"""
    lock = Lock("test")
    caught: list[str] = []

    async def owner() -> None:
        await lock.lockmgr(LK_EXCLUSIVE)

    async def stranger() -> None:
        try:
            lock.unlock()
        except Panic as exc:
            caught.append(str(exc))

    async def giver() -> None:
        lock.lockholder = thread_mod.curthread
        lock.lockmgr_kernproc()

    lwkt.create(owner, cpu=0)
    lwkt.create(stranger, cpu=0)
    lwkt.run_until_idle()
    assert len(caught) == 1
    lwkt.create(giver, cpu=0)
    lwkt.create(stranger, cpu=0)
    lwkt.run_until_idle()
    assert len(caught) == 1
    assert not lock.lockinuse()


# --- together --------------------------------------------------------------------------------


async def test_block_of_a_busy_lock(any_driver: Driver) -> None:
    """What if a synchronous core meets a busy lock: does its edge wait and run it again?"""
    lock = Lock("vn", flags=LK_CANRECURSE)
    order: list[str] = []

    def core(name: str) -> str:
        if lock.lock_nowait(LK_EXCLUSIVE):
            order.append(f"{name} blocked")
            raise lock.block(LK_EXCLUSIVE)
        order.append(name)
        lock.unlock()
        return name

    async def edge(name: str) -> None:
        assert await run_blocking(core, name) == name

    async def holder() -> None:
        assert await lock.lockmgr(LK_EXCLUSIVE) == 0
        for _ in range(5):
            await lwkt_yield()
        order.append("released")
        lock.unlock()

    any_driver.create(holder, cpu=0)
    any_driver.create(edge, "a", cpu=0)
    any_driver.create(edge, "b", cpu=0)
    await any_driver.run()
    assert order == ["a blocked", "b blocked", "released", "a", "b"]
    assert not lock.lockinuse()


class Model:
    """The rules of lockmgr's docstring, applied to names: what each request must answer."""

    def __init__(self) -> None:
        self.shared: list[int] = []
        self.owner: int | None = None
        self.count = 0
        self.upgrader: tuple[int, bool] | None = None
        self.queue: list[tuple[int, str, bool]] = []
        self.cancel = False
        self.answers: dict[int, int] = {}

    def waits(self, who: int) -> bool:
        return any(w == who for w, _, _ in self.queue) or (
            self.upgrader is not None and self.upgrader[0] == who
        )

    def own(self, who: int, answer: int = 0) -> None:
        self.owner, self.count = who, 1
        self.answers[who] = answer

    def settle(self) -> None:
        """Hand the lock over as far as the rules allow."""
        while self.owner is None:
            if self.upgrader is not None:
                if not self.shared:
                    who, self.upgrader = self.upgrader[0], None
                    self.own(who)
                return
            if not self.queue:
                return
            if self.queue[0][1] == "S":
                self.admit_shared()
            elif self.shared:
                return
            else:
                self.own(self.queue.pop(0)[0])

    def admit_shared(self) -> None:
        for who, kind, _ in self.queue:
            if kind == "S":
                self.shared.append(who)
                self.answers[who] = 0
        self.queue = [entry for entry in self.queue if entry[1] != "S"]

    def ask(self, who: int, kind: str, nowait: bool, cancelable: bool) -> None:
        """A new request, shared or exclusive."""
        free = self.owner is None and (not self.shared or kind == "S")
        if self.owner == who:
            self.count += 1
            self.answers[who] = 0
        elif free and not self.queue and self.upgrader is None:
            if kind == "S":
                self.shared.append(who)
                self.answers[who] = 0
            else:
                self.own(who)
        elif nowait:
            self.answers[who] = EBUSY
        elif cancelable and self.cancel:
            self.answers[who] = ENOLCK
        else:
            self.queue.append((who, kind, cancelable))

    def release(self, who: int) -> None:
        self.answers[who] = 0
        self.drop(who)

    def drop(self, who: int) -> None:
        if self.owner == who:
            self.count -= 1
            if self.count:
                return
            self.owner = None
        else:
            self.shared.remove(who)
        if not self.shared:
            self.cancel = False
        self.settle()

    def upgrade(self, who: int, insist: bool, nowait: bool, cancelable: bool) -> None:
        if self.owner == who:
            self.answers[who] = 0
        elif self.shared == [who] and self.upgrader is None:
            self.shared.clear()
            self.own(who)
        elif nowait or (insist and self.upgrader is not None):
            self.answers[who] = EBUSY
            self.drop(who)
        elif self.upgrader is not None:
            self.drop(who)
            self.ask(who, "X", False, cancelable)
        elif cancelable and self.cancel:
            self.answers[who] = ENOLCK
            self.drop(who)
        else:
            self.shared.remove(who)
            self.upgrader = (who, cancelable)

    def downgrade(self, who: int) -> None:
        self.answers[who] = 0
        self.owner, self.count = None, 0
        self.shared.append(who)
        self.admit_shared()

    def cancel_beg(self, who: int) -> None:
        self.answers[who] = 0
        self.cancel = True
        for waiter, _, cancelable in self.queue:
            if cancelable:
                self.answers[waiter] = ENOLCK
        self.queue = [entry for entry in self.queue if not entry[2]]
        if self.upgrader is not None and self.upgrader[1]:
            self.answers[self.upgrader[0]] = ENOLCK
            self.upgrader = None
        self.settle()


@pytest.mark.parametrize("seed", range(12))
def test_every_answer_against_the_model(lwkt: Lwkt, seed: int) -> None:
    """What if six threads make 400 requests one after the other: is each answer the model's?"""
    rng = random.Random(seed)
    lock = Lock("model", flags=LK_CANRECURSE)
    model = Model()
    cast = actors(lwkt, lock, 6)
    answered = [0] * 6
    for _ in range(400):
        who = rng.choice([n for n in range(6) if not model.waits(n)])
        flags = rng.choice((0, 0, 0, LK_NOWAIT, LK_CANCELABLE, LK_CANCELABLE))
        nowait, cancelable = bool(flags & LK_NOWAIT), bool(flags & LK_CANCELABLE)
        if model.owner == who and model.count == 1 and rng.random() < 0.3:
            kind = LK_DOWNGRADE
            model.downgrade(who)
        elif (model.owner == who or model.shared == [who]) and rng.random() < 0.2:
            kind = LK_CANCEL_END if model.cancel else LK_CANCEL_BEG
            if model.cancel:
                model.cancel = False
                model.answers[who] = 0
            else:
                model.cancel_beg(who)
        elif who in model.shared and rng.random() < 0.5:
            kind = rng.choice((LK_UPGRADE, LK_EXCLUPGRADE))
            model.upgrade(who, kind == LK_EXCLUPGRADE, nowait, cancelable)
        elif model.owner == who or who in model.shared:
            if model.owner == who and model.count < 3 and rng.random() < 0.3:
                kind = rng.choice((LK_SHARED, LK_EXCLUSIVE))
                model.ask(who, "X", nowait, cancelable)
            else:
                kind = LK_RELEASE
                model.release(who)
        else:
            kind = rng.choice((LK_SHARED, LK_EXCLUSIVE))
            model.ask(who, "S" if kind == LK_SHARED else "X", nowait, cancelable)
        cast[who].do(kind | flags)
        for n, actor in enumerate(cast):
            new = actor.results[answered[n] :]
            assert new == ([model.answers.pop(n)] if n in model.answers else []), (kind, n)
            answered[n] += len(new)
        assert lock.xcount == model.count * (model.owner is not None)
        assert lock.scount == len(model.shared)
        if model.owner is not None:
            assert lock.lockholder is cast[model.owner].td
        waiting = len(model.queue) + (model.upgrader is not None)
        assert lock.statistics().waiters == waiting


def test_a_busy_object_cannot_starve_an_edge(lwkt: Lwkt) -> None:
    """What if somebody else always has the lock again when the core is run?"""
    lock = Lock("vn", flags=LK_CANRECURSE)
    runs: list[bool] = []
    stop: list[bool] = []

    def core() -> str:
        runs.append(lock.owned())
        if not lock.owned():
            raise lock.block(LK_EXCLUSIVE)
        return "done"

    async def edge() -> None:
        assert await run_blocking(core) == "done"
        stop.append(True)

    async def greedy() -> None:
        while not stop:
            assert await lock.lockmgr(LK_EXCLUSIVE) == 0
            await lwkt_yield()
            lock.unlock()

    lwkt.create(greedy, cpu=0)
    lwkt.create(greedy, cpu=0)
    lwkt.create(edge, cpu=0)
    lwkt.run_until_idle()
    assert runs == [False, False, False, True]
    assert not lock.lockinuse()
    strict = Lock("strict")
    assert strict.block(LK_EXCLUSIVE).exclusive is None
    caught: list[str] = []

    async def fool() -> None:
        await strict.acquire()
        try:
            await strict.wait_for(LK_EXCLUSIVE)
        except Panic as exc:
            caught.append(str(exc))
        strict.release()

    lwkt.create(fool, cpu=0)
    lwkt.run_until_idle()
    assert caught == ["lockmgr: strict: locking against myself"]


FAILURES = {LK_NOWAIT: EBUSY, LK_TIMELOCK: EWOULDBLOCK, LK_SLEEPFAIL: ENOLCK}


class Observer:
    """The model: who holds the lock for certain, kept from outside by what the calls return."""

    def __init__(self) -> None:
        self.holds: dict[int, str] = {}
        self.calls: set[int] = set()
        self.acquired = 0

    def check(self) -> None:
        modes = list(self.holds.values())
        assert "X" not in modes or len(modes) == 1, self.holds

    def got(self, who: int, mode: str) -> None:
        self.holds[who] = mode
        self.acquired += 1
        self.check()

    def may_be_busy(self, who: int) -> bool:
        return bool((set(self.holds) | self.calls) - {who})


async def _contender(
    who: int, lock: Lock, model: Observer, rng: random.Random, rounds: int, spin: bool
) -> None:
    """Random requests; every result is checked against the model."""

    async def call(flags: int) -> int:
        model.calls.add(who)
        error = await lock.lockmgr(flags)
        model.calls.discard(who)
        return error

    async def pause() -> None:
        for _ in range(rng.randrange(4)):
            await (cpu_pause() if spin and rng.random() < 0.5 else lwkt_yield())

    for _ in range(rounds):
        extra = rng.choice((0, 0, 0, LK_NOWAIT, LK_TIMELOCK, LK_SLEEPFAIL))
        mode = rng.choice("SSX")
        error = await call((LK_SHARED if mode == "S" else LK_EXCLUSIVE) | extra)
        if error:
            assert (
                error == {LK_NOWAIT: EBUSY, LK_TIMELOCK: EWOULDBLOCK, LK_SLEEPFAIL: ENOLCK}[extra]
            )
            assert error != EBUSY or model.may_be_busy(who)
            await pause()
            continue
        model.got(who, mode)
        await pause()
        step = rng.random()
        if mode == "S" and step < 0.5:
            # From the call on the share may be gone.
            del model.holds[who]
            kind = rng.choice((LK_UPGRADE, LK_EXCLUPGRADE))
            error = await call(kind)
            if error:
                assert (kind, error) == (LK_EXCLUPGRADE, EBUSY)
                continue
            model.got(who, "X")
            mode = "X"
            await pause()
        if mode == "X" and step > 0.3:
            lock.downgrade()
            model.got(who, "S")
            await pause()
        assert model.holds.pop(who)
        lock.unlock()


@pytest.mark.parametrize("seed", range(25))
def test_contended_against_a_model(lwkt: Lwkt, seed: int) -> None:
    """What if 20 threads on four CPUs do everything at once, in random order?"""
    rng = random.Random(seed)
    lock = Lock("model", timo=3)
    model = Observer()
    for who in range(20):
        lwkt.create(_contender, who, lock, model, rng, 15, True, cpu=who % 4)
    while lock.lockinuse() or len(lwkt.threads) > 8:
        before = model.acquired
        run_ticks(lwkt, 5, rng)
        assert model.acquired > before or not lock.lockinuse(), "nobody gets on"
    assert not model.holds
    assert not lock.lockinuse()
    assert lock.statistics().waiters == 0
    assert synch_of(lwkt).statistics().sleepers <= 4


async def test_contended_on_both_drivers(any_driver: Driver) -> None:
    """What if trio tasks contend for the lock as the coroutines do?"""
    rng = random.Random(3)
    lock = Lock("model", timo=1)
    model = Observer()
    for who in range(12):
        any_driver.create(_contender, who, lock, model, rng, 10, False, cpu=who % 4)
    for _ in range(50):
        await any_driver.run()
        if any_driver.kind == "coro":
            run_ticks(any_driver.lwkt, 2)
    assert not model.calls - set(model.holds)
    assert not lock.lockinuse()


def test_statistics_agree_with_an_observer(lwkt: Lwkt) -> None:
    """What if somebody outside counts the requests that had to wait?"""
    rng = random.Random(5)
    lock = Lock("stat")
    waited = 0

    async def user() -> None:
        nonlocal waited
        for _ in range(30):
            kind = rng.choice((LK_SHARED, LK_EXCLUSIVE))
            if lock.lock_nowait(kind):
                waited += 1
                assert await lock.lockmgr(kind) == 0
            await lwkt_yield()
            lock.unlock()

    for cpu in range(4):
        lwkt.create(user, cpu=cpu)
        lwkt.create(user, cpu=cpu)
    lwkt.run_until_idle(rng=rng)
    assert waited > 0
    assert lock.statistics().collisions == waited


def test_contention_is_traced(lwkt: Lwkt) -> None:
    """What if the trace point of lockmgr is on: is a wait noted with its lock and thread?"""
    lwkt.ktr.master("lockmgr").mask = -1
    lock = Lock("traced")
    a, b = actors(lwkt, lock, 2)
    a.do(LK_EXCLUSIVE)
    b.do(LK_EXCLUSIVE)
    a.do(LK_RELEASE)
    b.do(LK_RELEASE)
    lines = lwkt.ktr.lines(10)
    assert any("traced by" in line and "exclusive=1" in line for line in lines)
