"""Message ports: each message exactly once, in order, and free of switches where it can be."""

from __future__ import annotations

import gc
import random
from collections import Counter, deque
from typing import Any

import pytest

from dfuser.libkern.errno import EASYNC, EINTR, EIO, ENOENT, ERESTART, Panic
from dfuser.libkern.param import PCATCH
from dfuser.lwkt import thread as thread_mod
from dfuser.lwkt.machine import Lwkt
from dfuser.lwkt.msgapi import (
    lwkt_abortmsg,
    lwkt_beginmsg,
    lwkt_domsg,
    lwkt_dropmsg,
    lwkt_forwardmsg,
    lwkt_getport,
    lwkt_initmsg,
    lwkt_initmsg_abortable,
    lwkt_initmsg_rp,
    lwkt_initport,
    lwkt_reinitmsg,
    lwkt_replymsg,
    lwkt_sendmsg,
    lwkt_setmsg_receipt,
    lwkt_waitmsg,
    lwkt_waitport,
)
from dfuser.lwkt.msgkinds import (
    initport_panic,
    initport_putonly,
    initport_replyonly,
    initport_replyonly_null,
    initport_serialize,
    initport_spin,
    initport_thread,
    thread_port,
)
from dfuser.lwkt.msgport import (
    MSGF,
    LwktMsg,
    Port,
    PortSet,
    ports_of,
)
from dfuser.lwkt.msgthread import THREAD_OPS, thread_putport
from dfuser.lwkt.serialize import LwktSerialize
from dfuser.lwkt.synch import abort_sleep, tsleep, wakeup
from dfuser.lwkt.thread import Thread, cpu_pause, lwkt_yield

from .conftest import Driver


def me() -> Thread:
    return thread_mod.curthread


# --- single operations -----------------------------------------------------------------------


@pytest.mark.parametrize("cpu", [0, 1])
async def test_domsg_and_async_round_trip(any_driver: Driver, cpu: int) -> None:
    """What if a server on the same or another CPU answers synchronous and queued messages?"""
    log: list[Any] = []

    async def server() -> None:
        port = thread_port(me())
        for _ in range(3):
            msg = await port.waitport()
            assert msg is not None
            assert not msg.flags & (MSGF.DONE | MSGF.QUEUED | MSGF.INTRANSIT)
            msg.result = msg.cmd * 2
            msg.replymsg(msg.cmd)

    async def client(target: Port) -> None:
        mine = thread_port(me())
        first = lwkt_initmsg(1)
        assert await target.domsg(first) == 1
        assert first.flags & (MSGF.DONE | MSGF.SYNC | MSGF.QUEUED) == MSGF.DONE | MSGF.SYNC
        log.append(first.result)
        second, third = LwktMsg(mine, cmd=2), LwktMsg(mine, cmd=3)
        lwkt_sendmsg(target, second)
        lwkt_sendmsg(target, third)
        assert not second.done
        assert await third.waitmsg() == 3
        assert await mine.waitport() is second
        assert second.flags & MSGF.REPLY
        assert mine.getport() is None
        log.append((second.result, third.result))

    td = any_driver.create(server, cpu=cpu)
    any_driver.create(client, thread_port(td), cpu=0)
    await any_driver.run()
    assert log == [2, (4, 6)]


def test_synchronous_domsg_costs_no_switch(lwkt: Lwkt) -> None:
    """What if the port serves the message in the caller: does anything switch or queue?"""
    served: list[int] = []

    def put(port: Port, msg: LwktMsg) -> int:
        served.append(me().tid)
        msg.result = 42
        return EIO if msg.cmd else 0

    port = initport_putonly(put, "sync", lwkt=lwkt)

    async def client() -> None:
        msg = LwktMsg(thread_port(me()))
        before = (lwkt.statistics().switches, me().switches, lwkt.statistics().interrupts)
        for _ in range(1000):
            assert await port.domsg(msg) == 0
        msg.cmd = 1
        assert await lwkt_domsg(port, msg) == EIO
        after = (lwkt.statistics().switches, me().switches, lwkt.statistics().interrupts)
        assert before == after
        assert msg.result == 42
        assert msg.error == EIO
        assert set(served) == {me().tid}
        # An asynchronous send to it is answered at once, by a queued reply.
        port.sendmsg(msg)
        assert thread_port(me()).getport() is msg
        assert msg.error == EIO

    lwkt.create(client, cpu=1)
    lwkt.run_until_idle()
    assert len(served) == 1002
    stats = port.statistics()
    assert (stats.puts, stats.syncs) == (1002, 1002)


def test_putport_may_choose(lwkt: Lwkt) -> None:
    """What if a port serves small requests in the caller and queues the others?"""

    def put(port: Port, msg: LwktMsg) -> int:
        return 0 if msg.cmd < 10 else thread_putport(port, msg)

    order: list[int] = []

    async def server(port: Port) -> None:
        while True:
            msg = await port.waitport()
            assert msg is not None
            order.append(msg.cmd)
            lwkt_replymsg(msg, 5)

    async def idle() -> None: ...

    td = lwkt.create(idle, cpu=2, start=False)
    td.func = None
    port = initport_thread(td, "mixed", THREAD_OPS._replace(putport=put))

    async def client() -> None:
        assert await port.domsg(lwkt_initmsg_rp(thread_port(me()), 1)) == 0
        server_td = lwkt.create(server, port, cpu=2)
        port.td = server_td
        assert await port.domsg(lwkt_initmsg_rp(thread_port(me()), 10)) == 5

    lwkt.create(client, cpu=0)
    lwkt.run_until_idle()
    assert order == [10]
    assert port.statistics().syncs == 1


def test_priority_class_goes_first(lwkt: Lwkt) -> None:
    """What if priority messages arrive behind others?"""
    got: list[int] = []

    async def server() -> None:
        port = thread_port(me())
        await tsleep("go", 0, "test")
        assert port.peek() is not None
        while (msg := port.getport()) is not None:
            got.append(msg.cmd)

    td = lwkt.create(server, cpu=0)
    lwkt.run_until_idle()

    async def client() -> None:
        sink = initport_replyonly_null()
        for cmd in range(6):
            flags = MSGF.PRIORITY if cmd in (2, 4) else 0
            thread_port(td).sendmsg(LwktMsg(sink, flags, cmd))
        wakeup("go")

    lwkt.create(client, cpu=3)
    lwkt.run_until_idle()
    assert got == [2, 4, 0, 1, 3, 5]


def test_forward_drop_receipt(lwkt: Lwkt) -> None:
    """What if a message is passed on, another taken back, and a receipt is asked for?"""
    receipts: list[str] = []
    sink: list[LwktMsg] = []

    async def second() -> None:
        msg = await thread_port(me()).waitport()
        assert msg is not None
        msg.replymsg(7)

    td2 = lwkt.create(second, cpu=1)

    async def first() -> None:
        port = thread_port(me())
        msg = await port.waitport()
        assert msg is not None
        assert lwkt_forwardmsg(thread_port(td2), msg) == EASYNC
        await tsleep("drop", 0, "test")
        dropable = port.peek()
        assert dropable is not None
        assert dropable.dropmsg() == 0
        assert dropable.done
        assert dropable.dropmsg() == ENOENT
        assert port.getport() is None

    td1 = lwkt.create(first, cpu=2)
    lwkt.run_until_idle()

    async def client() -> None:
        msg = LwktMsg(thread_port(me()))
        msg.setmsg_receipt(lambda m, port: receipts.append(port.name))
        assert await thread_port(td1).domsg(msg) == 7
        assert receipts == ["first"], "given once, not again when it was passed on"
        reply = initport_replyonly(lambda port, m: sink.append(m))
        thread_port(td1).sendmsg(LwktMsg(reply, MSGF.DROPABLE))
        wakeup("drop")

    lwkt.create(client, cpu=0)
    lwkt.run_until_idle()
    assert sink == []
    assert thread_port(td1).statistics().drops == 1


def test_abort_may_win_or_lose(lwkt: Lwkt) -> None:
    """What if a waiting sender gets a signal: before, and after the server has replied?"""
    held: list[LwktMsg] = []
    results: list[int] = []
    aborts: list[LwktMsg] = []

    async def server() -> None:
        while True:
            msg = await thread_port(me()).waitport()
            assert msg is not None
            held.append(msg)

    td = lwkt.create(server, cpu=1)

    async def client() -> None:
        msg = LwktMsg(thread_port(me()))
        msg.initmsg_abortable(aborts.append)
        results.append(await thread_port(td).domsg(msg, PCATCH))
        msg.abortmsg()
        assert len(aborts) <= 1, "aborting what is done does nothing"

    client_td = lwkt.create(client, cpu=0)
    lwkt.run_until_idle()
    assert client_td.wmesg == "waitmsg"
    assert abort_sleep(client_td, ERESTART)
    lwkt.run_until_idle()
    assert len(aborts) == 1
    assert client_td.wmesg == "waitabt"
    assert not abort_sleep(client_td, EINTR), "the abort is sent once; the reply is waited for"

    def reply() -> None:
        held.pop().replymsg(EINTR)

    lwkt.cpus[1].interrupt(reply)
    lwkt.run_until_idle()
    assert results == [ERESTART]


@pytest.mark.parametrize("cpu", [0, 1])
@pytest.mark.parametrize("kind", ["thread", "spin"])
def test_synchronous_replies_are_never_queued(lwkt: Lwkt, cpu: int, kind: str) -> None:
    """What if the reply port is looked at between a synchronous reply and its receiver's turn?"""
    queued: list[int] = []
    ports: list[Port] = []

    async def server() -> None:
        while True:
            msg = await thread_port(me()).waitport()
            assert msg is not None
            msg.setmsg_receipt(lambda m, port: queued.append(-1))
            msg.replymsg(0)
            queued.append(ports[0].statistics().queued)

    td = lwkt.create(server, cpu=cpu)

    async def client() -> None:
        mine = thread_port(me()) if kind == "thread" else initport_spin(me())
        ports.append(mine)
        assert await thread_port(td).domsg(LwktMsg(mine)) == 0
        queued.append(mine.statistics().queued)

    lwkt.create(client, cpu=0)
    lwkt.run_until_idle()
    assert queued == [0, 0]


def test_other_traffic_does_not_abort(lwkt: Lwkt) -> None:
    """What if the reply of another message wakes a sender that waits with PCATCH?"""
    aborts: list[LwktMsg] = []
    held: list[LwktMsg] = []
    done: list[int] = []

    async def server() -> None:
        while True:
            msg = await thread_port(me()).waitport()
            assert msg is not None
            held.append(msg)

    td = lwkt.create(server, cpu=1)

    async def client() -> None:
        mine = thread_port(me())
        first, second = LwktMsg(mine, cmd=1), LwktMsg(mine, cmd=2)
        second.initmsg_abortable(aborts.append)
        thread_port(td).sendmsg(first)
        done.append(await thread_port(td).domsg(second, PCATCH))
        assert mine.getport() is first

    client_td = lwkt.create(client, cpu=0)
    lwkt.run_until_idle()
    for error in (3, 4):
        lwkt.cpus[1].interrupt(lambda error=error: held.pop(0).replymsg(error))
        lwkt.run_until_idle()
        if error == 3:
            assert client_td.wmesg == "waitmsg"
    assert aborts == []
    assert done == [4]


@pytest.mark.parametrize("kind", ["thread", "spin", "serialize"])
async def test_waitport_ends_with_a_signal(any_driver: Driver, kind: str) -> None:
    """What if a signal comes while a thread waits for a message?"""
    results: list[Any] = []
    slz = LwktSerialize("slz")

    async def waiter() -> None:
        if kind == "thread":
            port = thread_port(me())
        elif kind == "spin":
            port = initport_spin(me())
        else:
            port = initport_serialize(slz)
            await slz.enter()
        results.append(await port.waitport(PCATCH))
        if kind == "serialize":
            slz.exit()

    td = any_driver.create(waiter, cpu=1)
    await any_driver.run()
    assert td.wmesg == "waitport"
    any_driver.lwkt.cpus[0].interrupt(lambda: abort_sleep(td, EINTR) and None)
    await any_driver.run()
    assert results == [None]


async def test_spin_port_with_many_receivers(any_driver: Driver) -> None:
    """What if threads on all CPUs receive from one port?"""
    lwkt = any_driver.lwkt
    port = initport_spin(name="pool", lwkt=lwkt)
    served: Counter[int] = Counter()
    answers: list[int] = []

    async def server(n: int) -> None:
        while (msg := await port.waitport()) is not None and msg.cmd >= 0:
            served[n] += 1
            await lwkt_yield()
            msg.replymsg(msg.cmd)
        assert msg is not None
        msg.replymsg(0)

    async def client(cpu: int) -> None:
        mine = initport_spin(me(), name=f"reply{cpu}")
        for cmd in range(10):
            answers.append(await port.domsg(LwktMsg(mine, cmd=cmd)))
        msgs = [LwktMsg(mine, cmd=cmd) for cmd in range(10)]
        for msg in msgs:
            port.sendmsg(msg)
        for msg in reversed(msgs):
            answers.append(await msg.waitmsg())
        assert mine.getport() is None

    for cpu in range(4):
        any_driver.create(server, cpu, cpu=cpu)
    for cpu in range(4):
        any_driver.create(client, cpu, cpu=cpu)
    await any_driver.run()
    assert sorted(answers) == sorted(list(range(10)) * 8)
    assert sum(served.values()) == 80
    assert len(served) > 1

    async def stop() -> None:
        for _ in range(4):
            port.sendmsg(LwktMsg(initport_replyonly_null(), cmd=-1))

    any_driver.create(stop, cpu=0)
    await any_driver.run()
    assert port.statistics().queued == 0


async def test_serializer_port(any_driver: Driver) -> None:
    """What if both ends hold the serializer, and what if one does not?"""
    slz = LwktSerialize("slz")
    port = initport_serialize(slz, "slzport", lwkt=any_driver.lwkt)
    reply = initport_serialize(slz, "slzreply")
    results: list[int] = []

    async def server() -> None:
        await slz.enter()
        for _ in range(2):
            msg = await port.waitport()
            assert msg is not None
            msg.replymsg(msg.cmd)
        slz.exit()

    async def client() -> None:
        await slz.enter()
        results.append(await port.domsg(LwktMsg(reply, cmd=3)))
        msg = LwktMsg(reply, cmd=4)
        port.sendmsg(msg)
        results.append(await msg.waitmsg())
        slz.exit()
        with pytest.raises(Panic):
            port.sendmsg(LwktMsg(reply))

    any_driver.create(server, cpu=0)
    any_driver.create(client, cpu=0)
    await any_driver.run()
    assert results == [3, 4]


def test_special_ports_refuse(lwkt: Lwkt) -> None:
    """What if a port is used for what its kind does not allow?"""
    null = initport_replyonly_null()
    msg = LwktMsg(null)
    for call in (
        lambda: null.sendmsg(msg),
        null.getport,
        null.waitport,
        lambda: initport_panic().getport(),
        lambda: lwkt_beginmsg(initport_panic(), msg),
        lambda: initport_putonly(lambda p, m: 0).waitport(),
        lambda: LwktMsg(null).waitmsg(),
        lambda: initport_spin().sendmsg_oncpu(LwktMsg(null)),
        lambda: LwktMsg(null).replymsg(0),
    ):
        with pytest.raises(Panic):
            call()


def test_oncpu(lwkt: Lwkt) -> None:
    """What if the sender knows that it is on the port's CPU, and what if it is wrong?"""
    got: list[int] = []

    async def server() -> None:
        port = initport_spin(me(), fixed_cpuid=True)
        me().msgport = port
        while True:
            msg = await port.waitport()
            assert msg is not None
            got.append(msg.cmd)

    td = lwkt.create(server, cpu=1)
    lwkt.run_until_idle()

    async def client() -> None:
        port, here = td.msgport, me().cpu.cpuid
        assert port is not None
        msg = LwktMsg(initport_replyonly_null(), cmd=here)
        if here == 1:
            port.sendmsg_oncpu(msg)
        else:
            with pytest.raises(Panic, match="not the port's CPU"):
                port.sendmsg_oncpu(msg)

    lwkt.create(client, cpu=1)
    lwkt.create(client, cpu=0)
    lwkt.run_until_idle()
    assert got == [1]


def test_reinitmsg_and_initport(lwkt: Lwkt) -> None:
    """What if a returned message is used again with another reply port?"""

    async def user() -> None:
        port = lwkt_initport(me(), "mine")
        assert me().msgport is port
        msg = LwktMsg(port, MSGF.PRIORITY)
        echo = initport_putonly(lambda p, m: 3)
        assert await echo.domsg(msg) == 3
        other = initport_replyonly_null()
        msg.reinitmsg(other)
        assert msg.flags == MSGF.SYNC | MSGF.DONE
        assert (msg.reply_port, msg.error) == (other, 0)
        port.sendmsg(msg)
        with pytest.raises(Panic):
            msg.reinitmsg(other)

    lwkt.create(user, cpu=0)
    lwkt.run_until_idle()


async def test_the_names_of_the_paper(any_driver: Driver) -> None:
    """What if a client and a server are written with the functions of Table II only?"""
    log: list[str] = []

    async def server() -> None:
        port = lwkt_initport(me())
        first = await lwkt_waitport(port)
        assert first is not None
        lwkt_replymsg(first, 1)
        abortable = await lwkt_waitport(port)
        assert abortable is not None
        await tsleep("aborted", 0, "test")
        lwkt_replymsg(abortable, EINTR)
        await tsleep("drop", 0, "test")
        dropable = port.peek()
        assert dropable is not None
        assert lwkt_dropmsg(dropable) == 0
        assert lwkt_getport(port) is None
        log.append("served")

    def abort(msg: LwktMsg) -> None:
        log.append("abort")
        wakeup("aborted")

    async def client() -> None:
        assert td.msgport is not None
        mine = lwkt_initport(me())
        msg = lwkt_initmsg(5)
        lwkt_setmsg_receipt(msg, lambda m, port: log.append("receipt"))
        lwkt_sendmsg(td.msgport, msg)
        assert await lwkt_waitmsg(msg) == 1
        msg = lwkt_initmsg_abortable(mine, abort)
        lwkt_sendmsg(td.msgport, msg)
        await lwkt_yield()
        lwkt_abortmsg(msg)
        assert await lwkt_waitmsg(msg) == EINTR
        lwkt_reinitmsg(msg, initport_replyonly_null())
        msg.flags |= MSGF.DROPABLE
        lwkt_sendmsg(td.msgport, msg)
        wakeup("drop")

    td = any_driver.create(server, cpu=0)
    await any_driver.run()
    any_driver.create(client, cpu=0)
    await any_driver.run()
    assert log == ["receipt", "abort", "served"]


def test_one_announcement_for_many(lwkt: Lwkt) -> None:
    """What if 500 messages go to a busy CPU: does one IPI announce them, in order?"""
    got: list[int] = []

    async def server() -> None:
        while True:
            msg = await thread_port(me()).waitport()
            assert msg is not None
            got.append(msg.cmd)

    td = lwkt.create(server, cpu=1)
    lwkt.run_until_idle()
    sink = initport_replyonly_null()

    async def client() -> None:
        for cmd in range(500):
            thread_port(td).sendmsg(LwktMsg(sink, cmd=cmd))

    before = lwkt.ipiqs.statistics().count
    lwkt.create(client, cpu=0)
    lwkt.cpus[0].run(1)
    stats = thread_port(td).statistics()
    assert (stats.intransit, stats.queued) == (500, 0)
    assert lwkt.ipiqs.statistics().count - before == 1
    lwkt.run_until_idle()
    assert got == list(range(500))
    assert thread_port(td).statistics().remote == 500


def test_ports_are_listed_while_they_exist(lwkt: Lwkt) -> None:
    """What if ports come and go: does the machine list those that exist, up to a limit?"""
    ports = ports_of(lwkt)
    keep = [initport_spin(name=f"p{i}", lwkt=lwkt) for i in range(3)]
    initport_spin(name="gone", lwkt=lwkt)
    gc.collect()
    assert [port.name for port in ports] == ["p0", "p1", "p2"]
    assert len(ports) == 3
    small = PortSet(limit=2)
    for port in keep:
        small.add(port)
    assert (len(small), small.made, small.unlisted) == (2, 3, 1)


# --- the oracle ------------------------------------------------------------------------------


#: What the oracle's threads do, apart from get and reply, which follow.
KINDS = ("send", "domsg", "sync", "forward", "drop", "abort", "aborted", "back")


class OMsg(LwktMsg):
    """A message that knows where the oracle thinks it is."""

    __slots__ = ("key", "num", "original", "owner", "where")

    def __init__(self, port: Port, flags: int, num: int, owner: Sender) -> None:
        super().__init__(port, flags)
        self.num = num
        self.owner = owner
        self.where = "owner"
        self.key: tuple[int, int, int] = (0, 0, 0)
        self.original: OMsg | None = None


class Oracle:
    """What must be true of every message, kept beside the ports."""

    def __init__(self, lwkt: Lwkt, seed: int, limit: int) -> None:
        self.lwkt = lwkt
        self.rng = random.Random(seed)
        self.limit = limit
        self.ops: Counter[str] = Counter()
        self.total = 0
        self.fifo: dict[tuple[int, int, int], deque[int]] = {}
        self.servers: list[Port] = []
        self.sync_port = initport_putonly(self.serve_now, "now", lwkt=lwkt)
        self.made = 0

    def count(self, what: str) -> None:
        self.ops[what] += 1
        self.total += 1

    def more(self) -> bool:
        """Go on: until there were enough operations, and some of every kind.

        The host's order decides which are drawn on trio tasks, so their number alone says little.
        """
        if self.total < self.limit:
            return True
        return not all(self.ops[what] for what in KINDS) and self.total < 100 * self.limit

    def move(self, msg: OMsg, old: str, new: str) -> None:
        assert msg.where == old, f"{msg.num}: {msg.where}, not {old}, on the way to {new}"
        msg.where = new

    def put(self, port: Port, msg: OMsg, old: str) -> None:
        """The message is about to be put: note its place in the order of its class."""
        self.move(msg, old, "sent")
        msg.key = (me().cpu.cpuid, id(port), msg.flags & MSGF.PRIORITY)
        self.fifo.setdefault(msg.key, deque()).append(msg.num)

    def get(self, msg: OMsg) -> None:
        """A server has taken the message: it must be the first of its source and class."""
        self.move(msg, "sent", "server")
        assert self.fifo[msg.key].popleft() == msg.num
        self.count("get")

    def serve_now(self, port: Port, msg: LwktMsg) -> int:
        assert isinstance(msg, OMsg)
        msg.result = msg.num
        return msg.num % 7

    def reply(self, msg: OMsg, error: int) -> None:
        self.move(msg, "server", "replied")
        msg.result = msg.num
        self.count("reply")
        msg.replymsg(error)

    def back(self, msg: OMsg) -> None:
        """The sender has its message back."""
        self.move(msg, "replied", "owner")
        assert msg.result == msg.num
        assert msg.done
        assert not msg.flags & (MSGF.QUEUED | MSGF.INTRANSIT)


class Sender:
    """A thread that sends in every way there is."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.flying: dict[int, OMsg] = {}
        self.pool: list[OMsg] = []

    def fresh(self, port: Port, flags: int) -> OMsg:
        oracle = self.oracle
        if self.pool and oracle.rng.random() < 0.7:
            msg = self.pool.pop()
            msg.reinitmsg(port)
            msg.flags |= flags
        else:
            oracle.made += 1
            msg = OMsg(port, flags, oracle.made, self)
        if flags & MSGF.ABORTABLE:
            msg.initmsg_abortable(self.abort)
        return msg

    def abort(self, msg: LwktMsg) -> None:
        """The abort function: tell the target by a message of its own."""
        assert isinstance(msg, OMsg)
        oracle = self.oracle
        oracle.made += 1
        request = OMsg(NULL, MSGF.PRIORITY, oracle.made, self)
        request.original = msg
        target = msg.target_port
        assert target is not None
        oracle.put(target, request, "owner")
        oracle.count("abort")
        target.sendmsg(request)

    async def main(self) -> None:
        oracle = self.oracle
        rng = oracle.rng
        port = thread_port(me())
        while oracle.more():
            step = rng.random()
            if step < 0.45 and len(self.flying) < 12:
                self.send(port)
            elif step < 0.55:
                await self.call(port)
            elif step < 0.60:
                oracle.count("sync")
                msg = self.fresh(port, 0)
                assert await oracle.sync_port.domsg(msg) == msg.num % 7
                self.pool.append(msg)
            elif step < 0.63:
                for msg in list(self.flying.values()):
                    msg.abortmsg()  # nothing happens to those that are not abortable
            elif step < 0.66:
                await cpu_pause()
            elif step < 0.72 and any(not m.flags & MSGF.DROPABLE for m in self.flying.values()):
                self.reap(await port.waitport())
            elif not self.reap(port.getport()):
                await lwkt_yield()
        while self.flying:
            if not self.reap(port.getport()):
                await lwkt_yield()

    def send(self, port: Port) -> None:
        oracle = self.oracle
        rng = oracle.rng
        flags = rng.choice((0, 0, MSGF.PRIORITY, MSGF.DROPABLE, MSGF.ABORTABLE))
        target = rng.choice(oracle.servers)
        msg = self.fresh(port, flags)
        self.flying[msg.num] = msg
        oracle.put(target, msg, "owner")
        oracle.count("send")
        target.sendmsg(msg)

    async def call(self, port: Port) -> None:
        oracle = self.oracle
        target = oracle.rng.choice(oracle.servers)
        msg = self.fresh(port, oracle.rng.choice((0, MSGF.PRIORITY)))
        oracle.put(target, msg, "owner")
        oracle.count("domsg")
        await target.domsg(msg)
        oracle.back(msg)
        self.pool.append(msg)

    def reap(self, msg: LwktMsg | None) -> bool:
        if msg is None:
            return False
        assert isinstance(msg, OMsg)
        self.oracle.back(msg)
        del self.flying[msg.num]
        self.oracle.count("back")
        self.pool.append(msg)
        return True


NULL = initport_replyonly_null()


async def oracle_server(oracle: Oracle, port: Port) -> None:
    """Take, hold, answer, pass on, drop: at random."""
    rng = oracle.rng
    held: list[OMsg] = []
    while True:
        msg = port.getport()
        if msg is None:
            if held and rng.random() < 0.5:
                await lwkt_yield()
                continue
            for one in held:
                oracle.reply(one, 0)
            held.clear()
            msg = await port.waitport()
        assert isinstance(msg, OMsg)
        oracle.get(msg)
        if msg.original is not None:
            if msg.original in held:
                held.remove(msg.original)
                oracle.reply(msg.original, EINTR)
                oracle.count("aborted")
            oracle.reply(msg, 0)
            continue
        step = rng.random()
        if step < 0.15:
            target = rng.choice(oracle.servers)
            oracle.put(target, msg, "server")
            oracle.count("forward")
            target.forwardmsg(msg)
        elif step < 0.35:
            held.append(msg)
        else:
            oracle.reply(msg, 0)
        if rng.random() < 0.2 and port.td is me():
            drop_one(oracle, port)
        if rng.random() < 0.1:
            await cpu_pause()


def drop_one(oracle: Oracle, port: Port) -> None:
    """Drop the last dropable message on our queue."""
    for msg in reversed(port.msgq):
        assert isinstance(msg, OMsg)
        if msg.flags & MSGF.DROPABLE:
            assert msg.dropmsg() == 0
            oracle.fifo[msg.key].remove(msg.num)
            oracle.move(msg, "sent", "owner")
            oracle.count("drop")
            del msg.owner.flying[msg.num]
            msg.owner.pool.append(msg)
            return


def build(lwkt: Lwkt, seed: int, limit: int, **kw: Any) -> tuple[Oracle, list[Thread]]:
    oracle = Oracle(lwkt, seed, limit)
    pool = initport_spin(name="pool", lwkt=lwkt)
    oracle.servers.append(pool)

    async def own_server() -> None:
        await oracle_server(oracle, thread_port(me()))

    for cpu in range(4):
        td = lwkt.create(own_server, cpu=cpu, **kw)
        oracle.servers.append(thread_port(td))
        lwkt.create(oracle_server, oracle, pool, cpu=cpu, **kw)
    senders = [lwkt.create(Sender(oracle).main, cpu=n % 4, **kw) for n in range(6)]
    return oracle, senders


def check(oracle: Oracle, senders: list[Thread]) -> None:
    assert all(td.state == "Z" for td in senders), "a sender still waits for a reply"
    assert not any(oracle.fifo.values()), "a message was sent and never taken"
    for what in KINDS:
        assert oracle.ops[what] > 0, what
    ops = oracle.ops
    assert ops["get"] == ops["send"] + ops["domsg"] + ops["forward"] + ops["abort"] - ops["drop"]
    assert ops["back"] == ops["send"] - ops["drop"]
    assert ops["reply"] == ops["back"] + ops["domsg"] + ops["abort"]
    stats = [port.statistics() for port in ports_of(oracle.lwkt)]
    servers = [port.statistics() for port in oracle.servers]
    assert sum(s.puts for s in servers) == ops["get"] + ops["drop"]
    assert sum(s.gets for s in servers) == ops["get"]
    assert sum(s.drops for s in stats) == ops["drop"]
    assert oracle.sync_port.statistics().syncs == ops["sync"]
    assert all(s.queued == s.queued_prio == s.intransit == 0 for s in stats)


@pytest.mark.parametrize("seed", range(5))
def test_random_operations_against_an_oracle(lwkt: Lwkt, seed: int) -> None:
    """What if six senders and eight servers on four CPUs do 10,000 random operations?"""
    oracle, senders = build(lwkt, seed, 10_000)
    lwkt.run_until_idle(rng=random.Random(seed))
    check(oracle, senders)


@pytest.mark.slow
def test_a_million_operations_against_an_oracle(lwkt: Lwkt) -> None:
    """What if they do a million?"""
    oracle, senders = build(lwkt, 2004, 1_000_000)
    lwkt.run_until_idle(rng=random.Random(2004), max_steps=50_000_000)
    check(oracle, senders)


async def test_oracle_on_both_drivers(any_driver: Driver) -> None:
    """What if the same happens on trio tasks?"""
    oracle, senders = build(any_driver.lwkt, 1, 4_000, driver=any_driver.kind)
    await any_driver.run()
    check(oracle, senders)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_million_on_both_drivers(any_driver: Driver) -> None:
    """What if a million happen on trio tasks, in trio's own order?"""
    oracle, senders = build(any_driver.lwkt, 7, 1_000_000, driver=any_driver.kind)
    await any_driver.run()
    check(oracle, senders)
