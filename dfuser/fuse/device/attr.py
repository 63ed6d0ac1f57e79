"""Attributes packed as the protocol has them: 128 bytes that answer four kinds of questions.

Counterpart: struct fuse_entry_out (linux/fuse.h); see `dfuser.fuse.wire.attr`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfuser.fuse.wire.attr import ENTRY_SIZE, encode_dev, pack_entry, pack_negative

if TYPE_CHECKING:
    from dfuser.vfs.vattr import Vattr

#: Every number names one file for ever, so no generation but one is needed.
GENERATION: Final = 1


class DevicePacker:
    """Packs into struct fuse_entry_out. Counterpart: `dfuser.fuse.attr.Packer`."""

    __slots__ = ()

    def entry(
        self, nodeid: int, va: Vattr, mode: int, rmajor: int, rminor: int, timeout: int
    ) -> bytes:
        """The record of a file."""
        return pack_entry(
            nodeid, GENERATION, timeout, timeout, nodeid, va.size or 0, (va.bytes + 511) >> 9,
            va.atime or 0, va.mtime or 0, va.ctime or 0, mode, va.nlink, va.uid or 0, va.gid or 0,
            encode_dev(rmajor, rminor) if rmajor or rminor else 0, va.blocksize,
        )  # fmt: skip

    def negative(self, timeout: int) -> bytes:
        """The record that says "no such name"."""
        return pack_negative(timeout)

    def bare(self, ino: int, dtype: int) -> bytes:
        """The record of ``.`` or ``..`` in a listing: names no node, so it counts no lookup."""
        return bytes(ENTRY_SIZE)
