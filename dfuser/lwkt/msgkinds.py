"""The six kinds of message port.

* **thread**: owned by one thread, which alone receives. The cheapest, and the rule: it has a file
  of its own, `msgthread`.
* **spin**: any thread may receive; waiters sleep on the port (or on the message, if it is
  synchronous) by tsleep.
* **serialize**: like spin, with the caller's serializer held around every operation.
* **replyonly**, and **null**: a sink for answers: calls a function, or just marks the message done.
* **putonly**: serves each message in a function of its own in the sender's context.
* **panic**: nothing is allowed; for ports that are being torn down.

Counterpart: sys/kern/lwkt_msgport.c (the backends and lwkt_initport_*).
Differs from DragonFly: a spin port needs no spinlock, because its operations run to completion; the
rules that come with one (no suspension inside) hold by construction.
Token and lock order: takes none but a serializer port's serializer, which the caller holds.
Invariants: those of `msgport` and `msgthread`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from dfuser.libkern.errno import EASYNC, KKASSERT, panic
from dfuser.libkern.param import PCATCH, PINTERLOCKED

from . import thread as _thread
from .msgport import MSGF, LwktMsg, Port, PortOps
from .msgthread import THREAD_OPS, ThreadPort, owner_of, take_reply, thread_dropmsg
from .synch import tsleep, tsleep_interlock, wakeup, wakeup_mycpu, zsleep

if TYPE_CHECKING:
    from .machine import Lwkt
    from .thread import Thread


class PortSerializer(Protocol):
    """What a serializer port needs of its serializer; `serialize.LwktSerialize` is one."""

    async def enter(self) -> None:
        """Take it."""

    def exit(self) -> None:
        """Give it back."""

    def assert_serialized(self) -> None:
        """Panic unless the running thread holds it."""


# --- spin ports ----------------------------------------------------------------------------


def _push_only(port: Port, msg: LwktMsg) -> bool:
    """Queue; says whether somebody sleeps on the port. The waker clears the flag."""
    KKASSERT(not msg.flags & (MSGF.DONE | MSGF.REPLY), "putport: the message is done")
    msg.target_port = port
    port.pushmsg(msg)
    waiting = port.waiting
    port.waiting = False
    return waiting


def spin_putport(port: Port, msg: LwktMsg) -> int:
    """Counterpart: lwkt_spin_putport."""
    if _push_only(port, msg):
        wakeup(port)
    return EASYNC


def spin_putport_oncpu(port: Port, msg: LwktMsg) -> int:
    """Counterpart: lwkt_spin_putport_oncpu."""
    KKASSERT(port.cpuid == _thread.curthread.cpu.cpuid, "putport_oncpu: not the port's CPU")
    if _push_only(port, msg):
        wakeup_mycpu(port)
    return EASYNC


def spin_replyport(port: Port, msg: LwktMsg) -> None:
    """Counterpart: lwkt_spin_replyport."""
    if msg.flags & MSGF.SYNC:
        waiting = msg.flags & MSGF.WAITING
        msg.flags = (msg.flags | MSGF.DONE | MSGF.REPLY) & ~MSGF.WAITING
        if waiting:
            wakeup(msg)
    else:
        port.enqueue_reply(msg)
        if port.waiting:
            port.waiting = False
            wakeup(port)


def spin_getport(port: Port) -> LwktMsg | None:
    """Counterpart: lwkt_spin_getport."""
    return port.pollmsg()


async def _sleep_on(port: Port, ident: Any, flags: int, wmesg: str) -> int:
    """Sleep on a port or a message, without the port's serializer if it has one."""
    if port.data is not None:
        return await zsleep(ident, port.data, flags, wmesg)
    tsleep_interlock(ident, flags)
    return await tsleep(ident, flags | PINTERLOCKED, wmesg)


async def spin_waitport(port: Port, flags: int) -> LwktMsg | None:
    """Counterpart: lwkt_spin_waitport, lwkt_serialize_waitport."""
    while (msg := port.pollmsg()) is None:
        port.waiting = True
        if await _sleep_on(port, port, flags, "waitport"):
            return None
    return msg


async def spin_waitmsg(msg: LwktMsg, flags: int) -> int:
    """Counterpart: lwkt_spin_waitmsg, lwkt_serialize_waitmsg."""
    port = msg.reply_port
    assert port is not None
    aborted = 0
    while not msg.flags & MSGF.DONE:
        if msg.flags & MSGF.SYNC:
            msg.flags |= MSGF.WAITING
            ident: Any = msg
        else:
            port.waiting = True
            ident = port
        error = await _sleep_on(port, ident, 0 if aborted else flags & PCATCH, "waitmsg")
        if error:
            aborted = error
            msg.abortmsg()
    return take_reply(port, msg, aborted)


# --- serializer ports ----------------------------------------------------------------------


def serialize_putport(port: Port, msg: LwktMsg) -> int:
    """Counterpart: lwkt_serialize_putport."""
    port.data.assert_serialized()
    return spin_putport(port, msg)


def serialize_replyport(port: Port, msg: LwktMsg) -> None:
    """Counterpart: lwkt_serialize_replyport."""
    port.data.assert_serialized()
    spin_replyport(port, msg)


def serialize_getport(port: Port) -> LwktMsg | None:
    """Counterpart: lwkt_serialize_getport."""
    port.data.assert_serialized()
    return port.pollmsg()


async def serialize_waitport(port: Port, flags: int) -> LwktMsg | None:
    """Counterpart: lwkt_serialize_waitport."""
    port.data.assert_serialized()
    return await spin_waitport(port, flags)


async def serialize_waitmsg(msg: LwktMsg, flags: int) -> int:
    """Counterpart: lwkt_serialize_waitmsg."""
    assert msg.reply_port is not None
    msg.reply_port.data.assert_serialized()
    return await spin_waitmsg(msg, flags)


# --- special ports -------------------------------------------------------------------------


def null_replyport(port: Port, msg: LwktMsg) -> None:
    """Mark the message done, tell nobody. Counterpart: lwkt_null_replyport."""
    msg.flags |= MSGF.DONE | MSGF.REPLY


def panic_getport(port: Port) -> NoReturn:
    """Counterpart: lwkt_panic_getport."""
    panic(f"lwkt_getport: illegal on {port}")


def panic_putport(port: Port, msg: LwktMsg) -> NoReturn:
    """Counterpart: lwkt_panic_putport."""
    panic(f"lwkt_beginmsg: illegal on {port}")


def panic_waitmsg(msg: LwktMsg, flags: int) -> NoReturn:
    """Counterpart: lwkt_panic_waitmsg."""
    panic(f"lwkt_waitmsg: illegal on {msg.reply_port}")


def panic_waitport(port: Port, flags: int) -> NoReturn:
    """Counterpart: lwkt_panic_waitport."""
    panic(f"lwkt_waitport: illegal on {port}")


def panic_replyport(port: Port, msg: LwktMsg) -> NoReturn:
    """Counterpart: lwkt_panic_replyport."""
    panic(f"lwkt_replymsg: illegal on {port}")


def panic_dropmsg(port: Port, msg: LwktMsg) -> NoReturn:
    """Counterpart: lwkt_panic_dropmsg."""
    panic(f"lwkt_dropmsg: illegal on {port}")


def panic_putport_oncpu(port: Port, msg: LwktMsg) -> NoReturn:
    """Counterpart: lwkt_panic_putport_oncpu."""
    panic(f"lwkt_sendmsg_oncpu: illegal on {port}")


PANIC_OPS: Final = PortOps(
    kind="panic",
    getport=panic_getport,
    putport=panic_putport,
    waitmsg=panic_waitmsg,
    waitport=panic_waitport,
    replyport=panic_replyport,
    dropmsg=panic_dropmsg,
    putport_oncpu=panic_putport_oncpu,
)
SPIN_OPS: Final = PortOps(
    kind="spin",
    getport=spin_getport,
    putport=spin_putport,
    waitmsg=spin_waitmsg,
    waitport=spin_waitport,
    replyport=spin_replyport,
    dropmsg=thread_dropmsg,
    putport_oncpu=panic_putport_oncpu,
)
SERIALIZE_OPS: Final = PortOps(
    kind="serialize",
    getport=serialize_getport,
    putport=serialize_putport,
    waitmsg=serialize_waitmsg,
    waitport=serialize_waitport,
    replyport=serialize_replyport,
    dropmsg=panic_dropmsg,
    putport_oncpu=panic_putport_oncpu,
)
NULL_OPS: Final = PANIC_OPS._replace(kind="null", replyport=null_replyport)


def initport_thread(td: Thread, name: str = "", ops: PortOps = THREAD_OPS) -> Port:
    """A port that only ``td`` receives from. Counterpart: lwkt_initport_thread.

    ``ops`` may be a variant of THREAD_OPS with a ``putport`` of its own, which may serve messages
    at once or fall back to `msgthread.thread_putport`.
    """
    if ops is THREAD_OPS:
        return ThreadPort(name or td.name, td)
    return Port(ops, name or td.name, td=td)


def initport_spin(
    td: Thread | None = None,
    fixed_cpuid: bool = False,
    name: str = "",
    lwkt: Lwkt | None = None,
) -> Port:
    """A port that any thread may receive from. Counterpart: lwkt_initport_spin.

    Args:
        td: the thread that may drop messages; None: nobody may.
        fixed_cpuid: putport_oncpu is allowed, on the CPU ``td`` is on now.
        name: for listings.
        lwkt: the machine that lists it when there is no ``td``.
    """
    ops = SPIN_OPS
    if td is None:
        ops = ops._replace(dropmsg=panic_dropmsg)
    if fixed_cpuid:
        ops = ops._replace(putport_oncpu=spin_putport_oncpu)
    port = Port(ops, name, td=td, lwkt=lwkt)
    if fixed_cpuid:
        KKASSERT(td is not None, "lwkt_initport_spin: fixed_cpuid without a thread")
        port.cpuid = owner_of(port).cpu.cpuid
    return port


def initport_serialize(slz: PortSerializer, name: str = "", lwkt: Lwkt | None = None) -> Port:
    """A port guarded by a serializer its users hold. Counterpart: lwkt_initport_serialize."""
    return Port(SERIALIZE_OPS, name, data=slz, lwkt=lwkt)


def initport_replyonly(
    replyfn: Callable[[Port, LwktMsg], None], name: str = "", lwkt: Lwkt | None = None
) -> Port:
    """A sink for answers: ``replyfn(port, msg)`` gets each.

    Counterpart: lwkt_initport_replyonly.
    """
    return Port(PANIC_OPS._replace(kind="replyonly", replyport=replyfn), name, lwkt=lwkt)


def initport_replyonly_null(name: str = "", lwkt: Lwkt | None = None) -> Port:
    """A sink that only marks messages done. Counterpart: lwkt_initport_replyonly_null."""
    return Port(NULL_OPS, name, lwkt=lwkt)


def initport_putonly(
    putfn: Callable[[Port, LwktMsg], int], name: str = "", lwkt: Lwkt | None = None
) -> Port:
    """A port that serves each message by ``putfn(port, msg)`` in the sender's context.

    ``putfn`` returns the error of the answer, or EASYNC when it will reply later.
    Counterpart: lwkt_initport_putonly.
    """
    return Port(PANIC_OPS._replace(kind="putonly", putport=putfn), name, lwkt=lwkt)


def initport_panic(name: str = "", lwkt: Lwkt | None = None) -> Port:
    """A port that may not be used. Counterpart: lwkt_initport_panic."""
    return Port(PANIC_OPS, name, lwkt=lwkt)


def lwkt_initport(td: Thread, name: str = "") -> Port:
    """A port for ``td``, made its own (``td.msgport``). Counterpart: lwkt_initport (2004)."""
    port = td.msgport = initport_thread(td, name)
    return port


def thread_port(td: Thread) -> Port:
    """The own port of ``td`` (td_msgport), made when first asked for."""
    return td.msgport or lwkt_initport(td)
