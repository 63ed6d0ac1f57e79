"""LWKT's speed against trio's own primitives, interleaved in one run.

    python -m benchmarks.lwkt [--rounds N] [--json]

Measures, several times in turn so that all suffer alike from whatever else the machine does, and
prints the best of each with its ratio to the named peer:

* a message round trip (domsg to a thread port and back) on both thread drivers, against a request
  and an answer over two trio memory channels of size zero;
* a thread switch on both drivers, against a trio checkpoint;
* a synchronous domsg, served in the caller;
* an uncontended token, taken and released.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from dfuser.hw.clock import HostClock
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.msgkinds import initport_putonly, thread_port
from dfuser.lwkt.msgport import LwktMsg, Port
from dfuser.lwkt.thread import lwkt_yield
from dfuser.lwkt.token import Token

#: What each measurement is compared with, and the goal of the ratio.
GOALS = {
    "roundtrip task": ("trio channels", 0.8),
    "roundtrip coro": ("trio channels", 0.1),
    "switch task": ("trio checkpoint", None),
    "switch coro": ("trio checkpoint", None),
    "domsg sync": ("trio channels", None),
    "token": ("trio channels", None),
}


async def with_machine(body: Callable[[Lwkt], Awaitable[float]]) -> float:
    """Run ``body`` with a machine of one CPU under trio."""
    clock = HostClock()
    lwkt = Lwkt(1, clock, Ktr(1, clock, entries=16), MsgBuf(), default_driver="task")
    async with trio.open_nursery() as nursery:
        await nursery.start(clock.run)
        await lwkt.start(nursery)
        result = await body(lwkt)
        await lwkt.shutdown()
        nursery.cancel_scope.cancel()
    return result


async def finished(lwkt: Lwkt, driver: str, *bodies: Callable[[], Awaitable[None]]) -> None:
    """Create a thread for each body and wait for the end of the last one."""
    event = trio.Event()
    for body in bodies:
        td = lwkt.create(body, driver=driver)
        td.done = lambda _td: event.set() if len(lwkt.threads) <= 0 else None
    await event.wait()


def roundtrip(driver: str, rounds: int) -> Callable[[], Awaitable[float]]:
    """Seconds a domsg to another thread and back takes."""

    async def body(lwkt: Lwkt) -> float:
        ports: dict[str, Port] = {}
        spent = 0.0

        async def server() -> None:
            port = ports["server"] = thread_port(_thread.curthread)
            for _ in range(rounds):
                msg = await port.waitport()
                assert msg is not None
                msg.replymsg(0)

        async def client() -> None:
            nonlocal spent
            target = ports["server"]
            msg = LwktMsg(thread_port(_thread.curthread))
            begin = time.perf_counter()
            for _ in range(rounds):
                await target.domsg(msg)
            spent = time.perf_counter() - begin

        await finished(lwkt, driver, server, client)
        return spent / rounds

    return lambda: with_machine(body)


def switching(driver: str, rounds: int) -> Callable[[], Awaitable[float]]:
    """Seconds a switch between two threads takes."""

    async def body(lwkt: Lwkt) -> float:
        async def yielder() -> None:
            for _ in range(rounds):
                await lwkt_yield()

        begin = time.perf_counter()
        await finished(lwkt, driver, yielder, yielder)
        return (time.perf_counter() - begin) / (2 * rounds)

    return lambda: with_machine(body)


def plain(rounds: int, make: Callable[[Lwkt], Callable[[], Awaitable[None]]]) -> Any:
    """Seconds one call made inside a coroutine thread takes."""

    async def body(lwkt: Lwkt) -> float:
        spent = 0.0

        async def caller() -> None:
            nonlocal spent
            call = make(lwkt)
            begin = time.perf_counter()
            for _ in range(rounds):
                await call()
            spent = time.perf_counter() - begin

        await finished(lwkt, "coro", caller)
        return spent / rounds

    return lambda: with_machine(body)


def sync_domsg(_lwkt: Lwkt) -> Callable[[], Awaitable[None]]:
    """A domsg to a port that serves messages in the caller."""
    target = initport_putonly(lambda _port, _msg: 0)
    msg = LwktMsg(thread_port(_thread.curthread))

    async def call() -> None:
        await target.domsg(msg)

    return call


def token(lwkt: Lwkt) -> Callable[[], Awaitable[None]]:
    """Take and release a token nobody else wants."""
    tok = Token(lwkt, "bench")

    async def call() -> None:
        await tok.gettoken()
        tok.reltoken()

    return call


async def channels(rounds: int) -> float:
    """The peer: a request and an answer over two memory channels of size zero."""
    to_server, server_in = trio.open_memory_channel[int](0)
    to_client, client_in = trio.open_memory_channel[int](0)

    async def server() -> None:
        for _ in range(rounds):
            await to_client.send(await server_in.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        begin = time.perf_counter()
        for number in range(rounds):
            await to_server.send(number)
            await client_in.receive()
        return (time.perf_counter() - begin) / rounds


async def checkpoints(rounds: int) -> float:
    """The peer: a trio task that lets the others run, with no others there."""
    begin = time.perf_counter()
    for _ in range(rounds):
        await trio.lowlevel.checkpoint()
    return (time.perf_counter() - begin) / rounds


async def measure(rounds: int, repeats: int) -> dict[str, float]:
    """The best of ``repeats`` turns of everything, in seconds."""
    todo: dict[str, Callable[[], Awaitable[float]]] = {
        "trio channels": lambda: channels(rounds),
        "roundtrip task": roundtrip("task", rounds),
        "roundtrip coro": roundtrip("coro", rounds * 10),
        "trio checkpoint": lambda: checkpoints(rounds),
        "switch task": switching("task", rounds),
        "switch coro": switching("coro", rounds * 10),
        "domsg sync": plain(rounds * 10, sync_domsg),
        "token": plain(rounds * 10, token),
    }
    best: dict[str, float] = {}
    for _ in range(repeats):
        for name, run in todo.items():
            best[name] = min(best.get(name, 1e9), await run())
    return best


def report(best: dict[str, float]) -> list[str]:
    """The results as lines."""
    lines = []
    for name, seconds in best.items():
        line = f"{name:<16} {seconds * 1e6:9.2f} us"
        if name in GOALS:
            peer, goal = GOALS[name]
            ratio = seconds / best[peer]
            line += f"  {ratio:6.3f} x {peer}"
            if goal is not None:
                line += f" (goal {goal}: {'met' if ratio <= goal else 'MISSED'})"
        lines.append(line)
    return lines


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    best = trio.run(measure, args.rounds, args.repeats)
    print(json.dumps(best) if args.json else "\n".join(report(best)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
