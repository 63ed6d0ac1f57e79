"""Making a new volume, laid out as DragonFly's newfs_hammer2 does it.

::

    0        reserved segment: header copy 0, places of the freemap
    4 MiB    boot area, for a loader         64 MiB, halved while more than a 20th; at least 8 MiB
             aux area                       256 MiB, likewise
             64 KiB with the super-root's inode and, 1 KiB each, the roots of the PFSs
    allocator_beg

There is no freemap yet: what lies below allocator_beg counts as taken, leaves are made when
something is first allocated in their GiB. Both transaction ids are 16. Every header copy that has
a place is written, so that none of an older volume can be chosen.

Each volume has the PFS ``LOCAL``, and one for each label. A volume of 8 GiB or more has four
header copies; below 2 GiB + 4 MiB there is one, overwritten in place, and a power cut during that
write can lose the volume.

Counterpart: sbin/newfs_hammer2 (hammer2_mkfs).
Differs from DragonFly: the blockref of the super-root counts its PFSs from the start; newfs_hammer2
    leaves the counts at 0. The boot and aux areas are not filled with zeroes.
Token/lock order: takes none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from dfuser.libkern.errno import EINVAL, ENOSPC, KError
from dfuser.vfs.hammer2.check import setcheck
from dfuser.vfs.hammer2.io import BlockDevice
from dfuser.vfs.hammer2.ondisk.blockref import Blockref, pack_blockrefs, pack_stats
from dfuser.vfs.hammer2.ondisk.const import (
    AUX_MIN_BYTES,
    AUX_NOM_BYTES,
    BOOT_MIN_BYTES,
    BOOT_NOM_BYTES,
    EMBEDDED_BYTES,
    INODE_BYTES,
    INODE_MAXNAME,
    MAX_VOLUMES,
    PBUFSIZE,
    RADIX_MIN,
    RESERVE_SPACING,
    ROOT_INUM,
    SEGSIZE,
    SET_COUNT,
    VOL_VERSION_MAX,
    VOL_VERSION_MIN,
    VOL_VERSION_MULTI_VOLUMES,
    VOLUME_ALIGN,
    VOLUME_BYTES,
    ZONE_SEG,
    BrefFlag,
    BrefType,
    Check,
    Comp,
    ObjType,
    OpFlag,
    PfsType,
    enc_methods,
)
from dfuser.vfs.hammer2.ondisk.geometry import header_offset, header_slots, readable_headers
from dfuser.vfs.hammer2.ondisk.inode import InodeData, InodeMeta
from dfuser.vfs.hammer2.ondisk.keys import dirhash
from dfuser.vfs.hammer2.ondisk.volhdr import NO_LOFF, VolumeData

#: A new image, sparse: the smallest with four header copies, rounded up.
DEFAULT_SIZE: Final = 8 << 30
#: DragonFly's number for "this volume" in a blockref's copyid.
_COPYID_LOCAL: Final = 255
_FIRST_TID: Final = 16
_FIRST_PFS_INUM: Final = 16
_AREA_PART: Final = 20
_LOCAL: Final = b"LOCAL"
_BOOT: Final = b"BOOT"
_SUPROOT: Final = b"SUPROOT"
#: newfs_hammer2 takes three labels beside LOCAL; more would not fit into the super-root.
MAX_LABELS: Final = SET_COUNT

Entropy = Callable[[int], bytes]


def newfs(
    devices: Sequence[BlockDevice], labels: Sequence[bytes] = (b"DATA",), *,
    clock: Callable[[], int], entropy: Entropy, version: int = VOL_VERSION_MAX,
    comp: int = Comp.LZ4, check: int = Check.XXHASH64,
) -> VolumeData:  # fmt: skip
    """Make a new volume; what was on the devices is lost.

    Args:
        devices: one, or up to 64 of which all but the last have a multiple of 1 GiB.
        labels: of the PFSs beside LOCAL, three at most.
        clock: nanoseconds since 1970.
        entropy: random bytes, for ids.
        version: 2, or 1 for one device that old systems shall read.
        comp: compression of the PFSs; one labelled BOOT gets autozero.
        check: check code of the PFSs' files.

    Returns:
        The header.

    Raises:
        KError: EINVAL, the devices or labels make no volume; ENOSPC, a device is too small.
        OSError: a device failed.
    """
    sizes = _sizes(devices, version)
    names = _names(labels)
    total = sum(sizes)
    boot = _area(total, BOOT_NOM_BYTES, BOOT_MIN_BYTES)
    aux = _area(total, AUX_NOM_BYTES, AUX_MIN_BYTES)
    base = ZONE_SEG + boot + aux
    segments = -(-total // RESERVE_SPACING)
    space = total - boot - aux - segments * ZONE_SEG
    if base + 2 * SEGSIZE > sizes[0] or space <= 0:
        raise KError(ENOSPC, f"{devices[0].name} is too small for a volume")
    block, sroot = _inodes(base, names, clock() // 1000, entropy, comp, check)
    header = VolumeData(
        boot_beg=ZONE_SEG, boot_end=ZONE_SEG + boot, aux_beg=ZONE_SEG + boot, aux_end=base,
        volu_size=sizes[0], version=version, fsid=_uuid(entropy), allocator_size=space,
        allocator_free=space, allocator_beg=base + (len(names) + 1) * INODE_BYTES,
        mirror_tid=_FIRST_TID, freemap_tid=_FIRST_TID, sroot_blockset=pack_blockrefs([sroot], 512),
    )  # fmt: skip
    if version >= VOL_VERSION_MULTI_VOLUMES:
        header.nvolumes = len(sizes)
        header.total_size = total
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        header.volu_loff = (*starts, *[NO_LOFF] * (MAX_VOLUMES - len(sizes)))
    devices[0].write_at(base, block)
    for device in devices:
        device.flush()
    _write_headers(devices, sizes, header)
    return header


def _sizes(devices: Sequence[BlockDevice], version: int) -> list[int]:
    """How much of each device is used; refuses devices that make no volume."""
    most = MAX_VOLUMES if version >= VOL_VERSION_MULTI_VOLUMES else 1
    if not VOL_VERSION_MIN <= version <= VOL_VERSION_MAX or not 1 <= len(devices) <= most:
        raise KError(EINVAL, f"{len(devices)} devices in a volume of version {version}")
    sizes = [device.size // VOLUME_ALIGN * VOLUME_ALIGN for device in devices]
    for device, size in zip(devices[:-1], sizes, strict=False):
        if size % RESERVE_SPACING:
            raise KError(EINVAL, f"{device.name} is no multiple of 1 GiB, and not the last")
    if not all(sizes):
        raise KError(ENOSPC, "a device is too small for a volume")
    return sizes


def _names(labels: Sequence[bytes]) -> list[bytes]:
    """LOCAL and the labels; refuses what is no label."""
    names = [_LOCAL, *[label for label in labels if label != _LOCAL]]
    if len(names) > MAX_LABELS or len(set(names)) != len(names):
        raise KError(EINVAL, f"{len(names)} labels, or two alike; at most {MAX_LABELS}")
    for name in names:
        if not 0 < len(name) < INODE_MAXNAME or b"\0" in name or b"/" in name:
            raise KError(EINVAL, f"no label: {name!r}")
    return names


def _area(total: int, nominal: int, least: int) -> int:
    """Size of the boot or aux area."""
    size = nominal
    while size > total // _AREA_PART:
        size >>= 1
    return -(-max(size, least) // VOLUME_ALIGN) * VOLUME_ALIGN


def _uuid(entropy: Entropy) -> bytes:
    """A random UUID as it lies on the media."""
    return UUID(bytes=entropy(16), version=4).bytes_le


def _inodes(
    base: int, names: Sequence[bytes], now: int, entropy: Entropy, comp: int, check: int
) -> tuple[bytes, Blockref]:
    """The first block, and the blockref of the super-root in it."""
    data = bytearray(PBUFSIZE)
    brefs = []
    for number, name in enumerate(names, 1):
        meta = InodeMeta(
            type=ObjType.DIRECTORY, op_flags=OpFlag.PFSROOT, mode=0o755, inum=ROOT_INUM, nlinks=1,
            name_key=dirhash(name), pfs_type=PfsType.MASTER, pfs_inum=_FIRST_PFS_INUM,
            comp_algo=Comp.AUTOZERO if name == _BOOT else comp, check_algo=check,
        )  # fmt: skip
        bref = Blockref(
            BrefType.INODE, enc_methods(check or Check.XXHASH64, Comp.NONE), key=dirhash(name),
            flags=BrefFlag.PFSROOT,
        )  # fmt: skip
        brefs.append(_put(data, base, number, bref, _finish(meta, name, now, entropy), b""))
    meta = InodeMeta(
        type=ObjType.DIRECTORY, mode=0o700, nlinks=2, pfs_type=PfsType.SUPROOT,
        comp_algo=Comp.AUTOZERO, check_algo=Check.XXHASH64,
    )  # fmt: skip
    brefs.sort(key=lambda bref: bref.key)
    bref = Blockref(
        BrefType.INODE, enc_methods(Check.XXHASH64, Comp.AUTOZERO), leaf_count=len(brefs),
        embed=pack_stats(len(brefs) * INODE_BYTES, len(brefs)),
    )  # fmt: skip
    table = pack_blockrefs(brefs, EMBEDDED_BYTES)
    sroot = _put(data, base, 0, bref, _finish(meta, _SUPROOT, now, entropy), table)
    return bytes(data), sroot


def _finish(meta: InodeMeta, name: bytes, now: int, entropy: Entropy) -> tuple[InodeMeta, bytes]:
    """Fill in what all these inodes have: times, ids, name."""
    meta.ctime = meta.mtime = meta.atime = meta.btime = now
    meta.pfs_clid, meta.pfs_fsid = _uuid(entropy), _uuid(entropy)
    meta.name_len = len(name)
    return meta, name


def _put(
    data: bytearray, base: int, number: int, bref: Blockref, inode: tuple[InodeMeta, bytes],
    u: bytes,
) -> Blockref:  # fmt: skip
    """Lay an inode into the first block and refer to it."""
    packed = InodeData(*inode, u).pack()
    at = number * INODE_BYTES
    data[at : at + INODE_BYTES] = packed
    bref = bref._replace(
        copyid=_COPYID_LOCAL, vradix=RADIX_MIN, mirror_tid=_FIRST_TID,
        data_off=base + at | RADIX_MIN,
    )  # fmt: skip
    return setcheck(bref, packed)


def _write_headers(
    devices: Sequence[BlockDevice], sizes: Sequence[int], header: VolumeData
) -> None:
    """Write all copies of the headers, last device first, and wipe places no copy has."""
    invalid = pack_blockrefs([Blockref(BrefType.INVALID)] * SET_COUNT, EMBEDDED_BYTES)
    for number in reversed(range(len(devices))):
        device, size = devices[number], sizes[number]
        mine = header
        if number:
            mine = VolumeData(
                version=header.version, fsid=header.fsid, volu_size=size, volu_id=number,
                nvolumes=header.nvolumes, total_size=header.total_size,
                volu_loff=header.volu_loff, sroot_blockset=invalid,
            )  # fmt: skip
        data = mine.seal()
        for copy in range(readable_headers(device.size)):
            used = copy < header_slots(size)
            device.write_at(header_offset(copy), data if used else bytes(VOLUME_BYTES))
        device.flush()
