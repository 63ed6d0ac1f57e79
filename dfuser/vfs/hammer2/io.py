"""Blocks on their way to the devices: write-behind, joined into long runs; barriers.

A block that is written stays here until there are enough of them, or until the next barrier; then
all go out by ascending offset, neighbours joined into one write. Inodes are allocated side by
side, so ten thousand new ones become a few writes. A block waiting here is read from here.

Nothing waits by itself: a device's `write_at` is called in place (a host's page cache takes it),
and who wants the blocks stable calls the device's `flush`, or waits for it elsewhere.

Counterpart: struct hammer2_io, hammer2_io.c (vfs/hammer2); DragonFly's delayed device buffers.
Differs from DragonFly: whole blocks instead of 64 KiB device buffers, so that nothing is read in
    order to be written, but on devices whose sectors are larger than a block.
Token/lock order: takes none.
Invariants: a block that waits is not on its device, or is there with other bytes; blocks that
    wait never overlap, for only a sync with no block waiting makes space free again. A device that
    fails loses nothing here: what it did not take waits on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from dfuser.libkern.errno import EIO, KError
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import OFF_MASK
from dfuser.vfs.hammer2.tree import Tree
from dfuser.vfs.hammer2.tunables import Tunables

#: A device that takes nothing may make so many limits' worth of blocks wait, then writers fail.
_PATIENCE = 4


class BlockDevice(Protocol):
    """What a volume lies on. Offsets are bytes from the start of the device.

    A device may have `sector_size`; without it sectors are taken to be no larger than 1 KiB.
    """

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Read in place; what cannot be read raises OSError."""

    def write_at(self, offset: int, data: bytes) -> None:
        """Write in place; stable after the next flush only."""

    def flush(self) -> None:
        """Make all writes stable."""


class InplaceDisk(Protocol):
    """A disk with the in-place form of its transfers."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def sector_size(self) -> int:
        """The smallest unit of a transfer."""

    def read(self, offset: int, length: int) -> bytes:
        """Read in place."""

    def write(self, offset: int, data: bytes) -> None:
        """Write in place."""

    def flush(self) -> None:
        """Make all writes stable."""


class DiskDevice:
    """A disk as a device for a volume."""

    __slots__ = ("disk", "name", "sector_size", "size")

    def __init__(self, disk: InplaceDisk) -> None:
        """Use a disk; who opened it closes it."""
        self.disk = disk
        self.name = disk.name
        self.size = disk.size
        self.sector_size = disk.sector_size

    def read_at(self, offset: int, size: int) -> bytes:
        """Read in place, whatever the sectors are; at the end of the device fewer bytes come."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        mask = self.sector_size - 1
        head = offset & mask
        if not head and not size & mask:
            return self.disk.read(offset, size)
        data = self.disk.read(offset - head, head + size + mask & ~mask)
        return data[head : head + size]

    def write_at(self, offset: int, data: bytes) -> None:
        """Write in place."""
        self.disk.write(offset, data)

    def flush(self) -> None:
        """Make all writes stable."""
        self.disk.flush()


class IoStatistics(NamedTuple):
    """What an `Io` has done so far."""

    waiting: int
    waiting_bytes: int
    blocks_written: int
    bytes_written: int
    writes: int
    barriers: int
    errors: int
    blocks_read: int
    bytes_read: int
    check_failures: int


class Io:
    """The devices of a volume as one run of bytes. Counterpart: hammer2_io.c."""

    __slots__ = (
        "_starts", "barriers", "blocks_written", "bytes_written", "devices", "errors", "size",
        "tree", "tunables", "waiting", "waiting_bytes", "writes",
    )  # fmt: skip

    def __init__(
        self, devices: Sequence[BlockDevice], starts: Sequence[int], size: int, tunables: Tunables
    ) -> None:
        """Make one run of bytes of some devices.

        Args:
            devices: in the order of the volume.
            starts: where the first byte of each lies in the volume.
            size: bytes of the volume.
            tunables: limits.
        """
        self.devices = tuple(devices)
        self._starts = tuple(starts)
        self.size = size
        self.tunables = tunables
        self.waiting: dict[int, bytes] = {}
        self.waiting_bytes = 0
        self.blocks_written = 0
        self.bytes_written = 0
        self.writes = 0
        self.barriers = 0
        self.errors = 0
        self.tree = Tree(self.read_at, size)

    def _locate(self, offset: int) -> tuple[BlockDevice, int]:
        """The device a byte of the volume lies on, and where there."""
        if len(self.devices) == 1:
            return self.devices[0], offset
        index = bisect_right(self._starts, offset) - 1
        return self.devices[index], offset - self._starts[index]

    # --- reading ---------------------------------------------------------------------------

    def read_at(self, offset: int, size: int) -> bytes:
        """Read one whole block, waiting or written; other bytes only where no block waits.

        Raises:
            OSError: what the device raises.
        """
        data = self.waiting.get(offset)
        if data is not None and len(data) == size:
            return data
        device, at = self._locate(offset)
        return device.read_at(at, size)

    def load(self, bref: Blockref) -> bytes:
        """The block of a blockref, verified.

        Raises:
            MediaError: it cannot be read, or its check code is wrong.
        """
        return self.tree.load(bref)

    # --- writing ---------------------------------------------------------------------------

    def write(self, data_off: int, data: bytes) -> None:
        """Write a block: soon, and before the next barrier. Never fails.

        Args:
            data_off: where, as in a blockref.
            data: the whole block.
        """
        offset = data_off & OFF_MASK
        old = self.waiting.get(offset)
        if old is not None:
            self.waiting_bytes -= len(old)
        self.waiting[offset] = data
        self.waiting_bytes += len(data)
        if self.waiting_bytes > self.tunables.write_behind:
            try:
                self.drain()
            except OSError:
                return

    def forget(self, data_off: int) -> None:
        """A block was given back before anything refers to it: it need not be written."""
        data = self.waiting.pop(data_off & OFF_MASK, None)
        if data is not None:
            self.waiting_bytes -= len(data)

    def check(self) -> None:
        """Refuse new changes while a device takes no writes.

        Raises:
            KError: EIO, too much waits for a device that fails.
        """
        if self.errors and self.waiting_bytes > _PATIENCE * self.tunables.write_behind:
            raise KError(EIO, "the device takes no writes")

    def drain(self) -> None:
        """Hand every block that waits to its device, joined into runs.

        Raises:
            OSError: a device failed; what it did not take still waits, the rest was tried.
        """
        waiting = self.waiting
        failure: OSError | None = None
        run: list[bytes] = []
        start = end = -1
        limit = self.tunables.cluster_bytes
        for offset in sorted(waiting):
            data = waiting[offset]
            if offset != end or offset - start >= limit:
                failure = self._write_run(start, run) or failure
                run, start = [], offset
            run.append(data)
            end = offset + len(data)
        failure = self._write_run(start, run) or failure
        if failure is not None:
            raise failure

    def _write_run(self, start: int, run: list[bytes]) -> OSError | None:
        """Write neighbouring blocks at once; return what went wrong."""
        if not run:
            return None
        device, at = self._locate(start)
        data = run[0] if len(run) == 1 else b"".join(run)
        try:
            _write_aligned(device, at, data)
        except OSError as failure:
            self.errors += 1
            return failure
        self.writes += 1
        self.blocks_written += len(run)
        self.bytes_written += len(data)
        self.waiting_bytes -= len(data)
        offset = start
        for block in run:
            del self.waiting[offset]
            offset += len(block)
        return None

    def write_header(self, offset: int, data: bytes) -> None:
        """Write a copy of the header, at once, to the first device.

        Raises:
            OSError: what the device raises.
        """
        try:
            self.devices[0].write_at(offset, data)
        except OSError:
            self.errors += 1
            raise
        self.writes += 1
        self.bytes_written += len(data)

    def barrier(self) -> None:
        """Make stable whatever the devices were given.

        Raises:
            OSError: what a device raises.
        """
        for device in self.devices:
            device.flush()
        self.barriers += 1

    def statistics(self) -> IoStatistics:
        """Counters since the volume was opened."""
        read = self.tree.statistics()
        return IoStatistics(
            len(self.waiting), self.waiting_bytes, self.blocks_written, self.bytes_written,
            self.writes, self.barriers, self.errors, read.blocks_read, read.bytes_read,
            read.check_failures,
        )  # fmt: skip


def _write_aligned(device: BlockDevice, offset: int, data: bytes) -> None:
    """Write bytes to a device whose sectors may be larger than they are.

    The rest of the sectors at both ends is read and written again unchanged, so that a torn write
    cannot hurt it.
    """
    sector = getattr(device, "sector_size", 512)
    head = offset % sector
    tail = -(offset + len(data)) % sector
    if head:
        data = device.read_at(offset - head, sector)[:head] + data
    if tail:
        end = offset - head + len(data)
        data += device.read_at(end - sector + tail, sector)[sector - tail :]
    device.write_at(offset - head, data)
