"""The daemons that write dirty buffers: ``bufdaemon``, and ``bufdaemon_hw`` for heavy ones.

Ordinarily the syncer writes, half a minute after a file became dirty. The daemons help when too
much is dirty: woken above the middle between the marks, each writes from the front of its queue
until dirty and in-flight buffers together are below half of ``lodirtybufspace``. Every second each
also writes the buffers older than ``vfs.bufage`` seconds, which is for vnodes no syncer looks
after, such as devices. Neighbours go along (`cluster_awrite`).

Buffers whose writing takes buffers itself (B.HEAVY) are written by a thread of their own: it may go
beyond the limit for buffers, so that neither waits for the other.

A write that failed is tried again after a second, not sooner, so that a broken disk does not keep
the daemon busy.

Counterpart: buf_daemon, buf_daemon_hw, buf_daemon1, flushbufqueues (kern/vfs_bio.c).
Differs from DragonFly: the age, which is an addition; failed writes are tried once a second, there
    once a tick.
Token/lock order: takes none; the daemons suspend between two buffers only.
Invariants: one thread a queue; it never waits for dirty buffers (`BufSpace.flushers`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from dfuser.libkern.param import HZ, NSEC_PER_SEC, PINTERLOCKED
from dfuser.libkern.sysctl import INT, LONG, RW, Sysctl
from dfuser.lwkt import thread as _thread
from dfuser.lwkt.synch import tsleep, tsleep_interlock
from dfuser.lwkt.thread import lwkt_yield

from .bufqueue import B, BQueue, CacheBuf
from .bufsync import VnodeSync

#: Seconds after which a daemon writes a buffer nobody else has written.
BUFAGE: Final = 60
#: Buffers between two chances for others to run.
_YIELD: Final = 16

Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]], str], object]

#: What of it can be seen and set; `bio.BufCache` declares it.
DAEMON_SYSCTLS: Final = (
    Sysctl("vfs.bufage", "Seconds after which the daemons write a dirty buffer",
           attr="bufage", kind=INT, flags=RW, minimum=1),
    Sysctl("vfs.bufdaemon_writes", "Buffers the daemons have started to write",
           attr="daemon_writes", kind=LONG),
    Sysctl("vfs.bufretries", "Failed buffers the daemons have tried again", attr="retries",
           kind=LONG),
)  # fmt: skip


class BufDaemon(VnodeSync):
    """Writing back."""

    bufage = BUFAGE
    daemon_writes = retries = 0

    def start(self, spawn: Spawn) -> None:
        """Start both daemons; ``spawn`` makes a thread of a function and a name."""
        spawn(self.buf_daemon, "bufdaemon")
        spawn(self.buf_daemon_hw, "bufdaemon_hw")

    async def buf_daemon(self) -> None:
        """The thread for ordinary buffers. Counterpart: buf_daemon."""
        await self._daemon(BQueue.DIRTY, 0)

    async def buf_daemon_hw(self) -> None:
        """The thread for heavy buffers. Counterpart: buf_daemon_hw."""
        await self._daemon(BQueue.DIRTY_HW, 1)

    async def _daemon(self, queue: BQueue, number: int) -> None:
        """Counterpart: buf_daemon1."""
        self.flushers.add(_thread.curthread)
        try:
            while True:
                await self.waitrunningbufspace()
                while self._too_much(number):
                    if not await self.flushbufqueues(queue):
                        break
                    if self.runningbufspace >= self.hirunningspace:
                        await self.waitrunningbufspace()
                self._flush_aged(queue)
                ident = self._bd_ident[number]
                tsleep_interlock(ident)
                if self.bd_request[number]:
                    self.bd_request[number] = False
                    if self._too_much(number) and self.queues[queue]:
                        await tsleep(ident, PINTERLOCKED, "psleep", 1)
                        continue
                await tsleep(ident, PINTERLOCKED, "psleep", HZ)
        finally:
            self.flushers.discard(_thread.curthread)

    def _too_much(self, number: int) -> bool:
        """Whether a daemon goes on. Counterpart: buf_daemon_limit, buf_daemon_hw_limit."""
        count = self.dirtybufcounthw if number else self.dirtybufcount - self.dirtybufcounthw
        return (
            self.runningbufspace + self.dirtykvaspace > self.lodirtybufspace // 2
            or count >= self.nbuf // 2
        )

    async def flushbufqueues(self, queue: BQueue) -> int:
        """Start writing up to vfs.flushperqueue buffers of a queue; returns how many.

        Counterpart: flushbufqueues.
        """
        done = 0
        while done < self.flushperqueue and self.runningbufspace < self.hirunningspace:
            bp = self._next_dirty(queue)
            if bp is None:
                break
            self._flush(bp)
            done += 1
            if not done % _YIELD:
                await lwkt_yield()
        return done

    def _next_dirty(self, queue: BQueue) -> CacheBuf | None:
        """The first buffer of a queue that may be written now; failed ones wait at the end."""
        dirty = self.queues[queue]
        now = self.clock.monotonic_ns()
        for bp in dirty:
            if not bp.flags & B.ERROR or now - bp.retry_ns >= NSEC_PER_SEC:
                return bp
        return None

    def _flush(self, bp: CacheBuf) -> None:
        """Write one buffer of a dirty queue."""
        self._hold(bp)
        if bp.flags & B.INVAL:
            self.brelse(bp)
            return
        self.daemon_writes += 1
        if bp.flags & B.ERROR:
            self.retries += 1
            bp.flags &= ~B.AGE
        else:
            bp.flags |= B.AGE
        self.cluster_awrite(bp)

    def _flush_aged(self, queue: BQueue) -> None:
        """Start writing what has been dirty for long, as much as may be in flight."""
        limit = self.clock.monotonic_ns() - self.bufage * NSEC_PER_SEC
        if limit < 0 or not self.queues[queue]:
            return
        for bp in [bp for bp in self.queues[queue] if bp.dirtied_ns <= limit]:
            if self.buf_runningbufspace_severe():
                return
            recent = bp.flags & B.ERROR and self.clock.monotonic_ns() - bp.retry_ns < NSEC_PER_SEC
            if bp.qindex is queue and not recent:
                self._flush(bp)

    def flush_inline(self) -> None:
        """Write from both queues at once, where no daemon runs yet."""
        for queue in (BQueue.DIRTY, BQueue.DIRTY_HW):
            while self.runningbufspace + self.dirtykvaspace > self.lodirtybufspace:
                bp = self._next_dirty(queue)
                if bp is None:
                    break
                self._flush(bp)
