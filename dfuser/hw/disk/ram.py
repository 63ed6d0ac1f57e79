"""A disk in memory: sparse, exact, and cheap to copy.

Contents are kept in pieces of 4 KiB that are never changed, only replaced. So `snapshot` costs one
copy of a table of pointers, whatever the disk holds, and crash exploration can afford a disk for
each instant at which the power could fail. A piece of zeroes is not kept at all.

Everything is stable at once: a flush has nothing to do. `fault.FaultDisk` above it adds the
volatile cache of a real drive.

Counterpart: the malloc disk of dev/disk/md (which keeps sectors of 512 bytes, and sectors of one
    repeated byte as that byte).
Token/lock order: takes none.
Invariants: a kept piece has `PIECE` bytes and is not all zeroes.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from dfuser.libkern.errno import EINVAL, KError
from dfuser.libkern.linux_errno import kerror_from_host

from .disk import Buffer, DiskBase, DiskCmd, DiskRequest

PIECE: Final = 4096
_ZEROES: Final = bytes(PIECE)


class RamDisk(DiskBase):
    """A disk in memory.

    Args:
        size: bytes, a multiple of ``sector_size``.
        sector_size: bytes of a sector.
        name: what messages call it.
        readonly: refuse every change.
    """

    __slots__ = ("_pieces",)

    def __init__(
        self, size: int, sector_size: int = 512, *, name: str = "ram", readonly: bool = False
    ) -> None:
        super().__init__(name, size, sector_size, readonly)
        self._pieces: dict[int, bytes] = {}

    @property
    def resident(self) -> int:
        """Bytes of memory the contents take."""
        return len(self._pieces) * PIECE

    def snapshot(self, name: str | None = None) -> RamDisk:
        """A second disk with the same contents; writing to either leaves the other alone."""
        twin = RamDisk(self.size, self.sector_size, name=name or self.name)
        twin._pieces = self._pieces.copy()
        return twin

    def same(self, other: RamDisk) -> bool:
        """Whether both hold the same bytes."""
        return self.size == other.size and self._pieces == other._pieces

    @classmethod
    def load(cls, path: str | os.PathLike[str], sector_size: int = 512) -> RamDisk:
        """A disk with the contents of an image file; its holes are not read.

        Raises:
            KError: as the host says; EINVAL, the size is no multiple of the sector size.
        """
        try:
            with open(path, "rb") as image:
                disk = cls(os.fstat(image.fileno()).st_size, sector_size, name=os.fspath(path))
                at = 0
                while at < disk.size:
                    try:
                        at = os.lseek(image.fileno(), at, os.SEEK_DATA) // PIECE * PIECE
                    except OSError as error:
                        if error.errno == errno.ENXIO:  # a hole up to the end
                            break
                        raise
                    data = os.pread(image.fileno(), 1 << 20, at)
                    disk._put(at, data)
                    at += len(data)
                return disk
        except OSError as error:
            raise kerror_from_host(error) from None

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write the contents to a new sparse image file, for other programs.

        Raises:
            KError: EEXIST, the file is there; else as the host says.
        """
        try:
            with open(path, "xb") as image:
                image.truncate(self.size)
                for number, piece in sorted(self._pieces.items()):
                    os.pwrite(image.fileno(), piece[: self.size - number * PIECE], number * PIECE)
        except OSError as error:
            raise kerror_from_host(error) from None

    def resize(self, size: int) -> None:
        """Make the disk larger; the new bytes are zeroes.

        Raises:
            KError: EINVAL, the size is smaller or no multiple of the sector size.
        """
        if size < self.size or size % self.sector_size:
            raise KError(EINVAL, f"{self.name}: cannot be resized to {size} bytes")
        self.size = size

    def _transfer(self, request: DiskRequest) -> None:
        cmd = request.cmd
        if cmd is DiskCmd.READ:
            request.fill(self._get(request.offset, request.length))
        elif cmd is DiskCmd.WRITE:
            buffers = request.buffers
            self._put(request.offset, buffers[0] if len(buffers) == 1 else request.data())
        elif cmd is not DiskCmd.FLUSH:
            self._clear(request.offset, request.end)

    def _get(self, offset: int, length: int) -> bytes:
        """The bytes of a range."""
        if not length:
            return b""
        first, last = offset // PIECE, (offset + length - 1) // PIECE
        get = self._pieces.get
        data = b"".join([get(number, _ZEROES) for number in range(first, last + 1)])
        skip = offset - first * PIECE
        return data if not skip and len(data) == length else data[skip : skip + length]

    def _put(self, offset: int, data: Buffer) -> None:
        """Replace the bytes of a range."""
        pieces = self._pieces
        view = memoryview(data)
        while view:
            number, skip = divmod(offset, PIECE)
            size = min(PIECE - skip, len(view))
            piece = bytes(view[:size])
            if size != PIECE:
                old = pieces.get(number, _ZEROES)
                piece = old[:skip] + piece + old[skip + size :]
            if piece == _ZEROES:
                pieces.pop(number, None)
            else:
                pieces[number] = piece
            view = view[size:]
            offset += size

    def _clear(self, start: int, end: int) -> None:
        """Make a range zeroes."""
        pieces = self._pieces
        first, last = -(-start // PIECE), end // PIECE
        if first > last:
            self._put(start, bytes(end - start))
            return
        self._put(start, bytes(first * PIECE - start))
        self._put(last * PIECE, bytes(end - last * PIECE))
        if last - first < len(pieces):
            for number in range(first, last):
                pieces.pop(number, None)
        else:
            for number in [n for n in pieces if first <= n < last]:
                del pieces[number]

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        super().close()
        self._pieces = {}
