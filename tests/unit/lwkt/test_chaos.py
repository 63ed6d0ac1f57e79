"""Everything at once: threads that do whatever threads may do, and the rules checked throughout."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

from dfuser.libkern.param import PCATCH
from dfuser.lwkt import migrate
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.cpusync import Cpusync
from dfuser.lwkt.ipiq import lwkt_send_ipiq, lwkt_wait_ipiq
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.spinlock import Spinlock
from dfuser.lwkt.synch import tsleep, wakeup
from dfuser.lwkt.thread import (
    TDF,
    TDPRI,
    cpu_pause,
    critical,
    lwkt_deschedule_self,
    lwkt_setpri_self,
    lwkt_yield,
    lwkt_yield_quick,
    switch,
)
from dfuser.lwkt.token import Token


class World:
    """What the threads of a chaos run share."""

    def __init__(self, lwkt: Lwkt, seed: int) -> None:
        self.lwkt = lwkt
        self.seed = seed
        self.toks = [Token(lwkt, f"t{i}") for i in range(4)]
        self.spin = Spinlock("chaos")
        self.inside: dict[Token, Any] = {}
        self.spinning: Any = None
        self.ipis = self.got = 0
        self.done = 0
        self.sleepers = 0
        self.intr = lwkt.create(self.interrupt_thread, cpu=0, pri=TDPRI.INT_MED, interrupt=True)
        self.woken = 0

    async def interrupt_thread(self) -> None:
        """Is woken from everywhere, takes a token now and then."""
        while True:
            lwkt_deschedule_self()
            await switch()
            self.woken += 1
            if self.woken % 3 == 0:
                async with self.toks[0]:
                    pass

    async def tokens(self, rng: random.Random) -> None:
        me = _thread.curthread
        mine = rng.sample(self.toks, rng.randint(1, 4))
        for tok in mine:
            await tok.gettoken()
        for _ in range(2):
            for tok in mine:
                assert tok.held_excl
                assert self.inside.setdefault(tok, me) is me
            if rng.random() < 0.5:
                await cpu_pause()
            for tok in mine:
                assert self.inside.pop(tok) is me
            await self.somehow_wait(rng)
        for tok in reversed(mine):
            tok.reltoken()

    async def somehow_wait(self, rng: random.Random) -> None:
        what = rng.randrange(4)
        if what == 0:
            await lwkt_yield()
        elif what == 1:
            await lwkt_yield_quick()
        elif what == 2:
            await migrate.lwkt_migratecpu(rng.randrange(len(self.lwkt.cpus)))
        else:
            self.sleepers += 1
            await tsleep("chaos", PCATCH, "chaos", 0)
            self.sleepers -= 1

    async def send(self, rng: random.Random) -> None:
        target = rng.choice(self.lwkt.cpus)

        def receive(_arg1: object, _arg2: object) -> None:
            self.got += 1
            self.lwkt.schedule(self.intr)

        self.ipis += 1
        seq = await lwkt_send_ipiq(target, receive)
        if seq and rng.random() < 0.3:
            with critical():
                await lwkt_wait_ipiq(target, seq)

    async def lock(self) -> None:
        async with self.spin:
            assert self.spinning is None
            self.spinning = _thread.curthread
            await cpu_pause()
            self.spinning = None

    async def sync(self) -> None:
        cs = Cpusync(self.lwkt, self.lwkt.cpus)
        await cs.interlock()
        before = self.lwkt.statistics().switches
        await cpu_pause()
        assert self.lwkt.statistics().switches == before
        await cs.deinterlock()

    async def life(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + number)
        for _ in range(25):
            what = rng.randrange(8)
            if what <= 2:
                await self.tokens(rng)
            elif what == 3:
                await self.send(rng)
            elif what == 4:
                await self.lock()
            elif what == 5 and rng.random() < 0.3:
                await self.sync()
            elif what == 6:
                lwkt_setpri_self(rng.choice((TDPRI.KERN_USER, TDPRI.KERN_DAEMON)))
            wakeup("chaos")
            await lwkt_yield()
        self.done += 1
        wakeup("chaos")


def check(lwkt: Lwkt) -> None:
    """The invariants that hold whenever no thread is in the middle of a step."""
    for cpu in lwkt.cpus:
        for pri, queue in enumerate(cpu.runq):
            assert bool(cpu.runmask >> pri & 1) == bool(queue)
            for td in queue:
                assert td.flags & TDF.RUNQ
                assert td.cpu is cpu
                assert td.pri == pri
                assert not td.flags & (TDF.MIGRATING | TDF.EXITING)
        cur = cpu.curthread
        if cur is not None:
            assert cur.cpu is cpu
            if not cur.toks_have:
                for ref in cur.toks:
                    assert ref.tok.count & ~2
        assert cpu.intr_nesting == 0
    for td in lwkt.threads.values():
        if not td.running:
            assert td.critcount == 0
            assert td.spinlocks == 0


def finish(world: World) -> None:
    lwkt = world.lwkt
    assert world.got == world.ipis
    assert world.woken > 0
    assert all(tok.count == 0 for tok in world.toks)
    assert not world.spin.spin_held()
    assert not any(cpu.stopped for cpu in lwkt.cpus)
    assert lwkt.ipiqs.statistics().pending == 0


def run_seed(new_lwkt: Callable[..., Lwkt], seed: int) -> None:
    lwkt = new_lwkt(4)
    world = World(lwkt, seed)
    for number in range(10):
        lwkt.create(world.life, number, cpu=number % 4)
    rng = random.Random(seed)

    def choose(ready: list[Any]) -> Any:
        check(lwkt)
        return ready[rng.randrange(len(ready))]

    for _ in range(2000):
        lwkt.run_until_idle(choose=choose, max_steps=200_000)
        if world.done == 10:
            break
        wakeup("chaos")
    assert world.done == 10, f"seed {seed}"
    finish(world)


def test_chaos(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if ten threads do everything at once, in random order:

    Do all rules hold at each step?
    """
    for seed in range(6):
        run_seed(new_lwkt, seed)


@pytest.mark.slow
def test_chaos_long(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if that is done with two hundred seeds?"""
    for seed in range(100, 300):
        run_seed(new_lwkt, seed)


async def test_chaos_under_trio(new_host: Any) -> None:
    """What if they are trio tasks and coroutines mixed, adopted tasks and cancellations among

    Them?
    """
    async with new_host() as lwkt:
        world = World(lwkt, 77)
        for number in range(10):
            lwkt.create(world.life, number, cpu=number % 4, driver="task" if number % 2 else "coro")

        async def request(rng: random.Random) -> None:
            await world.tokens(rng)
            await tsleep("chaos", PCATCH, "chaos", 0)
            await world.lock()

        async def host(number: int) -> None:
            rng = random.Random(number)
            with trio.move_on_after(rng.random() / 100):
                await lwkt.adopt(request, rng, name=f"req{number}", cpu=number % 4)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(host, number)
                while world.done < 10:
                    check(lwkt)
                    wakeup("chaos")
                    await trio.lowlevel.checkpoint()
                while len(lwkt.threads) > 1:
                    wakeup("chaos")
                    await trio.lowlevel.checkpoint()
        finish(world)
