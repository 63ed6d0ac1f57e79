"""Serializing tokens: modes, order, suspension, contention, torture."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from dfuser.libkern.errno import Panic
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.block import Block, run_blocking
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.thread import TDPRI, cpu_pause, lwkt_deschedule_self, lwkt_yield, switch
from dfuser.lwkt.token import (
    LWKT_MAXTOKENS,
    TOK_EXCLREQ,
    WELL_KNOWN,
    Token,
    lwkt_token_swap,
)

from .conftest import Driver


def run(lwkt: Lwkt, *bodies: Callable[[], Any], cpus: int = 1) -> None:
    """Run each body as a thread on its own CPU (round the CPUs) until all is idle."""
    for number, body in enumerate(bodies):
        lwkt.create(body, cpu=number % cpus, name=body.__name__)
    lwkt.run_until_idle()


async def test_uncontended_token_costs_no_switch(any_driver: Any) -> None:
    """What if nobody else wants the token: is it taken and given back without a single switch?"""
    tok = Token(any_driver.lwkt, "t")
    switches: list[int] = []

    async def body() -> None:
        before = any_driver.lwkt.statistics().switches
        for _ in range(100):
            async with tok:
                assert tok.held_excl
            await tok.gettoken_shared()
            assert tok.held
            assert not tok.held_excl
            tok.reltoken()
        switches.append(any_driver.lwkt.statistics().switches - before)

    any_driver.create(body)
    await any_driver.run()
    assert switches == [0]
    assert tok.count == 0
    assert tok.statistics().collisions == 0


async def test_token_is_free_while_its_holder_sleeps(any_driver: Any) -> None:
    """What if the holder sleeps:

    Can another thread take the token, and does the holder get it back?
    """
    lwkt = any_driver.lwkt
    tok = Token(lwkt, "t")
    log: list[str] = []

    async def holder() -> None:
        async with tok:
            log.append("in")
            lwkt_deschedule_self()
            await switch()
            assert tok.held_excl
            log.append("back")

    td = any_driver.create(holder, cpu=0)

    async def other() -> None:
        async with tok:
            log.append("other")
            await lwkt_yield()
            assert tok.held_excl
        lwkt.schedule(td)

    await any_driver.run()
    any_driver.create(other, cpu=1)
    await any_driver.run()
    assert log == ["in", "other", "back"]
    assert tok.count == 0


def test_recursion_shared_and_exclusive(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if the exclusive holder takes the token again, exclusively and shared:

    Does the count fit?
    """
    lwkt = new_lwkt(1)
    tok = Token(lwkt, "t")

    async def body() -> None:
        await tok.gettoken()
        await tok.gettoken()
        await tok.gettoken_shared()
        assert tok.statistics().references == 3
        await lwkt_yield()
        assert tok.statistics().references == 3
        assert tok.held_excl
        assert tok.cnttoken(_thread.curthread) == 3
        for _ in range(3):
            tok.reltoken()
        assert tok.count == 0

    run(lwkt, body)


def test_many_hold_it_shared_nobody_exclusively(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if readers hold the token: do more readers get it, and does a writer have to wait?"""
    lwkt = new_lwkt(3)
    tok = Token(lwkt, "t")
    log: list[str] = []

    async def reader() -> None:
        await tok.gettoken_shared()
        log.append("r+")
        for _ in range(5):
            await cpu_pause()
        log.append("r-")
        tok.reltoken()

    async def writer() -> None:
        await cpu_pause()
        assert not tok.trytoken()
        assert tok.trytoken_shared()
        tok.reltoken()
        await tok.gettoken()
        log.append("w")
        tok.reltoken()

    run(lwkt, reader, reader, writer, cpus=3)
    assert log == ["r+", "r+", "r-", "r-", "w"]
    assert tok.collisions > 0


def test_exclreq_holds_new_readers_back(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a writer waits: are new readers with this one token held back, others let through?"""
    lwkt = new_lwkt(4)
    tok = Token(lwkt, "t")
    extra = Token(lwkt, "x")
    log: list[str] = []

    async def reader() -> None:
        await tok.gettoken_shared()
        for _ in range(6):
            await cpu_pause()
        tok.reltoken()

    async def writer() -> None:
        await cpu_pause()
        await tok.gettoken()
        log.append("writer")
        tok.reltoken()

    async def late() -> None:
        await cpu_pause()
        await cpu_pause()
        assert tok.count & TOK_EXCLREQ
        assert tok.trytoken_shared()
        tok.reltoken()
        await tok.gettoken_shared()
        log.append("late reader")
        tok.reltoken()

    async def two() -> None:
        await cpu_pause()
        await cpu_pause()
        await extra.gettoken()
        await tok.gettoken_shared()
        log.append("reader with two")
        tok.reltoken()
        extra.reltoken()

    run(lwkt, reader, writer, late, two, cpus=4)
    assert log == ["reader with two", "writer", "late reader"]


def test_wmesg_names_the_token_while_contended(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a thread waits for a token:

    Does ps show its name, and nothing any more afterwards?
    """
    lwkt = new_lwkt(2)
    tok = Token(lwkt, "vnode")
    seen: list[str] = []

    async def waiter() -> None:
        await cpu_pause()
        async with tok:
            seen.append(_thread.curthread.wmesg)

    async def holder() -> None:
        async with tok:
            for _ in range(4):
                await cpu_pause()
                seen.append(td.wmesg)

    lwkt.create(holder, cpu=0)
    td = lwkt.create(waiter, cpu=1)
    lwkt.run_until_idle()
    assert "vnode" in seen[:4]
    assert seen[-1] == ""


def test_release_kicks_exactly_the_stalled_cpus(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if all threads of a CPU wait for a token:

    Does that CPU rest until the token is released?
    """
    lwkt = new_lwkt(3)
    tok = Token(lwkt, "t")
    turns = 0

    async def holder() -> None:
        nonlocal turns
        async with tok:
            for _ in range(100):
                turns += 1
                await cpu_pause()

    async def waiter() -> None:
        await cpu_pause()
        async with tok:
            await cpu_pause()

    lwkt.create(holder, cpu=0)
    lwkt.create(waiter, cpu=1)
    steps = lwkt.run_until_idle()
    assert turns == 100
    assert lwkt.cpus[1].token_stalls == 1
    assert lwkt.cpus[2].switches == 0
    assert steps < 115


def test_preempted_thread_keeps_its_token(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if an interrupt thread wants a token of the thread it preempted: does it give way?"""
    lwkt = new_lwkt(1)
    tok = Token(lwkt, "t")
    log: list[str] = []

    async def intr() -> None:
        log.append("intr")
        async with tok:
            log.append("intr has it")

    async def body() -> None:
        async with tok:
            lwkt.create(intr, pri=TDPRI.INT_HIGH, interrupt=True)
            assert tok.held_excl
            log.append("body goes on")

    run(lwkt, body)
    assert log == ["intr", "body goes on", "intr has it"]
    assert lwkt.statistics().preempt_hit == 1
    assert tok.collisions > 0


def test_swap_allows_release_out_of_order(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if the two last tokens are swapped:

    Can the first be released first, and LIFO only so?
    """
    lwkt = new_lwkt(1)
    a, b = Token(lwkt, "a"), Token(lwkt, "b")

    async def body() -> None:
        await a.gettoken()
        await b.gettoken()
        lwkt_token_swap()
        a.reltoken()
        assert b.held_excl
        assert a.count == 0
        await lwkt_yield()
        assert b.held_excl
        b.reltoken()

    run(lwkt, body)


def panics(lwkt: Lwkt, body: Callable[[], Any], match: str) -> None:
    lwkt.create(body)
    with pytest.raises(Panic, match=match):
        lwkt.run_until_idle()


def test_misuse_panics(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if tokens are released out of order, taken 33 times, or upgraded:

    Does each one panic?
    """

    def machine() -> tuple[Lwkt, Token, Token]:
        lwkt = new_lwkt(1)
        return lwkt, Token(lwkt, "a"), Token(lwkt, "b")

    lwkt, a, b = machine()

    async def order() -> None:
        await a.gettoken()
        await b.gettoken()
        a.reltoken()

    panics(lwkt, order, "releases a, its last token is b")
    lwkt, a, b = machine()

    async def overflow() -> None:
        for _ in range(LWKT_MAXTOKENS + 1):
            await a.gettoken()

    panics(lwkt, overflow, "already holds 32 tokens")
    lwkt, a, b = machine()

    async def upgrade() -> None:
        await a.gettoken_shared()
        await a.gettoken()

    panics(lwkt, upgrade, "holds it shared and wants it exclusively")
    lwkt, a, b = machine()

    async def leave() -> None:
        await a.gettoken()

    panics(lwkt, leave, "exits in a critical section or with tokens")


def test_plain_code_blocks_and_is_run_again(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a synchronous core needs a token held elsewhere:

    Does it raise Block and succeed later?
    """
    lwkt = new_lwkt(2)
    tok = Token(lwkt, "t")
    log: list[str] = []

    def core() -> str:
        log.append("try")
        with tok.nowait():
            log.append("in")
        return "done"

    async def holder() -> None:
        async with tok:
            for _ in range(5):
                await cpu_pause()

    async def edge() -> None:
        await cpu_pause()
        with pytest.raises(Block):
            core()
        log.append(await run_blocking(core))

    run(lwkt, holder, edge, cpus=2)
    assert log == ["try", "try", "try", "in", "done"]


def test_killed_waiter_leaves_the_token_clean(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if a thread is ended while it waits for a token: is no reference and no request left?"""
    lwkt = new_lwkt(2)
    tok = Token(lwkt, "t")

    async def holder() -> None:
        async with tok:
            while True:
                await cpu_pause()

    async def waiter() -> None:
        await cpu_pause()
        async with tok:
            pytest.fail("the token cannot be had")

    lwkt.create(holder, cpu=0)
    lwkt.create(waiter, cpu=1)
    for _ in range(6):
        lwkt.cpus[0].run(1)
        lwkt.cpus[1].run(1)
    assert tok.count & TOK_EXCLREQ
    lwkt.shutdown_nowait()
    assert tok.count == 0


def test_pool_and_well_known_tokens(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if objects share the pool: is each mapped to one token always, made only when needed?"""
    lwkt = new_lwkt(1)
    things = [object() for _ in range(50)]
    pool = lwkt.tokens

    async def body() -> None:
        for thing in things:
            tok = await pool.getpooltoken(thing)
            assert tok is pool.token_pool_lookup(thing)
            pool.relpooltoken(thing)
        async with pool.vnode_token, pool.mp_token:
            assert [line.split()[0] for line in pool.db_tok_all()] == [
                f"tok={name}" for name in WELL_KNOWN
            ]
            assert "body" in pool.db_tok_all()[0]

    run(lwkt, body)
    assert 1 < pool.statistics().pool_made <= 50
    assert pool.statistics().collisions == 0


def torture(lwkt: Lwkt, seed: int, rounds: int, nthreads: int = 8) -> dict[str, int]:
    """Threads take random subsets of 8 tokens in any order, spin and sleep under them."""
    seen = start_torture(lwkt, seed, rounds, nthreads)
    lwkt.run_until_idle(rng=random.Random(seed))
    return seen()


def start_torture(
    lwkt: Lwkt, seed: int, rounds: int, nthreads: int = 8
) -> Callable[[], dict[str, int]]:
    """Create the threads of `torture`; returns what tells afterwards what was seen."""
    toks = [Token(lwkt, f"t{i}") for i in range(8)]
    running: dict[Token, Any] = {}
    seen = {"overlap": 0, "rounds": 0, "others": 0}
    entries = [0] * 8

    def enter(mine: list[int], who: int) -> None:
        for i in mine:
            if running.setdefault(toks[i], who) != who:
                seen["overlap"] += 1
            entries[i] += 1

    def leave(mine: list[int], who: int) -> None:
        for i in mine:
            if running.get(toks[i]) == who:
                del running[toks[i]]

    async def worker(who: int) -> None:
        rng = random.Random(seed * 100 + who)
        for _ in range(rounds // nthreads):
            mine = rng.sample(range(8), rng.randint(1, 4))
            for i in mine:
                await toks[i].gettoken()
            enter(mine, who)
            for _ in range(rng.randint(0, 2)):
                await cpu_pause()
                assert all(toks[i].held_excl for i in mine)
            leave(mine, who)
            before = [entries[i] for i in mine]
            await lwkt_yield()
            assert all(toks[i].held_excl for i in mine)
            seen["others"] += before != [entries[i] for i in mine]
            enter(mine, who)
            leave(mine, who)
            for i in reversed(mine):
                toks[i].reltoken()
            seen["rounds"] += 1

    for who in range(nthreads):
        lwkt.create(worker, who, cpu=who % len(lwkt.cpus))

    def result() -> dict[str, int]:
        seen["collisions"] = sum(tok.collisions for tok in toks)
        seen["left"] = sum(tok.count for tok in toks)
        return seen

    return result


def check_torture(seen: dict[str, int], rounds: int) -> None:
    assert seen["rounds"] == rounds
    assert seen["overlap"] == 0
    assert seen["left"] == 0
    assert seen["collisions"] > 0
    assert seen["others"] > 0


def test_unordered_torture(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if threads take 8 tokens in any order and sleep under them: no deadlock, no overlap?"""
    check_torture(torture(new_lwkt(4), 1, 8_000), 8_000)


@pytest.mark.slow
def test_unordered_torture_long(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if that goes on for 100,000 rounds?"""
    check_torture(torture(new_lwkt(4), 2, 100_000), 100_000)


@pytest.mark.slow
async def test_unordered_torture_long_on_tasks(new_host: Any) -> None:
    """What if trio tasks do 100,000 rounds, their CPUs in the order trio happens to wake them?"""
    async with new_host() as lwkt:
        seen = start_torture(lwkt, 3, 100_000)
        await Driver("task", lwkt).run()
        assert not lwkt.threads
    check_torture(seen(), 100_000)


async def test_torture_on_both_drivers(any_driver: Any) -> None:
    """What if trio tasks do it: are two elected holders never seen, and does everybody finish?"""
    lwkt = any_driver.lwkt
    toks = [Token(lwkt, f"t{i}") for i in range(8)]
    inside: dict[int, int] = {}
    done = 0

    async def worker(who: int) -> None:
        nonlocal done
        rng = random.Random(who)
        for _ in range(60):
            mine = rng.sample(range(8), rng.randint(1, 4))
            for i in mine:
                await toks[i].gettoken()
            for i in mine:
                assert inside.setdefault(i, who) == who
            await cpu_pause()
            for i in mine:
                assert inside.pop(i) == who
            await lwkt_yield()
            for i in reversed(mine):
                toks[i].reltoken()
        done += 1

    for who in range(8):
        any_driver.create(worker, who, cpu=who % 4)
    await any_driver.run()
    assert done == 8
    assert sum(tok.count for tok in toks) == 0
    assert sum(tok.collisions for tok in toks) > 0


def test_collisions_agree_with_an_outside_observer(new_lwkt: Callable[..., Lwkt]) -> None:
    """What if somebody counts refused tries and stalled elections:

    Is that the collision counter?
    """
    lwkt = new_lwkt(2)
    tok = Token(lwkt, "t")
    refused = 0

    async def holder() -> None:
        async with tok:
            for _ in range(8):
                await cpu_pause()

    async def trier() -> None:
        nonlocal refused
        await cpu_pause()
        for _ in range(3):
            refused += not tok.trytoken()
        refused += 1
        async with tok:
            pass

    run(lwkt, holder, trier, cpus=2)
    assert tok.collisions == refused + lwkt.statistics().token_stalls == 5
