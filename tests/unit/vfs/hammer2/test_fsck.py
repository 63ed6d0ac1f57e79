"""The deep check: whole volumes are clean, and every kind of damage is found and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dfuser.libkern.errno import EIO
from dfuser.vfs.hammer2.check import icrc32
from dfuser.vfs.hammer2.fsck import Finding, Fsck, Kind, Progress, Severity
from dfuser.vfs.hammer2.fsck.blocks import Added, BlockMap, Marks
from dfuser.vfs.hammer2.fsck.table import sums
from dfuser.vfs.hammer2.ondisk.blockref import (
    BLOCKREF,
    Blockref,
    FreemapCheck,
    pack_blockrefs,
    pack_stats,
    unpack_blockrefs,
)
from dfuser.vfs.hammer2.ondisk.bmap import (
    ALLOCATED,
    FREE,
    POSSIBLY_FREE,
    BmapData,
    initial_leaf,
    pack_leaf,
)
from dfuser.vfs.hammer2.ondisk.const import (
    BrefType,
    Check,
    Comp,
    ObjType,
    PfsType,
)
from dfuser.vfs.hammer2.ondisk.geometry import freemap_offset, header_offset
from dfuser.vfs.hammer2.ondisk.volhdr import VolumeData
from dfuser.vfs.hammer2.volume import Device, VolumeSet, open_set
from tests.unit.vfs.hammer2 import images
from tests.unit.vfs.hammer2.builder import FSID, Builder, split_devices
from tests.unit.vfs.hammer2.images import SparseImage

MIB = 1 << 20
ROOM = 4 * MIB
#: DragonFly's "hammer2 destroy" took the names of these two files and left their inodes.
DESTROYED = {(label, inum) for label in (b"snap2", b"DATA") for inum in (0x499, 0x5B4)}
TEXT = b"some text, again and again " * 5000
Leaf = Callable[[list[BmapData]], None]


class Whole(Builder):
    """Builds volumes on which nothing is wrong: statistics and freemap too."""

    def __init__(self, size: int = 64 * MIB, **more: Any) -> None:
        super().__init__(size, **more)
        self.placed: list[tuple[int, int]] = []
        self._tops: Sequence[Blockref] = ()

    def put(self, bref: Blockref, data: bytes) -> Blockref:
        bref = super().put(bref, data)
        self.placed.append((bref.offset, bref.nbytes))
        return bref

    def indirect(self, brefs: Sequence[Blockref], key: int, keybits: int) -> Blockref:
        return counted(super().indirect(brefs, key, keybits), brefs)

    def blockset(self, brefs: Sequence[Blockref]) -> bytes:
        self._tops = self.tree(brefs, 0, 64, 4)
        return pack_blockrefs(self._tops, 512)

    def inode(self, *args: Any, **fields: Any) -> Blockref:
        self._tops = ()
        return counted(super().inode(*args, **fields), self._tops)

    def pfs(self, label: bytes, below: Sequence[Blockref], **fields: Any) -> Blockref:
        return super().pfs(label, below, **{"pfs_inum": self.inum, **fields})

    def finish(self, *pfss: Blockref, leaf: Leaf | None = None, **header: Any) -> SparseImage:
        sroot = self.inode(
            0, ObjType.DIRECTORY, pfss, pfs_type=PfsType.SUPROOT, filename=b"SUPROOT"
        )
        entries = initial_leaf(0, ROOM, self.image.size)
        for offset, size in self.placed:
            entries[offset // ROOM].mark(offset, size, ALLOCATED)
        for entry in entries:
            entry.avail = entry.free_bytes()
        used = sum(ROOM - e.avail for e in entries[1 : self.image.size // ROOM])
        if leaf is not None:
            leaf(entries)
        bref = self.freemap_leaf(entries)
        total = self.image.size - ROOM
        fields = {
            "volu_size": self.image.size, "fsid": FSID, "allocator_beg": ROOM, "mirror_tid": 16,
            "freemap_tid": 16, "allocator_size": total, "allocator_free": total - used,
            "sroot_blockset": BLOCKREF.pack(*sroot), "freemap_blockset": BLOCKREF.pack(*bref),
        }  # fmt: skip
        self.image.write_at(0, VolumeData(**{**fields, **header}).seal())
        return self.image

    def freemap_leaf(self, entries: list[BmapData]) -> Blockref:
        data = pack_leaf(entries)
        offset = freemap_offset(0, 1, 0)
        self.image.write_at(offset, data)
        check = FreemapCheck(icrc32(data), 0xFFFFFFFF, sum(e.avail for e in entries))
        return Blockref(
            BrefType.FREEMAP_LEAF, Check.FREEMAP << 4, keybits=30, data_off=offset | 15,
            check=check.pack(),
        )  # fmt: skip


def counted(bref: Blockref, below: Sequence[Blockref]) -> Blockref:
    """The blockref with right statistics."""
    data_count, inode_count, leaf_count = sums(below)
    return bref._replace(embed=pack_stats(data_count, inode_count), leaf_count=leaf_count)


def small(builder: Builder, **fields: Any) -> Blockref:
    """A small file."""
    return builder.inode(below=b"small", **fields)


def run(image: SparseImage | Device, **more: Any) -> list[Finding]:
    """Everything that is found, the note about a single header left out; must end."""
    device = image.device() if isinstance(image, SparseImage) else image
    return run_set(open_set([device]), **more)


def run_set(volume: VolumeSet, **more: Any) -> list[Finding]:
    found = list(Fsck(volume, **more).findings())
    assert len(found) < 10_000
    return [f for f in found if not (f.kind is Kind.HEADER and f.severity is Severity.NOTE)]


def kinds(found: Sequence[Finding]) -> set[Kind]:
    """What was found, the paths of damaged files left out."""
    return {finding.kind for finding in found} - {Kind.PATH, Kind.SKIPPED}


def one(found: Sequence[Finding], kind: Kind) -> Finding:
    """The only finding of a kind."""
    [finding] = [finding for finding in found if finding.kind is kind]
    return finding


def tree(builder: Builder) -> list[Blockref]:
    """Inodes and names for a root: a big file, a small one with two names, a directory."""
    big = builder.inode(below=builder.file(TEXT), size=len(TEXT))
    twice = small(builder, nlinks=2)
    inner = small(builder)
    link = builder.inode(objtype=ObjType.SOFTLINK, below=b"dir/inner")
    directory = builder.inode(
        objtype=ObjType.DIRECTORY, iparent=1, below=[
            builder.dirent(b"inner", inner.key), builder.dirent(b"again", twice.key),
            builder.dirent(b"long name " * 9, builder.inum + 1),
        ],
    )  # fmt: skip
    long = small(builder)
    return [
        big, twice, inner, link, directory, long, builder.dirent(b"big", big.key),
        builder.dirent(b"twice", twice.key), builder.dirent(b"link", link.key, ObjType.SOFTLINK),
        builder.dirent(b"dir", directory.key, ObjType.DIRECTORY),
    ]  # fmt: skip


@pytest.mark.parametrize("name", images.NAMES)
def test_images_of_dragonfly_are_clean(name):
    # What if something that DragonFly's own tools write were told as damage?
    found = run_set(images.reader(name).volume)
    errors = [f for f in found if f.severity is not Severity.NOTE]
    if name == "snapshots":
        assert {(f.pfs, f.inum) for f in errors} == DESTROYED
        assert kinds(errors) == {Kind.ORPHAN}
    else:
        assert errors == []


@pytest.mark.parametrize("name", ["lz4_xxhash", "snapshots"])
def test_small_windows_find_the_same(name):
    # What if a volume larger than the map of blocks were checked less, or more than once?
    volume = images.reader(name).volume
    want, got = Fsck(volume), Fsck(volume, window=8 * MIB)
    first = [f for f in want.findings() if f.kind is not Kind.LEAK]
    second = [f for f in got.findings() if f.kind is not Kind.LEAK]
    assert sorted(map(str, first)) == sorted(map(str, second))
    assert want.statistics().leaked == got.statistics().leaked
    assert want.statistics().used == got.statistics().used


@pytest.mark.parametrize("check", [Check.XXHASH64, Check.ISCSI32, Check.SHA192, Check.DISABLED])
def test_a_whole_volume_is_clean(check):
    # What if the volumes that the tests below damage had damage already?
    builder = Whole(check=check)
    found = run(builder.finish(builder.pfs(b"ROOT", tree(builder))))
    assert found == []


def test_statistics_and_progress():
    # What if somebody asks what was done, in the middle or at the end?
    fsck = Fsck(images.reader("four_headers").volume)
    records = list(fsck.run())
    told = [record for record in records if isinstance(record, Progress)]
    assert {"headers", "topology", "freemap", "old headers"} >= {p.phase for p in told}
    assert [p.blocks for p in told] == sorted(p.blocks for p in told)
    done = fsck.statistics()
    assert (done.headers, done.pfss, done.inodes, done.names) == (4, 7, 882, 885)
    assert done.errors == done.warnings == 0
    stopped = Fsck(images.reader("lz4_xxhash").volume)
    run_ = stopped.run()
    for _ in range(3):
        next(run_)
    run_.close()
    assert 0 < stopped.statistics().inodes < 938


def test_a_wrong_check_code_of_data_names_the_file(rng):
    # What if a damaged file were found, but nobody learned which one it is?
    builder = Whole()
    builder.finish(builder.pfs(b"ROOT", tree(builder)))
    data = next(at for at, size in builder.placed)
    found = run(builder.image.flipped(data + 40, 3))
    assert kinds(found) == {Kind.CHECK}
    check = one(found, Kind.CHECK)
    assert (check.pfs, check.data_off & ~63) == (b"ROOT", data)
    path = one(found, Kind.PATH)
    assert (path.inum, path.text) == (check.inum, "this is /big")


def test_a_wrong_check_code_of_metadata_tells_no_consequences():
    # What if one damaged directory gave a thousand orphans?
    builder = Whole()
    builder.finish(builder.pfs(b"ROOT", tree(builder)))
    directory = [b for b in builder.metadata if b.type == BrefType.INODE][4]
    found = run(builder.image.flipped(directory.offset + 0x210, 0))
    assert kinds(found) == {Kind.CHECK}
    assert {f.kind for f in found} >= {Kind.SKIPPED}


def test_a_block_that_cannot_be_read():
    # What if the disk itself fails?
    builder = Whole()
    image = builder.finish(builder.pfs(b"ROOT", tree(builder)))
    bad = builder.placed[0][0]

    def read_at(offset: int, size: int) -> bytes:
        if offset <= bad < offset + size:
            raise OSError(EIO, "Input/output error")
        return image.read_at(offset, size)

    found = run(Device("bad", image.size, read_at))
    assert kinds(found) == {Kind.UNREADABLE}


def test_a_payload_that_cannot_be_decompressed():
    # What if the check code holds and the data still cannot be read?
    builder = Whole()
    for comp in (Comp.LZ4, Comp.ZLIB):
        bref = Blockref(BrefType.DATA, Check.XXHASH64 << 4 | comp, keybits=16)
        bad = builder.put(bref, b"\x80\0\0\0" + b"no compressed data" * 50)
        file = builder.inode(below=[bad], size=60_000)
        image = builder.finish(builder.pfs(b"ROOT", [file, builder.dirent(b"bad", file.key)]))
        found = run(image, window=64 * MIB)
        assert Kind.PAYLOAD in kinds(found)
        assert one(found, Kind.PAYLOAD).inum == file.key


def with_root(change: Callable[[Whole], list[Blockref]], **more: Any) -> list[Finding]:
    """What is found on a volume whose root has what `change` makes."""
    builder = Whole()
    return run(builder.finish(builder.pfs(b"ROOT", change(builder)), **more))


def test_wrong_link_counts():
    # What if an inode counts more names than it has, or fewer?
    for links in (0, 1, 3):

        def change(b: Whole, links: int = links) -> list[Blockref]:
            file = small(b, nlinks=links)
            return [file, b.dirent(b"a", file.key), b.dirent(b"b", file.key)]

        finding = one(with_root(change), Kind.LINK_COUNT)
        assert (finding.found, finding.expected) == (links, 2)


def test_orphans():
    # What if an inode has no name? If it counts none, it was deleted while in use.
    found = with_root(lambda b: [small(b)])
    assert one(found, Kind.ORPHAN).severity is Severity.ERROR
    found = with_root(lambda b: [small(b, nlinks=0)])
    assert one(found, Kind.ORPHAN).severity is Severity.WARNING


def test_names_without_inode_and_of_another_type():
    # What if a name leads nowhere, or to something else than it says?
    finding = one(with_root(lambda b: [b.dirent(b"gone", 0x777)]), Kind.DANGLING)
    assert finding.inum == 0x777

    def other(b: Whole) -> list[Blockref]:
        file = small(b)
        return [file, b.dirent(b"a", file.key, ObjType.DIRECTORY)]

    finding = one(with_root(other), Kind.ENTRY_TYPE)
    assert (finding.found, finding.expected) == (ObjType.DIRECTORY, ObjType.REGFILE)


def test_bad_names():
    # What if a name lies where nobody finds it, is there twice, or can be no name?
    def wrong_key(b: Whole) -> list[Blockref]:
        file = small(b)
        return [file, b.dirent(b"name", file.key)._replace(key=1 << 63 | 0x8000)]

    assert kinds(with_root(wrong_key)) == {Kind.NAME}

    def twice(b: Whole) -> list[Blockref]:
        file = small(b, nlinks=2)
        return [file, b.dirent(b"name", file.key), b.dirent(b"name", file.key, extra=2)]

    assert kinds(with_root(twice)) == {Kind.NAME}

    def slash(b: Whole) -> list[Blockref]:
        file = small(b)
        good = b.dirent(b"name", file.key)
        return [file, good._replace(check=b"a/me".ljust(64, b"\0"))]

    assert kinds(with_root(slash)) == {Kind.NAME}

    def empty(b: Whole) -> list[Blockref]:
        file = small(b)
        good = b.dirent(b"name", file.key)
        return [file, good._replace(embed=good.dirent._replace(namlen=0).pack())]

    assert Kind.NAME in kinds(with_root(empty))


def test_a_directory_with_two_names_and_a_directory_below_itself():
    # What if directories make a loop, so that no path leads to them from the root?
    def two(b: Whole) -> list[Blockref]:
        d = b.inode(objtype=ObjType.DIRECTORY, below=(), iparent=1)
        t = ObjType.DIRECTORY
        return [d, b.dirent(b"a", d.key, t), b.dirent(b"b", d.key, t)]

    assert kinds(with_root(two)) == {Kind.LOOP}

    def loop(b: Whole) -> list[Blockref]:
        t = ObjType.DIRECTORY
        one_, two_ = b.inum, b.inum + 1
        first = b.inode(objtype=t, below=[b.dirent(b"x", two_, t)], iparent=two_)
        second = b.inode(objtype=t, below=[b.dirent(b"y", one_, t)], iparent=one_)
        return [first, second]

    assert kinds(with_root(loop)) == {Kind.LOOP}
    assert kinds(with_root(lambda b: [b.dirent(b"x", 1, ObjType.DIRECTORY)])) == {Kind.LOOP}


def test_a_directory_that_says_it_lies_elsewhere():
    # What if ".." led to another directory than the one that has the name?
    def change(b: Whole) -> list[Blockref]:
        d = b.inode(objtype=ObjType.DIRECTORY, below=(), iparent=77)
        return [d, b.dirent(b"a", d.key, ObjType.DIRECTORY)]

    finding = one(with_root(change), Kind.PARENT)
    assert (finding.found, finding.expected) == (77, 1)


def raw_root(make: Callable[[Whole], list[Blockref]], **fields: Any) -> list[Finding]:
    """What is found on a volume whose root has these four entries as they are."""
    builder = Whole()
    brefs = make(builder)
    builder.tree = lambda given, *_: list(given)  # type: ignore[method-assign]
    root = builder.pfs(b"ROOT", brefs, **fields)
    return run(builder.finish(root))


def test_keys_out_of_order_overlapping_and_out_of_range():
    # What if a search by halves missed an entry, or two entries were in its way?
    def order(b: Whole) -> list[Blockref]:
        first, second = small(b), small(b)
        return [second, first, b.dirent(b"a", first.key), b.dirent(b"b", second.key)]

    assert Kind.KEY_ORDER in kinds(raw_root(order))

    def overlap(b: Whole) -> list[Blockref]:
        file = small(b)
        return [file, small(b)._replace(key=file.key), b.dirent(b"a", file.key)]

    assert Kind.KEY_OVERLAP in kinds(raw_root(overlap))

    def beyond(b: Whole) -> list[Blockref]:
        files = [small(b), small(b)]
        return [b.indirect(files, files[0].key, 0)]

    assert Kind.KEY_RANGE in kinds(raw_root(beyond))
    bits = raw_root(lambda b: [small(b)._replace(keybits=99)])
    assert Kind.BLOCKREF in kinds(bits)


def test_blocks_used_twice():
    # What if two inodes of one PFS share a table, or two blocks lie on top of each other?
    def duplicate(b: Whole) -> list[Blockref]:
        file = small(b)
        return [file, file._replace(key=file.key + 1), b.dirent(b"a", file.key)]

    assert Kind.DUPLICATE in kinds(with_root(duplicate))

    def overlap(b: Whole) -> list[Blockref]:
        b.check, b.comp = Check.DISABLED, Comp.NONE
        data = b.file(bytes(range(256)) * 256)
        [piece] = data
        half = piece._replace(data_off=(piece.offset + 32768) | 15)
        first = b.inode(below=data, size=65536)
        second = b.inode(below=[half], size=32768)
        return [first, second, b.dirent(b"a", first.key), b.dirent(b"b", second.key)]

    assert kinds(with_root(overlap)) == {Kind.OVERLAP}


def test_data_shared_by_two_files_is_no_damage():
    # What if deduplicated data were called a duplicate?
    def change(b: Whole) -> list[Blockref]:
        data = b.file(TEXT)
        first, second = (b.inode(below=data, size=len(TEXT)) for _ in range(2))
        return [first, second, b.dirent(b"a", first.key), b.dirent(b"b", second.key)]

    assert with_root(change) == []


def test_a_loop_of_blocks_ends():
    # What if a block, unguarded by a check code, refers to itself?
    builder = Whole(check=Check.DISABLED)
    directory = builder.inode(objtype=ObjType.DIRECTORY, below=(), iparent=1)
    root = builder.pfs(b"ROOT", [directory, builder.dirent(b"d", directory.key, ObjType.DIRECTORY)])
    builder.finish(root)
    own = directory._replace(key=1 << 63 | 5)
    builder.image.write_at(directory.offset + 512, own.pack())
    assert Kind.DUPLICATE in kinds(run(builder.image))
    table = Builder(check=Check.DISABLED)
    indirect = table.indirect([], 0, 60)
    table.image.write_at(indirect.offset, indirect._replace(keybits=59).pack())
    table.finish(table.pfs(b"ROOT", [indirect]))
    assert Kind.DUPLICATE in kinds(run(table.image))


def test_places_where_no_block_can_lie():
    # What if a blockref points outside, across a boundary, or into a reserved segment?
    for data_off in (70 * MIB | 10, 5 * MIB - 512 | 10, 6 * MIB | 9, 6 * MIB | 40, 2 * MIB | 10):

        def change(b: Whole, data_off: int = data_off) -> list[Blockref]:
            piece = Blockref(BrefType.DATA, 0x30, keybits=16, data_off=data_off)
            file = b.inode(below=[piece], size=5)
            return [file, b.dirent(b"a", file.key)]

        assert one(with_root(change), Kind.PLACE).data_off == data_off


def test_statistics_that_do_not_add_up():
    # What if statfs and quotas counted something else than there is?
    def change(b: Whole) -> list[Blockref]:
        file = b.inode(below=b.file(TEXT), size=len(TEXT))
        wrong = file._replace(embed=pack_stats(1, 2), leaf_count=9)
        return [wrong, b.dirent(b"a", file.key)]

    found = [f for f in with_root(change) if f.kind is Kind.STATISTICS]
    assert {f.found for f in found} == {1, 2, 9}
    assert {f.severity for f in found} == {Severity.ERROR}


def test_inodes_that_say_what_none_may():
    # What if numbers in an inode cannot be, although its check code holds?
    for fields in (
        {"type": 3}, {"size": 1 << 63}, {"comp_algo": 9}, {"check_algo": 9}, {"size": 600},
        {"inum": 5}, {"version": 7}, {"name_len": 999}, {"mode": 0o100644},
    ):  # fmt: skip

        def change(b: Whole, fields: dict[str, int] = fields) -> list[Blockref]:
            file = b.inode(
                2000, below=b"small",
                change=lambda meta: [setattr(meta, k, v) for k, v in fields.items()] and None,
            )  # fmt: skip
            return [file, b.dirent(b"a", 2000)]

        assert Kind.INODE in kinds(
            with_root(
                change,
            )
        ), fields


def test_data_where_none_can_be():
    # What if pieces lie at odd keys, behind the end, or below a FIFO?
    def piece(key: int, size: int, objtype: int = ObjType.REGFILE, bits: int = 16) -> set[Kind]:
        def change(b: Whole) -> list[Blockref]:
            bref = Blockref(BrefType.DATA, 0x30, key=key, keybits=bits)
            file = b.inode(below=[b.put(bref, b"data")], size=size, objtype=objtype)
            return [file, b.dirent(b"a", file.key, objtype)]

        return kinds(with_root(change))

    assert piece(0, 5) == set()
    assert piece(65536, 5) == {Kind.DATA}
    assert piece(100, 500) == {Kind.DATA}
    assert piece(0, 500, bits=10) == {Kind.DATA}
    assert piece(0, 5, ObjType.FIFO) == {Kind.DATA}


def test_a_block_younger_than_what_refers_to_it():
    # What if the recovery of a mount skipped a block because of its mirror_tid?
    def change(b: Whole) -> list[Blockref]:
        file = small(b)
        return [file._replace(mirror_tid=99), b.dirent(b"a", file.key)]

    assert kinds(with_root(change)) == {Kind.TID}


def test_roots_of_pfss_that_are_none():
    # What if the super-root has something else than PFSs, or two of one label?
    builder = Whole()
    plain = builder.inode(5, ObjType.DIRECTORY, [])
    assert Kind.PFS in kinds(run(builder.finish(plain._replace(key=1 << 63 | 5))))
    builder = Whole()
    first, second = builder.pfs(b"ROOT", []), builder.pfs(b"ROOT", [])
    found = run(builder.finish(first, second._replace(key=second.key + 1)))
    assert one(found, Kind.PFS).text == "two PFSs have this label"
    builder = Whole()
    unflagged = builder.pfs(b"ROOT", [])._replace(flags=0)
    assert one(run(builder.finish(unflagged)), Kind.PFS).severity is Severity.WARNING
    builder = Whole()
    assert Kind.PFS in kinds(run(builder.finish(builder.pfs(b"ROOT", tree(builder), pfs_inum=3))))


def test_the_super_root_is_damaged():
    # What if there is nothing to check behind the header?
    builder = Whole()
    builder.finish()
    sroot = builder.metadata[0]
    assert Kind.CHECK in kinds(run(builder.image.flipped(sroot.offset + 9, 1)))
    empty = Whole()
    empty.finish(sroot_blockset=bytes(512))
    assert Kind.PFS in kinds(run(empty.image))


def change_leaf(state: int, *, where: int = 0) -> Leaf:
    """Gives one block of a segment another state; its counter is right."""

    def leaf(entries: list[BmapData]) -> None:
        entry = entries[1]
        entry.mark(where, 16384, state)
        entry.avail = entry.free_bytes()

    return leaf


def test_the_freemap_both_ways():
    # What if a block in use is marked free, or a free one as in use?
    def found(leaf: Leaf) -> list[Finding]:
        builder = Whole()
        return run(builder.finish(builder.pfs(b"ROOT", tree(builder)), leaf=leaf))

    hole = one(found(change_leaf(FREE)), Kind.HOLE)
    assert (hole.key, hole.found, hole.severity) == (ROOM, 16384, Severity.ERROR)
    staged = one(found(change_leaf(POSSIBLY_FREE)), Kind.STAGED)
    assert staged.severity is Severity.WARNING
    leak = one(found(change_leaf(ALLOCATED, where=2 * MIB)), Kind.LEAK)
    assert (leak.found, leak.severity) == (16384, Severity.NOTE)


def test_a_freemap_that_contradicts_itself():
    # What if counters, reserved segments or the place for small blocks are wrong?
    def found(change: Callable[[list[BmapData]], None]) -> list[Finding]:
        builder = Whole()
        return run(builder.finish(builder.pfs(b"ROOT", tree(builder)), leaf=change))

    def avail(entries: list[BmapData]) -> None:
        entries[2].avail -= 16384

    def closed(entries: list[BmapData]) -> None:
        entries[0].mark(0, 16384, FREE)

    def linear(entries: list[BmapData]) -> None:
        entries[1].linear = 1024

    def far(entries: list[BmapData]) -> None:
        entries[1].linear = -5

    assert kinds(found(avail)) == {Kind.FREEMAP}
    assert kinds(found(closed)) == {Kind.FREEMAP}
    assert kinds(found(linear)) == {Kind.HOLE}
    assert kinds(found(far)) == {Kind.FREEMAP}


def test_the_freemap_is_missing_damaged_or_misplaced():
    # What if nothing says which blocks are in use?
    builder = Whole()
    root = builder.pfs(b"ROOT", tree(builder))
    builder.finish(root, freemap_blockset=bytes(512))
    assert {Kind.HOLE} <= kinds(run(builder.image)) <= {Kind.HOLE, Kind.STATISTICS}
    builder = Whole()
    builder.finish(builder.pfs(b"ROOT", tree(builder)))
    found = run(builder.image.flipped(freemap_offset(0, 1, 0) + 99, 1))
    assert kinds(found) == {Kind.CHECK}
    for change in ({"keybits": 31}, {"methods": 0x30}, {"data_off": 5 * MIB | 15}):
        builder = Whole()
        root = builder.pfs(b"ROOT", tree(builder))
        builder.finish(root)
        leaf = builder.freemap_leaf(initial_leaf(0, ROOM, 64 * MIB))._replace(**change)
        builder.finish(root, freemap_blockset=BLOCKREF.pack(*leaf))
        assert Kind.FREEMAP in kinds(run(builder.image))


def test_the_header_counts_wrong():
    # What if the header's numbers contradict the freemap, the device or each other?
    def found(**fields: Any) -> list[Finding]:
        builder = Whole()
        return run(builder.finish(builder.pfs(b"ROOT", tree(builder)), **fields))

    finding = one(found(allocator_free=50 * MIB), Kind.STATISTICS)
    assert (finding.found, finding.severity) == (50 * MIB, Severity.WARNING)
    assert Kind.HEADER in kinds(found(allocator_free=70 * MIB))
    assert kinds(found(freemap_tid=15)) == {Kind.TID}
    assert Kind.HEADER in kinds(found(boot_beg=9, boot_end=8))


def test_a_torn_header_copy_and_one_that_was_never_written():
    # What if an older copy is torn, or growfs left its place empty?
    image = images.load("four_headers")
    found = [f for f in run(image.flipped(header_offset(0) + 300, 0)) if f.kind is Kind.HEADER]
    [finding] = found
    assert (finding.severity, finding.found) == (Severity.WARNING, 0)

    def read_at(offset: int, size: int) -> bytes:
        return bytes(size) if offset == header_offset(3) else image.read_at(offset, size)

    assert Kind.HEADER not in kinds(run(Device("grown", image.size, read_at)))


def test_an_older_copy_leads_to_a_block_that_was_used_again():
    # What if the fallback of a torn header were damaged, and nobody knew?
    image = images.load("four_headers")
    volume = open_set([image.device()])
    now = volume.header.sroot_blockset
    [copy] = [c for c in volume.volumes[0].copies if c.number == 3]
    assert copy.header is not None
    [old] = [b for b in unpack_blockrefs(copy.header.sroot_blockset) if b.type]
    assert old.pack() != now[:128]
    found = run(image.flipped(old.offset + 20, 2))
    finding = one(found, Kind.OLD_TREE)
    assert (finding.severity, finding.found) == (Severity.WARNING, 3)
    assert finding.data_off == old.data_off


def test_a_volume_of_two_devices():
    # What if a volume's blocks lie on a second device?
    builder = Builder(2 << 30)
    file = builder.inode(below=builder.file(TEXT), size=len(TEXT))
    builder.skip_to((1 << 30) + ROOM)
    other = builder.inode(below=builder.file(TEXT[::-1]), size=len(TEXT))
    names = [builder.dirent(b"a", file.key), builder.dirent(b"b", other.key)]
    root = builder.pfs(b"ROOT", [file, other, *names])
    devices = split_devices(builder, [1 << 30, 1 << 30], root)
    volume = open_set([device.device() for device in devices])
    found = [f for f in run_set(volume) if f.severity is Severity.ERROR]
    assert not {Kind.CHECK, Kind.PLACE, Kind.UNREADABLE, Kind.HEADER} & kinds(found)


@pytest.mark.parametrize("check", [Check.DISABLED, Check.XXHASH64])
def test_flipped_bits_never_crash_or_hang_the_check(check, rng):
    # What if some number that cannot be made the check crash or run for ever?
    builder = Whole(8 * MIB, check=check)
    builder.finish(builder.pfs(b"ROOT", tree(builder)))
    places = [*builder.metadata, *[b for b in builder.metadata if b.type == BrefType.INODE]]
    places = [bref for bref in places if bref.nbytes]
    for _ in range(300):
        bref = rng.choice(places)
        at = bref.offset + rng.randrange(min(bref.nbytes, 1024))
        found = run(builder.image.flipped(at, rng.randrange(8)))
        if check == Check.XXHASH64:
            assert Kind.CHECK in kinds(found)


def test_flipped_bits_in_golden_metadata_are_found(rng):
    # What if a wrong bit in some block were overlooked?
    reader = images.reader("zlib_crc32")
    blocks = [b for b in reader.topology() if b.nbytes]
    for bref in rng.sample(blocks, 12):
        at = bref.offset + rng.randrange(bref.nbytes)
        found = run(images.load("zlib_crc32").flipped(at, rng.randrange(8)))
        assert one(found, Kind.CHECK).data_off == bref.data_off


def test_the_map_of_blocks():
    # What if two blocks in one place were told apart wrongly?
    blocks = BlockMap(0, 8 * MIB)
    assert blocks.add(0x4000, 0x4000) is Added.NEW
    assert blocks.add(0x4000, 0x4000) is Added.SAME
    assert blocks.add(0x4000, 0x2000) is Added.OVERLAP
    assert blocks.add(0x6000, 0x2000) is Added.OVERLAP
    assert blocks.add(0x2000, 0x4000) is Added.OVERLAP
    assert blocks.add(0x8000, 0x400) is Added.NEW
    assert blocks.add(0x8400, 0x400) is Added.NEW
    assert blocks.add(0x8000, 0x800) is Added.OVERLAP
    assert blocks.add(9 * MIB, 0x400) is Added.OUTSIDE
    assert blocks.elsewhere == {1}
    assert blocks.units == 18
    marks = Marks()
    assert not marks.add(5 * MIB)
    assert marks.add(5 * MIB)
    assert 5 * MIB in marks
    assert 5 * MIB + 1024 not in marks
