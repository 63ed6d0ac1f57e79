"""Physical memory: one memory file of fixed size, mapped once.

All memory the kernel hands out - file pages, buffers, packet data, the memory of guest
programs - is a frame of this file. A frame is a number; frame ``f`` is the bytes
``f << 12`` to ``(f + 1) << 12``. Because it is a file, a CPU engine can map the very same
bytes into a guest, and because it is sparse, memory that was never written costs the host
nothing.

How to touch a frame, cheapest first:

- ``mem[a:b]`` reads bytes and ``mem[a:b] = data`` writes them: one copy at the speed of
  memcpy, and nothing stays behind. This is what ``vm`` does on its hot paths.
- ``buf[a:b]`` or ``view(frame, npages)`` is a window without a copy. A window keeps the
  mapping alive, so it must be short-lived (or belong to an object with a ``release``), and
  whoever keeps one holds its frames.

The host gives memory only when a frame is first written (about 4 us a frame, most of it
the host zeroing the page) and takes it back at ``discard``. If the host itself has no memory left
at that first write, it kills the process or sends SIGBUS, as for any program that uses shared
memory: configure no more than the host can give.

Counterpart: the physical address space; ``vm_page_array`` lies above it in vm/page.py, and
    vkernel's memory image (platform/vkernel64/platform/init.c, init_kern_memory) is the twin.
Differs from DragonFly: no holes, no DMA zones, no physical address 0 to avoid.
Token/lock order: takes none.
Invariants: the file's size never changes (it is sealed); ``close`` succeeds if and only if
    no window is alive.
"""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
from typing import Final, NamedTuple

from dfuser.libkern.param import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

ZERO_SPAN: Final = 65536
ZEROES: Final = bytes(ZERO_SPAN)
"""64 KiB of zeroes: the source of every zeroed frame and of every hole that is read."""


class PhysMemStatistics(NamedTuple):
    """How much memory there is, and how much the host has given for it, in bytes."""

    size: int
    resident: int
    zeroed: int
    discarded: int


class PhysMem:
    """The machine's memory.

    Args:
        size: bytes, a positive multiple of 4 KiB.

    Raises:
        ValueError: the size is not a positive multiple of 4 KiB.
        OSError: the host refuses the memory file or its mapping.

    Attributes:
        mem: the mapping itself, for slices that copy.
        buf: one memoryview over all of it, for slices that don't.
        fd: the memory file, for mapping it into guests. Owned by this object.
        npages: number of frames.
    """

    __slots__ = ("buf", "bytes_discarded", "bytes_zeroed", "fd", "mem", "npages", "size")

    def __init__(self, size: int) -> None:
        if size <= 0 or size & PAGE_MASK:
            raise ValueError(
                f"memory size must be a positive multiple of {PAGE_SIZE} bytes, not {size}"
            )
        self.size = size
        self.npages = size >> PAGE_SHIFT
        self.bytes_zeroed = 0
        self.bytes_discarded = 0
        self.fd = os.memfd_create("dfuser-physmem", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
            self.mem = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED)
        except (OSError, OverflowError):
            os.close(self.fd)
            raise
        self.buf = memoryview(self.mem)

    def view(self, frame: int, npages: int = 1) -> memoryview:
        """Open a window on frames without copying; drop or release it soon.

        Raises:
            IndexError: the frames are not all inside the memory.
        """
        self._range(frame, npages)
        start = frame << PAGE_SHIFT
        return self.buf[start : start + (npages << PAGE_SHIFT)]

    def read(self, address: int, size: int) -> bytes:
        """Copy bytes out of memory.

        Raises:
            IndexError: the bytes are not all inside the memory.
        """
        if address < 0 or size < 0 or address + size > self.size:
            raise IndexError(f"bytes {address}+{size} are outside of physical memory")
        return self.mem[address : address + size]

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes into memory.

        Raises:
            IndexError: the bytes do not all fit at that address; nothing was written.
        """
        end = address + len(data)
        if address < 0 or end > self.size:
            raise IndexError(f"bytes {address}+{len(data)} are outside of physical memory")
        self.mem[address:end] = data

    def zero(self, frame: int, npages: int = 1) -> None:
        """Fill frames with zeroes.

        Raises:
            IndexError: the frames are not all inside the memory.
        """
        self._range(frame, npages)
        mem = self.mem
        pos = frame << PAGE_SHIFT
        end = pos + (npages << PAGE_SHIFT)
        self.bytes_zeroed += end - pos
        while end - pos >= ZERO_SPAN:
            mem[pos : pos + ZERO_SPAN] = ZEROES
            pos += ZERO_SPAN
        if pos < end:
            mem[pos:end] = ZEROES[: end - pos]

    def discard(self, frame: int, npages: int = 1) -> None:
        """Give frames back to the host; they read as zeroes from now on.

        The hole is punched through the mapping (MADV_REMOVE), which for a memory file does
        what fallocate(FALLOC_FL_PUNCH_HOLE) does. Costs 15 us and more: batch it.

        Raises:
            IndexError: the frames are not all inside the memory.
            OSError: the host refused.
        """
        self._range(frame, npages)
        size = npages << PAGE_SHIFT
        self.mem.madvise(mmap.MADV_REMOVE, frame << PAGE_SHIFT, size)
        self.bytes_discarded += size

    def resident_bytes(self) -> int:
        """Bytes the host has given for this memory, as the host counts them."""
        return os.fstat(self.fd).st_blocks * 512

    def statistics(self) -> PhysMemStatistics:
        """Sizes in bytes; ``zeroed`` and ``discarded`` count since the start."""
        return PhysMemStatistics(
            self.size,
            0 if self.closed else self.resident_bytes(),
            self.bytes_zeroed,
            self.bytes_discarded,
        )

    @property
    def closed(self) -> bool:
        """Whether the memory is gone."""
        return self.mem.closed

    def live_views(self) -> int:
        """Count the windows that are alive. Looks at every object: for reports only."""
        buf = self.buf
        count = 0
        for thing in gc.get_objects():
            if type(thing) is memoryview and thing is not buf:
                try:
                    count += thing.obj is self.mem
                except ValueError:  # a released window has no object
                    continue
        return count

    def close(self) -> None:
        """Give all memory back to the host. A second call does nothing.

        Raises:
            BufferError: windows are still alive; the text says how many. The memory stays
                usable, and close can be called again once they are gone.
        """
        if self.closed:
            return
        self.buf.release()
        try:
            self.mem.close()
        except BufferError:
            self.buf = memoryview(self.mem)
            raise BufferError(
                f"physical memory cannot be closed: {self.live_views()} views of it are alive"
            ) from None
        os.close(self.fd)
        self.fd = -1

    def _range(self, frame: int, npages: int) -> None:
        if frame < 0 or npages < 0 or frame + npages > self.npages:
            raise IndexError(f"frames {frame}+{npages} are outside of physical memory")
