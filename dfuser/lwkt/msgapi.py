"""The message functions under their C names: Table II of the 2004 paper, whole, and its successors.

The work is done by the methods of `msgport.Port` and `msgport.LwktMsg`; who reads DragonFly's
sources or the paper beside this code finds the names here.

Counterpart: sys/sys/msgport.h, sys/sys/msgport2.h; Table II of "The DragonFly BSD Operating System"
(2004).
Differs from the paper: its table calls lwkt_sendmsg the synchronous and lwkt_domsg the asynchronous
send. The sources have always had it the other way round, and so it is here. Messages are made, not
initialised in place: the initmsg functions return them.
Token and lock order: takes none.
Invariants: those of `msgport`.
"""

from __future__ import annotations

from collections.abc import Callable

from . import thread as _thread
from .msgkinds import lwkt_initport, thread_port
from .msgport import LwktMsg, Port

__all__ = [
    "lwkt_abortmsg",
    "lwkt_beginmsg",
    "lwkt_domsg",
    "lwkt_dropmsg",
    "lwkt_forwardmsg",
    "lwkt_getport",
    "lwkt_initmsg",
    "lwkt_initmsg_abortable",
    "lwkt_initmsg_rp",
    "lwkt_initport",
    "lwkt_reinitmsg",
    "lwkt_replymsg",
    "lwkt_sendmsg",
    "lwkt_setmsg_receipt",
    "lwkt_waitmsg",
    "lwkt_waitport",
]


def lwkt_initmsg(cmd: int = 0, flags: int = 0) -> LwktMsg:
    """A message with a command, to be answered to the running thread's own port."""
    return LwktMsg(thread_port(_thread.curthread), flags, cmd)


def lwkt_initmsg_rp(reply_port: Port, cmd: int = 0, flags: int = 0) -> LwktMsg:
    """A message with a reply port and a command."""
    return LwktMsg(reply_port, flags, cmd)


def lwkt_initmsg_abortable(
    reply_port: Port, abortfn: Callable[[LwktMsg], None], flags: int = 0
) -> LwktMsg:
    """A message that can be aborted. See `LwktMsg.initmsg_abortable`."""
    msg = LwktMsg(reply_port, flags)
    msg.initmsg_abortable(abortfn)
    return msg


def lwkt_reinitmsg(msg: LwktMsg, reply_port: Port) -> None:
    """Make a returned message ready to be sent again. See `LwktMsg.reinitmsg`."""
    msg.reinitmsg(reply_port)


def lwkt_setmsg_receipt(msg: LwktMsg, receiptfn: Callable[[LwktMsg, Port], None]) -> None:
    """Ask for a receipt of the next put. See `LwktMsg.setmsg_receipt`."""
    msg.setmsg_receipt(receiptfn)


def lwkt_sendmsg(port: Port, msg: LwktMsg) -> None:
    """Send; the answer is queued on the reply port. See `Port.sendmsg`."""
    port.sendmsg(msg)


async def lwkt_domsg(port: Port, msg: LwktMsg, flags: int = 0) -> int:
    """Send and wait for the answer. See `Port.domsg`."""
    return await port.domsg(msg, flags)


def lwkt_beginmsg(port: Port, msg: LwktMsg) -> int:
    """Put a prepared message on the port. See `Port.beginmsg`."""
    return port.beginmsg(msg)


def lwkt_forwardmsg(port: Port, msg: LwktMsg) -> int:
    """Pass a received message on. See `Port.forwardmsg`."""
    return port.forwardmsg(msg)


def lwkt_replymsg(msg: LwktMsg, error: int) -> None:
    """Return a message to its sender. See `LwktMsg.replymsg`."""
    msg.replymsg(error)


def lwkt_getport(port: Port) -> LwktMsg | None:
    """The next message, or None. See `Port.getport`."""
    return port.getport()


async def lwkt_waitport(port: Port, flags: int = 0) -> LwktMsg | None:
    """Wait for the next message. See `Port.waitport`."""
    return await port.waitport(flags)


async def lwkt_waitmsg(msg: LwktMsg, flags: int = 0) -> int:
    """Wait for the answer to a message. See `LwktMsg.waitmsg`."""
    return await msg.waitmsg(flags)


def lwkt_abortmsg(msg: LwktMsg) -> None:
    """Ask that a message be given up. See `LwktMsg.abortmsg`."""
    msg.abortmsg()


def lwkt_dropmsg(msg: LwktMsg) -> int:
    """Take a message back from its target's queue. See `LwktMsg.dropmsg`."""
    return msg.dropmsg()
