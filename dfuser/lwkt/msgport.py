"""Message ports: sending work to another thread and getting an answer.

A message is prepared once by its owner and then travels: sent to a *target port*, served by whoever
owns that port, and replied to its *reply port*. Between put and reply it belongs to the target. ::

    msg = LwktMsg(reply_port)              # initmsg
    error = await port.domsg(msg)          # synchronous: wait for the answer here
    port.sendmsg(msg)                      # asynchronous: the answer is queued on reply_port

    msg = await port.waitport()            # the server's side
    msg.replymsg(0)

What a port does with a message is its vector of operations (`PortOps`); `msgkinds` has the kinds.
A ``putport`` that returns anything but EASYNC has served the message in the caller, on the caller's
CPU: nothing is queued, nobody switches, and a `domsg` on it costs a few function calls.

Counterpart: sys/kern/lwkt_msgport.c, sys/sys/msgport.h and msgport2.h (struct lwkt_msg, struct
lwkt_port); tables I and II of the 2004 paper for beginmsg, initmsg_rp and reinitmsg.
Differs from DragonFly: a message for a port of another CPU is linked on the port, in a FIFO for
each source CPU, and one IPI announces all that are linked when it is served; there each is an
IPI of its own. So a sender never fills the ring, and order holds even while the owner migrates.

Token and lock order: takes none, except serializer ports, whose serializer the caller holds.
Invariants:

* a message is in exactly one place: with its owner (DONE), in transit, on one port's queue, or with
  the thread that took it from there; ``MSGF.QUEUED`` and ``MSGF.INTRANSIT`` say which;
* each message put is replied exactly once, or dropped exactly once;
* a reply to a message with MSGF.SYNC is never queued;
* first come, first served for each (source CPU, port, class); the priority class goes first;
* a port's queues are bounded by the messages of its senders: a message is on one queue at most.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs

from dfuser.libkern.errno import EASYNC, KKASSERT, panic
from dfuser.libkern.ktr import KtrInfo, KtrMaster
from dfuser.libkern.sysctl import Sysctl

from . import thread as _thread
from .synch import running
from .thread import TDF

if TYPE_CHECKING:
    from .machine import Lwkt
    from .thread import Thread


class MSGF:
    """Message flags. Counterpart: MSGF_* (sys/msgport.h). Plain ints."""

    DONE: Final = 0x0001
    """Complete: the message is its owner's."""
    REPLY: Final = 0x0002
    """An asynchronous message has been returned."""
    QUEUED: Final = 0x0004
    """On a port's queue."""
    SYNC: Final = 0x0008
    """Sent by domsg: the reply is not queued."""
    INTRANSIT: Final = 0x0010
    """On its way to another CPU."""
    WAITING: Final = 0x0020
    """Somebody sleeps on the SYNC message itself."""
    DROPABLE: Final = 0x0040
    """May be dropped from the target's queue."""
    ABORTABLE: Final = 0x0080
    """Has an abort function."""
    PRIORITY: Final = 0x0100
    """Goes before messages without it."""
    RECEIPT: Final = 0x0200
    """Its receipt function is called when it has been queued."""
    USER0: Final = 0x00010000
    USER1: Final = 0x00020000
    USER2: Final = 0x00040000
    USER3: Final = 0x00080000


MSG_CMD_CDEV: Final = 0x00010000
MSG_CMD_VFS: Final = 0x00020000
MSG_CMD_SYSCALL: Final = 0x00030000
MSG_SUBCMD_MASK: Final = 0x0000FFFF

_RUNQ: Final = TDF.RUNQ
_SYNC: Final = MSGF.SYNC
_ANSWERED: Final = MSGF.SYNC | MSGF.DONE | MSGF.REPLY

#: Flags that a message that is with its target has not; the owner's has DONE of them.
_NOT_WITH_TARGET: Final = MSGF.DONE | MSGF.QUEUED | MSGF.INTRANSIT

#: What is left of a message's flags when it is sent.
_SENT: Final = ~(MSGF.REPLY | MSGF.DONE)

#: Ports a machine lists; more work, but are not listed.
MAX_LISTED_PORTS: Final = 16384


class LwktMsg:
    """A message; subclasses add what it carries. Counterpart: struct lwkt_msg (sys/msgport.h).

    Args:
        reply_port: where the answer goes; a port of the sender's thread for `Port.domsg`.
        flags: MSGF.PRIORITY, MSGF.DROPABLE ...
        cmd: what it asks for, as the receiver understands it.

    ``error`` and ``result`` are the answer; ``result`` stands for the union of result words.
    """

    __slots__ = (
        "abortfn",
        "cmd",
        "error",
        "flags",
        "receiptfn",
        "reply_port",
        "result",
        "target_port",
    )

    def __init__(self, reply_port: Port | None, flags: int = 0, cmd: int = 0) -> None:
        self.reply_port = reply_port
        self.target_port: Port | None = None
        self.flags = MSGF.DONE | flags
        self.cmd = cmd
        self.error = 0
        self.result: Any = None
        self.abortfn: Callable[[LwktMsg], None] | None = None
        self.receiptfn: Callable[[LwktMsg, Port], None] | None = None

    def initmsg_abortable(self, abortfn: Callable[[LwktMsg], None]) -> None:
        """Make it abortable. ``abortfn(msg)`` asks the target to give up; it never suspends.

        Counterpart: lwkt_initmsg_abortable.
        """
        self.flags |= MSGF.ABORTABLE
        self.abortfn = abortfn

    def setmsg_receipt(self, receiptfn: Callable[[LwktMsg, Port], None]) -> None:
        """Have ``receiptfn(msg, port)`` called once, when the next put has queued the message.

        Counterpart: lwkt_setmsg_receipt.
        """
        self.flags |= MSGF.RECEIPT
        self.receiptfn = receiptfn

    def reinitmsg(self, reply_port: Port) -> None:
        """Make a returned message ready to be sent again, with another reply port.

        All flags are cleared but SYNC, which stays as it was, and DONE, which is set.
        Counterpart: lwkt_reinitmsg (2004).
        """
        if self.flags & _NOT_WITH_TARGET != MSGF.DONE:
            panic("lwkt_reinitmsg: the message is not its owner's")
        self.flags = self.flags & MSGF.SYNC | MSGF.DONE
        self.reply_port = reply_port
        self.error = 0

    def replymsg(self, error: int) -> None:
        """Return the message to its sender. Never suspends. Counterpart: lwkt_replymsg."""
        port = self.reply_port
        assert port is not None
        td = port.receiver
        cur = _thread.curthread
        if self.flags == _SYNC and td is not None and td.cpu is cur.cpu and not port.ktr.mask:
            # thread_replyport, written out for the answer to a plain domsg of the same CPU.
            self.flags = _ANSWERED
            self.error = error
            port.replies += 1
            if port.waiting:
                cpu = td.cpu
                if (
                    not td.flags
                    and cur.flags == _RUNQ
                    and cur.pri == td.pri
                    and cpu.lwkt.ticking
                    and not cpu.upri_used
                ):
                    # schedule_local, written out for two plain threads of one priority.
                    cpu.runq[td.pri].append(td)
                    td.flags = _RUNQ
                else:
                    cpu.schedule_local(td)
            return
        if self.flags & _NOT_WITH_TARGET:
            panic("lwkt_replymsg: the message is not with its target")
        self.error = error
        port.replies += 1
        ktr = port.ktr
        if ktr.mask:
            ktr.log(Port.ktr_reply, port.name, error)
        port.ops.replyport(port, self)

    def waitmsg(self, flags: int = 0) -> Awaitable[int]:
        """``await`` the reply of this very message, and take it off the reply port.

        Args:
            flags: PCATCH: a signal sends an abort (once); the reply is waited for all the same.

        Returns:
            The error of the reply.  Counterpart: lwkt_waitmsg.
        """
        if self.flags & MSGF.DROPABLE:
            panic("lwkt_waitmsg: a dropable message")
        port = self.reply_port
        assert port is not None
        return port.ops.waitmsg(self, flags)

    def abortmsg(self) -> None:
        """Ask that the message be given up. It may have been replied meanwhile: then nothing.

        The reply comes in any case. Counterpart: lwkt_abortmsg.
        """
        if self.flags & MSGF.ABORTABLE and not self.flags & (MSGF.DONE | MSGF.REPLY):
            assert self.abortfn is not None
            self.abortfn(self)

    def dropmsg(self) -> int:
        """Take it back from its target port before it is served; by the port's owner only.

        Returns:
            0, and the message is done and never replied; ENOENT when it is not queued there.
            Counterpart: lwkt_dropmsg.
        """
        KKASSERT(self.flags & MSGF.DROPABLE, "lwkt_dropmsg: not a dropable message")
        port = self.target_port
        assert port is not None
        error = port.ops.dropmsg(port, self)
        if not error:
            port.drops += 1
        return error

    @property
    def done(self) -> bool:
        """Whether it has come back (or was never sent)."""
        return bool(self.flags & MSGF.DONE)


class PortOps(NamedTuple):
    """What a kind of port does; ``ops._replace(putport=...)`` makes a special one.

    Counterpart: the mp_* function pointers of struct lwkt_port.
    """

    kind: str
    getport: Callable[[Port], LwktMsg | None]
    putport: Callable[[Port, LwktMsg], int]
    waitmsg: Callable[[LwktMsg, int], Awaitable[int]]
    waitport: Callable[[Port, int], Awaitable[LwktMsg | None]]
    replyport: Callable[[Port, LwktMsg], None]
    dropmsg: Callable[[Port, LwktMsg], int]
    putport_oncpu: Callable[[Port, LwktMsg], int]


@attrs.frozen
class PortStatistics:
    """What `Port.statistics` returns.

    Attributes:
        name, kind, owner, cpuid: which port it is; cpuid -1 when it has no owner.
        queued, queued_prio: messages on its queues now.
        intransit: messages linked for it by other CPUs now.
        waiting: whether somebody sleeps on it.
        puts, gets, replies, drops: calls since it was made; replies as a reply port.
        remote: puts and replies that came from other CPUs.
        syncs: puts that were served in the caller.
    """

    name: str
    kind: str
    owner: str
    cpuid: int
    queued: int
    queued_prio: int
    intransit: int
    waiting: bool
    puts: int
    gets: int
    replies: int
    drops: int
    remote: int
    syncs: int


class Untraced:
    """Stands for the trace switch of a port that belongs to no machine: always off."""

    __slots__ = ()
    mask: Final = 0

    def log(self, info: KtrInfo, *args: object) -> None:
        """Nothing; nobody calls it, for ``mask`` is 0."""


UNTRACED: Final = Untraced()


class Port:
    """A message port. Made by the ``initport_*`` functions of `msgkinds`.

    It is listed by the machine of its owner, else of ``lwkt``, else of the running thread.

    Counterpart: struct lwkt_port (sys/msgport.h).
    """

    __slots__ = (
        "__weakref__",
        "cpuid",
        "data",
        "drops",
        "gets",
        "ktr",
        "msgq",
        "msgq_prio",
        "name",
        "ops",
        "puts",
        "receiver",
        "remote",
        "replies",
        "syncs",
        "td",
        "transit",
        "waiting",
    )

    ktr_put = KtrInfo("msgport", "put", "%s error %d")
    ktr_get = KtrInfo("msgport", "get", "%s")
    ktr_reply = KtrInfo("msgport", "reply", "%s error %d")

    def __init__(
        self,
        ops: PortOps,
        name: str = "",
        td: Thread | None = None,
        data: Any = None,
        lwkt: Lwkt | None = None,
    ) -> None:
        self.ops = ops
        self.name = name or ops.kind
        self.td = td
        self.data = data
        self.cpuid = -1
        #: Somebody sleeps on the port. Counterpart: MSGPORTF_WAITING.
        self.waiting = False
        #: The owner, if all operations are those of `msgthread.ThreadPort`.
        self.receiver: Thread | None = None
        self.msgq: deque[LwktMsg] = deque()
        self.msgq_prio: deque[LwktMsg] | None = None
        #: Messages on their way, (message, is a reply), by source CPU.
        self.transit: dict[int, list[tuple[LwktMsg, bool]]] = {}
        self.puts = 0
        self.gets = 0
        self.replies = 0
        self.drops = 0
        self.remote = 0
        self.syncs = 0
        self.ktr: KtrMaster | Untraced = UNTRACED
        if td is not None:
            lwkt = td.cpu.lwkt
        elif lwkt is None and (cur := running()) is not None and cur.tid >= 0:
            lwkt = cur.cpu.lwkt
        if lwkt is not None:
            self.ktr = lwkt.ktr.master("msgport")
            ports_of(lwkt).add(self)

    def __repr__(self) -> str:
        return f"<Port {self.name} {self.ops.kind}>"

    # --- sending ---------------------------------------------------------------------------

    def beginmsg(self, msg: LwktMsg) -> int:
        """Put a prepared message on the port; the two sends are built on this.

        Returns:
            EASYNC: it is queued and will be replied. Anything else: it has been served in this
            call with that error, and nobody replies. Counterpart: lwkt_beginmsg.
        """
        self.puts += 1
        error = self.ops.putport(self, msg)
        if error != EASYNC:
            self.syncs += 1
        ktr = self.ktr
        if ktr.mask:
            ktr.log(self.ktr_put, self.name, error)
        return error

    def sendmsg(self, msg: LwktMsg) -> None:
        """Send; the answer is queued on the message's reply port. Never suspends.

        Counterpart: lwkt_sendmsg.
        """
        self.sendmsg_prepare(msg)
        self.sendmsg_start(msg)

    def sendmsg_prepare(self, msg: LwktMsg) -> None:
        """The first half of `sendmsg`: mark the message as sent. Counterpart: same name."""
        if msg.flags & _NOT_WITH_TARGET != MSGF.DONE or msg.reply_port is None:
            panic("lwkt_sendmsg: the message is not its owner's")
        msg.flags &= ~(MSGF.REPLY | MSGF.SYNC | MSGF.DONE)

    def sendmsg_start(self, msg: LwktMsg) -> None:
        """The second half of `sendmsg`: put it on the port. Counterpart: same name."""
        error = self.beginmsg(msg)
        if error != EASYNC:
            msg.replymsg(error)

    def sendmsg_oncpu(self, msg: LwktMsg) -> None:
        """`sendmsg` by a caller that knows that it runs on the port's CPU."""
        self.sendmsg_prepare(msg)
        self.puts += 1
        error = self.ops.putport_oncpu(self, msg)
        if error != EASYNC:
            self.syncs += 1
            msg.replymsg(error)

    async def domsg(self, msg: LwktMsg, flags: int = 0) -> int:
        """Send and wait for the answer; no switch when the port serves it in the caller.

        Args:
            msg: a message whose reply port is ours.
            flags: PCATCH as for `LwktMsg.waitmsg`.

        Returns:
            The error of the answer. Counterpart: lwkt_domsg.
        """
        mflags = msg.flags
        port = msg.reply_port
        if mflags & _NOT_WITH_TARGET != MSGF.DONE or port is None:
            panic("lwkt_domsg: the message is not its owner's")
        msg.flags = mflags & _SENT | MSGF.SYNC
        self.puts += 1
        error = self.ops.putport(self, msg)
        ktr = self.ktr
        if ktr.mask:
            ktr.log(self.ktr_put, self.name, error)
        if error == EASYNC:
            if mflags & MSGF.DROPABLE:
                panic("lwkt_domsg: a dropable message")
            return await port.ops.waitmsg(msg, flags)
        self.syncs += 1
        msg.flags |= MSGF.DONE | MSGF.REPLY
        msg.error = error
        return error

    def forwardmsg(self, msg: LwktMsg) -> int:
        """Pass on a message received elsewhere; it will be replied from here.

        Returns what `beginmsg` did. Counterpart: lwkt_forwardmsg.
        """
        KKASSERT(
            not msg.flags & (MSGF.QUEUED | MSGF.DONE | MSGF.REPLY),
            "lwkt_forwardmsg: the message is not with its target",
        )
        error = self.beginmsg(msg)
        if error != EASYNC:
            msg.replymsg(error)
        return error

    # --- receiving -------------------------------------------------------------------------

    def getport(self) -> LwktMsg | None:
        """Take the next message, a priority one first; None when there is none."""
        return self.ops.getport(self)

    def waitport(self, flags: int = 0) -> Awaitable[LwktMsg | None]:
        """``await`` the next message and take it; None only when a signal came (PCATCH)."""
        return self.ops.waitport(self, flags)

    def peek(self) -> LwktMsg | None:
        """The message `getport` would take; it stays."""
        if self.msgq_prio:
            return self.msgq_prio[0]
        return self.msgq[0] if self.msgq else None

    # --- for the kinds ---------------------------------------------------------------------

    def pushmsg(self, msg: LwktMsg) -> None:
        """Queue ``msg`` behind those of its class and give the receipt asked for."""
        flags = msg.flags
        msg.flags = flags | MSGF.QUEUED
        if flags & MSGF.PRIORITY:
            if self.msgq_prio is None:
                self.msgq_prio = deque()
            self.msgq_prio.append(msg)
        else:
            self.msgq.append(msg)
        if flags & MSGF.RECEIPT:
            msg.flags &= ~MSGF.RECEIPT
            assert msg.receiptfn is not None
            msg.receiptfn(msg, self)

    def pullmsg(self, msg: LwktMsg) -> None:
        """Take a queued message out, wherever it stands."""
        queue = self.msgq_prio if msg.flags & MSGF.PRIORITY else self.msgq
        assert queue is not None
        if queue[0] is msg:
            queue.popleft()
        else:
            queue.remove(msg)
        msg.flags &= ~MSGF.QUEUED

    def pollmsg(self) -> LwktMsg | None:
        """Take the next message out; None when both queues are empty."""
        if self.msgq_prio:
            msg = self.msgq_prio.popleft()
        elif self.msgq:
            msg = self.msgq.popleft()
        else:
            return None
        msg.flags &= ~MSGF.QUEUED
        self.gets += 1
        ktr = self.ktr
        if ktr.mask:
            ktr.log(self.ktr_get, self.name)
        return msg

    def enqueue_reply(self, msg: LwktMsg) -> None:
        """Queue an asynchronous answer on this reply port."""
        self.pushmsg(msg)
        msg.flags |= MSGF.REPLY | MSGF.DONE

    # --- statistics ------------------------------------------------------------------------

    def statistics(self) -> PortStatistics:
        """Counters since it was made, and what is queued now."""
        td = self.td
        return PortStatistics(
            name=self.name,
            kind=self.ops.kind,
            owner=td.name if td is not None else "",
            cpuid=td.cpu.cpuid if td is not None else -1,
            queued=len(self.msgq),
            queued_prio=len(self.msgq_prio or ()),
            intransit=sum(map(len, self.transit.values())),
            waiting=self.waiting,
            puts=self.puts,
            gets=self.gets,
            replies=self.replies,
            drops=self.drops,
            remote=self.remote,
            syncs=self.syncs,
        )


class PortSet:
    """The ports of one machine, for listings; holds none of them alive."""

    __slots__ = ("_ports", "limit", "made", "unlisted")

    sysctl_listed = Sysctl("lwkt.ports.listed", "message ports that exist", getter="__len__")
    sysctl_made = Sysctl("lwkt.ports.made", "message ports made since boot", attr="made")
    sysctl_limit = Sysctl("lwkt.ports.limit", "message ports listed at most", attr="limit")
    sysctl_unlisted = Sysctl("lwkt.ports.unlisted", "ports over the limit", attr="unlisted")

    def __init__(self, limit: int = MAX_LISTED_PORTS) -> None:
        self._ports: weakref.WeakValueDictionary[int, Port] = weakref.WeakValueDictionary()
        self.limit = limit
        self.made = 0
        self.unlisted = 0

    def add(self, port: Port) -> None:
        """List ``port`` while it exists, unless the list is full."""
        self.made += 1
        if len(self._ports) >= self.limit:
            self.unlisted += 1
            return
        self._ports[self.made] = port

    def __len__(self) -> int:
        return len(self._ports)

    def __iter__(self) -> Iterator[Port]:
        return iter([port for _, port in sorted(self._ports.items())])


def ports_of(lwkt: Lwkt) -> PortSet:
    """The list of the ports of ``lwkt``, made when first asked for."""
    own = lwkt.__dict__
    try:
        return own["ports"]  # type: ignore[no-any-return]
    except KeyError:
        ports = own["ports"] = PortSet()
        return ports
