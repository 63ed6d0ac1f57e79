"""Contention is seen in ps: what a waiting thread waits for, and in which state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from dfuser.hw.clock import VirtualClock
from dfuser.kern.kinfo import KinfoTable
from dfuser.kern.proc import ProcTable
from dfuser.libkern.param import PCATCH
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.condvar import Cv
from dfuser.lwkt.ipiq import lwkt_send_ipiq, lwkt_synchronize_ipiqs
from dfuser.lwkt.lockmgr import Lock
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.msgkinds import thread_port
from dfuser.lwkt.msgport import LwktMsg
from dfuser.lwkt.mtx import Mtx
from dfuser.lwkt.serialize import LwktSerialize
from dfuser.lwkt.synch import tsleep, wakeup
from dfuser.lwkt.thread import Thread, cpu_pause
from dfuser.lwkt.token import Token
from dfuser.lwkt.wait import LwktWait, lwkt_block, lwkt_signal

from .conftest import Driver


class Case(NamedTuple):
    """One way to wait: what the other thread does before and after, and what the waiter awaits."""

    hold: Callable[[], Awaitable[object]]
    wait: Callable[[], Awaitable[object]]
    release: Callable[[], object]
    wmesg: str
    state: str


async def nothing() -> None:
    """There is nothing to be held."""


async def storm(lwkt: Lwkt) -> None:
    """Send more IPIs to CPU 2 than its ring takes."""
    for _ in range(300):
        await lwkt_send_ipiq(lwkt.cpus[2], lambda _a, _b: None)


def case(kind: str, lwkt: Lwkt, waiter: Callable[[], Thread]) -> Case:
    """The way to wait called ``kind``; ``waiter`` gives the thread that waits."""
    tok, cv, wait = Token(lwkt, "tokname"), Cv("cvname"), LwktWait()
    slz = LwktSerialize()
    lock, mtx = Lock("lkname"), Mtx("mtxname")
    two = lwkt.cpus[2]

    async def stop_two() -> None:
        two.stop()

    def send() -> None:
        thread_port(waiter()).sendmsg(LwktMsg(thread_port(_thread.curthread)))

    cases = {
        "token": Case(tok.gettoken, tok.wait, tok.reltoken, "tokname", "R"),
        "lockmgr": Case(lock.acquire, lock.acquire, lock.release, "lkname", "S"),
        "mtx": Case(mtx.acquire, mtx.acquire, mtx.release, "mtxname", "S"),
        "serializer": Case(slz.enter, slz.enter, slz.exit, "slize", "S"),
        "adaptive": Case(slz.enter, slz.adaptive_enter, slz.exit, "aslize", "S"),
        "cv": Case(nothing, lambda: cv.wait(None), cv.signal, "cvname", "S"),
        "cv_sig": Case(nothing, lambda: cv.wait_sig(None), cv.broadcast, "cvname", "I"),
        "tsleep": Case(nothing, lambda: tsleep(cv, 0, "zzz"), lambda: wakeup(cv), "zzz", "S"),
        "catch": Case(nothing, lambda: tsleep(cv, PCATCH, "zzz"), lambda: wakeup(cv), "zzz", "I"),
        "wait": Case(
            nothing, lambda: lwkt_block(wait, "wt", wait.gen), lambda: lwkt_signal(wait, 1),
            "wt", "S",
        ),
        "port": Case(
            nothing, lambda: thread_port(_thread.curthread).waitport(), send, "waitport", "S"
        ),
        "ipiq": Case(stop_two, lambda: storm(lwkt), two.restart, "ipiq", "S"),
    }  # fmt: skip
    return cases[kind]


KINDS = (
    "token", "lockmgr", "mtx", "serializer", "adaptive", "cv", "cv_sig", "tsleep", "catch", "wait",
    "port", "ipiq",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
async def test_ps_shows_what_a_thread_waits_for(any_driver: Driver, kind: str) -> None:
    """What if a thread waits: does its line of ps name the reason, and only as long as it waits?"""
    lwkt = any_driver.lwkt
    table = KinfoTable(ProcTable(VirtualClock()), lambda: lwkt.threads)
    threads: list[Thread] = []
    shown: list[tuple[str, str]] = []
    after: list[str] = []
    way = case(kind, lwkt, lambda: threads[0])
    ready = False

    def look() -> None:
        shown.extend((k.wmesg, k.state) for k in table.all() if k.comm == "waiter")

    async def waiter() -> None:
        while not ready:
            await cpu_pause()
        look()
        await way.wait()
        after.append(_thread.curthread.wmesg)

    async def holder() -> None:
        nonlocal ready
        await way.hold()
        ready = True
        for _ in range(60):
            await cpu_pause()
        look()
        way.release()

    any_driver.create(holder, cpu=0, name="holder")
    threads.append(any_driver.create(waiter, cpu=1, name="waiter"))
    await any_driver.run()
    assert shown == [("", "R"), (way.wmesg, way.state)]
    assert after == [""]


async def test_ps_shows_who_waits_for_all_ipis(any_driver: Driver) -> None:
    """What if a thread waits until every CPU has served its IPIs and one of them is busy?"""
    lwkt = any_driver.lwkt
    shown: list[tuple[str, str]] = []
    table = KinfoTable(ProcTable(VirtualClock()), lambda: lwkt.threads)

    async def busy() -> None:
        _thread.crit_enter()
        for _ in range(60):
            await cpu_pause()
        shown.extend((k.wmesg, k.state) for k in table.all() if k.comm == "waiter")
        _thread.crit_exit()

    async def waiter() -> None:
        await cpu_pause()
        await lwkt_synchronize_ipiqs("allipis")
        shown.append((_thread.curthread.wmesg, _thread.curthread.state))

    any_driver.create(busy, cpu=1, name="busy")
    any_driver.create(waiter, cpu=0, name="waiter")
    await any_driver.run()
    assert shown == [("allipis", "S"), ("", "R")]
