"""Requests to devices: `Bio`, the part of `Buf` a driver sees, completion, tracking.

A `Buf` says what is to be done: a command, an error, the data. It carries a stack of `Bio`, one for
each layer between who asks and the driver: each has the offset as that layer counts it, and the
function that layer wants called. A layer that passes a request down pushes a bio (`push_bio`) and
never touches the ones above::

    file system   bio1   offset in the file
    disk layer    bio2   offset in the partition      vn0s1a
    driver        bio3   offset on the disk           vn0

When the driver is done it calls `biodone` on the bio it was given. That runs up the stack until it
meets a ``done`` function, calls it and stops: whoever put it there goes on from there. If nobody
did, the buffer itself is told (`Buf.bpdone`).

Who wants to wait sets ``done`` to `biodone_sync` and the flag BIO.SYNC on the first bio and awaits
`biowait`. A synchronous core that must wait raises what `biowait_block` makes.

A `BioTrack` counts requests in flight, so that a truncate or an fsync can wait for their end.

Counterpart: sys/bio.h, the device's half of struct buf (sys/buf.h), biodone, biowait, push_bio,
    bio_track_* (kern/vfs_bio.c).
Differs from DragonFly: BIO.FUA is an addition (a write that is stable when it completes); the
    buffer's data are given by `Buf.buffers`, because they may be several pieces of memory.
Token and lock order: takes none. biodone may be called from an interrupt; it never waits.
Invariants: a buffer in flight has a command, a finished one BufCmd.DONE; ``done`` is called once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dfuser.libkern.errno import EINTR, EIO, KKASSERT, panic
from dfuser.libkern.param import PINTERLOCKED
from dfuser.lwkt.block import Block
from dfuser.lwkt.synch import tsleep, tsleep_interlock, wakeup

if TYPE_CHECKING:
    from dfuser.dev.devsw import Buffer

#: The offset of a bio that has not been translated. Counterpart: NOOFFSET.
NOOFFSET: Final = -1
#: Layers a buffer may pass through.
NBUF_BIO: Final = 6

BioDone: TypeAlias = "Callable[[Bio], object]"


class BufCmd(IntEnum):
    """What to do. Counterpart: buf_cmd_t (sys/buf.h)."""

    DONE = 0
    READ = 1
    WRITE = 2
    FREEBLKS = 3
    FORMAT = 4
    FLUSH = 5


class B:
    """Flags of a buffer. Counterpart: B_* (sys/buf.h); most are the buffer cache's own."""

    AGE: Final = 0x0000_0001
    NEEDCOMMIT: Final = 0x0000_0002
    NOTMETA: Final = 0x0000_0004
    DIRECT: Final = 0x0000_0008
    DEFERRED: Final = 0x0000_0010
    CACHE: Final = 0x0000_0020
    HASHED: Final = 0x0000_0040
    DELWRI: Final = 0x0000_0080
    BNOCLIP: Final = 0x0000_0100
    """A device must fail rather than shorten a transfer at its end."""
    HASBOGUS: Final = 0x0000_0200
    EINTR: Final = 0x0000_0400
    ERROR: Final = 0x0000_0800
    IOISSUED: Final = 0x0000_1000
    INVAL: Final = 0x0000_2000
    LOCKED: Final = 0x0000_4000
    NOCACHE: Final = 0x0000_8000
    KVABIO: Final = 0x0001_0000
    CLUSTEROK: Final = 0x0002_0000
    MARKER: Final = 0x0004_0000
    RAW: Final = 0x0008_0000
    HEAVY: Final = 0x0010_0000
    DIRTY: Final = 0x0020_0000
    RELBUF: Final = 0x0040_0000
    FAILONDIS: Final = 0x0080_0000
    VNCLEAN: Final = 0x0100_0000
    VNDIRTY: Final = 0x0200_0000
    PAGING: Final = 0x0400_0000
    TTC: Final = 0x0800_0000


class BIO:
    """Flags of a bio. Counterpart: BIO_* (sys/bio.h)."""

    SYNC: Final = 0x0000_0001
    FUA: Final = 0x0000_0002
    """The write is stable when it completes. An addition."""
    WANT: Final = 0x2000_0000
    DONE: Final = 0x4000_0000


class BioTrack:
    """Counts requests in flight. Counterpart: struct bio_track (sys/buf.h)."""

    __slots__ = ("active", "wanted")

    def __init__(self) -> None:
        self.active = 0
        self.wanted = False

    def ref(self) -> None:
        """One more."""
        self.active += 1

    def rel(self) -> None:
        """One less; wakes who waits for none. Counterpart: bio_track_rel."""
        self.active -= 1
        KKASSERT(self.active >= 0, "bio_track_rel: bad count")
        if not self.active and self.wanted:
            self.wanted = False
            wakeup(self)

    async def wait(self, slp_flags: int = 0, timo: int = 0) -> int:
        """Wait until nothing is in flight.

        Returns:
            0, or what ended the sleep early (EWOULDBLOCK, EINTR, ERESTART).

        Counterpart: bio_track_wait.
        """
        while self.active:
            tsleep_interlock(self, slp_flags)
            self.wanted = True
            error = await tsleep(self, slp_flags | PINTERLOCKED, "trwait", timo)
            if error:
                return error
        return 0


class Bio:
    """A request as one layer sees it. Counterpart: struct bio (sys/bio.h); bio_ is dropped.

    Attributes:
        buf: what it is part of.
        offset: bytes from the start of the device of this layer.
        done: called once with the bio when the layers below are done, or None.
        prev, next: the layers above and below.
        track: what counts it while it is in flight.
        flags: BIO bits.
        driver_info: the driver's.
        caller_info1, caller_info2, caller_info3: the caller's.
    """

    __slots__ = (
        "buf",
        "caller_info1",
        "caller_info2",
        "caller_info3",
        "done",
        "driver_info",
        "flags",
        "next",
        "offset",
        "prev",
        "track",
    )

    def __init__(self, buf: Buf, prev: Bio | None = None) -> None:
        self.buf = buf
        self.prev = prev
        self.next: Bio | None = None
        self.offset = NOOFFSET
        self.done: BioDone | None = None
        self.track: BioTrack | None = None
        self.flags = 0
        self.driver_info: Any = None
        self.caller_info1: Any = None
        self.caller_info2: Any = None
        self.caller_info3: Any = None

    def __repr__(self) -> str:
        return f"<Bio {self.buf.cmd.name} {self.offset}+{self.buf.bcount}>"


class Buf:
    """What a driver sees of a buffer. Counterpart: struct buf (sys/buf.h); b_ is dropped.

    The buffer cache's own class is a subclass that overrides `buffers`, `bpdone` and
    `runningbufwakeup`.

    Attributes:
        cmd: what to do; BufCmd.DONE when nothing is in flight.
        flags: B bits.
        bcount: bytes to transfer; a device may shorten it at its end.
        resid: bytes that were not transferred, valid when done.
        error: errno, valid when done and B.ERROR is set.
        data: the memory.
        bio1: the first layer.
    """

    __slots__ = ("bcount", "bio1", "cmd", "data", "error", "flags", "resid")

    def __init__(self, data: Buffer | None = None, bcount: int | None = None) -> None:
        """A buffer on ``data``, for ``bcount`` bytes of it (all by default)."""
        self.data = data
        self.bcount = bcount if bcount is not None else len(data or b"")
        self.cmd = BufCmd.DONE
        self.flags = 0
        self.resid = 0
        self.error = 0
        self.bio1 = Bio(self)

    @property
    def bio2(self) -> Bio:
        """The second layer: where the buffer is on the device, if it has been translated."""
        return self.bio1.next or _grow(self.bio1)

    def buffers(self) -> Sequence[Buffer]:
        """The memory of the transfer, ``bcount`` bytes of it, in pieces."""
        data = self.data if self.data is not None else b""
        return (data,) if len(data) == self.bcount else (memoryview(data)[: self.bcount],)

    def runningbufwakeup(self) -> None:
        """The transfer is over: who limits transfers in flight may let others go on."""

    def bpdone(self, elseit: bool) -> None:
        """All layers are done. ``elseit``: nobody waits, the buffer gives itself back.

        Counterpart: bpdone, without the buffer cache.
        """
        if self.cmd is BufCmd.DONE:
            panic(f"bpdone: {self!r} already done")
        if self.cmd is BufCmd.FREEBLKS:
            self.flags |= B.NOCACHE
        self.cmd = BufCmd.DONE

    def fail(self, error: int) -> None:
        """Note an error; `biodone` is still to be called."""
        self.error = error
        self.flags |= B.ERROR
        self.resid = self.bcount

    def dispose(self) -> None:
        """Cut the buffer and its bios apart, so that no collector is needed for them.

        For whoever makes a buffer for one transfer; it and its bios are of no use afterwards.
        """
        bio: Bio | None = self.bio1
        while bio is not None:
            following, bio.next = bio.next, None
            del bio.buf
            bio.prev = None
            bio = following

    @property
    def outcome(self) -> int:
        """0 or the errno of a transfer that is over."""
        if self.flags & B.EINTR:
            return EINTR
        if self.flags & B.ERROR:
            return self.error or EIO
        return 0

    def __repr__(self) -> str:
        return f"<Buf {self.cmd.name} {self.bcount} flags {self.flags:#x}>"


def _grow(bio: Bio) -> Bio:
    nbio = Bio(bio.buf, bio)
    bio.next = nbio
    return nbio


def push_bio(bio: Bio) -> Bio:
    """The bio of the next layer down; its cached translation is kept. Counterpart: push_bio."""
    nbio = bio.next or _grow(bio)
    KKASSERT(nbio.done is None, "push_bio: the layer below is busy")
    nbio.flags = bio.flags & BIO.FUA
    return nbio


def pop_bio(bio: Bio) -> Bio:
    """The bio of the layer above. Counterpart: pop_bio."""
    KKASSERT(bio.prev is not None, "pop_bio: no layer above")
    assert bio.prev is not None
    return bio.prev


def clearbiocache(bio: Bio | None) -> None:
    """Forget the translations from this layer down. Counterpart: clearbiocache."""
    while bio is not None:
        bio.offset = NOOFFSET
        bio = bio.next


def bio_start_transaction(bio: Bio, track: BioTrack) -> None:
    """Count a bio as in flight until `biodone`. Counterpart: bio_start_transaction."""
    bio.track = track
    track.ref()


def biodone(bio: Bio) -> None:
    """A layer has finished what it was given. Counterpart: biodone."""
    bp = bio.buf
    bp.runningbufwakeup()
    here: Bio | None = bio
    while here is not None:
        track = here.track
        if track is not None:
            here.track = None
            track.rel()
        done = here.done
        if done is not None:
            here.done = None
            done(here)
            return
        here = here.prev
    bp.bpdone(True)


def biodone_sync(bio: Bio) -> None:
    """The ``done`` function of a bio somebody waits for. Counterpart: biodone_sync."""
    KKASSERT(bio is bio.buf.bio1, "biodone_sync: not the first layer")
    bio.buf.bpdone(False)
    wanted = bio.flags & BIO.WANT
    bio.flags = bio.flags & ~BIO.WANT | BIO.DONE
    if wanted:
        wakeup(bio)


def start_sync(bp: Buf, cmd: BufCmd, offset: int) -> Bio:
    """Make a buffer ready for a transfer somebody will wait for; returns the bio to hand down."""
    if bp.cmd is not BufCmd.DONE:
        panic(f"start_sync: {bp!r} is in flight")
    bio = bp.bio1
    bp.cmd = cmd
    bp.error = bp.resid = 0
    bp.flags &= ~(B.ERROR | B.INVAL | B.EINTR)
    bio.offset = offset
    bio.done = biodone_sync
    bio.flags = bio.flags & ~BIO.DONE | BIO.SYNC
    return bio


async def biowait(bio: Bio, wmesg: str = "", timo: int = 0) -> int:
    """Wait for a bio with `biodone_sync`.

    Returns:
        0, the buffer's errno, or EWOULDBLOCK when ``timo`` ticks were up (the transfer goes on).

    Counterpart: biowait, biowait_timeout.
    """
    bp = bio.buf
    while not bio.flags & BIO.DONE:
        tsleep_interlock(bio)
        bio.flags |= BIO.WANT
        what = wmesg or ("biord" if bp.cmd is BufCmd.READ else "biowr")
        error = await tsleep(bio, PINTERLOCKED, what, timo)
        if error:
            return error
    bio.flags &= ~(BIO.DONE | BIO.SYNC)
    return bp.outcome


async def _until_done(bio: Bio) -> int:
    """Wait for the end of a transfer, whatever its outcome, and leave it to be looked at."""
    while not bio.flags & BIO.DONE:
        tsleep_interlock(bio)
        bio.flags |= BIO.WANT
        await tsleep(bio, PINTERLOCKED, "physio")
    return 0


def biowait_block(bio: Bio, wmesg: str = "physio") -> Block:
    """What a synchronous core raises to have the edge wait for ``bio`` and ask again."""
    return Block(functools.partial(_until_done, bio), wmesg)
