"""What ``show``, ``freemap`` and ``volhdr`` print: the records of a volume, as text lines.

Each block is one line that begins with what DragonFly prints as well: type and slot, data_off, key
and keybits, tids, leaf count. Its own facts follow, then, indented, what lies below. A block that
is damaged is said to be, and nothing below it is shown.

Counterpart: show_bref, show_volhdr (sbin/hammer2/cmd_debug.c).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dfuser.vfs.hammer2.check import icrc32
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.fsck.blocks import Marks
from dfuser.vfs.hammer2.ondisk.blockref import Blockref, unpack_blockrefs
from dfuser.vfs.hammer2.ondisk.bmap import ALLOCATED, FREE, POSSIBLY_FREE, BmapData, unpack_leaf
from dfuser.vfs.hammer2.ondisk.const import (
    CHECK_STRINGS,
    COMP_STRINGS,
    FREEMAP_BLOCK_SIZE,
    FREEMAP_COUNT,
    INODE_BYTES,
    SEGSIZE,
    BrefType,
    ObjType,
    OpFlag,
    dec_algo,
    dec_level,
)
from dfuser.vfs.hammer2.ondisk.geometry import freemap_copy
from dfuser.vfs.hammer2.ondisk.inode import InodeData, unpack_inode
from dfuser.vfs.hammer2.ondisk.volhdr import VolumeData
from dfuser.vfs.hammer2.tree import MAX_DEPTH, Tree
from dfuser.vfs.hammer2.volume import HeaderCopy, VolumeSet

from .image import text, uuid, when
from .output import size

_STEP: Final = "    "
_TYPES: Final = frozenset(map(int, BrefType))
_TABLES: Final = frozenset({int(BrefType.INDIRECT), int(BrefType.FREEMAP_NODE)})


def type_name(number: int) -> str:
    """The type of a blockref in DragonFly's word."""
    return BrefType(number).name.lower() if number in _TYPES else f"type-{number}"


def _word(words: tuple[str, ...], number: int) -> str:
    return words[number] if number < len(words) else str(number)


def check_name(number: int) -> str:
    """A kind of check code in the words of setcheck."""
    return "freemap" if number == 5 else _word(CHECK_STRINGS, number)


def comp_name(algo: int) -> str:
    """An inode's compression in the words of setcomp, with its level."""
    level = dec_level(algo)
    return f"{_word(COMP_STRINGS, dec_algo(algo))}:{level or 'default'}"


def objtype_name(number: int) -> str:
    """A kind of file in DragonFly's word."""
    return ObjType(number).name if number in set(map(int, ObjType)) else f"type-{number}"


class Dump:
    """Makes the lines of one volume."""

    def __init__(self, volume: VolumeSet, *, data: bool = False) -> None:
        """Prepare.

        Args:
            volume: what is shown.
            data: read blocks of file data too, to verify them.
        """
        self._volume = volume
        self._tree = Tree(volume.read_at, volume.size)
        self._data = data
        self._seen = Marks()
        self.damage = 0

    def show(self) -> Iterator[str]:
        """The topology, from the header down."""
        header = self._volume.header
        yield f"volume {text(self._volume.name.encode('utf-8', 'surrogateescape'))} " + (
            f"mirror_tid={header.mirror_tid:016x} freemap_tid={header.freemap_tid:016x}"
        )
        yield from self._tables(header.sroot_blockset)

    def freemap(self) -> Iterator[str]:
        """The freemap, and what it adds up to."""
        totals = dict.fromkeys(range(4), 0)
        header = self._volume.header
        yield f"freemap mirror_tid={header.mirror_tid:016x} freemap_tid={header.freemap_tid:016x}"
        yield from self._tables(header.freemap_blockset, totals)
        names = ((FREE, "free"), (POSSIBLY_FREE, "possibly free"), (ALLOCATED, "allocated"))
        for state, name in names:
            yield f"{name}: {totals[state]} ({size(totals[state])})"

    def _tables(self, blockset: bytes, totals: dict[int, int] | None = None) -> Iterator[str]:
        """The lines of a whole tree; an explicit stack, for an image may be as deep as it likes."""
        stack = [iter(enumerate(unpack_blockrefs(blockset)))]
        while stack:
            for slot, bref in stack[-1]:
                if not bref.type:
                    continue
                indent = _STEP * len(stack)
                block, told = self._load(bref)
                yield f"{indent}{self._head(slot, bref)}{told}"
                if block is None:
                    continue
                for line in self._facts(bref, block, totals):
                    yield f"{indent}{_STEP}{line}"
                below = self._below(bref, block)
                if below and len(stack) < MAX_DEPTH * 2:
                    stack.append(iter(enumerate(below)))
                    break
            else:
                stack.pop()

    def _load(self, bref: Blockref) -> tuple[bytes | None, str]:
        """A block, and what is to be said of its check code."""
        if not bref.data_off or (bref.type == BrefType.DATA and not self._data):
            return (b"" if bref.type == BrefType.DIRENT else None), ""
        try:
            block = self._tree.load(bref)
        except MediaError as exc:
            self.damage += 1
            return None, f" DAMAGED: {exc.strerror}"
        metadata = bref.type in _TABLES or bref.type == BrefType.INODE
        if metadata and self._seen.add(bref.offset):
            return None, " (shown above)"
        return block, ""

    def _head(self, slot: int, bref: Blockref) -> str:
        """The first line of a block."""
        line = (
            f"{type_name(bref.type)}.{slot} {bref.data_off:016x} {bref.key:016x}/{bref.keybits} "
            f"mir={bref.mirror_tid:016x} mod={bref.modify_tid:016x} lfcnt={bref.leaf_count}"
        )
        if bref.flags:
            line += f" flags={bref.flags:02x}"
        if bref.data_off:
            comp = _word(COMP_STRINGS, bref.methods & 15)
            line += f" check={check_name(bref.methods >> 4)} comp={comp}"
        return line

    def _facts(self, bref: Blockref, block: bytes, totals: dict[int, int] | None) -> Iterator[str]:
        """What a block itself says."""
        if bref.type == BrefType.DIRENT:
            head = bref.dirent
            name = bref.inline_name if bref.inline_name is not None else block[: head.namlen]
            yield f'"{text(name)}" inum={head.inum:016x} type={objtype_name(head.type)}'
        elif bref.type == BrefType.INODE and len(block) == INODE_BYTES:
            yield from inode_lines(bref, unpack_inode(block))
        elif bref.type == BrefType.INDIRECT:
            yield "data_count={} inode_count={}".format(*bref.stats)
        elif bref.type in (BrefType.FREEMAP_NODE, BrefType.FREEMAP_LEAF):
            hints, where = bref.freemap, freemap_copy(bref.data_off)
            rotation = "?" if where is None else where[1]
            yield f"rotation={rotation} bigmask={hints.bigmask:08x} avail={hints.avail}"
            if bref.type == BrefType.FREEMAP_LEAF and len(block) == FREEMAP_COUNT * 128:
                yield from self._leaf(bref.key, unpack_leaf(block), totals)

    def _leaf(
        self, base: int, entries: list[BmapData], totals: dict[int, int] | None
    ) -> Iterator[str]:
        """The segments of a leaf; those that follow each other and are alike are one line."""
        before: tuple[object, ...] | None = None
        for number, entry in enumerate(entries):
            at = base + number * SEGSIZE
            if at < self._volume.size and totals is not None:
                for state in totals:
                    totals[state] += entry.count(state) * FREEMAP_BLOCK_SIZE
            alike = entry.class_, entry.avail, entry.linear, entry.bitmap
            if alike == before:
                continue
            before = alike
            states = " ".join(
                f"{entry.bitmap >> 64 * part & 0xFFFFFFFFFFFFFFFF:016x}" for part in range(8)
            )
            yield (
                f"{at:016x} {number:03d}.{entry.class_:04x} avail={entry.avail} "
                f"linear={entry.linear} {states}"
            )

    @staticmethod
    def _below(bref: Blockref, block: bytes) -> list[Blockref]:
        """The blockrefs in a block."""
        if bref.type in _TABLES:
            return unpack_blockrefs(block)
        if bref.type == BrefType.INODE and len(block) == INODE_BYTES:
            inode = unpack_inode(block)
            if not inode.meta.directdata:
                return unpack_blockrefs(inode.u)
        return []


def inode_lines(bref: Blockref, inode: InodeData) -> Iterator[str]:
    """What an inode says, DragonFly's words in front."""
    meta = inode.meta
    data_count, inode_count = bref.stats
    yield (
        f'"{text(inode.name)}" inum={meta.inum:016x} type={objtype_name(meta.type)} '
        f"mode={meta.mode:04o} size={meta.size} nlinks={meta.nlinks} iparent={meta.iparent:016x}"
    )
    yield (
        f"uid={meta.unix_uid} gid={meta.unix_gid} uflags={meta.uflags:08x} "
        f"opflags={meta.op_flags:02x}{' (embedded data)' if meta.directdata else ''} "
        f"comp={comp_name(meta.comp_algo)} check={check_name(dec_algo(meta.check_algo))}"
    )
    yield f"mtime={when(meta.mtime)} ctime={when(meta.ctime)} btime={when(meta.btime)}"
    yield f"data_count={data_count} inode_count={inode_count}"
    if meta.rmajor or meta.rminor:
        yield f"rmajor={meta.rmajor} rminor={meta.rminor}"
    if meta.op_flags & OpFlag.PFSROOT:
        yield (
            f"pfs_type={meta.pfs_type} pfs_subtype={meta.pfs_subtype} "
            f"pfs_inum={meta.pfs_inum:016x} pfs_lsnap_tid={meta.pfs_lsnap_tid:016x}"
        )
        yield f"pfs_clid={uuid(meta.pfs_clid)} pfs_fsid={uuid(meta.pfs_fsid)}"


def header_lines(copy: HeaderCopy, data: bytes) -> Iterator[str]:
    """The fields of one header copy, each with its CRCs."""
    header = copy.header
    yield f"header {copy.number} at {copy.offset:#x}{': ' + copy.problem if copy.problem else ''}"
    if header is None:
        return
    for name in (
        "magic", "boot_beg", "boot_end", "aux_beg", "aux_end", "volu_size", "total_size",
        "version", "flags", "copyid", "freemap_version", "peer_type", "volu_id", "nvolumes",
        "allocator_size", "allocator_free", "allocator_beg", "mirror_tid", "freemap_tid",
        "bulkfree_tid",
    ):  # fmt: skip
        value = getattr(header, name)
        yield f"{_STEP}{name:<16}{value:#x} ({value})"
    yield f"{_STEP}{'fsid':<16}{uuid(header.fsid)}"
    yield f"{_STEP}{'fstype':<16}{uuid(header.fstype)}"
    yield from _crc_lines(header, data)
    for title, blockset in (
        ("sroot_blockset", header.sroot_blockset), ("freemap_blockset", header.freemap_blockset),
    ):  # fmt: skip
        yield f"{_STEP}{title}"
        for slot, bref in enumerate(unpack_blockrefs(blockset)):
            yield (
                f"{_STEP * 2}{type_name(bref.type)}.{slot} {bref.data_off:016x} "
                f"{bref.key:016x}/{bref.keybits} mir={bref.mirror_tid:016x}"
            )


def _crc_lines(header: VolumeData, data: bytes) -> Iterator[str]:
    """The three CRCs: what is stored, and whether it holds."""
    at = VolumeData.offset_of("icrc_sects")
    for name, stored, part in (
        ("icrc_sects[6]", header.icrc_sects[6], data[0x200:0x400]),
        ("icrc_sects[7]", header.icrc_sects[7], data[: at + 28]),
        ("icrc_volheader", header.icrc_volheader, data[:-4]),
    ):
        state = "ok" if icrc32(part) == stored else f"wrong, counted {icrc32(part):08x}"
        yield f"{_STEP}{name:<16}{stored:08x} ({state})"
