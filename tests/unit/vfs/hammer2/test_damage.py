"""Flipped bits: a clear error or a right answer, never a crash, a hang, or wrong data.

Two kinds of volume. Where check codes guard the blocks, what a manifest says must come out or an
error must be told. Where they do not (built with check code "disabled", so that every flip gets
past), nothing is promised about the data, but the reader must end and raise nothing else.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfuser.libkern.errno import EINVAL, EIO, ELOOP, ENOENT, ENOTDIR, KError
from dfuser.vfs.hammer2.check import testcheck as holds
from dfuser.vfs.hammer2.errors import MediaError, VolumeError
from dfuser.vfs.hammer2.node import Node
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import BrefType, Check, Comp, ObjType
from dfuser.vfs.hammer2.reader import Pfs, Reader
from dfuser.vfs.hammer2.volume import Device, open_set, open_volume
from tests.unit.vfs.hammer2 import images
from tests.unit.vfs.hammer2.builder import Builder
from tests.unit.vfs.hammer2.images import SparseImage

CHECKED = ("lz4_xxhash", "zlib_crc32", "snapshots")
PFS_OF = {"lz4_xxhash": b"DATA", "zlib_crc32": b"DATA", "snapshots": b"snap2"}


@cache
def blocks(name: str) -> tuple[Blockref, ...]:
    """The blocks of a golden image, file data left out."""
    reader = images.reader(name)
    brefs = {bref.data_off: bref for bref in reader.topology() if bref.data_off}
    return tuple(bref for bref in brefs.values() if bref.type != BrefType.DATA)


@cache
def expected(name: str) -> dict[bytes, str]:
    """The manifest of a golden image by path, `.` as the empty path."""
    lines = images.manifest_lines(name, PFS_OF[name].decode())
    return {b"" if images.path_of(line) == b"." else images.path_of(line): line for line in lines}


def survey(device: Device, label: bytes) -> tuple[dict[bytes, str], list[tuple[bytes, KError]]]:
    """What can be read of a PFS, and the paths and reasons of what cannot."""
    lost: list[tuple[bytes, KError]] = []
    found: dict[bytes, str] = {}
    try:
        reader = Reader(open_set([device]))
        pfs = reader.pfs(label)
    except KError as exc:
        return found, [(b"", exc)]
    for path, node in pfs.walk(onerror=lambda path, exc: lost.append((path, exc))):
        try:
            found[path] = images.line_of(pfs, path, node)
        except MediaError as exc:
            lost.append((path, exc))
    return found, lost


def flip_and_survey(name: str, bref: Blockref, byte: int, bit: int) -> None:
    """One flipped bit in one block: what is still there is right, and something is told lost."""
    want = expected(name)

    device = images.load(name).flipped(bref.offset + byte, bit)
    found, lost = survey(device, PFS_OF[name])
    assert found.items() <= want.items()
    missing = want.keys() - found.keys()
    if missing:
        assert lost
        assert all(exc.errno == EIO for _, exc in lost)
        tops = [path for path, _ in lost]
        for path in missing:
            assert any(path == top or not top or path.startswith(top + b"/") for top in tops)


@pytest.mark.parametrize("name", CHECKED)
def test_a_flipped_bit_in_some_metadata_blocks(name, rng):
    # What if one wrong bit in an inode, table or name gave wrong names, attributes or data?
    for bref in rng.sample(blocks(name), 8):
        flip_and_survey(name, bref, rng.randrange(bref.nbytes), rng.randrange(8))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize("name", CHECKED)
def test_a_flipped_bit_in_each_metadata_block(name, part, rng):
    # What if there were one block in which a wrong bit does harm?
    for bref in blocks(name)[part::8]:
        flip_and_survey(name, bref, rng.randrange(bref.nbytes), rng.randrange(8))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("name", CHECKED)
def test_each_bit_of_each_metadata_block_is_guarded(name, part):
    # What if a bit of some block were not covered by its check code?
    tree = images.reader(name).tree
    unseen = []
    for bref in blocks(name)[part::4]:
        data = bytearray(tree.load(bref))
        for at in range(len(data)):
            for bit in range(8):
                data[at] ^= 1 << bit
                if holds(bref, bytes(data)):
                    unseen.append((bref, at, bit))
                data[at] ^= 1 << bit
    assert not unseen


@pytest.mark.parametrize("name", CHECKED)
def test_a_flipped_bit_in_file_data_fails_that_file_only(name, rng):
    # What if a wrong bit in one file's data were returned, or made other files fail?
    reader = images.reader(name)
    data = sorted({b.data_off: b for b in reader.topology() if b.type == BrefType.DATA}.items())
    for _, bref in rng.sample(data, 4):
        at = bref.offset + rng.randrange(bref.nbytes)
        device = images.load(name).flipped(at, rng.randrange(8))
        found, lost = survey(device, PFS_OF[name])
        want = expected(name)
        assert found.items() <= want.items()
        # A hard link and an unchanged copy share the block; no directory is lost.
        assert len(lost) == len(want) - len(found) <= 4
        assert {path for path, _ in lost} == want.keys() - found.keys()


def header_flip(image: SparseImage, at: int, bit: int) -> None:
    """One flipped bit in the first header: refused, or another header is used."""
    refusal, best = None, 0
    try:
        best = open_volume(image.flipped(at, bit)).best
    except VolumeError as exc:
        refusal = exc
    if refusal is None:
        assert best != 0
    else:
        assert refusal.errno == EINVAL
        assert "\n" not in refusal.strerror


@pytest.mark.parametrize("name", ["fresh", "four_headers"])
def test_a_flipped_bit_in_the_header(name, rng):
    # What if a wrong bit in the header were believed?
    image = images.load(name)
    for at in (*range(0, 256, 3), *rng.sample(range(65536), 200)):
        header_flip(image, at, rng.randrange(8))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_each_bit_of_the_header(part):
    # What if there were one bit of the header that nobody guards?
    image = images.load("fresh")
    for at in range(part, 65536, 8):
        for bit in range(8):
            header_flip(image, at, bit)


@cache
def unguarded() -> Builder:
    """A volume of every kind of thing in which no check code notices anything."""
    builder = Builder(8 << 20, check=Check.DISABLED, comp=Comp.ZLIB)
    text = b"some text, again and again " * 5000
    big = builder.inode(below=builder.file(text), size=len(text))
    builder.comp = Comp.LZ4
    other = builder.inode(below=builder.file(text + b"!"), size=len(text) + 1)
    small = [builder.inode(below=b"small %d" % n) for n in range(40)]
    link = builder.inode(objtype=ObjType.SOFTLINK, below=b"dir/name01")
    device = builder.inode(objtype=ObjType.CDEV, below=(), rmajor=1)
    names = [builder.dirent(b"name%02d" % n, node.key) for n, node in enumerate(small)]
    names.append(builder.dirent(b"long name " * 9, big.key))
    directory = builder.inode(objtype=ObjType.DIRECTORY, below=names)
    root = builder.pfs(
        b"ROOT",
        [
            big, other, *small, link, device, directory, builder.dirent(b"big", big.key),
            builder.dirent(b"other", other.key), builder.dirent(b"dev", device.key, ObjType.CDEV),
            builder.dirent(b"link", link.key, ObjType.SOFTLINK),
            builder.dirent(b"dir", directory.key, ObjType.DIRECTORY),
        ],
    )  # fmt: skip
    builder.finish(root)
    return builder


def use_everything(device: Device) -> int:
    """Call all that a reader can do; only clear errors may come. Gives the number of objects."""
    errors: list[KError] = []
    count = 0
    try:
        reader = Reader(open_set([device]))
        list(reader.topology(lambda *_: None))
        for pfs in reader.pfs_list(lambda *_: None):
            count += use_pfs(pfs, errors)
    except KError as exc:
        errors.append(exc)
    assert {exc.errno for exc in errors} <= {EIO, ELOOP, ENOENT, ENOTDIR, EINVAL}
    return count


def use_pfs(pfs: Pfs, errors: list[KError]) -> int:
    """Walk, look up and read everything; at most so much memory as the blocks have."""
    count = 0
    for path, node in pfs.walk(onerror=lambda *_: None):
        count += 1
        assert count < 5000
        try:
            pfs.resolve(path)
            use_node(pfs, node)
        except KError as exc:
            errors.append(exc)
    return count


def use_node(pfs: Pfs, node: Node) -> None:
    """Read what there is to read of one object."""
    if node.meta.type == ObjType.REGFILE:
        assert sum(len(data) for _, data in pfs.pieces(node)) <= 64 << 20
        pfs.read(node, max(0, node.meta.size - 70_000), 70_000)
    elif node.meta.type == ObjType.SOFTLINK:
        pfs.readlink(node)


def test_the_unguarded_volume_is_whole():
    # What if the volume for the tests below had nothing in it to damage?
    assert use_everything(unguarded().image.device()) == 47
    assert len(unguarded().metadata) > 45


def test_a_flipped_bit_that_no_check_code_notices(rng):
    # What if a number that cannot be made the reader crash, loop, or take all memory?
    builder = unguarded()
    places = [bref for bref in builder.metadata if bref.type != BrefType.DIRENT]
    for _ in range(400):
        bref = rng.choice(places)
        use_everything(
            builder.image.flipped(bref.offset + rng.randrange(bref.nbytes), rng.randrange(8))
        )


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_each_bit_that_no_check_code_notices(part):
    # What if there were one bit that makes the reader crash, loop, or take all memory?
    builder = unguarded()
    kinds = {(bref.type, bref.nbytes): bref for bref in reversed(builder.metadata)}
    for bref in {*kinds.values(), *builder.metadata[-3:]}:
        data = builder.image.read_at(bref.offset, bref.nbytes)
        for at in range(part, min(len(data.rstrip(b"\0")) + 16, bref.nbytes), 8):
            for bit in range(8):
                use_everything(builder.image.flipped(bref.offset + at, bit))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=9)), max_size=6))
def test_overwritten_bytes_that_no_check_code_notices(changes):
    # What if several wrong numbers together did what one cannot?
    builder = unguarded()
    places = [bref for bref in builder.metadata if bref.type != BrefType.DIRENT]
    image = SparseImage(builder.image.size)
    image.blocks = {block: bytearray(data) for block, data in builder.image.blocks.items()}
    for place, data in changes:
        bref = places[place % len(places)]
        image.write_at(bref.offset + place % (bref.nbytes - len(data)), data)
    use_everything(image.device())


@pytest.mark.parametrize("name", ["lz4_xxhash", "fresh"])
def test_truncated_and_empty_images(name, rng):
    # What if an image that was cut off were used as far as it goes?
    image = images.load(name)
    for size in (
        0,
        1,
        65535,
        65536,
        image.size - 1,
        *[rng.randrange(image.size) for _ in range(20)],
    ):
        with pytest.raises(VolumeError):
            open_set([image.device(size)])
