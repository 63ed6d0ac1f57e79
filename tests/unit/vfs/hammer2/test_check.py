"""Check codes: known values, every kind, and that a flipped bit is noticed."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.libkern.errno import EIO
from dfuser.vfs.hammer2.check import (
    XXH_SEED,
    check_bytes,
    check_length,
    icrc32,
    setcheck,
    sha192,
    xxhash64,
)
from dfuser.vfs.hammer2.check import testcheck as holds
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.ondisk.blockref import Blockref, FreemapCheck
from dfuser.vfs.hammer2.ondisk.const import BrefType, Check
from tests.unit.vfs.hammer2 import images

KINDS = (Check.ISCSI32, Check.XXHASH64, Check.SHA192, Check.FREEMAP)


def test_known_values():
    # What if a library computed another CRC or hash than the format wants?
    assert icrc32(b"123456789") == 0xE3069283
    assert icrc32(bytes(32)) == 0x8A9136AA
    assert XXH_SEED.to_bytes(8, "big") == b"MattDlln"
    digest = hashlib.sha256(b"abc").digest()
    folded = bytes(a ^ b for a, b in zip(digest[16:24], digest[24:], strict=True))
    assert sha192(b"abc") == digest[:16] + folded
    assert sha192(memoryview(b"abc")) == sha192(b"abc")
    assert xxhash64(memoryview(b"abc")) == xxhash64(b"abc") != xxhash64(b"xyz")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.binary(min_size=1, max_size=2048), bit=st.integers(0, 2**32))
def test_each_kind_notices_a_flipped_bit(kind, data, bit):
    # What if a damaged block passed?
    bref = setcheck(Blockref(BrefType.DATA, kind << 4 | 2), data)
    assert holds(bref, data)
    assert len(check_bytes(kind, data)) == check_length(kind)
    bad = bytearray(data)
    bad[bit // 8 % len(data)] ^= 1 << bit % 8
    assert not holds(bref, bytes(bad))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_notices_damage_to_the_code(kind):
    # What if a changed code were not compared to its last bit?
    data = b"block".ljust(1024, b"\0")
    bref = setcheck(Blockref(BrefType.INDIRECT, kind << 4), data)
    for bit in range(8 * check_length(kind)):
        bad = bytearray(bref.check)
        bad[bit // 8] ^= 1 << bit % 8
        assert not holds(bref._replace(check=bytes(bad)), data)


@pytest.mark.parametrize("kind", [Check.NONE, Check.DISABLED])
def test_no_code_holds_always(kind):
    # What if data without a code could not be read?
    bref = setcheck(Blockref(BrefType.DATA, kind << 4), b"a")
    assert holds(bref, b"b")
    assert check_length(kind) == 0


def test_hints_of_the_freemap_survive_a_new_code():
    # What if the avail of a freemap block were lost whenever its code is made?
    bref = Blockref(BrefType.FREEMAP_LEAF, Check.FREEMAP << 4, check=FreemapCheck(1, 2, 3).pack())
    assert setcheck(bref, b"leaf").freemap == FreemapCheck(icrc32(b"leaf"), 2, 3)


@pytest.mark.parametrize("kind", [6, 15])
def test_unknown_kinds_fail(kind):
    # What if data with a code nobody can compute were believed?
    assert check_length(kind) == 0
    for use in (holds, setcheck):
        with pytest.raises(MediaError) as caught:
            use(Blockref(BrefType.DATA, kind << 4), b"data")
        assert caught.value.errno == EIO


@pytest.mark.parametrize(
    ("name", "kind"), [("lz4_xxhash", Check.XXHASH64), ("zlib_crc32", Check.ISCSI32)]
)
def test_codes_of_dragonfly_are_made_alike(name, kind):
    # What if our blockref for a block of DragonFly's differed in its code?
    reader = images.reader(name)
    seen = {}
    for bref in (*reader.topology(), *reader.freemap()):
        if bref.data_off:
            data = reader.tree.load(bref)
            made = setcheck(bref, data)
            used = check_length(bref.methods >> 4)
            assert made.check[:used] == bref.check[:used]
            seen[bref.type, bref.methods >> 4] = True
    assert (BrefType.DATA, kind) in seen
    assert (BrefType.FREEMAP_LEAF, Check.FREEMAP) in seen
