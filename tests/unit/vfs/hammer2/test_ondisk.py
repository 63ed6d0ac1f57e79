"""Records of the media: sizes and offsets as hammer2_disk.h gives them, and round trips."""

from __future__ import annotations

from struct import Struct

import pytest
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from dfuser.libkern.errno import EOVERFLOW, KError
from dfuser.libkern.stat import VType
from dfuser.vfs.hammer2.ondisk import const
from dfuser.vfs.hammer2.ondisk.blockref import (
    BLOCKREF,
    Blockref,
    DirentHead,
    FreemapCheck,
    make_dirent,
    pack_blockrefs,
    pack_stats,
    unpack_blockref,
    unpack_blockrefs,
)
from dfuser.vfs.hammer2.ondisk.bmap import BMAP, BmapData
from dfuser.vfs.hammer2.ondisk.inode import (
    INODE_META,
    InodeData,
    InodeMeta,
    get_obj_type,
    get_vtype,
    guid_to_uuid,
    nsec_to_time,
    time_to_nsec,
    unpack_inode,
    unpack_meta,
)
from dfuser.vfs.hammer2.ondisk.volhdr import FSTYPE, VolConf, VolumeData, wrong_icrc
from tests.unit.vfs.hammer2 import images

# Offsets that the comments of hammer2_disk.h give to the members.
META_OFFSETS = {
    "version": 0x00, "reserved02": 0x02, "pfs_subtype": 0x03, "uflags": 0x04, "rmajor": 0x08,
    "rminor": 0x0C, "ctime": 0x10, "mtime": 0x18, "atime": 0x20, "btime": 0x28, "uid": 0x30,
    "gid": 0x40, "type": 0x50, "op_flags": 0x51, "cap_flags": 0x52, "mode": 0x54, "inum": 0x58,
    "size": 0x60, "nlinks": 0x68, "iparent": 0x70, "name_key": 0x78, "name_len": 0x80,
    "ncopies": 0x82, "comp_algo": 0x83, "target_type": 0x84, "check_algo": 0x85,
    "pfs_nmasters": 0x86, "pfs_type": 0x87, "pfs_inum": 0x88, "pfs_clid": 0x90, "pfs_fsid": 0xA0,
    "data_quota": 0xB0, "unusedB8": 0xB8, "inode_quota": 0xC0, "unusedC8": 0xC8,
    "pfs_lsnap_tid": 0xD0, "reservedD8": 0xD8, "decrypt_check": 0xE0, "reservedE8": 0xE8,
}  # fmt: skip
VOLUME_OFFSETS = {
    "magic": 0x0000, "boot_beg": 0x0008, "boot_end": 0x0010, "aux_beg": 0x0018, "aux_end": 0x0020,
    "volu_size": 0x0028, "version": 0x0030, "flags": 0x0034, "copyid": 0x0038,
    "freemap_version": 0x0039, "peer_type": 0x003A, "volu_id": 0x003B, "nvolumes": 0x003C,
    "reserved003D": 0x003D, "fsid": 0x0040, "fstype": 0x0050, "allocator_size": 0x0060,
    "allocator_free": 0x0068, "allocator_beg": 0x0070, "mirror_tid": 0x0078,
    "reserved0080": 0x0080, "reserved0088": 0x0088, "freemap_tid": 0x0090, "bulkfree_tid": 0x0098,
    "reserved00A0": 0x00A0, "total_size": 0x00C0, "copyexists": 0x00C8, "reserved00E8": 0x00E8,
    "icrc_sects": 0x01E0, "sroot_blockset": 0x0200, "sector2": 0x0400, "sector3": 0x0600,
    "freemap_blockset": 0x0800, "sector5": 0x0A00, "sector6": 0x0C00, "volu_loff": 0x0E00,
    "copyinfo": 0x1000, "reserved9000": 0x9000, "icrc_volheader": 0xFFFC,
}  # fmt: skip
BLOCKREF_OFFSETS = {
    "type": 0x00, "methods": 0x01, "copyid": 0x02, "keybits": 0x03, "vradix": 0x04, "flags": 0x05,
    "leaf_count": 0x06, "key": 0x08, "mirror_tid": 0x10, "modify_tid": 0x18, "data_off": 0x20,
    "update_tid": 0x28, "embed": 0x30, "check": 0x40,
}  # fmt: skip
BMAP_OFFSETS = {
    "linear": 0x00, "class_": 0x04, "reserved06": 0x06, "avail": 0x1C, "reserved20": 0x20,
    "bitmap": 0x40,
}  # fmt: skip
U64 = st.integers(0, 2**64 - 1)
U8 = st.integers(0, 255)
BLOCKREFS = st.builds(
    Blockref, U8, U8, U8, U8, U8, U8, st.integers(0, 65535), U64, U64, U64, U64, U64,
    st.binary(min_size=16, max_size=16), st.binary(min_size=64, max_size=64),
)  # fmt: skip


def changed_at(layout: Struct, values: list[object], index: int) -> int:
    """The first byte of a record that depends on one of its members."""
    before = layout.pack(*values)
    value = values[index]
    values[index] = b"\x01".ljust(len(value), b"\0") if isinstance(value, bytes) else 1
    after = layout.pack(*values)
    return next(at for at, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)


def zero_values(layout: Struct) -> list[object]:
    """The members of a record of zeroes."""
    return list(layout.unpack(bytes(layout.size)))


@pytest.mark.parametrize(
    ("layout", "names", "offsets", "size"),
    [
        (BLOCKREF, Blockref._fields, BLOCKREF_OFFSETS, 128),
        (INODE_META, [f.name for f in fields(InodeMeta)], META_OFFSETS, 256),
        (BMAP, [f.name for f in fields(BmapData)], BMAP_OFFSETS, 128),
    ],
)
def test_members_lie_where_the_header_says(layout, names, offsets, size):
    # What if a member of a record moved by a byte, so that everything behind it were misread?
    assert layout.size == size
    assert list(names) == list(offsets)
    for index, name in enumerate(names):
        assert changed_at(layout, zero_values(layout), index) == offsets[name], name


def test_the_volume_header_has_its_members_where_they_belong():
    # What if a part of the header were read from a reserved place?
    assert VolumeData.size == const.VOLUME_BYTES
    found = {name: VolumeData.offset_of(name) for name in VolumeData.fields}
    assert found == VOLUME_OFFSETS
    assert VolConf.size == 128
    assert VolConf.offset_of("pfs_clid") == 0x20
    assert VolConf.offset_of("label") == 0x30
    assert VolConf.offset_of("path") == 0x40


def test_an_inode_is_1024_bytes_with_its_parts_in_place():
    # What if the name or the data of an inode were written beside its place?
    inode = InodeData(InodeMeta(name_len=3), b"abc", b"data")
    data = inode.pack()
    assert len(data) == const.INODE_BYTES
    assert data[0x100:0x103] == b"abc"
    assert data[0x200:0x204] == b"data"
    again = unpack_inode(data)
    assert again.meta == inode.meta
    assert again.name == b"abc"
    with pytest.raises(ValueError, match="256 bytes"):
        InodeData(InodeMeta(), b"x" * 257, b"").pack()
    with pytest.raises(ValueError, match="not 1023"):
        unpack_inode(bytes(1023))


@given(BLOCKREFS)
def test_blockrefs_survive_the_media(bref):
    # What if a blockref came back changed?
    assert unpack_blockref(bref.pack()) == bref
    assert unpack_blockrefs(bref.pack() * 2) == [bref, bref]


@given(st.binary(min_size=128, max_size=128))
def test_any_128_bytes_are_a_blockref(data):
    # What if bytes of a damaged table made the decoder raise, or lost a bit?
    assert unpack_blockref(data).pack() == data


@given(st.binary(min_size=1024, max_size=1024))
def test_any_1024_bytes_are_an_inode(data):
    # What if reserved bytes of an inode were lost when it is written again?
    assert unpack_inode(data).pack() == data


@given(st.binary(min_size=512, max_size=512), st.integers(0, 127))
def test_any_header_survives(data, place):
    # What if reserved bytes of a header were lost when it is written again?
    whole = bytearray(65536)
    whole[place * 512 : place * 512 + 512] = data
    assert VolumeData.unpack_from(whole).pack() == whole


def test_the_parts_of_the_embed_and_check_unions():
    # What if a directory entry, the statistics, or the freemap's hints were mixed up?
    entry = make_dirent(1 << 63, 0x400, const.ObjType.REGFILE, b"a" * 64)
    assert entry.dirent == DirentHead(0x400, 64, const.ObjType.REGFILE)
    assert entry.inline_name == b"a" * 64
    long = make_dirent(1 << 63, 0x400, const.ObjType.REGFILE, b"a" * 65)
    assert long.inline_name is None
    assert long.check == bytes(64)
    assert DirentHead(1, 2, 3).pack() == long._replace(embed=DirentHead(1, 2, 3).pack()).embed
    inner = Blockref(const.BrefType.INDIRECT, embed=pack_stats(7, 9))
    assert inner.stats == (7, 9)
    leaf = Blockref(const.BrefType.FREEMAP_LEAF, check=FreemapCheck(1, 2, 3).pack())
    assert leaf.freemap == FreemapCheck(1, 2, 3)
    assert (leaf._replace(data_off=0x1000F).offset, leaf._replace(data_off=0x1000F).nbytes) == (
        0x10000,
        32768,
    )
    assert leaf.nbytes == leaf.radix == 0
    assert leaf._replace(key=1 << 30, keybits=30).last_key == (2 << 30) - 1


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a" * 256, b"a/b", b"a\0b"])
def test_no_entry_for_a_name_that_is_none(name):
    # What if a name that no directory may hold were written?
    with pytest.raises(ValueError, match="no name"):
        make_dirent(1 << 63, 1, 1, name)


def test_tables_are_filled_up_and_never_overfilled():
    # What if a blockset lost its fifth entry silently?
    bref = Blockref(const.BrefType.DATA)
    assert pack_blockrefs([bref] * 3, 512) == bref.pack() * 3 + bytes(128)
    with pytest.raises(ValueError, match="640 bytes"):
        pack_blockrefs([bref] * 5, 512)


def test_owners_are_numbers_inside_uuids():
    # What if the number of a user were taken from the wrong end of the UUID?
    assert guid_to_uuid(0x01020304) == bytes(12) + b"\x04\x03\x02\x01"
    meta = InodeMeta(uid=guid_to_uuid(1001), gid=guid_to_uuid(2**32 - 1))
    assert (meta.unix_uid, meta.unix_gid) == (1001, 2**32 - 1)
    assert unpack_meta(meta.pack()) == meta


@pytest.mark.parametrize("vtype", [VType(n) for n in range(1, 8)])
def test_every_kind_of_file_has_an_objtype(vtype):
    # What if a kind of file changed when it went to the media and back?
    assert get_vtype(get_obj_type(vtype)) is vtype
    assert InodeMeta(type=get_obj_type(vtype)).vtype is vtype


def test_unknown_kinds_are_bad_vnodes():
    # What if an inode of a kind nobody knows looked like a file?
    assert get_vtype(const.ObjType.WHITEOUT) is get_vtype(200) is VType.VBAD
    assert get_obj_type(VType.VNON) is const.ObjType.UNKNOWN


@given(st.integers(-(2**63) // 1000 + 1, 2**63 // 1000 - 1), st.integers(0, 999))
def test_times_survive_but_for_nanoseconds(usec, rest):
    # What if a time before 1970 came back as one of the far future, or lost a microsecond?
    xtime = nsec_to_time(usec * 1000 + rest)
    assert 0 <= xtime < 2**64
    assert time_to_nsec(xtime) == usec * 1000


def test_methods_and_algorithms_pack_into_bytes():
    # What if check code and compression changed places?
    methods = const.enc_methods(const.Check.SHA192, const.Comp.ZLIB)
    assert methods == 0x43
    assert (const.dec_check(methods), const.dec_comp(methods)) == (4, 3)
    algo = const.enc_algo(const.Comp.ZLIB, 9)
    assert algo == 0x93
    assert (const.dec_algo(algo), const.dec_level(algo)) == (3, 9)
    assert (const.pfs_type(0x36), const.pfs_transition(0x36)) == (6, 3)
    assert const.CHECK_STRINGS[const.Check.XXHASH64] == "xxhash64"
    assert const.COMP_STRINGS[const.Comp.LZ4] == "lz4"


@pytest.mark.parametrize("name", images.NAMES)
def test_headers_of_dragonfly_are_read_and_sealed_alike(name):
    # What if our header of the same contents were not byte for byte DragonFly's?
    data = images.load(name).read_at(0, 65536)
    header = VolumeData.unpack_from(data)
    assert wrong_icrc(data, header) == ""
    assert header.pack() == data
    assert header.replace(icrc_sects=(0,) * 8, icrc_volheader=0).seal() == data
    assert header.fstype == FSTYPE
    assert header.copies() == []


def test_each_crc_is_missed_in_its_own_part():
    # What if a part of the header had no CRC that notices a change?
    data = VolumeData(volu_size=1 << 26).seal()
    for at, part in ((8, "sector 0"), (0x1FC, "sector 0"), (0x1F8, "sector 0"),
                     (0x200, "sector 1"), (0x3FF, "sector 1"), (0x800, "the whole header"),
                     (0xFFFF, "the whole header")):  # fmt: skip
        bad = bytearray(data)
        bad[at] ^= 1
        assert wrong_icrc(bytes(bad), VolumeData.unpack_from(bad)) == part


def test_a_number_too_large_for_the_header():
    # What if a value were cut to its field?
    with pytest.raises(KError) as caught:
        VolumeData(volu_size=1 << 64).seal()
    assert caught.value.errno == EOVERFLOW


def test_remote_copies_are_listed():
    # What if a configured copy could not be seen?
    table = VolConf(copyid=3, label=b"x").pack().rjust(4 * 128, b"\0")
    assert [conf.copyid for conf in VolumeData(copyinfo=table).copies()] == [3]
