"""lwkt_block and lwkt_signal: the generation count is the whole interlock."""

from __future__ import annotations

from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.thread import cpu_pause
from dfuser.lwkt.wait import LwktWait, lwkt_block, lwkt_signal

from .conftest import Driver, make_lwkt
from .test_synch import Choices, nothing_left


async def test_counts(any_driver: Driver) -> None:
    """What if one, some, and all waiters are signalled?"""
    w = LwktWait()
    woken: list[int] = []

    async def waiter(n: int) -> None:
        await lwkt_block(w, "wtest", w.gen)
        woken.append(n)

    async def signal(count: int) -> None:
        lwkt_signal(w, count)

    tds = [any_driver.create(waiter, n, cpu=1) for n in range(6)]
    await any_driver.run()
    assert {td.wmesg for td in tds} == {"wtest"}
    assert w.statistics().waiting == 6
    for count, total in ((1, 1), (2, 3), (0, 6), (1, 6)):
        any_driver.create(signal, count, cpu=0)
        await any_driver.run()
        assert len(woken) == total
    assert woken == list(range(6))
    stats = w.statistics()
    assert (stats.waiting, stats.gen, stats.signals) == (0, 4, 4)
    assert nothing_left(any_driver.lwkt)


def test_a_signal_in_between_is_seen(lwkt: Lwkt) -> None:
    """What if the signal comes after the generation was read and before the block?"""
    w = LwktWait()
    done: list[int] = []

    async def waiter() -> None:
        gen = w.gen
        lwkt_signal(w, 1)
        await lwkt_block(w, "wtest", gen)
        done.append(gen)

    lwkt.create(waiter, cpu=0)
    lwkt.run_until_idle()
    assert done == [0]


def test_every_interleaving() -> None:
    """What if waiter and signaller meet in any order of steps on two CPUs?"""
    choices = Choices()
    schedules = 0
    while True:
        lwkt = make_lwkt(2)
        w = LwktWait()
        ready: list[int] = []
        done: list[int] = []

        async def waiter(w: LwktWait = w, ready: list[int] = ready, done: list[int] = done) -> None:
            while len(done) < 2:
                gen = w.gen
                await cpu_pause()
                if len(ready) > len(done):
                    done.append(1)
                    continue
                await cpu_pause()
                await lwkt_block(w, "wtest", gen)

        async def signaller(w: LwktWait = w, ready: list[int] = ready) -> None:
            for _ in range(2):
                ready.append(1)
                await cpu_pause()
                lwkt_signal(w, 1)
                await cpu_pause()

        lwkt.create(waiter, cpu=0)
        lwkt.create(signaller, cpu=1)
        lwkt.run_until_idle(choose=lambda cpus: cpus[choices.pick(len(cpus))])
        schedules += 1
        assert len(done) == 2, choices.taken
        lwkt.shutdown_nowait()
        if not choices.next():
            break
    assert schedules > 200
