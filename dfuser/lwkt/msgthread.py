"""The thread port: a message port that one thread owns, and the rule among the six kinds.

Only the owner receives. A put from the owner's CPU queues the message and makes the owner runnable;
from another CPU it is linked on the port and announced by IPI.

This is the path most messages take, twice each, so it is written flat: `domsg` and `waitport` are
generators that yield to the scheduler themselves instead of awaiting `switch` through two more
coroutines, and the operations of the kind are the methods of the class, without a call between. All
that differs from the general path is left to it: a signal that may end the wait, another kind of
reply port, a message of the priority class.

Counterpart: the thread backend of sys/kern/lwkt_msgport.c (lwkt_thread_putport and relatives).
Differs from DragonFly: see `msgport`.
Token and lock order: takes none.
Invariants: the port's queues are touched on its owner's CPU only; ``waiting`` is set exactly
while the owner sleeps on the port, or has been woken and has not run yet.
"""

from __future__ import annotations

import types
from collections.abc import Generator
from typing import Any, Final

from dfuser.libkern.errno import EASYNC, EINTR, ENOENT, KKASSERT, panic
from dfuser.libkern.param import PCATCH

from . import thread as _thread
from .msgport import MSGF, LwktMsg, Port, PortOps
from .synch import lwkt_sleep
from .thread import SWITCH, TDF, Thread, lwkt_deschedule_self, switch

_RETURNED: Final = MSGF.DONE | MSGF.REPLY
_SPECIAL: Final = MSGF.PRIORITY | MSGF.RECEIPT
_DONE: Final = MSGF.DONE
_QUEUED: Final = MSGF.QUEUED
_NOT_QUEUED: Final = ~MSGF.QUEUED
_SYNC: Final = MSGF.SYNC
#: All flags of a message without options that domsg has queued, and that has come back.
_SENT_SYNC: Final = MSGF.SYNC | MSGF.QUEUED
_ANSWERED: Final = MSGF.SYNC | MSGF.DONE | MSGF.REPLY
_RUNQ: Final = TDF.RUNQ


# --- arriving ------------------------------------------------------------------------------


def owner_of(port: Port) -> Thread:
    """The thread a port belongs to; only for ports that have one."""
    td = port.td
    assert td is not None
    return td


def _deliver(port: Port, msg: LwktMsg, reply: bool) -> None:
    """A message or an answer arrives at the owner's CPU."""
    if not reply:
        port.pushmsg(msg)
    elif msg.flags & MSGF.SYNC:
        msg.flags |= MSGF.REPLY | MSGF.DONE
    else:
        port.enqueue_reply(msg)


def _transfer(port: Port, msg: LwktMsg, reply: bool) -> None:
    """Link a message for the owner's CPU; the first one linked rings the bell."""
    msg.flags |= MSGF.INTRANSIT
    src = _thread.curthread.cpu
    linked = port.transit.get(src.cpuid)
    if linked is not None:
        linked.append((msg, reply))
        return
    port.transit[src.cpuid] = [(msg, reply)]
    src.lwkt.ipiqs.post(src, owner_of(port).cpu, _arrive, port, src.cpuid)


def _arrive(port: Port, src: int) -> None:
    """The IPI: take over what CPU ``src`` has linked, or chase an owner that has migrated."""
    td = owner_of(port)
    here = _thread.curthread.cpu
    if td.cpu is not here:
        here.lwkt.ipiqs.post(here, td.cpu, _arrive, port, src)
        return
    for msg, reply in port.transit.pop(src):
        msg.flags &= ~MSGF.INTRANSIT
        port.remote += 1
        _deliver(port, msg, reply)
    if port.waiting:
        td.cpu.lwkt.schedule(td)


# --- the operations ------------------------------------------------------------------------


def thread_putport(port: Port, msg: LwktMsg) -> int:
    """Queue the message for the owner; always EASYNC. Counterpart: lwkt_thread_putport."""
    flags = msg.flags
    if flags & _RETURNED:
        panic("putport: the message is done")
    msg.target_port = port
    td = port.td
    assert td is not None
    cpu = td.cpu
    if cpu is _thread.curthread.cpu:
        if flags & _SPECIAL:
            port.pushmsg(msg)
        else:
            msg.flags = flags | _QUEUED
            port.msgq.append(msg)
        if port.waiting:
            cpu.schedule_local(td)
    else:
        _transfer(port, msg, False)
    return EASYNC


def thread_replyport(port: Port, msg: LwktMsg) -> None:
    """Return the message to the owner. Counterpart: lwkt_thread_replyport."""
    td = port.td
    assert td is not None
    cpu = td.cpu
    if cpu is _thread.curthread.cpu:
        if msg.flags & _SYNC:
            msg.flags |= _RETURNED
        else:
            port.enqueue_reply(msg)
        if port.waiting:
            cpu.schedule_local(td)
    else:
        msg.flags |= MSGF.REPLY
        _transfer(port, msg, True)


def thread_getport(port: Port) -> LwktMsg | None:
    """Counterpart: lwkt_thread_getport."""
    KKASSERT(port.td is _thread.curthread, "lwkt_getport: not the port's owner")
    return port.pollmsg()


@types.coroutine
def thread_waitport(port: Port, flags: int = 0) -> Generator[Any, Any, LwktMsg | None]:
    """Counterpart: lwkt_thread_waitport."""
    td = _thread.curthread
    if port.td is not td:
        panic("lwkt_waitport: not the port's owner")
    if flags and flags & PCATCH:
        return (yield from _waitport_catch(port, flags).__await__())
    while not port.msgq and not port.msgq_prio:
        port.waiting = True
        td.wmesg = "waitport"
        if td.flags == _RUNQ and not td.toks and not td.critcount:
            # lwkt_deschedule_self and switch, written out for a plain coroutine thread.
            cpu = td.cpu
            queue = cpu.runq[td.pri]
            head = queue.popleft()
            if head is not td:  # the tick has rotated the queue
                queue.appendleft(head)
                queue.remove(td)
            elif not queue:
                cpu.runmask ^= 1 << td.pri
            td.flags = 0
            yield SWITCH
        else:
            lwkt_deschedule_self()
            yield from switch()
        td.wmesg = ""
        port.waiting = False
    # pollmsg, written out.
    msg = port.msgq_prio.popleft() if port.msgq_prio else port.msgq.popleft()
    msg.flags &= _NOT_QUEUED
    port.gets += 1
    if port.ktr.mask:
        port.ktr.log(Port.ktr_get, port.name)
    return msg


async def _waitport_catch(port: Port, flags: int) -> LwktMsg | None:
    """`thread_waitport` with PCATCH: None when a signal came and no message."""
    while (msg := port.pollmsg()) is None:
        port.waiting = True
        error = await lwkt_sleep("waitport", flags)
        port.waiting = False
        if error and not (port.msgq or port.msgq_prio):
            return None
    return msg


async def thread_waitmsg(msg: LwktMsg, flags: int) -> int:
    """Counterpart: lwkt_thread_waitmsg."""
    port = msg.reply_port
    assert port is not None
    if port.td is not _thread.curthread:
        panic("lwkt_waitmsg: not the reply port's owner")
    aborted = 0
    while not msg.flags & MSGF.DONE:
        port.waiting = True
        error = await lwkt_sleep("waitabt" if aborted else "waitmsg", 0 if aborted else flags)
        port.waiting = False
        if error:
            aborted = error
            msg.abortmsg()
    return take_reply(port, msg, aborted)


def take_reply(port: Port, msg: LwktMsg, aborted: int) -> int:
    """The message is done: off the reply port with it; EINTR becomes what the signal asked for."""
    if msg.flags & MSGF.QUEUED:
        port.pullmsg(msg)
        port.gets += 1
    if aborted and msg.error == EINTR:
        msg.error = aborted
    return msg.error


def thread_dropmsg(port: Port, msg: LwktMsg) -> int:
    """Counterpart: lwkt_thread_dropmsg, lwkt_spin_dropmsg."""
    KKASSERT(port.td is _thread.curthread, "lwkt_dropmsg: not the port's owner")
    if msg.flags & (MSGF.REPLY | MSGF.QUEUED) != MSGF.QUEUED:
        return ENOENT
    port.pullmsg(msg)
    msg.flags |= MSGF.DONE
    return 0


THREAD_OPS: Final = PortOps(
    kind="thread",
    getport=thread_getport,
    putport=thread_putport,
    waitmsg=thread_waitmsg,
    waitport=thread_waitport,
    replyport=thread_replyport,
    dropmsg=thread_dropmsg,
    putport_oncpu=thread_putport,
)


# --- the class -----------------------------------------------------------------------------


class ThreadPort(Port):
    """A port with `THREAD_OPS`: the operations are its methods."""

    __slots__ = ()

    receiver: Thread

    def __init__(self, name: str, td: Thread) -> None:
        super().__init__(THREAD_OPS, name, td=td)
        self.receiver = td

    getport = thread_getport
    waitport = thread_waitport

    @types.coroutine
    def domsg(self, msg: LwktMsg, flags: int = 0) -> Generator[Any, Any, int]:
        """See `Port.domsg`; putting, waking, sleeping and switching are written out in one."""
        td = _thread.curthread
        cpu = td.cpu
        port = msg.reply_port
        owner = self.receiver
        mflags = msg.flags
        if (
            (mflags != _ANSWERED and mflags != _DONE)
            or flags
            or port is None
            or port.receiver is not td
            or owner.cpu is not cpu
            or self.ktr.mask
        ):
            return (yield from Port.domsg(self, msg, flags).__await__())
        msg.flags = _SENT_SYNC
        msg.target_port = self
        self.puts += 1
        self.msgq.append(msg)
        if self.waiting:
            queue = cpu.runq[td.pri]
            if (
                len(queue) == 1
                and td.flags == _RUNQ
                and not owner.flags
                and owner.pri == td.pri
                and not td.toks
                and not td.critcount
            ):
                # Waking the owner and going to sleep in one: it takes our place, the only one, on
                # the run queue. Both are plain coroutine threads, of this priority.
                queue[0] = owner
                owner.flags = _RUNQ
                td.flags = 0
                port.waiting = True
                td.wmesg = "waitmsg"
                yield SWITCH
                td.wmesg = ""
                port.waiting = False
            else:
                cpu.schedule_local(owner)
        while msg.flags != _ANSWERED and not msg.flags & _DONE:
            port.waiting = True
            td.wmesg = "waitmsg"
            lwkt_deschedule_self()
            yield from switch()
            td.wmesg = ""
            port.waiting = False
        return msg.error
