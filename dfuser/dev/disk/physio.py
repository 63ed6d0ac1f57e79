"""Reading and writing a disk device as a file.

A read of a device becomes transfers of at most MAXPHYS bytes each, all started together. If the
device completes them at once, the data are there. If not, the core raises `Block`, and the edge
comes back when they are over. So that the second time finds what the first one started, each open
keeps its transfers (`DiskFile`) until somebody who asks for the same collects them: a write is
started once, however often its core is run.

Counterpart: physio, physread, physwrite (kern/kern_physio.c).
Differs from DragonFly: there one transfer at a time, and the thread sleeps in between.
Token and lock order: takes none.
Invariants: an open keeps at most `KEPT_MAX` operations; what nobody collects goes with the open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dfuser.dev.devsw import Cdev
from dfuser.libkern.errno import EAGAIN, KError
from dfuser.libkern.param import MAXPHYS

from .bio import BIO, Bio, Buf, BufCmd, biowait_block, start_sync
from .device import dev_dstrategy

if TYPE_CHECKING:
    from dfuser.dev.devsw import Buffer

#: Operations of one open that nobody has collected.
KEPT_MAX: Final = 64


class Physio:
    """One read or write of a device under way."""

    __slots__ = ("bios", "cmd", "data", "offset", "size")

    def __init__(self, cmd: BufCmd, offset: int, size: int, data: bytes) -> None:
        self.cmd = cmd
        self.offset = offset
        self.size = size
        self.data = data
        self.bios: list[Bio] = []

    def same(self, cmd: BufCmd, offset: int, size: int, data: bytes) -> bool:
        """Whether it is what somebody asks for."""
        return (self.cmd, self.offset, self.size) == (cmd, offset, size) and self.data == data

    def start(self, dev: Cdev) -> None:
        """Start all transfers."""
        for at in range(0, self.size, MAXPHYS):
            size = min(MAXPHYS, self.size - at)
            piece = bytearray(size) if self.cmd is BufCmd.READ else self.data[at : at + size]
            bio = start_sync(Buf(piece), self.cmd, self.offset + at)
            self.bios.append(bio)
            dev_dstrategy(dev, bio)

    @property
    def pending(self) -> Bio | None:
        """A transfer that is not over, or None."""
        return next((bio for bio in self.bios if not bio.flags & BIO.DONE), None)

    def collect(self) -> tuple[int, bytes]:
        """Bytes moved without a gap from the start on, and the data of a read. May be called once.

        Raises:
            KError: nothing was moved, because of an error.
        """
        moved = 0
        parts = []
        error = 0
        ended = False
        for bio in self.bios:
            bp = bio.buf
            size = bp.bcount - bp.resid
            if not ended:
                moved += size
                error = bp.outcome
                data = bp.data or b""
                parts.append(bytes(memoryview(data)[:size]))
                ended = bool(error) or size < len(data)
            bp.dispose()
        if error and not moved:
            raise KError(error)
        return moved, b"".join(parts) if self.cmd is BufCmd.READ else b""


class DiskFile:
    """What an open of a disk device keeps: operations and jobs nobody has collected."""

    __slots__ = ("jobs", "kept")

    def __init__(self) -> None:
        self.kept: list[Physio] = []
        #: Work begun by an ioctl, by what was asked.
        self.jobs: dict[Any, Any] = {}

    def perform(
        self, dev: Cdev, cmd: BufCmd, offset: int, size: int, data: bytes = b""
    ) -> tuple[int, bytes]:
        """Do a read or write, or find the one begun before.

        Raises:
            Block: it is under way.
            KError: it failed, with nothing moved; EAGAIN, too many are under way.
        """
        found = next((op for op in self.kept if op.same(cmd, offset, size, data)), None)
        if found is None:
            found = Physio(cmd, offset, size, data)
            self._make_room()
            found.start(dev)
            if found.pending is None:
                return found.collect()
            self.kept.append(found)
        pending = found.pending
        if pending is not None:
            raise biowait_block(pending)
        self.kept.remove(found)
        return found.collect()

    def _make_room(self) -> None:
        """Drop an operation whose caller went away.

        Raises:
            KError: EAGAIN, all are under way.
        """
        if len(self.kept) < KEPT_MAX:
            return
        for op in self.kept:
            if op.pending is None:
                self.kept.remove(op)
                return
        raise KError(EAGAIN, f"{KEPT_MAX} transfers of this open are under way")


def physread(dev: Cdev, file: DiskFile, offset: int, size: int) -> bytes:
    """Read from a disk device; fewer bytes at its end.

    Raises:
        Block, KError: as `DiskFile.perform`.

    Counterpart: physread.
    """
    return file.perform(dev, BufCmd.READ, offset, size)[1] if size else b""


def physwrite(dev: Cdev, file: DiskFile, offset: int, data: Buffer) -> int:
    """Write to a disk device; returns how many bytes were taken.

    Raises:
        Block, KError: as `DiskFile.perform`.

    Counterpart: physwrite.
    """
    return file.perform(dev, BufCmd.WRITE, offset, len(data), bytes(data))[0] if data else 0
