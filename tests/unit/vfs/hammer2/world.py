"""Volumes to write on, a deep check of what was written, and a plain model of a file system."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from dfuser.hw.disk.disk import Disk
from dfuser.hw.disk.ram import RamDisk
from dfuser.vfs.hammer2 import strategy, xops
from dfuser.vfs.hammer2.chain import Chain
from dfuser.vfs.hammer2.compress import decompress
from dfuser.vfs.hammer2.dev import Dev
from dfuser.vfs.hammer2.inode import Inode
from dfuser.vfs.hammer2.io import DiskDevice
from dfuser.vfs.hammer2.newfs import newfs
from dfuser.vfs.hammer2.node import Node, load_node
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.bmap import FREE, initial_leaf, unpack_leaf
from dfuser.vfs.hammer2.ondisk.const import DIRHASH_LOMASK, BrefType, ObjType
from dfuser.vfs.hammer2.ondisk.geometry import reserved
from dfuser.vfs.hammer2.ondisk.keys import dirhash
from dfuser.vfs.hammer2.pfs import Pfs
from dfuser.vfs.hammer2.reader import Reader
from dfuser.vfs.hammer2.tunables import Tunables
from dfuser.vfs.hammer2.volume import Device, open_set
from tests.unit.vfs.hammer2.images import SparseImage

MIB = 1 << 20
GIB = 1 << 30
#: One header copy; two; four.
SMALL, TWO, FOUR = 64 * MIB, 3 * GIB, 8 * GIB
INNER = (BrefType.INDIRECT, BrefType.FREEMAP_NODE)


class Ticks:
    """A clock that goes on by a millisecond each time it is looked at."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000_000

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


def entropy(size: int) -> bytes:
    """Random bytes that are the same each time."""
    return random.Random(size).randbytes(size)


def new_disk(size: int = SMALL, **options: Any) -> RamDisk:
    """A disk with a new volume on it."""
    disk = RamDisk(size)
    newfs([DiskDevice(disk)], clock=Ticks(), entropy=entropy, **options)
    return disk


def open_disk(disk: Disk, tunables: Tunables | None = None) -> Dev:
    """The volume of a disk, in use."""
    return Dev([DiskDevice(disk)], Ticks(), tunables=tunables)


def disk_of(image: SparseImage) -> RamDisk:
    """A disk with the bytes of an image; changing it leaves the image alone."""
    disk = RamDisk(image.size)
    for block, data in image.blocks.items():
        disk.write(block * 65536, bytes(data))
    return disk


def reader(disk: Disk, number: int | None = None) -> Reader:
    """An independent reader of a disk."""
    device = DiskDevice(disk)
    return Reader(open_set([Device(device.name, device.size, device.read_at)], number))


# --- the deep check ------------------------------------------------------------------------


class Problems(list[str]):
    """What the deep check found."""


def deep_check(disk: Disk, number: int | None = None, *, orphans: bool = False) -> list[str]:
    """Everything that is wrong with a volume, as the header copy with a number sees it.

    Args:
        disk: the volume.
        number: of the header copy; None for the newest.
        orphans: allow inodes with nlinks 0 that no name leads to.
    """
    found = Problems()
    volume = reader(disk, number)
    blocks: dict[int, int] = {}
    for bref in volume.tree.scan(
        _table(volume.volume.header.sroot_blockset), 0, (1 << 64) - 1, inner=True
    ):
        _walk(volume, bref, blocks, found)
    for pfs in volume.pfs_list():
        _check_names(volume, pfs, found, orphans)
    _check_space(volume, blocks, found)
    return found


def _table(blockset: bytes) -> Any:
    from dfuser.vfs.hammer2.tree import make_table

    return make_table(blockset, 0, (1 << 64) - 1)


def _walk(volume: Reader, bref: Blockref, blocks: dict[int, int], found: Problems) -> None:
    """Verify a block and all below it: check codes, payloads, statistics, transaction ids."""
    if bref.data_off:
        known = blocks.get(bref.data_off & ~63)
        if known not in (None, bref.radix):
            found.append(f"block {bref.data_off:#x} in two sizes")
        blocks[bref.data_off & ~63] = bref.radix
    if bref.type == BrefType.DATA:
        data = volume.tree.load(bref)
        if bref.methods & 15:
            decompress(bref.methods & 15, data)
    elif bref.type == BrefType.DIRENT:
        if bref.data_off:
            volume.tree.load(bref)
    else:
        table = (
            load_node(volume.tree, bref).table() if bref.type == BrefType.INODE
            else volume.tree.table(bref)
        )  # fmt: skip
        _check_stats(bref, table.brefs, found)
        for below in table.brefs:
            _walk(volume, below, blocks, found)


def _check_stats(bref: Blockref, below: list[Blockref], found: Problems) -> None:
    """Compare the counts of a blockref with what its table has."""
    data = inodes = leafs = 0
    for entry in below:
        data += entry.nbytes
        inodes += entry.type == BrefType.INODE
        leafs += entry.leaf_count if entry.type == BrefType.INDIRECT else 1
        if entry.type in (BrefType.INODE, BrefType.INDIRECT):
            data += entry.stats[0]
            inodes += entry.stats[1]
        younger = entry.mirror_tid > bref.mirror_tid or entry.modify_tid > bref.modify_tid
        if younger and not entry.flags:
            found.append(f"{entry.key:#x} is younger than the table it is in")
    if (data, inodes) != bref.stats or min(leafs, 65535) != bref.leaf_count:
        found.append(f"{bref.key:#x} type {bref.type} counts {bref.stats} {bref.leaf_count}, "
                     f"has {(data, inodes)} {leafs}")  # fmt: skip


def _check_names(volume: Reader, pfs: Any, found: Problems, orphans: bool) -> None:
    """Compare names with inodes: each has what it leads to, and as many as nlinks says."""
    names: Counter[int] = Counter()
    nodes: dict[int, Node] = {}
    for bref in pfs.tree.scan(pfs.root.table(), 0, (1 << 63) - 1):
        node = load_node(pfs.tree, bref)
        nodes[node.meta.inum] = node
        if node.meta.inum != bref.key:
            found.append(f"inode {bref.key:#x} says {node.meta.inum:#x}")
        if not node.meta.directdata and node.meta.type in (ObjType.REGFILE, ObjType.SOFTLINK):
            for data in pfs.tree.scan(node.table()):
                if data.type != BrefType.DATA or data.key >= node.meta.size:
                    found.append(f"inode {bref.key:#x} has {data.key:#x} behind its end")
    for directory in [pfs.root, *[node for node in nodes.values() if node.is_directory]]:
        seen = set()
        for entry in pfs.readdir(directory):
            if entry.name in seen or (entry.key ^ dirhash(entry.name)) & ~DIRHASH_LOMASK:
                found.append(f"{entry.name!r} twice, or at {entry.key:#x}")
            seen.add(entry.name)
            names[entry.inum] += 1
            if entry.inum not in nodes:
                found.append(f"{entry.name!r} leads to {entry.inum:#x}")
            elif nodes[entry.inum].meta.type != entry.type:
                found.append(f"{entry.name!r} says type {entry.type}")
            elif nodes[entry.inum].is_directory and (
                nodes[entry.inum].meta.iparent != directory.meta.inum
            ):
                found.append(f"{entry.name!r} says another parent")
    for inum, node in nodes.items():
        if names[inum] != node.meta.nlinks or not (names[inum] or orphans):
            found.append(f"inode {inum:#x} says {node.meta.nlinks} names, has {names[inum]}")
        if inum > pfs.root.meta.pfs_inum:
            found.append(f"inode {inum:#x} is higher than the highest")


def _check_space(volume: Reader, blocks: dict[int, int], found: Problems) -> None:
    """Compare blocks with each other and with the freemap."""
    header, size = volume.volume.header, volume.volume.size
    end = 0
    for offset, radix in sorted(blocks.items()):
        if offset < end or reserved(offset) or offset + (1 << radix) > size:
            found.append(f"block {offset:#x}/{radix} overlaps, is reserved or outside")
        end = offset + (1 << radix)
    taken = 0
    leaves = {}
    for bref in volume.freemap():
        entries = unpack_leaf(volume.tree.load(bref))
        leaves[bref.key] = entries
        usable = initial_leaf(bref.key, header.allocator_beg, size)
        for number, entry in enumerate(entries):
            if not usable[number].avail:
                if entry.bitmap != usable[number].bitmap:
                    found.append(f"a segment of leaf {bref.key:#x} nobody may use was changed")
                continue
            taken += usable[number].avail - entry.avail
            if entry.avail != entry.free_bytes():
                found.append(f"segment {number} of {bref.key:#x}: avail {entry.avail}")
            if (
                entry.linear & 16383
                and entry.linear < 4 * MIB
                and not entry.state(entry.linear >> 14)
            ):
                found.append(f"segment {number} of {bref.key:#x}: packs into a free block")
    if header.allocator_size - header.allocator_free != taken:
        found.append(f"{header.allocator_size - header.allocator_free} bytes taken, not {taken}")
    for offset, radix in blocks.items():
        if offset >= header.allocator_beg:
            _check_marked(leaves, offset, radix, found)


def _check_marked(leaves: dict[int, Any], offset: int, radix: int, found: Problems) -> None:
    """A block must be marked, and no small one may be given out over it."""
    entries = leaves.get(offset >> 30 << 30)
    if entries is None:
        found.append(f"block {offset:#x} has no freemap leaf")
        return
    entry = entries[offset >> 22 & 255]
    within = offset & 4 * MIB - 1
    for block in range(within >> 14, (within + (1 << radix) - 1 >> 14) + 1):
        if entry.state(block) == FREE:
            found.append(f"block {offset:#x} is marked free")
    packing = within >> 14 == entry.linear >> 14 and entry.linear & 16383
    if packing and within + (1 << radix) > entry.linear:
        found.append(f"block {offset:#x} lies where the next piece will be put")


def all_headers(disk: Disk) -> list[int]:
    """The numbers of the valid header copies."""
    volume = reader(disk).volume.volumes[0]
    return [copy.number for copy in volume.copies if copy.valid]


def chain_problems(dev: Dev) -> list[str]:
    """What is wrong with the chains in memory: each invariant of chain.py, looked at."""
    out: list[str] = []
    modified = 0
    todo: list[Chain] = [dev.chains.vchain, dev.chains.fchain]
    while todo:
        chain = todo.pop()
        modified += chain.modified
        below = [slot for slot in chain.slots if isinstance(slot, Chain)]
        todo += below
        keys = [slot.bref.key if isinstance(slot, Chain) else slot.key for slot in chain.slots]
        if keys != chain.keys or keys != sorted(set(keys)) or len(keys) > max(chain.room, 4):
            out.append(f"{chain} has keys {chain.keys}")
        if chain.nchains != len(below):
            out.append(f"{chain} says {chain.nchains} chains, has {len(below)}")
        if set(chain.dirty) != {child for child in below if child.modified}:
            out.append(f"{chain} does not know what is modified")
        if chain.dirty and not chain.modified:
            out.append(f"{chain} is not modified, something below it is")
        out += [f"{child} has another parent" for child in below if child.parent is not chain]
        out += [f"{child} is not alive" for child in below if not child.alive]
    if modified != dev.chains.modified:
        out.append(f"{modified} chains are modified, not {dev.chains.modified}")
    return out


# --- reading and writing trees -------------------------------------------------------------


def content(pfs: Any) -> dict[bytes, tuple[Any, ...]]:
    """What a reader sees of a PFS: for each path the type, mode, links and data."""
    out: dict[bytes, tuple[Any, ...]] = {}
    for path, node in pfs.walk():
        meta = node.meta
        data = b""
        if meta.type == ObjType.REGFILE:
            data = pfs.read(node, 0, meta.size)
        elif meta.type == ObjType.SOFTLINK:
            data = pfs.readlink(node)
        out[path] = (meta.type, meta.mode, meta.nlinks, data)
    return out


def live_content(pfs: Pfs) -> dict[bytes, tuple[Any, ...]]:
    """What the file system in use says of a PFS, in the same form."""
    out: dict[bytes, tuple[Any, ...]] = {}
    for path, ip in live_walk(pfs):
        meta = ip.meta
        data = b""
        if meta.type in (ObjType.REGFILE, ObjType.SOFTLINK):
            data = strategy.read(ip, 0, meta.size)
        out[path] = (meta.type, meta.mode, meta.nlinks, data)
    return out


def live_walk(pfs: Pfs) -> Iterator[tuple[bytes, Inode]]:
    """Paths and inodes of a PFS in use."""
    todo = [(b"", pfs.root)]
    while todo:
        path, ip = todo.pop()
        yield path, ip
        if not ip.is_directory:
            continue
        cookie = 0
        from dfuser.vfs.hammer2 import dirent

        while entries := dirent.readdir(ip, cookie, 100):
            for entry in entries:
                below = path + b"/" + entry.name if path else entry.name
                todo.append((below, xops.nresolve(ip, entry.name)))
            cookie = (entries[-1].key & (1 << 63) - 1) + 1


def copy_tree(source: Any, target: Pfs) -> None:
    """Write all that a reader sees of a PFS into a PFS in use."""
    made: dict[int, Inode] = {}
    directories = {b"": target.root}
    for path, node in source.walk():
        if not path:
            _set_meta(target.root, node)
            continue
        parent, _, name = path.rpartition(b"/")
        dip = directories[parent]
        meta = node.meta
        if meta.inum in made:
            xops.nlink(dip, name, made[meta.inum])
            continue
        if meta.type == ObjType.SOFTLINK:
            ip = xops.nsymlink(dip, name, source.readlink(node))
        else:
            ip = xops.ncreate(
                dip, name, meta.type, uid=meta.unix_uid, gid=meta.unix_gid, rmajor=meta.rmajor,
                rminor=meta.rminor,
            )  # fmt: skip
        made[meta.inum] = ip
        if ip.is_directory:
            directories[path] = ip
        elif meta.type == ObjType.REGFILE:
            for at, data in source.pieces(node):
                assert strategy.write(ip, at, bytes(data)) == len(data)
            strategy.truncate(ip, meta.size)
    for path, node in source.walk():
        _set_meta(directories.get(path) or made[node.meta.inum], node)


def _set_meta(ip: Inode, node: Node) -> None:
    meta = node.meta
    xops.setattr_(ip, mode=meta.mode, uid=meta.unix_uid, gid=meta.unix_gid, mtime=meta.mtime * 1000)
