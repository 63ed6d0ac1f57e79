"""/dev/klog: the kernel's messages as they come.

syslogd (or ``cat``) opens it and reads: first what is in the message buffer, then, as there is
nothing more, it waits for the next message. The position belongs to the device, so what one reader
has read the next one does not get; only one may have it open. Whoever only wants to look uses
dmesg, which reads the buffer itself.

When the reader was too slow and the buffer has moved on past him, a line says how many bytes were
lost.

Counterpart: kern/subr_log.c.
Differs from DragonFly: a waiting reader is woken by the message itself; DragonFly looks five times
a second (kern.log_wakeups_per_second). One reader is woken once, however many messages follow
before he runs. Lost text is reported; DragonFly skips silently. No SIGIO (FIOASYNC, FIOSETOWN),
because nobody here receives signals for a descriptor.
Token and lock order: takes none.
Invariants: at most one open; ``seq`` never exceeds the buffer's; a reader that is asleep is
announced in ``waiters``, so a message that comes between his look and his sleep is not lost.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dfuser.libkern.errno import EBUSY, ENOTTY, EOPNOTSUPP, EWOULDBLOCK, KError
from dfuser.libkern.klist import EVFILT_READ, Klist
from dfuser.libkern.param import PCATCH
from dfuser.libkern.sysctl import LONG, RD, Sysctl
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep, wakeup

from .devsw import (
    GID_WHEEL,
    IO_NDELAY,
    POLLIN,
    POLLRDNORM,
    UID_ROOT,
    Buffer,
    Cdev,
    DevOps,
)
from .ioccom import FIONBIO, FIONREAD

if TYPE_CHECKING:
    from dfuser.libkern.klist import Knote
    from dfuser.libkern.log import MsgBuf
    from dfuser.libkern.ucred import Ucred
    from dfuser.lwkt.machine import Lwkt

    from .devlist import DevList

#: Most bytes one read gives.
MAXREAD: Final = 64 * 1024


class KlogStatistics(NamedTuple):
    """What the log device did since boot."""

    opened: int
    refused: int
    bytes_read: int
    bytes_lost: int
    waits: int
    wakeups: int
    waiters: int


class LogOps(DevOps):
    """The driver of /dev/klog. Counterpart: log_ops and logsoftc (kern/subr_log.c)."""

    __slots__ = (
        "bytes_lost",
        "bytes_read",
        "klist",
        "log_open",
        "lwkt",
        "msgbuf",
        "opened",
        "refused",
        "seq",
        "waiters",
        "waits",
        "wakeups",
    )

    sysctl_lost = Sysctl(
        "kern.klog_lost",
        "Bytes the reader of /dev/klog was too slow for",
        attr="bytes_lost",
        kind=LONG,
        flags=RD,
    )

    def __init__(self, msgbuf: MsgBuf, lwkt: Lwkt | None) -> None:
        """Make the driver.

        Args:
            msgbuf: the kernel's message buffer.
            lwkt: the machine whose threads may wait; without one every read is non-blocking.
        """
        super().__init__("log")
        self.msgbuf = msgbuf
        self.lwkt = lwkt
        self.klist = Klist()
        self.log_open = False
        self.seq = 0
        self.waiters = 0
        self.opened = 0
        self.refused = 0
        self.bytes_read = 0
        self.bytes_lost = 0
        self.waits = 0
        self.wakeups = 0

    def attach(self, devices: DevList) -> None:
        """Make /dev/klog and follow the message buffer."""
        devices.make_dev(self, 0, UID_ROOT, GID_WHEEL, 0o600, "klog")
        self.msgbuf.listen(self._arrived)

    def detach(self) -> None:
        """Stop following the message buffer."""
        self.msgbuf.unlisten(self._arrived)

    def d_open(self, dev: Cdev, oflags: int, cred: Ucred) -> Any:
        """One reader at a time.

        Raises:
            KError: EBUSY, it is open.
        """
        if self.log_open:
            self.refused += 1
            raise KError(EBUSY)
        self.log_open = True
        self.opened += 1
        return None

    def d_close(self, dev: Cdev, fflag: int, priv: Any) -> None:
        """Let the next reader in; the position stays."""
        self.log_open = False

    def d_read(self, dev: Cdev, offset: int, size: int, ioflag: int, priv: Any) -> Buffer:
        """New text, at most ``size`` bytes; ``offset`` means nothing.

        Raises:
            Block: there is none; the wait ends with the next message or with EINTR.
            KError: EWOULDBLOCK, there is none and the caller will not wait.
        """
        if self.seq >= self.msgbuf.seq:
            if ioflag & IO_NDELAY or self.lwkt is None:
                raise KError(EWOULDBLOCK)
            raise Block(self._wait, "klog")
        if size <= 0:
            return b""
        chunk = self.msgbuf.read_since(self.seq, min(size, MAXREAD))
        note = f"[klog: {chunk.lost} bytes lost]\n".encode() if chunk.lost else b""
        if note:
            self.bytes_lost += chunk.lost
            fits = max(0, size - len(note))
            self.seq = chunk.seq - max(0, len(chunk.data) - fits)
            data = (note + chunk.data[:fits])[:size]
        else:
            self.seq = chunk.seq
            data = chunk.data
        self.bytes_read += len(data)
        return data

    def d_ioctl(
        self, dev: Cdev, cmd: int, data: Buffer, fflag: int, cred: Ucred, priv: Any = None
    ) -> bytes:
        """FIONREAD: how many bytes can be read now. FIONBIO: nothing, the open has the mode."""
        if cmd == FIONBIO:
            return b""
        if cmd != FIONREAD:
            raise KError(ENOTTY)
        ready = self.msgbuf.seq - max(self.seq, self.msgbuf.first_seq)
        return struct.pack("=i", ready)

    def d_poll(self, dev: Cdev, events: int, priv: Any) -> int:
        """Readable when there is new text; never writable."""
        ready = POLLIN | POLLRDNORM if self.seq < self.msgbuf.seq else 0
        return events & ready

    def d_kqfilter(self, dev: Cdev, kn: Knote) -> None:
        """Hang a note of the read filter on the log.

        Raises:
            KError: EOPNOTSUPP, another filter.
        """
        if kn.filter != EVFILT_READ:
            raise KError(EOPNOTSUPP)
        self.klist.insert(kn)

    def d_kqdetach(self, dev: Cdev, kn: Knote) -> None:
        """Take a note off."""
        self.klist.remove(kn)

    def statistics(self) -> KlogStatistics:
        """Counters since boot."""
        return KlogStatistics(
            opened=self.opened,
            refused=self.refused,
            bytes_read=self.bytes_read,
            bytes_lost=self.bytes_lost,
            waits=self.waits,
            wakeups=self.wakeups,
            waiters=self.waiters,
        )

    async def _wait(self) -> int:
        """Sleep until there is text; 0, or EINTR when a signal came first."""
        if self.seq < self.msgbuf.seq:
            return 0
        self.waiters += 1
        self.waits += 1
        try:
            return await tsleep(self, PCATCH, "klog", 0)
        finally:
            self.waiters -= 1

    def _arrived(self) -> None:
        """The buffer has new text. Called wherever the kernel prints; never raises, never waits."""
        self.klist.knote(0)
        if not self.waiters or self.lwkt is None:
            return
        self.wakeups += 1
        cur: Any = _thread.curthread
        if cur is not None and cur.cpu.lwkt is self.lwkt:
            wakeup(self)
        else:
            self.lwkt.cpus[0].interrupt(wakeup, self)
