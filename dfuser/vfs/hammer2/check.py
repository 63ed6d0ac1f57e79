"""Check codes: the few bytes by which a blockref vouches for its block.

A code covers the block as it lies on the media, all 2**radix bytes of it, compressed form and
padding included. Codes of file data are made when the data is written, codes of everything else
when it is flushed.

    ========  ========  ==========================================================
    none      0 bytes   blocks may even be overwritten in place; data only
    disabled  0 bytes   not checked, but copied on write
    iscsi32   4 bytes   CRC-32C
    xxhash64  8 bytes   XXH64 with the seed "MattDlln": the default
    sha192    24 bytes  SHA-256 with its last 8 bytes folded into the 8 before
    freemap   4 bytes   CRC-32C, with allocation hints behind it
    ========  ========  ==========================================================

Counterpart: hammer2_chain_setcheck, hammer2_chain_testcheck (vfs/hammer2/hammer2_chain.c).
Differs from DragonFly: a kind of code that nobody knows fails the block; DragonFly lets it pass
    with a message.
Token/lock order: takes none.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import google_crc32c
from xxhash import xxh64_intdigest

from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import Check

#: Counterpart: XXH_HAMMER2_SEED (vfs/hammer2/hammer2_xxhash.h).
XXH_SEED: Final = 0x4D617474446C6C6E
_NONE: Final = int(Check.NONE)
_DISABLED: Final = int(Check.DISABLED)
_ISCSI32: Final = int(Check.ISCSI32)
_XXHASH64: Final = int(Check.XXHASH64)
_SHA192: Final = int(Check.SHA192)
_FREEMAP: Final = int(Check.FREEMAP)
_LENGTHS: Final = (0, 0, 4, 8, 24, 4)


def icrc32(data: bytes) -> int:
    """CRC-32C. Counterpart: hammer2_icrc32 (vfs/hammer2/hammer2.h)."""
    crc: int = google_crc32c.value(data)
    return crc


def xxhash64(data: bytes | memoryview) -> int:
    """XXH64 with HAMMER2's seed. Also what finds equal blocks to share."""
    return xxh64_intdigest(data, XXH_SEED)


def sha192(data: bytes | memoryview) -> bytes:
    """SHA-256 folded to 24 bytes."""
    digest = sha256(data).digest()
    folded = int.from_bytes(digest[16:24], "big") ^ int.from_bytes(digest[24:], "big")
    return digest[:16] + folded.to_bytes(8, "big")


def check_bytes(method: int, data: bytes) -> bytes:
    """The check code of a block as it lies in a blockref: 0, 4, 8 or 24 bytes.

    Args:
        method: a `Check`.
        data: the whole block.

    Raises:
        MediaError: nobody knows this kind of code.
    """
    if method == _XXHASH64:
        return xxh64_intdigest(data, XXH_SEED).to_bytes(8, "little")
    if method in (_ISCSI32, _FREEMAP):
        return icrc32(data).to_bytes(4, "little")
    if method == _SHA192:
        return sha192(data)
    if method in (_NONE, _DISABLED):
        return b""
    raise MediaError(f"unknown kind of check code {method}")


def testcheck(bref: Blockref, data: bytes) -> bool:
    """Whether a block is what its blockref says; always true for none and disabled.

    Args:
        bref: the reference.
        data: the whole block.

    Raises:
        MediaError: nobody knows this kind of code.
    """
    code = check_bytes(bref.methods >> 4, data)
    return bref.check[: len(code)] == code


def setcheck(bref: Blockref, data: bytes) -> Blockref:
    """The blockref with the check code of its block; hints of the freemap are kept.

    Args:
        bref: the reference, its methods already set.
        data: the whole block.

    Raises:
        MediaError: nobody knows this kind of code.
    """
    method = bref.methods >> 4
    code = check_bytes(method, data)
    if method == _FREEMAP:
        return bref._replace(check=code + bref.check[len(code) :])
    return bref._replace(check=code.ljust(64, b"\0"))


def check_length(method: int) -> int:
    """How many bytes of a blockref's check field a kind of code uses; 0 if nobody knows it."""
    return _LENGTHS[method] if 0 <= method < len(_LENGTHS) else 0
