"""Keys: where a name, an inode or a piece of a file is found in a tree of blockrefs.

Each inode has a tree of its own below it, and all trees have keys of 64 bits::

    super-root        PFS roots by the hash of their label
    root of a PFS     inodes by number (bit 63 clear)  and  its own names by hash (bit 63 set)
    other directory   its names by hash
    file, symlink     pieces of 64 KiB by their offset
    freemap           blocks of the freemap by the offset of what they stand for

The hash of a name keeps similar names together. Its upper half is the sum of the CRCs of the
parts between ``. - _ ~``, so ``a.1`` and ``1.a`` share it; 16 bits come from the CRC of the whole
name; bit 15 is set. That leaves 15 bits for names whose hashes are equal: who makes an entry
takes a free key of ``dirhash(name) .. dirhash(name) | 0x7fff``, and who looks one up compares
names in that range. Nobody may expect a name at exactly its hash: DragonFly's own probe goes one
further when it comes to the end of the entries, so that the first name goes to +1, the next to +0,
then +3, +2 and so on (`probe`).

Bit 63 stripped, a key is the cookie of readdir: always positive, and 0 to 0x7fff stay free for
``.`` and ``..``.

Counterpart: hammer2_dirhash (vfs/hammer2/hammer2_subr.c); hammer2_dirent_create and
    hammer2_inode_create_pfs for the probe (vfs/hammer2/hammer2_inode.c).
Token/lock order: takes none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import google_crc32c

from dfuser.vfs.hammer2.ondisk.const import (
    ALLOC_MIN,
    DIRHASH_FORCED,
    DIRHASH_LOMASK,
    DIRHASH_USERMSK,
    DIRHASH_VISIBLE,
    PBUFMASK,
    PBUFSIZE,
    RADIX_MIN,
)

#: Makes every separator a dot.
_SEPARATORS: Final = bytes(ord(".") if byte in b"-_~" else byte for byte in range(256))
#: Cookies of the two names that no entry stands for.
COOKIE_DOT: Final = 0
COOKIE_DOTDOT: Final = 1


def dirhash(name: bytes) -> int:
    """The key at which the range of a name begins; bits 63 and 15 are always set."""
    upper: int = 0
    for field in name.translate(_SEPARATORS).split(b"."):
        if field:
            upper += google_crc32c.value(field)
    whole: int = google_crc32c.value(name)
    lower = (whole ^ whole << 16) & 0xFFFF0000
    return (upper & 0xFFFFFFFF | 0x80000000) << 32 | lower | DIRHASH_FORCED


def dirhash_last(key: int) -> int:
    """The last key that names with the hash `key` may have."""
    return key | DIRHASH_LOMASK


def probe(base: int, used: Iterable[int]) -> int | None:
    """A free key for a new name, chosen as DragonFly's kernel does.

    Args:
        base: the name's `dirhash`.
        used: the keys of `base` to `dirhash_last(base)` that entries have, ascending.

    Returns:
        The key, or None if the probe ran out of the range (ENOSPC).
    """
    key = base
    for taken in used:
        if taken != key:
            break
        key += 1
    else:
        key += 1
    return None if (base ^ key) & ~DIRHASH_LOMASK else key


def cookie_of(key: int) -> int:
    """What readdir tells as the place of an entry: positive in 63 bits."""
    return key & DIRHASH_USERMSK


def key_of_cookie(cookie: int) -> int:
    """Where to go on reading after a cookie was told; the opposite of `cookie_of`."""
    return cookie | DIRHASH_VISIBLE


def getradix(size: int) -> int:
    """The smallest radix whose power of two holds `size` bytes; 0 for none, never below 10.

    Counterpart: hammer2_getradix (hammer2_subr.c).
    """
    if size <= 0:
        return 0
    return max(RADIX_MIN, (size - 1).bit_length())


def calc_physical(size: int, base: int) -> int:
    """How many bytes the piece of a file at `base` takes before compression.

    The last piece is as short as a power of two of at least 1 KiB allows.

    Args:
        size: the file's size in bytes.
        base: offset of the piece, a multiple of 64 KiB.

    Returns:
        64 KiB, a smaller power of two, or 0 beyond the end.

    Counterpart: hammer2_calc_physical (hammer2_subr.c).
    """
    if base & PBUFMASK:
        raise ValueError(f"{base} is not the start of a piece")
    left = size - base
    if left <= 0:
        return 0
    return PBUFSIZE if left >= PBUFSIZE else max(ALLOC_MIN, 1 << (left - 1).bit_length())
