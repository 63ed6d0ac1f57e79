"""Task queues: coalescing, priority, cancel, drain, timeouts, threads."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dfuser.libkern.errno import EBUSY, EINVAL, EPIPE, KError, Panic
from dfuser.libkern.sysctl import SysctlTree
from dfuser.lwkt import thread as thread_mod
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.synch import tsleep, wakeup
from dfuser.lwkt.taskqueue import Task, TaskQueue, TaskQueues, TimeoutTask
from dfuser.lwkt.thread import lwkt_yield

from .conftest import Driver
from .vtime import run_all, run_ticks


async def test_a_thousand_enqueues_are_one_call(any_driver: Driver) -> None:
    """What if a task is enqueued 1,000 times before it runs?"""
    calls: list[tuple[str, int]] = []
    tq = TaskQueue(any_driver.lwkt, "test")
    task = Task(lambda context, pending: calls.append((context, pending)), "ctx")
    for _ in range(1000):
        assert tq.enqueue(task) == 0
    assert task.pending == 1000
    tq.start_threads(1, cpu=2)
    await any_driver.run()
    assert calls == [("ctx", 1000)]
    assert task.pending == 0
    stats = tq.statistics()
    assert (stats.enqueued, stats.coalesced, stats.executed) == (1000, 999, 1)

    async def again() -> None:
        tq.enqueue(task)

    any_driver.create(again, cpu=0)
    await any_driver.run()
    assert calls[1:] == [("ctx", 1)]


def test_priority_then_arrival(lwkt: Lwkt) -> None:
    """What if tasks of several priorities wait?"""
    rng = random.Random(1)
    order: list[tuple[int, int]] = []
    tq = TaskQueue(lwkt, "test")
    tasks = [(rng.randrange(5), n) for n in range(100)]
    for priority, n in tasks:
        tq.enqueue(Task(lambda c, _: order.append(c), (priority, n), priority))
    tq.start_threads(1)
    lwkt.run_until_idle()
    assert order == sorted(tasks, key=lambda t: (-t[0], t[1]))


async def test_tasks_may_sleep(any_driver: Driver) -> None:
    """What if a task sleeps: do other threads of the queue go on, and does ps show it?"""
    done: list[int] = []
    tq = TaskQueue(any_driver.lwkt, "test")

    async def sleepy(context: int, pending: int) -> None:
        if context == 0:
            await tsleep("task", 0, "tasksl")
        done.append(context)

    tq.start_threads(2, name="worker")
    for n in range(5):
        tq.enqueue(Task(sleepy, n))
    await any_driver.run()
    assert done == [1, 2, 3, 4]
    names = {td.name: td.wmesg for td in any_driver.lwkt.threads.values()}
    assert sorted(n for n in names if n.startswith("worker")) == ["worker_0", "worker_1"]
    assert sorted(names.values()) == ["tasksl", "tqthr"]
    assert tq.statistics().running == 1
    any_driver.lwkt.cpus[0].interrupt(wakeup, "task")
    await any_driver.run()
    assert done[-1] == 0


def test_cancel_and_drain(lwkt: Lwkt) -> None:
    """What if a task is cancelled while pending and while running, and somebody drains it?"""
    log: list[str] = []
    tq = TaskQueue(lwkt, "test")

    async def slow(context: Any, pending: int) -> None:
        log.append("begin")
        await tsleep("slow", 0, "slow")
        log.append("end")

    task = Task(slow)
    tq.enqueue(task)
    tq.enqueue(task)
    assert tq.cancel(task) == (0, 2)
    assert tq.cancel(task) == (0, 0)
    tq.enqueue(task)
    tq.start_threads(1, cpu=1)
    lwkt.run_until_idle()
    assert tq.cancel(task) == (EBUSY, 0)
    tq.enqueue(task)
    assert tq.cancel(task) == (EBUSY, 1)

    async def drainer() -> None:
        await tq.drain(task)
        log.append("drained")

    td = lwkt.create(drainer, cpu=0)
    lwkt.run_until_idle()
    assert td.wmesg == "tqdrain"
    assert log == ["begin"]
    lwkt.cpus[1].interrupt(wakeup, "slow")
    lwkt.run_until_idle()
    assert log == ["begin", "end", "drained"]
    assert tq.statistics().cancelled == 2


def test_drain_of_a_pending_task_ends_with_its_cancel(lwkt: Lwkt) -> None:
    """What if the task somebody drains is taken back instead of run?"""
    tq = TaskQueue(lwkt, "test")
    task = Task(lambda c, p: None)
    tq.enqueue(task)
    done: list[bool] = []

    async def drainer() -> None:
        await tq.drain(task)
        done.append(True)

    lwkt.create(drainer, cpu=1)
    lwkt.run_until_idle()
    assert done == []
    tq.cancel(task)
    lwkt.run_until_idle()
    assert done == [True]


def test_block_and_unblock(lwkt: Lwkt) -> None:
    """What if a queue is blocked while tasks come?"""
    ran: list[int] = []
    tq = TaskQueue(lwkt, "test")
    tq.start_threads(2)
    lwkt.run_until_idle()
    tq.block()
    for n in range(3):
        tq.enqueue(Task(lambda c, _: ran.append(c), n))
    lwkt.run_until_idle()
    assert ran == []
    tq.unblock()
    lwkt.run_until_idle()
    assert ran == [0, 1, 2]


def test_timeouts(lwkt: Lwkt) -> None:
    """What if a task is enqueued for later, again before it is due, and cancelled?"""
    ran: list[int] = []
    tq = TaskQueue(lwkt, "test")
    tq.start_threads(1, cpu=0)
    task = TimeoutTask(lambda c, pending: ran.append(lwkt.ticks))
    assert tq.enqueue_timeout(task, 10) == 0
    run_ticks(lwkt, 5)
    assert tq.enqueue_timeout(task, 10) == 1
    assert tq.statistics().callouts == 1
    run_ticks(lwkt, 9)
    assert ran == []
    run_all(lwkt)
    assert ran == [15]
    assert tq.enqueue_timeout(task, 0) == 0
    lwkt.run_until_idle()
    assert ran == [15, 15]
    tq.enqueue_timeout(task, 10)
    assert tq.cancel_timeout(task) == (0, 1)
    assert tq.statistics().callouts == 0
    run_ticks(lwkt, 20)
    assert len(ran) == 2
    tq.enqueue_timeout(task, 3)

    async def drainer() -> None:
        await tq.drain_timeout(task)

    lwkt.create(drainer, cpu=1)
    run_ticks(lwkt, 10)
    assert len(ran) == 2


def test_free_runs_what_is_left(lwkt: Lwkt) -> None:
    """What if a queue is freed with tasks on it?"""
    ran: list[int] = []
    queues = TaskQueues(lwkt)
    tq = queues.create("mine")
    tq.start_threads(3)
    for n in range(5):
        tq.enqueue(Task(lambda c, _: ran.append(c), n))

    async def freer() -> None:
        await queues.free(tq)
        assert tq.enqueue(Task(lambda c, p: None)) == EPIPE

    lwkt.create(freer, cpu=0)
    lwkt.run_until_idle()
    assert ran == list(range(5))
    assert tq.statistics().threads == 0
    assert queues.find("mine") is None
    assert len(lwkt.threads) == 0


def test_move_between_queues(lwkt: Lwkt) -> None:
    """What if a task is enqueued on another queue than the one it is pending on?"""
    a, b = TaskQueue(lwkt, "a"), TaskQueue(lwkt, "b")
    task = Task(lambda c, p: None)
    assert a.enqueue_optq(task) is a
    assert b.enqueue_optq(task) is a
    assert task.pending == 2
    with pytest.raises(Panic):
        b.enqueue(task)
    a.cancel(task)
    assert b.enqueue_optq(task) is b


def test_the_machines_queues(lwkt: Lwkt) -> None:
    """What if the per-CPU queues and the software interrupt queues are used, from anywhere?"""
    queues = TaskQueues(lwkt)
    early: list[int] = []
    queues.swi.enqueue(Task(lambda c, p: early.append(p)))
    queues.start()
    lwkt.run_until_idle()
    assert early == [1], "what was enqueued before the start is not forgotten"
    where: list[tuple[int, int]] = []

    def note(context: int, pending: int) -> None:
        where.append((context, thread_mod.curthread.cpu.cpuid))

    async def user() -> None:
        for cpu in range(4):
            queues.thread[cpu].enqueue(Task(note, cpu))
        await lwkt_yield()

    lwkt.create(user, cpu=3)
    lwkt.run_until_idle()
    assert sorted(where) == [(cpu, cpu) for cpu in range(4)]
    names = {td.name for td in lwkt.threads.values()}
    assert names == {f"taskq_cpu {cpu}" for cpu in range(4)} | {"swi_taskq"}
    chain: list[str] = []
    second = Task(lambda c, p: chain.append("swi"))

    def chained(context: Any, pending: int) -> None:
        chain.append("swi_mp")
        queues.swi.enqueue(second)

    first = Task(chained)
    lwkt.cpus[2].interrupt(lambda: queues.swi_mp.enqueue(first) and None)
    lwkt.run_until_idle()
    assert chain == ["swi_mp", "swi"]
    tree = SysctlTree()
    tree.register(queues)
    assert tree.get("kern.taskqueue.count") == "6"
    assert int(tree.get("kern.taskqueue.executed")) == sum(q.executed for q in queues) == 7


def test_limits(lwkt: Lwkt) -> None:
    """What if a name is taken, there are too many queues, or no thread is asked for?"""
    queues = TaskQueues(lwkt, limit=3)
    tq = queues.create("one")
    with pytest.raises(KError) as error:
        queues.create("one")
    assert error.value.errno == EINVAL
    with pytest.raises(KError) as error:
        queues.create("two")
    assert error.value.errno == EBUSY
    with pytest.raises(KError) as error:
        tq.start_threads(0)
    assert error.value.errno == EINVAL
