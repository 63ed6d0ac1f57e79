"""A file of the host, or one of its block devices, as a disk.

Reads and writes go through the host's page cache with one system call each and are done in place:
a hop to another thread would cost twenty times the call. What waits for hardware, fdatasync and
FUA writes (RWF_DSYNC), is given to an executor and comes back as an interrupt.

With ``direct`` the host's cache is passed by (O_DIRECT). Then every transfer waits for hardware, so
every request goes to the executor, in buffers of ours that are aligned as O_DIRECT demands. It is
for measuring and for disks that must not fill the host's memory; it is slower.

Images are sparse: bytes never written take no room, trimmed ones give it back (a hole is punched),
and a new image has a size but no blocks. So ENOSPC can come from any write; it is the host's disk
that is full.

Counterpart: vkernel's disk (platform/vkernel64 with dev/virtual/vkernel/disk); O_DIRECT there is
    what it calls for with its -r option.
Differs from DragonFly: vkernel's disk does its I/O in a thread of its own, always.
Token/lock order: the image is locked for as long as it is open; see `lock`.
Invariants: the descriptor is closed exactly once; the file is never shorter than ``size``.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
from functools import partial
from typing import Final

from dfuser.libkern.errno import EINVAL, EIO, ENXIO, EOPNOTSUPP, EROFS, KError
from dfuser.libkern.linux_errno import kerror_from_host

from .disk import DiskBase, DiskCmd, DiskRequest, ShortTransfer, attempt
from .executor import Executor, InlineExecutor
from .lock import lock_image

# fallocate(2), linux/falloc.h; Python names only the call without a mode.
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10

#: Segments one preadv or pwritev takes (IOV_MAX of Linux).
IOV_MAX: Final = 1024
#: Bytes of an aligned buffer; a larger direct transfer is made in pieces.
BOUNCE: Final = 1 << 20
#: What is written where the host cannot make zeroes itself.
_ZEROES: Final = bytes(65536)
_UNSUPPORTED: Final = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV))


class ImageDisk(DiskBase):
    """A disk in a file. Made by `open` and `create`.

    Attributes:
        path: of the image.
        direct: whether the host's cache is passed by.
    """

    __slots__ = ("_executor", "_fallocate", "_fd", "_punch", "direct", "path")

    def __init__(
        self, fd: int, path: str, size: int, sector_size: int, *, readonly: bool, direct: bool,
        executor: Executor,
    ) -> None:  # fmt: skip
        """Take over an open descriptor; use `open` or `create` instead."""
        super().__init__(path, size, sector_size, readonly)
        self.path = path
        self.direct = direct
        self._fd = fd
        self._executor = executor
        self._punch = True
        self._fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        self._fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    # --- opening ---------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        readonly: bool = False,
        direct: bool = False,
        sector_size: int = 512,
        executor: Executor | None = None,
    ) -> ImageDisk:
        """Open an image and lock it.

        A file whose size is no multiple of the sector size loses its last bytes to the disk.

        Args:
            path: a regular file or a block device.
            readonly: open for reading only; other readers may have it open as well.
            direct: pass the host's cache by.
            sector_size: bytes of a sector.
            executor: who does what waits; without one it is done in place.

        Raises:
            KError: EBUSY, it is in use, and by whom; EINVAL, it is a directory, a pipe or the
                like, has less than one sector, or its file system has no O_DIRECT; else what the
                host says.
        """
        name = os.fspath(path)
        flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC
        fd = _open(name, flags | (os.O_DIRECT if direct else 0), 0)
        try:
            size = _size(fd, name)
            lock_image(fd, name, exclusive=not readonly)
            return cls(
                fd, name, size - size % sector_size, sector_size,
                readonly=readonly, direct=direct, executor=executor or InlineExecutor(),
            )  # fmt: skip
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        size: int,
        *,
        direct: bool = False,
        sector_size: int = 512,
        executor: Executor | None = None,
        mode: int = 0o600,
    ) -> ImageDisk:
        """Make a sparse image of ``size`` bytes and open it for writing.

        Its name is stable when the call returns.

        Raises:
            KError: EEXIST, the file is there already; EINVAL, a bad size; else as `open`.
        """
        name = os.fspath(path)
        if size <= 0 or size % sector_size:
            raise KError(EINVAL, f"{name}: {size} bytes are no multiple of {sector_size}")
        fd = _open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            try:
                os.ftruncate(fd, size)
                os.fsync(fd)
                _sync_directory(os.path.dirname(os.path.abspath(name)))
            finally:
                os.close(fd)
            return cls.open(name, direct=direct, sector_size=sector_size, executor=executor)
        except BaseException as error:
            os.unlink(name)
            if isinstance(error, OSError):
                raise kerror_from_host(error) from None
            raise

    def resize(self, size: int) -> None:
        """Make the image larger; the new bytes are zeroes and take no room.

        Raises:
            KError: EINVAL, smaller, no multiple of the sector size, or not a regular file; EROFS,
                read-only; ENXIO, closed; else what the host says.
        """
        if self.closed:
            raise KError(ENXIO, f"{self.name} is closed")
        if self.readonly:
            raise KError(EROFS, f"{self.name} is read-only")
        if size < self.size or size % self.sector_size:
            raise KError(EINVAL, f"{self.name}: cannot be resized to {size} bytes")
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise kerror_from_host(error) from None
        self.size = size

    def allocated(self) -> int:
        """Bytes the host has given for the image."""
        return os.fstat(self._fd).st_blocks * 512

    # --- transfers -------------------------------------------------------------------------

    @property
    def can_trim(self) -> bool:
        """Whether the host's file system punches holes, as far as is known."""
        return self._punch

    def _start(self, request: DiskRequest) -> None:
        if request.cmd is DiskCmd.FLUSH or request.fua or self.direct:
            work = partial(attempt, self._transfer, request)
            self._executor.execute(work, partial(self._returned, request))
        else:
            self._finish(request, attempt(self._transfer, request))

    def _returned(self, request: DiskRequest, error: OSError | None) -> None:
        """The interrupt: the executor has done its work."""
        self.waited += 1
        self._finish(request, error)

    def _transfer(self, request: DiskRequest) -> None:
        cmd = request.cmd
        if cmd is DiskCmd.FLUSH:
            if not self.readonly:
                os.fdatasync(self._fd)
        elif cmd is DiskCmd.TRIM:
            self._punch_hole(request.offset, request.length)
        elif cmd is DiskCmd.ZERO:
            self._zero(request.offset, request.length)
        elif self.direct:
            self._bounce(request)
        else:
            self._vector(request)

    def _vector(self, request: DiskRequest) -> None:
        """Read or write through the host's cache."""
        reading = request.cmd is DiskCmd.READ
        flags = os.RWF_DSYNC if request.fua else 0
        buffers = list(request.buffers)
        offset, left = request.offset, request.length
        while left:
            some = buffers[:IOV_MAX]
            if reading:
                moved = os.preadv(self._fd, some, offset)
            else:
                moved = os.pwritev(self._fd, some, offset, flags)
            if not moved:
                raise ShortTransfer(EIO, left, f"{self.name} ends at {offset}")
            left -= moved
            offset += moved
            if left:
                buffers = _rest(buffers, moved)

    def _bounce(self, request: DiskRequest) -> None:
        """Read or write past the host's cache, through an aligned buffer."""
        reading = request.cmd is DiskCmd.READ
        data = memoryview(b"" if reading else request.data())
        parts = []
        offset, end = request.offset, request.end
        with mmap.mmap(-1, min(BOUNCE, max(request.length, mmap.PAGESIZE))) as area:
            while offset < end:
                size = min(len(area), end - offset)
                with memoryview(area)[:size] as window:
                    if reading:
                        moved = os.preadv(self._fd, [window], offset)
                        parts.append(bytes(window[:moved]))
                    else:
                        window[:] = data[offset - request.offset :][:size]
                        flags = os.RWF_DSYNC if request.fua else 0
                        moved = os.pwritev(self._fd, [window], offset, flags)
                if not moved:
                    raise ShortTransfer(EIO, end - offset, f"{self.name} ends at {offset}")
                offset += moved
        if reading:
            request.fill(b"".join(parts))

    # --- holes -----------------------------------------------------------------------------

    def _punch_hole(self, offset: int, length: int) -> None:
        """Give space back, where the host can."""
        if not self._punch or not length:
            return
        error = self._allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
        if error in _UNSUPPORTED:
            self._punch = False
        elif error:
            raise OSError(error, os.strerror(error))

    def _zero(self, offset: int, length: int) -> None:
        """Make a range zeroes: as a hole, by the host, or by writing them."""
        for mode in (FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE):
            error = self._allocate(mode | FALLOC_FL_KEEP_SIZE, offset, length) if length else 0
            if not error:
                return
            if error not in _UNSUPPORTED:
                raise OSError(error, os.strerror(error))
        while length:
            size = min(length, len(_ZEROES))
            self._bounce_or_vector(DiskRequest(DiskCmd.WRITE, offset, size, (_ZEROES[:size],)))
            offset += size
            length -= size

    def _bounce_or_vector(self, request: DiskRequest) -> None:
        if self.direct:
            self._bounce(request)
        else:
            self._vector(request)

    def _allocate(self, mode: int, offset: int, length: int) -> int:
        """Call fallocate(2); returns a host errno or 0."""
        return ctypes.get_errno() if self._fallocate(self._fd, mode, offset, length) else 0

    def close(self) -> None:
        """Close the file, which unlocks it; a second call does nothing."""
        super().close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _rest(
    buffers: list[bytes | bytearray | memoryview], moved: int
) -> list[bytes | bytearray | memoryview]:
    """What is left of ``buffers`` behind the first ``moved`` bytes."""
    for index, buffer in enumerate(buffers):
        if moved < len(buffer):
            return [memoryview(buffer)[moved:], *buffers[index + 1 :]]
        moved -= len(buffer)
    return []


def _open(path: str, flags: int, mode: int) -> int:
    try:
        return os.open(path, flags, mode)
    except OSError as error:
        if error.errno == errno.EINVAL and flags & os.O_DIRECT:
            raise KError(EINVAL, f"{path}: its file system has no O_DIRECT") from None
        if error.errno == errno.EISDIR:
            raise KError(EINVAL, f"{path} is a directory, no image") from None
        failure = kerror_from_host(error)
        raise KError(failure.errno, f"{path}: {failure.strerror}") from None


def _size(fd: int, path: str) -> int:
    """Bytes of a regular file or a block device.

    Raises:
        KError: EINVAL, it is neither, or empty; EOPNOTSUPP, it cannot be asked.
    """
    kind = os.fstat(fd).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
        raise KError(EINVAL, f"{path} is neither a file nor a block device")
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        raise KError(EOPNOTSUPP, f"{path}: {error.strerror}") from None
    if not size:
        raise KError(EINVAL, f"{path} is empty: an image has at least one sector")
    return size


def _sync_directory(path: str) -> None:
    """Make names in a directory stable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
