"""Numbers of the HAMMER2 media: sizes, types, methods, flags, and the names people use for them.

Everything on a volume is counted in powers of two. The sizes that matter::

    1 KiB   radix 10   smallest allocation: an inode, a long name, the tail of a file
    4 KiB   radix 12   indirect block right below a directory's inode
    16 KiB  radix 14   indirect block elsewhere; what one pair of freemap bits stands for
    32 KiB  radix 15   every block of the freemap
    64 KiB  radix 16   largest allocation, a file's logical block, the device buffer, a header
    4 MiB   radix 22   segment: what one freemap entry stands for; the reserve of each GiB
    1 GiB   radix 30   what one freemap leaf stands for; begins with a reserved segment
    2 GiB   radix 31   zone: the first four begin with a copy of the volume header

A block never crosses a multiple of 64 KiB, so any block can be read inside one device buffer.

Counterpart: vfs/hammer2/hammer2_disk.h.
Differs from DragonFly: the header names of volume version 2 (several devices in one volume) are
    in here too; the sources of 2020 call their places reserved.
Token/lock order: takes none; nothing in here changes.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

ALLOC_MIN: Final = 1024
RADIX_MIN: Final = 10
ALLOC_MAX: Final = 65536
RADIX_MAX: Final = 16
RADIX_KEY: Final = 64

PBUFRADIX: Final = 16
PBUFSIZE: Final = 1 << PBUFRADIX
PBUFMASK: Final = PBUFSIZE - 1
LBUFRADIX: Final = 14
LBUFSIZE: Final = 1 << LBUFRADIX
LBUFMASK: Final = LBUFSIZE - 1
SEGRADIX: Final = 22
SEGSIZE: Final = 1 << SEGRADIX
SEGMASK: Final = SEGSIZE - 1

#: Sizes of indirect blocks: below a directory's inode, elsewhere, and the largest there may be.
IND_BYTES_MIN: Final = 4096
IND_BYTES_NOM: Final = LBUFSIZE
IND_BYTES_MAX: Final = PBUFSIZE

#: A blockset has four blockrefs: in the volume header (twice) and in each inode.
SET_COUNT: Final = 4
EMBEDDED_BYTES: Final = 512
BLOCKREF_BYTES: Final = 128
BLOCKREF_LEAF_MAX: Final = 65535

INODE_BYTES: Final = 1024
INODE_MAXNAME: Final = 256
INODE_VERSION_ONE: Final = 1
#: First inode number that a file may get; the root of a PFS has 1, the super-root 0.
INODE_START: Final = 1024
ROOT_INUM: Final = 1
#: Longest name that lies in a directory entry's blockref; longer ones have a block.
DIRENT_INLINE_NAME: Final = 64

VOLUME_BYTES: Final = 65536
NUM_VOLHDRS: Final = 4
MAX_VOLUMES: Final = 64
#: Sizes of volumes, and of the boot and aux areas, are multiples of this.
VOLUME_ALIGN: Final = 8 << 20
ZONE_BYTES: Final = 2 << 30
#: The reserved segment, and how far apart reserved segments lie.
ZONE_SEG: Final = SEGSIZE
RESERVE_SPACING: Final = 1 << 30
BOOT_MIN_BYTES: Final = VOLUME_ALIGN
BOOT_NOM_BYTES: Final = 64 << 20
BOOT_MAX_BYTES: Final = 256 << 20
AUX_MIN_BYTES: Final = VOLUME_ALIGN
AUX_NOM_BYTES: Final = 256 << 20
AUX_MAX_BYTES: Final = 1024 << 20

VOLUME_ID_HBO: Final = 0x48414D3205172011
VOLUME_ID_ABO: Final = 0x11201705324D4148
VOL_VERSION_MIN: Final = 1
VOL_VERSION_MULTI_VOLUMES: Final = 2
VOL_VERSION_MAX: Final = 2
UUID_STRING: Final = "5cbb9ad1-862d-11dc-a94d-01301bb8a9f5"
#: Which element of icrc_sects guards which sector of the header.
VOL_ICRC_SECT0: Final = 7
VOL_ICRC_SECT1: Final = 6
#: dmsg's number for a HAMMER2 peer, stored in each header.
PEER_HAMMER2: Final = 3

OFF_MASK: Final = 0xFFFF_FFFF_FFFF_FFC0
OFF_MASK_RADIX: Final = 0x3F
KEY_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF
TID_MAX: Final = KEY_MAX

#: Directory entries have bit 63 set; keys without it are inode numbers.
DIRHASH_VISIBLE: Final = 0x8000_0000_0000_0000
DIRHASH_USERMSK: Final = 0x7FFF_FFFF_FFFF_FFFF
#: Names with one hash share the 32768 keys that differ in these bits.
DIRHASH_LOMASK: Final = 0x0000_0000_0000_7FFF
DIRHASH_HIMASK: Final = 0xFFFF_FFFF_FFFF_0000
DIRHASH_FORCED: Final = 0x0000_0000_0000_8000
SROOT_KEY: Final = 0
BOOT_KEY: Final = 0xD9B3_6CE1_3552_8000

#: The freemap: one block is 32 KiB; level n stands for 1 << FREEMAP_RADIX[n] bytes.
FREEMAP_LEVELN_PSIZE: Final = 32768
FREEMAP_LEVELN_RADIX: Final = 15
FREEMAP_RADIX: Final = (22, 30, 38, 46, 54, 62, 64)
FREEMAP_COUNT: Final = 256
FREEMAP_BLOCK_RADIX: Final = 14
FREEMAP_BLOCK_SIZE: Final = 1 << FREEMAP_BLOCK_RADIX
BMAP_BYTES: Final = 128
BMAP_ELEMENTS: Final = 8
BMAP_BLOCKS_PER_ELEMENT: Final = 32
BMAP_BLOCKS: Final = BMAP_ELEMENTS * BMAP_BLOCKS_PER_ELEMENT
BMAP_ALLONES: Final = (1 << 2 * BMAP_BLOCKS) - 1
NFREEMAPS: Final = 8
ZONE_FREEMAP_00: Final = 1
ZONE_FREEMAP_INC: Final = 5
ZONE_FREEMAP_END: Final = 41

#: Where the allocator goes on: one hint for each of 8 types of block and 4 sizes of buffer.
FREEMAP_HEUR_NRADIX: Final = 4
FREEMAP_HEUR_TYPES: Final = 8
FREEMAP_HEUR_SIZE: Final = FREEMAP_HEUR_NRADIX * FREEMAP_HEUR_TYPES

#: The table that finds a block to share for data about to be written, and its associativity.
DEDUP_HEUR_SIZE: Final = 65536 * 4
DEDUP_HEUR_MASK: Final = DEDUP_HEUR_SIZE - 1
DEDUP_HEUR_WAYS: Final = 4
#: A device buffer is 64 fragments, each with a bit that says whether it may be shared.
DEDUP_FRAGRADIX: Final = PBUFRADIX - 6
DEDUP_FRAG: Final = 1 << DEDUP_FRAGRADIX


class BrefType(IntEnum):
    """What a blockref points to. Counterpart: HAMMER2_BREF_TYPE_*."""

    EMPTY = 0
    INODE = 1
    INDIRECT = 2
    DATA = 3
    DIRENT = 4
    FREEMAP_NODE = 5
    FREEMAP_LEAF = 6
    INVALID = 7
    FREEMAP = 254
    VOLUME = 255


class BrefFlag(IntFlag):
    """Flags of a blockref. Counterpart: HAMMER2_BREF_FLAG_*."""

    PFSROOT = 0x01
    ZERO = 0x02
    EMERG_MIP = 0x04


class Check(IntEnum):
    """Kinds of check code. Counterpart: HAMMER2_CHECK_*."""

    NONE = 0
    DISABLED = 1
    ISCSI32 = 2
    XXHASH64 = 3
    SHA192 = 4
    FREEMAP = 5


class Comp(IntEnum):
    """Kinds of compression. Counterpart: HAMMER2_COMP_*."""

    NONE = 0
    AUTOZERO = 1
    LZ4 = 2
    ZLIB = 3


#: What newfs gives to a new volume.
CHECK_DEFAULT: Final = Check.XXHASH64
COMP_NEWFS_DEFAULT: Final = Comp.LZ4
#: The words of setcheck and setcomp; the position is the number.
CHECK_STRINGS: Final = ("none", "disabled", "crc32", "xxhash64", "sha192")
COMP_STRINGS: Final = ("none", "autozero", "lz4", "zlib")


class ObjType(IntEnum):
    """Kinds of file. Counterpart: HAMMER2_OBJTYPE_*."""

    UNKNOWN = 0
    DIRECTORY = 1
    REGFILE = 2
    FIFO = 4
    CDEV = 5
    BDEV = 6
    SOFTLINK = 7
    SOCKET = 9
    WHITEOUT = 10


class OpFlag(IntFlag):
    """Flags of an inode. Counterpart: HAMMER2_OPFLAG_*."""

    DIRECTDATA = 0x01
    PFSROOT = 0x02
    COPYIDS = 0x04


class PfsType(IntEnum):
    """The part a PFS plays in its cluster. Counterpart: HAMMER2_PFSTYPE_*."""

    NONE = 0
    CACHE = 1
    SLAVE = 3
    SOFT_SLAVE = 4
    SOFT_MASTER = 5
    MASTER = 6
    SUPROOT = 8
    DUMMY = 9


class PfsSubtype(IntEnum):
    """How a PFS came to be. Counterpart: HAMMER2_PFSSUBTYPE_*."""

    NONE = 0
    SNAPSHOT = 1
    AUTOSNAP = 2


class VolFlag(IntFlag):
    """Flags of a remote copy in the volume header. Counterpart: DMSG_VOLF_*."""

    ENABLED = 0x0001
    INPROG = 0x0002


class VolPriority(IntFlag):
    """Bits of a remote copy's priority. Counterpart: DMSG_VOLF_CONN_*."""

    CONN_PRI = 0x0F
    CONN_EF = 0x40
    CONN_RR = 0x80


def enc_methods(check: int, comp: int) -> int:
    """The methods byte of a blockref. Counterpart: HAMMER2_ENC_CHECK, HAMMER2_ENC_COMP."""
    return (check & 15) << 4 | comp & 15


def dec_check(methods: int) -> int:
    """The check code of a methods byte. Counterpart: HAMMER2_DEC_CHECK."""
    return methods >> 4 & 15


def dec_comp(methods: int) -> int:
    """The compression of a methods byte. Counterpart: HAMMER2_DEC_COMP."""
    return methods & 15


def enc_algo(algo: int, level: int = 0) -> int:
    """An inode's comp_algo or check_algo byte. Counterpart: HAMMER2_ENC_ALGO, _ENC_LEVEL."""
    return algo & 15 | (level & 15) << 4


def dec_algo(value: int) -> int:
    """The algorithm of a comp_algo or check_algo byte. Counterpart: HAMMER2_DEC_ALGO."""
    return value & 15


def dec_level(value: int) -> int:
    """The level of a comp_algo byte; 0 is the default. Counterpart: HAMMER2_DEC_LEVEL."""
    return value >> 4 & 15


def pfs_type(value: int) -> int:
    """The part a PFS plays now, without the transition. Counterpart: HAMMER2_PFS_DEC."""
    return value & 15


def pfs_transition(value: int) -> int:
    """What a PFS is becoming, 0 for nothing. Counterpart: HAMMER2_PFS_DEC_TRANSITION."""
    return value >> 4 & 15
