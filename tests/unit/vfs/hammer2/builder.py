"""Small HAMMER2 volumes made for a test: any tree, any check code, any lie.

Not an allocator and not a flush: blocks are laid one behind the other, each tree is made once,
bottom up. What DragonFly's tools never write (device nodes, sockets, several devices, loops,
numbers that contradict each other) is written here, with check codes that hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dfuser.vfs.hammer2.check import setcheck
from dfuser.vfs.hammer2.compress import all_zero, compress
from dfuser.vfs.hammer2.ondisk.blockref import (
    BLOCKREF,
    Blockref,
    make_dirent,
    pack_blockrefs,
)
from dfuser.vfs.hammer2.ondisk.const import (
    BLOCKREF_BYTES,
    BrefFlag,
    BrefType,
    Check,
    Comp,
    ObjType,
    OpFlag,
    PfsType,
)
from dfuser.vfs.hammer2.ondisk.inode import InodeData, InodeMeta, guid_to_uuid
from dfuser.vfs.hammer2.ondisk.keys import calc_physical, dirhash, getradix
from dfuser.vfs.hammer2.ondisk.volhdr import NO_LOFF, VolumeData
from tests.unit.vfs.hammer2.images import SparseImage

GIB = 1 << 30
FSID = bytes(range(16))
Change = Callable[[InodeMeta], None]


class Builder:
    """Lays a volume out; `finish` writes the header."""

    def __init__(
        self, size: int = 64 << 20, *, check: int = Check.XXHASH64, comp: int = Comp.LZ4,
        meta_check: int | None = None,
    ) -> None:  # fmt: skip
        self.image = SparseImage(size)
        self.check = check
        self.meta_check = check if meta_check is None else meta_check
        self.comp = comp
        self.next = 4 << 20
        self.inum = 1024
        self.metadata: list[Blockref] = []

    def put(self, bref: Blockref, data: bytes) -> Blockref:
        """Write a block of 1 to 64 KiB and refer to it."""
        size = 1 << getradix(len(data))
        if self.next % 65536 + size > 65536:
            self.next = -(-self.next // 65536) * 65536
        if self.next % GIB < 4 << 20:
            self.next += 4 << 20
        block = data.ljust(size, b"\0")
        self.image.write_at(self.next, block)
        bref = setcheck(bref._replace(data_off=self.next | getradix(size)), block)
        self.next += size
        if bref.type != BrefType.DATA:
            self.metadata.append(bref)
        return bref

    def skip_to(self, offset: int) -> None:
        """Go on laying blocks further behind."""
        self.next = max(self.next, offset)

    def tree(self, brefs: Sequence[Blockref], base: int, bits: int, room: int) -> list[Blockref]:
        """At most `room` blockrefs that lead to all of them; the range shrinks level by level."""
        brefs = sorted(brefs, key=lambda bref: bref.key)
        if len(brefs) <= room:
            return list(brefs)
        while bits and brefs[0].key >> (bits - 1) == brefs[-1].key >> (bits - 1):
            bits -= 1
        base = brefs[0].key >> bits << bits
        step = bits - (room.bit_length() - 1)
        out = []
        for part in range(room):
            low = base + (part << step)
            inside = [bref for bref in brefs if low <= bref.key < low + (1 << step)]
            if len(inside) > 1:
                out.append(self.indirect(self.tree(inside, low, step, 32), low, step))
            else:
                out += inside
        return out

    def indirect(self, brefs: Sequence[Blockref], key: int, keybits: int) -> Blockref:
        """An indirect block."""
        methods = (self.meta_check or Check.XXHASH64) << 4
        bref = Blockref(BrefType.INDIRECT, methods, key=key, keybits=keybits)
        return self.put(bref, pack_blockrefs(brefs, 32 * BLOCKREF_BYTES))

    def file(self, data: bytes | Mapping[int, bytes], size: int | None = None) -> list[Blockref]:
        """The DATA blockrefs of a file, given whole or as pieces by their offset."""
        if isinstance(data, bytes):
            size = len(data)
            data = {at: data[at : at + 65536] for at in range(0, size, 65536)}
        assert size is not None
        brefs = []
        for at, piece in data.items():
            piece = piece.ljust(calc_physical(size, at), b"\0")
            if self.comp and self.check and all_zero(piece):
                continue
            packed = compress(self.comp, piece)
            methods = self.check << 4 | (self.comp & 15 if packed is not None else 0)
            bref = Blockref(BrefType.DATA, methods, keybits=16, key=at)
            brefs.append(self.put(bref, piece if packed is None else packed))
        return brefs

    def dirent(
        self, name: bytes, inum: int, objtype: int = ObjType.REGFILE, extra: int = 1
    ) -> Blockref:
        """A directory entry, with its block if the name is long."""
        bref = make_dirent(dirhash(name) + extra, inum, objtype, name)
        if len(name) <= 64:
            return bref
        return self.put(bref._replace(methods=self.meta_check << 4), name)

    def inode(
        self, inum: int | None = None, objtype: int = ObjType.REGFILE,
        below: bytes | Sequence[Blockref] = (), change: Change | None = None, **fields: Any,
    ) -> Blockref:  # fmt: skip
        """An inode with data in it, or with a tree below it."""
        if inum is None:
            inum, self.inum = self.inum, self.inum + 1
        direct = isinstance(below, bytes)
        meta = InodeMeta(
            type=objtype, inum=inum, nlinks=1, mode=0o644, mtime=1_600_000_000_000_000,
            comp_algo=self.comp, check_algo=self.check, uid=guid_to_uuid(7), gid=guid_to_uuid(8),
            op_flags=OpFlag.DIRECTDATA if direct else 0, size=len(below) if direct else 0,
        )  # fmt: skip
        filename = fields.pop("filename", b"0x%016x" % inum)
        meta.name_len = len(filename)
        for name, value in fields.items():
            setattr(meta, name, value)
        if change is not None:
            change(meta)
        u = below if isinstance(below, bytes) else self.blockset(below)
        bref = Blockref(BrefType.INODE, (self.meta_check or Check.XXHASH64) << 4, key=inum)
        return self.put(bref, InodeData(meta, filename, u).pack())

    def blockset(self, brefs: Sequence[Blockref]) -> bytes:
        """Four blockrefs that lead to all of them."""
        return pack_blockrefs(self.tree(brefs, 0, 64, 4), 512)

    def pfs(self, label: bytes, below: Sequence[Blockref], **fields: Any) -> Blockref:
        """The root of a PFS: its inodes and its own names are below it."""
        fields = {"pfs_type": PfsType.MASTER, "mode": 0o755, "filename": label, **fields}
        bref = self.inode(
            1, ObjType.DIRECTORY, below, op_flags=OpFlag.PFSROOT, name_key=dirhash(label), **fields
        )
        return bref._replace(key=dirhash(label), flags=BrefFlag.PFSROOT)

    def finish(self, *pfss: Blockref, **header: Any) -> SparseImage:
        """The volume with its first header."""
        sroot = self.inode(
            0, ObjType.DIRECTORY, pfss, pfs_type=PfsType.SUPROOT, filename=b"SUPROOT"
        )
        data = VolumeData(
            **{
                "volu_size": self.image.size, "fsid": FSID, "allocator_beg": self.next,
                "mirror_tid": 16, "freemap_tid": 16, "sroot_blockset": BLOCKREF.pack(*sroot),
                **header,
            }
        )  # fmt: skip
        self.image.write_at(0, data.seal())
        return self.image


def split_devices(builder: Builder, sizes: Sequence[int], *pfss: Blockref) -> list[SparseImage]:
    """The volume as several devices: version 2, each with a header of its own."""
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    loffs = (*starts, *[NO_LOFF] * (64 - len(sizes)))
    common = {
        "version": 2, "nvolumes": len(sizes), "total_size": sum(sizes), "volu_loff": loffs,
    }  # fmt: skip
    whole = builder.finish(*pfss, volu_size=sizes[0], **common)
    devices = []
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        device = SparseImage(size, f"disk{number}")
        for block, data in whole.blocks.items():
            if start <= block * 65536 < start + size:
                device.blocks[block - start // 65536] = data
        if number:
            invalid = BLOCKREF.pack(*Blockref(BrefType.INVALID)) * 4
            header = VolumeData(
                volu_id=number, volu_size=size, fsid=FSID, sroot_blockset=invalid, **common
            )
            device.write_at(0, header.seal())
        devices.append(device)
    return devices
