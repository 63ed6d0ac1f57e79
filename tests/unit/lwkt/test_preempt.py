"""Preemption, critical sections, interrupts, borrowed contexts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from dfuser.libkern.errno import Panic
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.thread import (
    TDF,
    TDPRI,
    Thread,
    cpu_pause,
    crit_enter,
    crit_exit,
    critical,
    lwkt_deschedule_self,
    lwkt_setpri_self,
    lwkt_yield,
    switch,
)


def handler_thread(lwkt: Lwkt, log: list[str], cpu: int = 0, name: str = "I") -> Thread:
    """An interrupt thread that notes each time it is woken, then sleeps again."""

    async def body() -> None:
        while True:
            lwkt_deschedule_self()
            await switch()
            log.append(name)

    td = lwkt.create(body, cpu=cpu, pri=TDPRI.INT_HIGH, interrupt=True, name=f"intr{name}")
    return td


async def test_interrupt_thread_runs_before_the_next_instruction(any_driver: Any) -> None:
    """What if a thread wakes an interrupt thread: does that run at once, nested above it?"""
    lwkt = any_driver.lwkt
    log: list[str] = []
    intr = handler_thread(lwkt, log)
    await any_driver.run()

    async def body() -> None:
        me = _thread.curthread
        log.append("before")
        lwkt.schedule(intr)
        log.append("after")
        assert _thread.curthread is me
        assert not me.flags & TDF.PREEMPT_LOCK

    before = lwkt.statistics().preempt_hit
    any_driver.create(body, cpu=0)
    await any_driver.run()
    assert log == ["before", "I", "after"]
    assert lwkt.statistics().preempt_hit == before + 1


async def test_not_in_a_critical_section_but_right_after_it(any_driver: Any) -> None:
    """What if that happens in a critical section: does it run exactly when the section ends?"""
    lwkt = any_driver.lwkt
    log: list[str] = []
    intr = handler_thread(lwkt, log)
    await any_driver.run()

    async def body() -> None:
        crit_enter()
        with critical():
            lwkt.schedule(intr)
            log.append("inner")
        log.append("outer")
        crit_exit()
        log.append("after")

    miss = lwkt.statistics().preempt_miss
    any_driver.create(body, cpu=0)
    await any_driver.run()
    assert log == ["inner", "outer", "I", "after"]
    assert lwkt.statistics().preempt_miss == miss + 1


async def test_ordinary_threads_never_preempt(any_driver: Any) -> None:
    """What if an ordinary thread of the highest priority is woken:

    Does it wait for the next switch?
    """
    log: list[str] = []

    async def high() -> None:
        log.append("high")

    async def body() -> None:
        any_driver.create(high, cpu=0, pri=TDPRI.MAX)
        log.append("still me")
        await lwkt_yield()
        log.append("me again")

    any_driver.create(body, cpu=0)
    await any_driver.run()
    assert log == ["still me", "high", "me again"]


def test_where_preemption_is_refused(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if the rules forbid it (priority, nesting, switched off): a miss each, run later?"""
    lwkt = new_lwkt(1)
    log: list[str] = []
    second = handler_thread(lwkt, log, name="2")

    async def first_body() -> None:
        while True:
            lwkt_deschedule_self()
            await switch()
            log.append("1")
            lwkt.schedule(second)
            log.append("1 ends")

    first = lwkt.create(first_body, pri=TDPRI.INT_HIGH, interrupt=True)
    lwkt.run_until_idle()

    async def body(expected: list[str]) -> None:
        log.clear()
        lwkt.schedule(first)
        log.append("body")
        lwkt_setpri_self(TDPRI.USER_NORM)
        await lwkt_yield()
        assert log == expected

    nested = ["1", "1 ends", "body", "2"]
    lwkt.create(body, nested)
    lwkt.run_until_idle()
    lwkt.create(body, ["body", "1", "1 ends", "2"], pri=TDPRI.MAX)
    lwkt.run_until_idle()
    lwkt.preempt_enable = 0
    lwkt.create(body, ["body", "1", "1 ends", "2"])
    miss = lwkt.statistics().preempt_miss
    lwkt.run_until_idle()
    assert lwkt.statistics().preempt_miss > miss


def test_weird_when_it_schedules_below_itself(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a preempted thread is to preempt: is that counted as weird and nothing happens?"""
    lwkt = new_lwkt(1)
    seen: list[int] = []

    async def low() -> None:
        base = _thread.curthread
        base.flags |= TDF.INTTHREAD
        lwkt_deschedule_self()

        async def above() -> None:
            lwkt.schedule(base)
            seen.append(lwkt.statistics().preempt_weird + lwkt.statistics().preempt_miss)

        lwkt.create(above, pri=TDPRI.INT_HIGH, interrupt=True)
        base.flags &= ~TDF.INTTHREAD

    lwkt.create(low, pri=TDPRI.INT_LOW)
    lwkt.run_until_idle()
    assert seen == [1]


def test_interrupts_in_a_critical_section_come_in_order_at_its_end(
    new_lwkt: Callable[..., Lwkt],
) -> None:
    """What if interrupts and IPIs come in a critical section: kept, then run, before going on?"""
    lwkt = new_lwkt(2)
    log: list[str] = []

    async def body() -> None:
        crit_enter()
        for number in range(3):
            lwkt.cpus[0].interrupt(log.append, f"i{number}")
        await cpu_pause()
        log.append("in")
        crit_exit()
        log.append("out")

    async def sender() -> None:
        lwkt.send_ipiq_nowait(lwkt.cpus[0], log.append, "ipi")

    lwkt.create(body, cpu=0)
    lwkt.create(sender, cpu=1)
    lwkt.run_until_idle()
    assert log == ["in", "ipi", "i0", "i1", "i2", "out"]


def test_interrupt_wakes_interrupt_thread_before_it_returns(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a handler wakes its thread: does it run when the handler ends, above the thread?"""
    lwkt = new_lwkt(1)
    log: list[str] = []
    intr = handler_thread(lwkt, log)
    lwkt.run_until_idle()

    def handler() -> None:
        lwkt.schedule(intr)
        log.append("handler ends")

    async def body() -> None:
        lwkt.cpus[0].interrupt(handler)
        log.append("body")

    miss = lwkt.statistics().preempt_miss
    lwkt.create(body)
    lwkt.run_until_idle()
    assert log == ["handler ends", "I", "body"]
    assert lwkt.statistics().preempt_miss == miss


async def test_interrupt_above_an_elected_task_that_has_not_woken(new_host: Any) -> None:
    """What if an interrupt comes after a task was elected and before it runs: is the order sane?"""
    async with new_host() as lwkt:
        log: list[str] = []
        intr = handler_thread(lwkt, log)

        async def body() -> None:
            log.append("body")

        await trio.testing.wait_all_tasks_blocked()
        td = lwkt.create(body, cpu=0, driver="task")
        lwkt.cpus[0].run(1)
        assert lwkt.cpus[0].curthread is td
        lwkt.cpus[0].interrupt(lwkt.schedule, intr)
        assert log == ["I"]
        assert lwkt.cpus[0].curthread is td
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["I", "body"]


@pytest.mark.parametrize("how", ["crit", "preempt"])
def test_switch_where_it_is_forbidden_panics(new_lwkt: Callable[..., Lwkt], how: str) -> None:
    """What if code suspends in a critical section, or spins so above another: a clear panic?"""
    lwkt = new_lwkt(1)

    async def crit() -> None:
        crit_enter()
        await lwkt_yield()

    async def preempt() -> None:
        crit_enter()
        await cpu_pause()

    async def base() -> None:
        lwkt.create(preempt, pri=TDPRI.INT_HIGH, interrupt=True)

    lwkt.create(crit if how == "crit" else base)
    with pytest.raises(Panic, match=r"critical section"):
        lwkt.run_until_idle()


def test_crit_exit_without_enter_panics(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a critical section ends twice: a panic, not a negative count for ever?"""
    lwkt = new_lwkt(1)

    async def body() -> None:
        crit_exit()

    lwkt.create(body)
    with pytest.raises(Panic, match="was not in a critical section"):
        lwkt.run_until_idle()


async def test_borrowed_context_runs_nested_and_cannot_wait(any_driver: Any) -> None:
    """What if a host request borrows a context: curthread set, wake-ups work, waiting panics?"""
    lwkt = any_driver.lwkt
    log: list[str] = []

    async def sleeper() -> None:
        lwkt_deschedule_self()
        await switch()
        log.append("woken")

    sleepers = [any_driver.create(sleeper, cpu=n) for n in (0, 1)]
    await any_driver.run()
    outside = _thread.curthread
    cpu = lwkt.cpus[0]
    td = cpu.borrow(lwp="me")
    assert _thread.curthread is td
    assert td.lwp == "me"
    for other in sleepers:
        lwkt.schedule(other)
    with pytest.raises(Panic, match="borrowed context"):
        switch().send(None)
    with pytest.raises(Panic, match="borrowed context"):
        cpu_pause().send(None)
    inner = cpu.borrow()
    assert inner is not td
    cpu.unborrow(inner)
    cpu.unborrow(td)
    assert _thread.curthread is outside
    await any_driver.run()
    assert log == ["woken", "woken"]
    assert cpu.borrow() is td
    crit_enter()
    with pytest.raises(Panic, match="unborrow"):
        cpu.unborrow(td)
    crit_exit()
    cpu.unborrow(td)


def test_no_lending_above_a_spinning_critical_section(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a request comes while the thread spins in a critical section: is it turned away?"""
    lwkt = new_lwkt(1)
    cpu = lwkt.cpus[0]

    async def spinner() -> None:
        with critical():
            await cpu_pause()
            await cpu_pause()

    lwkt.create(spinner)
    cpu.run(1)
    assert not cpu.lendable
    with pytest.raises(Panic, match="spins in a critical section"):
        cpu.borrow()
    lwkt.run_until_idle()
    assert cpu.lendable


def test_preemption_counters_agree_with_an_outside_observer(
    new_lwkt: Callable[..., Lwkt],
) -> None:
    """What if somebody notes each wake-up of an interrupt thread: do hit and miss add up?"""
    lwkt = new_lwkt(1)
    log: list[str] = []
    intr = handler_thread(lwkt, log)
    lwkt.run_until_idle()
    start = lwkt.statistics()
    nested: list[bool] = []

    async def body() -> None:
        for number in range(20):
            ran = len(log)
            if number % 4 == 0:
                crit_enter()
            lwkt.schedule(intr)
            nested.append(len(log) == ran + 1)
            if number % 4 == 0:
                crit_exit()
                assert len(log) == ran + 1
            await lwkt_yield()

    lwkt.create(body)
    lwkt.run_until_idle()
    stats = lwkt.statistics()
    assert stats.preempt_hit - start.preempt_hit == len(log) == 20
    assert stats.preempt_miss - start.preempt_miss == nested.count(False) == 5
    assert stats.preempt_weird == start.preempt_weird
