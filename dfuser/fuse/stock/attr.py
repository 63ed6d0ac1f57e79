"""Attributes and figures as pyfuse3 wants them.

Counterpart: fuse_fill_attr of libfuse.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pyfuse3

if TYPE_CHECKING:
    from dfuser.vfs.vattr import Statfs, Vattr


class StockPacker:
    """Packs into ``pyfuse3.EntryAttributes``. Counterpart: `dfuser.fuse.attr.Packer`."""

    __slots__ = ()

    def entry(
        self, nodeid: int, va: Vattr, mode: int, rmajor: int, rminor: int, timeout: int
    ) -> pyfuse3.EntryAttributes:
        """The record of a file."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = nodeid
        entry.generation = 1
        entry.entry_timeout = entry.attr_timeout = float(timeout)
        entry.st_mode = mode
        entry.st_rdev = os.makedev(rmajor, rminor) if rmajor or rminor else 0
        entry.st_nlink = va.nlink
        entry.st_uid = va.uid or 0
        entry.st_gid = va.gid or 0
        entry.st_size = va.size or 0
        entry.st_blksize = va.blocksize
        entry.st_blocks = (va.bytes + 511) >> 9
        entry.st_atime_ns = va.atime or 0
        entry.st_mtime_ns = va.mtime or 0
        entry.st_ctime_ns = va.ctime or 0
        return entry

    def negative(self, timeout: int) -> pyfuse3.EntryAttributes:
        """The record that says "no such name"."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = float(timeout)
        entry.attr_timeout = 0.0
        return entry

    def bare(self, ino: int, dtype: int) -> pyfuse3.EntryAttributes:
        """The record of ``.`` or ``..`` in a listing."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = ino
        entry.st_mode = dtype << 12
        return entry


def statvfs(sf: Statfs) -> pyfuse3.StatvfsData:
    """File system figures for the host."""
    data = pyfuse3.StatvfsData()
    data.f_bsize = data.f_frsize = sf.bsize
    data.f_blocks = sf.blocks
    data.f_bfree = sf.bfree
    data.f_bavail = sf.bavail
    data.f_files = sf.files
    data.f_ffree = sf.ffree
    data.f_favail = sf.favail
    data.f_namemax = sf.namemax
    return data
