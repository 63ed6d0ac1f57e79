"""The interface of all disks, and what they share.

A disk is a fixed number of bytes in sectors that can be read, written, flushed, trimmed and
zeroed. Everything a disk can do can be asked for in two forms:

in place
    ``read``, ``write``, ``flush``, ``trim``, ``zero``: done when the call returns. This is the
    form of the tools, which have no kernel around them, and of tests. It is there when
    ``disk.inplace`` is true.
as a request
    ``submit(request)``: the kernel's form. ``request.done(request)`` is called exactly once,
    with ``request.error`` a DragonFly errno or 0. A disk that need not wait (memory, a file in
    the host's page cache) calls it before ``submit`` returns; one that must (fdatasync, a
    network) calls it later from the host's loop. That later call is an interrupt: it must not
    wait. Who submits tells the two apart by whether ``submit`` has returned.

What a disk promises:

- Offsets and lengths are bytes and multiples of ``sector_size``; anything else is EINVAL, and
  so is what does not lie on the disk. Nothing is clipped here: the disk layer does that.
- A completed write is seen by every later read. It is *stable* (it survives a power cut) once a
  flush submitted after its completion has succeeded, or at once if it was written with ``fua``.
- Requests in flight together may be carried out in any order.
- A flush that failed has lost data, and no later flush can say otherwise; so all later flushes
  and FUA writes of that disk fail with EIO until it is opened again. Hosts forget the error.
- ``trim`` is a hint: afterwards the range reads as anything until written. ``zero`` makes it
  read as zeroes.
- The buffers of a request belong to the disk until it completes.
- Errors are `KError`: EIO, EINVAL, EROFS (writing to a read-only disk), ENOSPC (the host has no
  room), ENXIO (closed, or the power is cut), EOPNOTSUPP (no in-place form).

Counterpart: the part of a driver below its strategy routine; struct disk_info (sys/disk.h) for
    size and sector size.
Token/lock order: takes none; everything but the transfer itself runs on the kernel's thread.
Invariants: ``inflight`` is the number of requests submitted and not completed; each request
    completes once.
"""

from __future__ import annotations

import errno as host_errno
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol, Self, TypeAlias

from dfuser.libkern.errno import (
    EINVAL,
    EIO,
    ENXIO,
    EOPNOTSUPP,
    EROFS,
    KKASSERT,
    KError,
)
from dfuser.libkern.linux_errno import kerror_from_host

Buffer: TypeAlias = "bytes | bytearray | memoryview"
WriteBuffer: TypeAlias = "bytearray | memoryview"

#: Sector sizes a disk may have.
SECTOR_SIZES: Final = (512, 1024, 2048, 4096)


class DiskCmd(IntEnum):
    """What can be asked of a disk."""

    READ = 1
    WRITE = 2
    FLUSH = 3
    TRIM = 4
    ZERO = 5


#: Commands that change what is stored.
CHANGING: Final = frozenset((DiskCmd.WRITE, DiskCmd.TRIM, DiskCmd.ZERO))


class ShortTransfer(KError):
    """A transfer stopped early: the first bytes were moved, ``resid`` bytes were not."""

    def __init__(self, number: int, resid: int, text: str | None = None) -> None:
        super().__init__(number, text)
        self.resid = resid


class DiskRequest:
    """One request to a disk.

    Attributes:
        cmd: what to do.
        offset, length: where, in bytes; 0 and 0 for a flush.
        buffers: where read data go, or where the data to write are, one after the other.
        fua: a write that is stable when it completes.
        done: called once with the request when it is complete.
        error: 0 or a DragonFly errno, valid when done.
        resid: bytes that were not transferred, valid when done.
        context: for who submits.
    """

    __slots__ = (
        "buffers",
        "cmd",
        "context",
        "done",
        "error",
        "fua",
        "length",
        "offset",
        "resid",
    )

    def __init__(
        self,
        cmd: DiskCmd,
        offset: int = 0,
        length: int = 0,
        buffers: Sequence[Buffer] = (),
        done: Callable[[DiskRequest], object] | None = None,
        *,
        fua: bool = False,
        context: Any = None,
    ) -> None:
        self.cmd = cmd
        self.offset = offset
        self.length = length
        self.buffers = buffers
        self.done = done
        self.fua = fua
        self.context = context
        self.error = 0
        self.resid = length

    @classmethod
    def read(
        cls, offset: int, buffers: Sequence[WriteBuffer], done: Callable[[DiskRequest], object]
    ) -> DiskRequest:
        """A request to fill ``buffers`` from ``offset`` on."""
        return cls(DiskCmd.READ, offset, sum(map(len, buffers)), buffers, done)

    @classmethod
    def write(
        cls,
        offset: int,
        buffers: Sequence[Buffer],
        done: Callable[[DiskRequest], object],
        *,
        fua: bool = False,
    ) -> DiskRequest:
        """A request to store ``buffers`` from ``offset`` on."""
        return cls(DiskCmd.WRITE, offset, sum(map(len, buffers)), buffers, done, fua=fua)

    @property
    def end(self) -> int:
        """The byte after the last one."""
        return self.offset + self.length

    def complete(self, error: int = 0, resid: int | None = None) -> None:
        """Note the outcome and call ``done``; a second call is a broken invariant.

        Without ``resid`` an error means that nothing was transferred, success that all was.
        """
        done = self.done
        KKASSERT(done is not None, "a disk request completes twice")
        assert done is not None
        self.done = None
        self.error = error
        self.resid = resid if resid is not None else (self.length if error else 0)
        done(self)

    def data(self) -> bytes:
        """A copy of the buffers, joined."""
        return b"".join(self.buffers)

    def fill(self, data: Buffer) -> None:
        """Put ``data`` into the buffers of a read, from their start."""
        view = memoryview(data)
        for buffer in self.buffers:
            size = min(len(buffer), len(view))
            buffer[:size] = view[:size]  # type: ignore[index]
            view = view[size:]
            if not view:
                break

    def __repr__(self) -> str:
        fua = " fua" if self.fua else ""
        return f"<{self.cmd.name}{fua} {self.offset}+{self.length}>"


class DiskStatistics(NamedTuple):
    """What a disk did since it was opened. Counted when a request completes.

    Attributes:
        reads, writes, flushes, trims, zeroes: requests that succeeded.
        bytes_read, bytes_written, bytes_trimmed, bytes_zeroed: what they moved.
        fua: writes that were stable at once; they are among ``writes``.
        errors: requests that failed.
        inflight: requests submitted and not completed.
        inflight_max: the most there ever were at once.
        waited: requests that completed after ``submit`` had returned.
    """

    reads: int
    writes: int
    flushes: int
    trims: int
    zeroes: int
    bytes_read: int
    bytes_written: int
    bytes_trimmed: int
    bytes_zeroed: int
    fua: int
    errors: int
    inflight: int
    inflight_max: int
    waited: int


class Disk(Protocol):
    """A disk. See the head of this module for what it promises."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def size(self) -> int:
        """Bytes; a multiple of ``sector_size``."""

    @property
    def sector_size(self) -> int:
        """The smallest unit of a transfer."""

    @property
    def readonly(self) -> bool:
        """Whether every change is refused with EROFS."""

    @property
    def inplace(self) -> bool:
        """Whether the in-place form exists."""

    @property
    def can_trim(self) -> bool:
        """Whether ``trim`` gives space back. It never fails for the lack of it."""

    def read(self, offset: int, length: int) -> bytes:
        """Read in place."""

    def write(self, offset: int, data: Buffer, fua: bool = False) -> None:
        """Write in place."""

    def flush(self) -> None:
        """Make every completed write stable; in place."""

    def trim(self, offset: int, length: int) -> None:
        """Say that a range is no longer needed; in place."""

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeroes; in place."""

    def submit(self, request: DiskRequest) -> None:
        """Start a request; it completes once, now or later. Never raises, never waits."""

    def statistics(self) -> DiskStatistics:
        """What it did since it was opened."""

    def close(self) -> None:
        """Give the disk back; a second call does nothing. Requests must not be in flight."""


class DiskBase:
    """What all disks share: checks, counters, and both forms made from one transfer.

    A disk overrides `_transfer`, and `_start` if some requests cannot be done in place.
    """

    __slots__ = (
        "_counts",
        "_lost",
        "_sizes",
        "closed",
        "errors",
        "fua_writes",
        "inflight",
        "inflight_max",
        "name",
        "readonly",
        "sector_size",
        "size",
        "waited",
    )

    def __init__(self, name: str, size: int, sector_size: int, readonly: bool = False) -> None:
        """Describe the disk.

        Raises:
            KError: EINVAL, a sector size no disk has, or a size that is no multiple of it.
        """
        if sector_size not in SECTOR_SIZES:
            raise KError(EINVAL, f"{name}: sectors of {sector_size} bytes")
        if size < 0 or size % sector_size:
            raise KError(EINVAL, f"{name}: {size} bytes are no multiple of {sector_size}")
        self.name = name
        self.size = size
        self.sector_size = sector_size
        self.readonly = readonly
        self.closed = False
        self.inflight = 0
        self.inflight_max = 0
        self.errors = 0
        self.waited = 0
        self.fua_writes = 0
        self._lost = False
        self._counts = [0] * (max(DiskCmd) + 1)
        self._sizes = [0] * (max(DiskCmd) + 1)

    @property
    def inplace(self) -> bool:
        """Whether the in-place form exists."""
        return True

    @property
    def can_trim(self) -> bool:
        """Whether ``trim`` gives space back."""
        return True

    # --- the in-place form -----------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """Read in place."""
        data = bytearray(max(length, 0))
        self._perform(DiskRequest(DiskCmd.READ, offset, length, (data,)))
        return bytes(data)

    def readinto(self, offset: int, buffers: Sequence[WriteBuffer]) -> None:
        """Read in place into buffers, one after the other."""
        self._perform(DiskRequest(DiskCmd.READ, offset, sum(map(len, buffers)), buffers))

    def write(self, offset: int, data: Buffer, fua: bool = False) -> None:
        """Write in place."""
        self._perform(DiskRequest(DiskCmd.WRITE, offset, len(data), (data,), fua=fua))

    def flush(self) -> None:
        """Make every completed write stable; in place."""
        self._perform(DiskRequest(DiskCmd.FLUSH))

    def trim(self, offset: int, length: int) -> None:
        """Say that a range is no longer needed; in place."""
        self._perform(DiskRequest(DiskCmd.TRIM, offset, length))

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeroes; in place."""
        self._perform(DiskRequest(DiskCmd.ZERO, offset, length))

    def _perform(self, request: DiskRequest) -> None:
        """Carry out a request in place.

        Raises:
            KError: as described at the head of the module.
        """
        if not self.inplace:
            raise KError(EOPNOTSUPP, f"{self.name} must be waited for: submit requests to it")
        try:
            self.check(request)
        except KError:
            self.errors += 1
            raise
        self._begin()
        error = attempt(self._transfer, request)
        if error is None:
            self._account(request, 0)
            return
        failure = kerror(error)
        try:
            self._account(request, failure.errno)
            raise failure
        finally:  # kept, they would hold this frame by their traceback
            del error, failure

    # --- the form with requests ------------------------------------------------------------

    def submit(self, request: DiskRequest) -> None:
        """Start a request; it completes once, now or later. Never raises, never waits."""
        try:
            self.check(request)
        except KError as refusal:
            self.errors += 1
            request.complete(refusal.errno)
            return
        self._begin()
        self._start(request)

    def _start(self, request: DiskRequest) -> None:
        """Carry out a checked request: here in place."""
        self._finish(request, attempt(self._transfer, request))

    def _finish(self, request: DiskRequest, error: OSError | None) -> None:
        """Count and complete a request that was started."""
        if error is None:
            self._account(request, 0)
            request.complete()
            return
        failure = kerror(error)
        self._account(request, failure.errno)
        resid = failure.resid if isinstance(failure, ShortTransfer) else None
        request.complete(failure.errno, resid)

    def _transfer(self, request: DiskRequest) -> None:
        """Move the bytes. May run outside of the kernel's thread: must not touch counters.

        Raises:
            OSError: it failed; a `KError` already has the right number.
        """
        raise KError(EOPNOTSUPP, f"{self.name} cannot {request.cmd.name.lower()}")

    # --- shared ----------------------------------------------------------------------------

    def check(self, request: DiskRequest) -> None:
        """Refuse what no disk can do.

        Raises:
            KError: ENXIO, EROFS, EINVAL, or EIO for a flush after a flush that failed.
        """
        if self.closed:
            raise KError(ENXIO, f"{self.name} is closed")
        cmd, offset, length = request.cmd, request.offset, request.length
        if self.readonly and cmd in CHANGING:
            raise KError(EROFS, f"{self.name} is read-only")
        mask = self.sector_size - 1
        if offset < 0 or length < 0 or offset + length > self.size or (offset | length) & mask:
            raise KError(EINVAL, f"{self.name}: {request!r} of {self.size}")
        if self._lost and (cmd is DiskCmd.FLUSH or request.fua):
            raise KError(EIO, f"{self.name}: an earlier flush failed, data are lost")

    def _begin(self) -> None:
        self.inflight += 1
        if self.inflight > self.inflight_max:
            self.inflight_max = self.inflight

    def _account(self, request: DiskRequest, error: int) -> None:
        """One request is over."""
        self.inflight -= 1
        cmd = request.cmd
        if error:
            self.errors += 1
            if cmd is DiskCmd.FLUSH:
                self._lost = True
            return
        self._counts[cmd] += 1
        self._sizes[cmd] += request.length
        if request.fua:
            self.fua_writes += 1

    def statistics(self) -> DiskStatistics:
        """What it did since it was opened."""
        counts, sizes = self._counts, self._sizes
        return DiskStatistics(
            reads=counts[DiskCmd.READ],
            writes=counts[DiskCmd.WRITE],
            flushes=counts[DiskCmd.FLUSH],
            trims=counts[DiskCmd.TRIM],
            zeroes=counts[DiskCmd.ZERO],
            bytes_read=sizes[DiskCmd.READ],
            bytes_written=sizes[DiskCmd.WRITE],
            bytes_trimmed=sizes[DiskCmd.TRIM],
            bytes_zeroed=sizes[DiskCmd.ZERO],
            fua=self.fua_writes,
            errors=self.errors,
            inflight=self.inflight,
            inflight_max=self.inflight_max,
            waited=self.waited,
        )

    def close(self) -> None:
        """Give the disk back; a second call does nothing."""
        KKASSERT(not self.inflight, f"{self.name}: closed with {self.inflight} requests in flight")
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.size}>"


def attempt(transfer: Callable[[DiskRequest], None], request: DiskRequest) -> OSError | None:
    """Call ``transfer`` and return what it raised, so that it can travel between threads."""
    try:
        transfer(request)
    except OSError as error:
        return error.with_traceback(None)
    return None


def kerror(error: OSError) -> KError:
    """Make a `KError` of what a transfer raised; the host's numbers are translated.

    What the host calls EINVAL or EBADF on our own file is a failure of the device to who asked.
    """
    if isinstance(error, KError):
        return error
    if error.errno in (None, host_errno.EINVAL, host_errno.EBADF, host_errno.EFAULT):
        return KError(EIO, f"the host says: {error}")
    return kerror_from_host(error)
