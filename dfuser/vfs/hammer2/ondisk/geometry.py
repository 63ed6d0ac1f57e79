"""Where things that never move are: header copies, reserved segments, blocks of the freemap.

Each GiB of a volume begins with a reserved segment of 4 MiB, 64 slots of 64 KiB::

    slot 0       volume header: only in the segments at 0, 2, 4 and 6 GiB
    slot 1..5    freemap copy 0: level 1 (leaf, 1 GiB), 2 (256 GiB), 3 (64 TiB), 4 (16 PiB), 5
    slot 6..10   freemap copy 1, levels 1 to 5
    ...
    slot 36..40  freemap copy 7
    slot 41..63  unused

A freemap block for the range that begins at ``key`` lies in the reserved segment at ``key``, in
the first half of its slot. It is never overwritten in place: its first change after a flush goes
to the next of its eight copies. Four header copies hold four generations, so any of them still
finds the freemap blocks it was flushed with.

That reserved segments are 1 GiB apart, and zones of headers 2 GiB, is a mistake of HAMMER2's
youth that the format keeps.

Counterpart: the ZONE macros of vfs/hammer2/hammer2_disk.h; hammer2_freemap_reserve
    (vfs/hammer2/hammer2_freemap.c).
Token/lock order: takes none.
"""

from __future__ import annotations

from dfuser.vfs.hammer2.ondisk.const import (
    FREEMAP_LEVELN_PSIZE,
    FREEMAP_RADIX,
    NFREEMAPS,
    NUM_VOLHDRS,
    OFF_MASK,
    PBUFMASK,
    PBUFRADIX,
    PBUFSIZE,
    RADIX_MAX,
    RADIX_MIN,
    RESERVE_SPACING,
    SEGMASK,
    VOLUME_BYTES,
    ZONE_BYTES,
    ZONE_FREEMAP_00,
    ZONE_FREEMAP_END,
    ZONE_FREEMAP_INC,
    ZONE_SEG,
)


def header_offset(number: int) -> int:
    """Where header copy 0 to 3 lies, in bytes from the start of its device."""
    return number * ZONE_BYTES


def header_slots(volu_size: int) -> int:
    """How many header copies a volume of so many bytes has: 1 to 4."""
    return max(1, min(NUM_VOLHDRS, (volu_size - ZONE_SEG) // ZONE_BYTES + 1))


def next_header(number: int, volu_size: int) -> int:
    """Which header copy is written after copy `number`: the next that fits, else the first.

    Counterpart: the end of hammer2_vfs_sync (vfs/hammer2/hammer2_vfsops.c).
    """
    return (number + 1) % header_slots(volu_size)


def readable_headers(device_size: int) -> int:
    """How many places of header copies lie within a device of so many bytes: 0 to 4."""
    return max(0, min(NUM_VOLHDRS, (device_size - VOLUME_BYTES) // ZONE_BYTES + 1))


def reserved(offset: int) -> bool:
    """Whether a byte lies in a reserved segment, which no allocation may touch."""
    return offset % RESERVE_SPACING < ZONE_SEG


def block_fits(data_off: int, volume_size: int) -> bool:
    """Whether the block of a blockref may be read: its size and place are possible.

    The radix is 10 to 16, the block lies within the volume and crosses no multiple of 64 KiB.
    """
    radix = data_off & 63
    if not RADIX_MIN <= radix <= RADIX_MAX:
        return False
    offset = data_off & OFF_MASK
    size = 1 << radix
    return (offset & PBUFMASK) + size <= PBUFSIZE and offset + size <= volume_size


def freemap_level(keybits: int) -> int | None:
    """The level 1 to 5 of a freemap block; None if no level stands for so many bits."""
    return FREEMAP_RADIX.index(keybits) if keybits in FREEMAP_RADIX[1:6] else None


def freemap_offset(key: int, level: int, copy: int) -> int:
    """Where a freemap block lies, in bytes from the start of the volume.

    Args:
        key: a byte of the range that the block stands for.
        level: 1 for a leaf, up to 5.
        copy: which of the eight copies.
    """
    if not 1 <= level <= 5 or not 0 <= copy < NFREEMAPS:
        raise ValueError(f"freemap level {level}, copy {copy}")
    base = key >> FREEMAP_RADIX[level] << FREEMAP_RADIX[level]
    return base + (ZONE_FREEMAP_00 + copy * ZONE_FREEMAP_INC + level - 1) * PBUFSIZE


def freemap_copy(data_off: int) -> tuple[int, int] | None:
    """Level and copy of the freemap block that lies at a place; None if none can lie there."""
    offset = data_off & OFF_MASK
    slot, within = divmod(offset & SEGMASK, PBUFSIZE)
    if within or not reserved(offset) or not ZONE_FREEMAP_00 <= slot < ZONE_FREEMAP_END:
        return None
    copy, level = divmod(slot - ZONE_FREEMAP_00, ZONE_FREEMAP_INC)
    return level + 1, copy


def freemap_reserve(key: int, keybits: int, data_off: int) -> int:
    """Where the next version of a freemap block goes.

    Args:
        key: first byte of the range that the block stands for.
        keybits: 30, 38, 46, 54 or 62.
        data_off: the present version's, 0 if the block is new.

    Returns:
        The data_off of the next version: the next copy, or copy 0 for a new block.

    Raises:
        ValueError: keybits fits no level, or no freemap block of that level can be at data_off.

    Counterpart: hammer2_freemap_reserve (hammer2_freemap.c).
    """
    level = freemap_level(keybits)
    if level is None:
        raise ValueError(f"no freemap block stands for {keybits} bits")
    copy = 0
    if data_off & OFF_MASK:
        present = freemap_copy(data_off)
        if present is None or present[0] != level:
            raise ValueError(f"no freemap block of level {level} lies at {data_off:#x}")
        copy = (present[1] + 1) % NFREEMAPS
    radix = FREEMAP_LEVELN_PSIZE.bit_length() - 1
    return freemap_offset(key, level, copy) | radix


def device_buffer(offset: int) -> int:
    """The start of the 64 KiB device buffer in which a byte lies."""
    return offset >> PBUFRADIX << PBUFRADIX
