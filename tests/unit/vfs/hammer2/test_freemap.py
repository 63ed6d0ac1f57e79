"""The freemap: where its blocks lie, and what their bits say, against real volumes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.vfs.hammer2.ondisk.bmap import (
    ALLOCATED,
    FREE,
    POSSIBLY_FREE,
    BmapData,
    bmap_class,
    initial_leaf,
    pack_leaf,
    unpack_leaf,
)
from dfuser.vfs.hammer2.ondisk.const import (
    BMAP_ALLONES,
    BMAP_BLOCKS,
    FREEMAP_BLOCK_SIZE,
    SEGMASK,
    SEGSIZE,
    BrefType,
)
from dfuser.vfs.hammer2.ondisk.geometry import (
    block_fits,
    device_buffer,
    freemap_copy,
    freemap_level,
    freemap_offset,
    freemap_reserve,
    header_offset,
    header_slots,
    next_header,
    readable_headers,
    reserved,
)
from tests.unit.vfs.hammer2 import images

MIB = 1 << 20
GIB = 1 << 30
BITMAPS = st.integers(0, BMAP_ALLONES)


@pytest.mark.parametrize(
    ("size", "slots", "places"),
    [
        (24 * MIB, 1, 1), (2 * GIB, 1, 1), (2 * GIB + 4 * MIB, 2, 2), (2 * GIB + 64 * 1024, 1, 2),
        (6 * GIB + 8 * MIB, 4, 4), (8 * GIB, 4, 4), (1 << 50, 4, 4), (65535, 1, 0), (65536, 1, 1),
    ],
)  # fmt: skip
def test_how_many_headers_fit(size, slots, places):
    # What if a header were written behind the end, or one on the volume never looked at?
    assert header_slots(size) == slots
    assert readable_headers(size) == places
    assert [header_offset(number) for number in range(4)] == [0, 2 * GIB, 4 * GIB, 6 * GIB]


def test_headers_are_written_in_turn():
    # What if the newest header were overwritten, or one written behind the end?
    assert [next_header(number, 8 * GIB) for number in range(4)] == [1, 2, 3, 0]
    assert [next_header(number, 4 * GIB + 4 * MIB) for number in range(3)] == [1, 2, 0]
    assert next_header(0, GIB) == 0


def test_reserved_segments_begin_each_gib():
    # What if an allocation overwrote a header or the freemap?
    for start in (0, GIB, 2 * GIB, 77 * GIB):
        assert reserved(start)
        assert reserved(start + 4 * MIB - 1)
        assert not reserved(start + 4 * MIB)
        assert not reserved(start + GIB - 1)


@pytest.mark.parametrize(
    ("level", "copy", "slot"),
    [(1, 0, 1), (5, 0, 5), (1, 1, 6), (2, 3, 17), (1, 6, 31), (5, 7, 40)],
)
def test_slots_of_freemap_blocks(level, copy, slot):
    # What if two freemap blocks lay in one slot of the table in hammer2_disk.h?
    radix = (0, 30, 38, 46, 54, 62)[level]
    key = 3 << radix
    assert freemap_offset(key + 12345, level, copy) == key + slot * 65536
    assert freemap_copy(freemap_offset(key, level, copy)) == (level, copy)


def test_every_slot_belongs_to_one_block():
    # What if levels and copies overlapped?
    slots = {freemap_offset(0, level, copy) for level in range(1, 6) for copy in range(8)}
    assert slots == {slot * 65536 for slot in range(1, 41)}
    assert freemap_copy(0) is None
    assert freemap_copy(41 * 65536) is None
    assert freemap_copy(4 * MIB + 65536) is None
    assert freemap_copy(65536 + 1024) is None


@given(st.integers(1, 5), st.integers(0, 2**64 - 1))
def test_eight_changes_come_round(level, key):
    # What if a flush overwrote a freemap block that one of the four headers still needs?
    keybits = (0, 30, 38, 46, 54, 62)[level]
    assert freemap_level(keybits) == level
    data_off, seen = 0, []
    for _ in range(8):
        data_off = freemap_reserve(key, keybits, data_off)
        assert data_off & 63 == 15
        assert block_fits(data_off, 1 << 65)
        seen.append(data_off)
    assert len(set(seen)) == 8
    assert freemap_reserve(key, keybits, data_off) == seen[0]


def test_freemap_blocks_that_cannot_be():
    # What if a damaged blockref sent a freemap block over somebody's data?
    with pytest.raises(ValueError, match="31 bits"):
        freemap_reserve(0, 31, 0)
    with pytest.raises(ValueError, match="level 1"):
        freemap_reserve(0, 30, freemap_offset(0, 2, 0) | 15)
    with pytest.raises(ValueError, match="level 1"):
        freemap_reserve(0, 30, 5 * MIB | 15)
    with pytest.raises(ValueError, match="level 6"):
        freemap_offset(0, 6, 0)


@pytest.mark.parametrize(
    ("data_off", "fits"),
    [
        (0, False), (10, True), (16, True), (9, False), (17, False), (63, False),
        (MIB - 65536 | 16, True), (MIB | 10, False), (MIB - 1024 | 10, True),
        (MIB - 512 | 10, False), (65536 - 1024 | 11, False), (1024 | 16, False),
        (3 * 1024 | 11, True), (2**64 - 65536 | 16, False),
    ],
)  # fmt: skip
def test_where_a_block_may_lie(data_off, fits):
    # What if a damaged blockref made us read across a device buffer or behind the end?
    assert block_fits(data_off, MIB) is fits
    assert device_buffer(65536 * 3 + 77) == 65536 * 3


@given(st.integers(-(2**31), 2**31 - 1), st.integers(0, 65535), BITMAPS)
def test_entries_survive_the_media(linear, class_, bitmap):
    # What if an entry of the freemap came back changed?
    entry = BmapData(linear, class_, bytes(range(22)), 12, bytes(range(32)), bitmap)
    again = unpack_leaf(entry.pack() * 256)
    assert again == [entry] * 256
    assert pack_leaf(again) == entry.pack() * 256


@given(BITMAPS)
def test_states_are_counted(bitmap):
    # What if avail were made from a wrong count?
    entry = BmapData(bitmap=bitmap)
    states = [entry.state(block) for block in range(BMAP_BLOCKS)]
    for state in range(4):
        assert entry.count(state) == states.count(state)
    assert entry.free_bytes() == states.count(FREE) * FREEMAP_BLOCK_SIZE


@given(BITMAPS, st.integers(10, 16), st.integers(0, 2**40))
def test_found_runs_are_free_aligned_and_never_missed(bitmap, radix, hint):
    # What if a block in use were given away, or a volume with room seemed full?
    entry = BmapData(bitmap=bitmap)
    need = 1 << max(0, radix - 14)
    free = [
        start
        for start in range(0, BMAP_BLOCKS, need)
        if all(entry.state(block) == FREE for block in range(start, start + need))
    ]
    found = entry.find_free(radix, hint)
    if not free:
        assert found is None
        return
    wanted = (hint & SEGMASK) // FREEMAP_BLOCK_SIZE // need * need
    assert found == (wanted if wanted in free else free[0]) * FREEMAP_BLOCK_SIZE


@given(BITMAPS, st.integers(0, SEGSIZE - 1), st.integers(1, 65536), st.sampled_from([0, 2, 3]))
def test_marking_touches_the_marked_only(bitmap, offset, size, state):
    # What if marking a piece changed its neighbours?
    size = min(size, SEGSIZE - offset)
    entry = BmapData(bitmap=bitmap)
    before = [entry.state(block) for block in range(BMAP_BLOCKS)]
    entry.mark(7 * GIB + offset, size, state)
    blocks = range(offset >> 14, (offset + size - 1 >> 14) + 1)
    for block in range(BMAP_BLOCKS):
        assert entry.state(block) == (state if block in blocks else before[block])


def test_marking_stays_in_its_segment():
    # What if the bits of the next segment were needed and lost?
    with pytest.raises(ValueError, match="leave their segment"):
        BmapData().mark(SEGSIZE - 1024, 2048, ALLOCATED)
    with pytest.raises(ValueError, match="leave their segment"):
        BmapData().mark(0, 0, ALLOCATED)
    with pytest.raises(ValueError, match="radix"):
        BmapData().find_free(17)


def test_new_leaves_hide_what_is_not_to_be_had():
    # What if the allocator were let into the reserve, newfs's own blocks, or behind the end?
    leaf = initial_leaf(0, 20 * MIB + 3072, 64 * MIB)
    usable = [number for number, entry in enumerate(leaf) if entry.avail]
    assert usable == list(range(6, 16))
    assert all(entry.free_bytes() == entry.avail for entry in leaf)
    second = initial_leaf(GIB, 20 * MIB, 1 << 40)
    assert [number for number, entry in enumerate(second) if not entry.avail] == [0]
    assert second[0] == BmapData.full()
    assert bmap_class(BrefType.INODE) == 0x110


def test_leaves_have_their_size():
    # What if a short block were taken for a leaf?
    with pytest.raises(ValueError, match="not 100"):
        unpack_leaf(bytes(100))
    with pytest.raises(ValueError, match="256 entries"):
        pack_leaf([BmapData()])


@pytest.mark.parametrize("name", ["lz4_xxhash", "zlib_crc32", "snapshots", "four_headers"])
def test_freemaps_of_dragonfly_add_up(name):
    # What if our arithmetic on the bits disagreed with what DragonFly left on the media?
    reader = images.reader(name)
    header = reader.volume.header
    used = 0
    leaves = {}
    for bref in reader.freemap():
        assert bref.type == BrefType.FREEMAP_LEAF
        place = freemap_copy(bref.data_off)
        assert place is not None
        assert place[0] == freemap_level(bref.keybits) == 1
        assert freemap_offset(bref.key, *place) == bref.offset
        data = reader.tree.load(bref)
        leaf = unpack_leaf(data)
        assert pack_leaf(leaf) == data
        for entry in leaf:
            assert entry.free_bytes() == entry.avail
        fresh = initial_leaf(bref.key, header.allocator_beg, header.volu_size)
        used += sum(entry.avail for entry in fresh) - sum(entry.avail for entry in leaf)
        leaves[bref.key] = leaf
    assert header.allocator_size - header.allocator_free == used
    beg = header.allocator_beg
    for bref in reader.topology():
        if bref.data_off and bref.offset >= (beg + SEGMASK) & ~SEGMASK:
            leaf = leaves[bref.offset >> 30 << 30]
            entry = leaf[bref.offset >> 22 & 255]
            block = bref.offset >> 14 & 255
            assert entry.state(block) == ALLOCATED, hex(bref.data_off)
            assert entry.class_ == bmap_class(bref.type)
            assert not reserved(bref.offset)


def test_possibly_free_is_no_room():
    # What if a block that bulkfree has only suspected were given away at once?
    entry = BmapData()
    entry.mark(0, SEGSIZE, POSSIBLY_FREE)
    assert entry.find_free(10) is None
    assert entry.count(POSSIBLY_FREE) == BMAP_BLOCKS
