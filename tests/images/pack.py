"""Pack a disk image for the tests: ``python tests/images/pack.py disk.img tests/images/name``.

Writes ``name.ext.xz``, an xz file that holds the size of the image (u64), then each run of blocks
of 1 KiB that are not all zero: its offset (u64), its length (u32), its bytes. All little-endian.
"""

from __future__ import annotations

import lzma
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

UNIT = 1024
CHUNK = 1 << 20
LONGEST = (1 << 32) - CHUNK


def chunks(fd: int) -> Iterator[tuple[int, bytes]]:
    """What of a file is no hole, a MiB at a time."""
    at, end = 0, os.fstat(fd).st_size
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA) // UNIT * UNIT
        except OSError:
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        for offset in range(start, at, CHUNK):
            yield offset, os.pread(fd, min(CHUNK, at - offset), offset)


def extents(fd: int) -> Iterator[tuple[int, bytearray]]:
    """Runs of blocks that are not all zero."""
    start, run = 0, bytearray()
    for offset, data in chunks(fd):
        for at in range(0, len(data), UNIT):
            block = data[at : at + UNIT]
            if not any(block):
                continue
            if start + len(run) != offset + at or len(run) > LONGEST:
                if run:
                    yield start, run
                start, run = offset + at, bytearray()
            run += block
    if run:
        yield start, run


def pack(image: Path, target: Path) -> None:
    """Write the packed form of an image."""
    fd = os.open(image, os.O_RDONLY)
    with lzma.open(target.with_name(target.name + ".ext.xz"), "wb", preset=9) as out:
        out.write(struct.pack("<Q", os.fstat(fd).st_size))
        for offset, run in extents(fd):
            out.write(struct.pack("<QI", offset, len(run)) + run)
    os.close(fd)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
