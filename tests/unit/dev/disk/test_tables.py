"""MBR and GPT: against sfdisk and sgdisk in both directions, round trips, and broken tables."""

from __future__ import annotations

import random
import struct
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfuser.dev.disk import mbr
from dfuser.dev.disk.gpt import (
    GPT_ENT_TYPE_DRAGONFLY_HAMMER2,
    GPT_ENT_TYPE_LINUX_DATA,
    Gpt,
    GptEntry,
    GptError,
    GptHeader,
    gpt_type,
    protective_mbr,
)
from dfuser.dev.disk.mbr import BootRecord, DosPartition, emit_mbr, mbrinit
from dfuser.dev.disk.table import DiskInfo, ReadSectors, run_probe, slice_name
from dfuser.libkern.errno import EINVAL, EIO, KError
from tests.unit.dev.disk.partools import (
    SFDISK,
    SGDISK,
    needs_sfdisk,
    needs_sgdisk,
    probe_image,
    run,
    sfdisk_dump,
    write_sectors,
)

BLOCKS = 65536
HAMMER2 = uuid.UUID(GPT_ENT_TYPE_DRAGONFLY_HAMMER2)


def gaps(rng: random.Random, count: int, low: int, high: int, align: int) -> list[tuple[int, int]]:
    """So many areas (start, size), ascending, with room before each."""
    points = sorted(rng.sample(range(low // align + 1, high // align), 2 * count))
    return [
        (points[2 * i] * align, (points[2 * i + 1] - points[2 * i]) * align) for i in range(count)
    ]


# --- MBR -----------------------------------------------------------------------------------


def layout(
    rng: random.Random, gap: int = 8, blocks: int = BLOCKS
) -> tuple[list[DosPartition], list[DosPartition]]:
    """Primaries, one of them perhaps extended, and logicals in it, ``gap`` sectors apart."""
    count = rng.randrange(1, 5)
    areas = gaps(rng, count, 2048, blocks, 64)
    extended = rng.randrange(count) if rng.random() < 0.7 else -1
    primaries, logicals = [], []
    for number, (start, size) in enumerate(areas):
        typ = rng.choice((0x6C, 0xA5, 0x83, 0x0C, 0x82))
        if number == extended and size > 40 * gap:
            typ = rng.choice((0x05, 0x0F))
            inner = gaps(rng, rng.randrange(1, 8), start + gap, start + size, gap)
            logicals = [DosPartition.make(0x83, at, n) for at, n in inner]
        primaries.append(DosPartition.make(typ, start, size, active=number == 0))
    return primaries, logicals


def expected(
    primaries: list[DosPartition], logicals: list[DosPartition]
) -> list[tuple[int, int, int, int]]:
    """Number as sfdisk counts, start, size, type."""
    rows = [(n + 1, p.start, p.size, p.typ) for n, p in enumerate(primaries)]
    return rows + [(n + 5, p.start, p.size, p.typ) for n, p in enumerate(logicals)]


@needs_sfdisk
def test_what_we_emit_sfdisk_reads(tmp_path: Path, rng: random.Random) -> None:
    """What if sfdisk reads tables of ours, chains included, and we read them ourselves?"""
    for number in range(12):
        image = tmp_path / f"{number}.img"
        primaries, logicals = layout(rng)
        write_sectors(image, BLOCKS, emit_mbr(primaries, logicals))
        rows = expected(primaries, logicals)
        seen = [(p.number, p.start, p.size, int(p.type, 16)) for p in sfdisk_dump(image)]
        assert seen == rows
        ours = [(s.slot - 1, s.offset, s.size, s.type) for s in probe_image(image).slices]
        assert ours == rows


@needs_sfdisk
def test_what_sfdisk_writes_we_read(tmp_path: Path, rng: random.Random) -> None:
    """What if sfdisk makes the table?"""
    assert SFDISK is not None
    for number in range(6):
        image = tmp_path / f"{number}.img"
        write_sectors(image, 4 * BLOCKS, {})
        primaries, logicals = layout(
            rng, 2112, 4 * BLOCKS
        )  # sfdisk wants 2048 sectors between them
        lines = ["label: dos", "unit: sectors", "grain: 512"]
        for n, start, size, typ in expected(primaries, logicals):
            lines.append(f"{n} : start={start}, size={size}, type={typ:x}")
        run(SFDISK, "--no-reread", "--no-tell-kernel", str(image), text="\n".join(lines))
        dumped = [(p.number, p.start, p.size, int(p.type, 16)) for p in sfdisk_dump(image)]
        table = probe_image(image)
        assert table.kind == "mbr"
        assert [(s.slot - 1, s.offset, s.size, s.type) for s in table.slices] == dumped
        assert len(dumped) == len(primaries) + len(logicals)


def test_slices_beyond_the_disk() -> None:
    """What if entries start or end beyond the disk, or mean all the rest of it?"""
    entries = (
        DosPartition(typ=0x6C, ssect=1, start=BLOCKS + 1, size=10),
        DosPartition(typ=0x6C, ssect=1, start=BLOCKS - 10, size=100),
        DosPartition(typ=0x6C, ssect=1, start=100, size=0xFFFFFFFF),
        DosPartition(typ=0x6C, ssect=1, start=BLOCKS, size=1),
    )
    table = probe_image(BootRecord(entries).emit().ljust(BLOCKS * 512, b"\0"))
    assert [(s.slot, s.offset, s.size) for s in table.slices] == [
        (3, BLOCKS - 10, 10),
        (4, 100, BLOCKS - 100),
    ]
    assert table.nslots == 6
    assert len(table.messages) == 4


def test_dedicated_tables_are_ignored() -> None:
    """What if a disk carries the table of old boot blocks, or none?"""
    for heads in (254, 255):
        last = DosPartition(0x80, 0, 1, 0, 0x6C, heads, 255, 255, 0, 50000)
        record = BootRecord((DosPartition(),) * 3 + (last,))
        assert probe_image(record.emit().ljust(BLOCKS * 512, b"\0")).kind == "none"
    assert probe_image(bytes(BLOCKS * 512)).kind == "none"


def test_ontrack_moves_the_record() -> None:
    """What if Ontrack's disk manager is there: is sector 63 read, and the base moved? Once only?"""
    outer = BootRecord((DosPartition(typ=0x54, size=1), *(DosPartition(),) * 3)).emit()
    inner = BootRecord((DosPartition(typ=0x6C, start=10, size=20), *(DosPartition(),) * 3)).emit()
    image = bytearray(BLOCKS * 512)
    image[:512] = outer
    image[63 * 512 : 64 * 512] = inner
    (found,) = probe_image(bytes(image)).slices
    assert (found.offset, found.size) == (73, 20)
    image[63 * 512 : 64 * 512] = outer
    assert [s.type for s in probe_image(bytes(image)).slices] == [0x54]


def test_geometry_of_a_modern_table() -> None:
    """What if the table implies 255 heads of 63 sectors?"""
    entry = DosPartition.make(0x6C, 63, 40000000 - 63)
    sector = BootRecord((entry, *(DosPartition(),) * 3)).emit()
    table = run_probe(mbrinit(DiskInfo(512, 40000000)), lambda r: sector)
    assert table.geometry == (255, 63, 40000000 // (255 * 63))


def test_a_chain_that_bites_its_tail() -> None:
    """What if an extended record points to itself, to an earlier one, or branches everywhere?"""
    ext = DosPartition.make(0x05, 100, 5000)
    first = BootRecord((ext, *(DosPartition(),) * 3)).emit()
    reads: list[int] = []

    def read(request: ReadSectors) -> bytes:
        reads.append(request.block)
        if not request.block:
            return first
        links = tuple(
            DosPartition(typ=5, ssect=1, start=request.block * 7 % 4800 + n, size=50)
            for n in range(4)
        )
        return BootRecord(links).emit()

    table = run_probe(mbrinit(DiskInfo(512, BLOCKS)), read)
    assert [s.slot for s in table.slices] == [2]
    assert len(reads) == len(set(reads)) <= mbr.EBR_MAX + 1
    loop = BootRecord((DosPartition(typ=5, ssect=1, start=0, size=9), *(DosPartition(),) * 3))
    table = run_probe(mbrinit(DiskInfo(512, BLOCKS)), lambda r: loop.emit() if r.block else first)
    assert len(table.slices) == 1


def test_more_logicals_than_slices() -> None:
    """What if the chain has more slices than the table has slots?"""
    ext = DosPartition.make(0x0F, 1000, 60000)
    logicals = [DosPartition.make(0x83, 1100 + 100 * n, 50) for n in range(20)]
    image = bytearray(BLOCKS * 512)
    for block, data in emit_mbr([ext], logicals).items():
        image[block * 512 : block * 512 + 512] = data
    table = probe_image(bytes(image))
    assert table.nslots == mbr.MAX_SLICES
    assert [slice_name(s.slot) for s in table.slices] == ["s1", *(f"s{n}" for n in range(5, 15))]
    assert "too many slices" in table.messages


def test_unreadable_sectors() -> None:
    """What if sector 0 cannot be read, or a record of the chain?"""

    def broken(_request: ReadSectors) -> bytes:
        raise KError(EIO)

    with pytest.raises(KError):
        run_probe(mbrinit(DiskInfo(512, BLOCKS)), broken)
    ext = DosPartition.make(0x05, 100, 5000)
    first = BootRecord((ext, DosPartition.make(0x6C, 6000, 10), *(DosPartition(),) * 2)).emit()
    table = run_probe(mbrinit(DiskInfo(512, BLOCKS)), lambda r: broken(r) if r.block else first)
    assert len(table.slices) == 2
    for info in (DiskInfo(512, 0), DiskInfo(520, 100)):
        with pytest.raises(KError) as refused:
            run_probe(mbrinit(info), lambda r: first)
        assert refused.value.errno == EIO


def test_what_an_mbr_cannot_hold() -> None:
    """What if five primaries, logicals without a container, or overlapping ones are to be made?"""
    part = DosPartition.make(0x83, 100, 10)
    ext = DosPartition.make(0x05, 200, 100)
    for primaries, logicals in (
        ([part] * 5, []),
        ([part], [DosPartition.make(0x83, 210, 5)]),
        ([ext], [DosPartition.make(0x83, 310, 5)]),
        ([ext], [DosPartition.make(0x83, 210, 20), DosPartition.make(0x83, 225, 5)]),
        ([ext], [DosPartition.make(0x83, 200, 5)]),
    ):
        with pytest.raises(KError) as refused:
            emit_mbr(primaries, logicals)
        assert refused.value.errno == EINVAL
    with pytest.raises(KError):
        DosPartition.make(0x83, 0, 1 << 32)


entries = st.builds(
    DosPartition,
    *(st.integers(0, 255) for _ in range(8)),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
)


@given(st.tuples(*[entries] * 4), st.binary(max_size=446))
def test_boot_records_round_trip(four: tuple[DosPartition, ...], boot: bytes) -> None:
    """What if a record holds anything at all?"""
    record = BootRecord(four, boot.ljust(446, b"\0"))
    assert BootRecord.parse(record.emit()) == record


# --- GPT -----------------------------------------------------------------------------------


def random_gpt(rng: random.Random, blocks: int = BLOCKS, blksize: int = 512) -> Gpt:
    used = [
        GptEntry(
            rng.choice((HAMMER2, uuid.UUID(GPT_ENT_TYPE_LINUX_DATA))),
            uuid.UUID(int=rng.getrandbits(128)),
            start,
            start + size - 1,
            rng.choice((0, 1, 1 << 59)),
            rng.choice(("", "root", "Größe 4", "x" * 36)),
        )
        for start, size in gaps(rng, rng.randrange(1, 20), 64, blocks - 64, 8)
    ]
    return Gpt.make(blocks, blksize, uuid.UUID(int=rng.getrandbits(128)), used)


@needs_sfdisk
@needs_sgdisk
def test_our_gpt_is_sound_for_both_tools(tmp_path: Path, rng: random.Random) -> None:
    """What if sgdisk verifies tables of ours, and sfdisk lists them?"""
    assert SGDISK is not None
    for number in range(6):
        image = tmp_path / f"{number}.img"
        table = random_gpt(rng)
        write_sectors(image, BLOCKS, table.emit())
        assert "No problems found" in run(SGDISK, "-v", str(image))
        used = [entry for entry in table.entries if entry.type.int]
        assert [(p.number, p.start, p.size, p.type, p.uuid) for p in sfdisk_dump(image)] == [
            (n + 1, e.lba_start, e.lba_end - e.lba_start + 1, str(e.type), str(e.uuid))
            for n, e in enumerate(used)
        ]
        found = probe_image(image)
        assert found.kind == "gpt"
        assert [(slice_name(s.slot), s.offset, s.size, s.name) for s in found.slices] == [
            (f"s{n}", e.lba_start, e.lba_end - e.lba_start + 1, e.name) for n, e in enumerate(used)
        ]


@needs_sgdisk
@needs_sfdisk
def test_what_sgdisk_writes_we_read(tmp_path: Path, rng: random.Random) -> None:
    """What if sgdisk makes the table, with holes among its numbers?"""
    assert SGDISK is not None
    image = tmp_path / "a.img"
    write_sectors(image, BLOCKS, {})
    command = [SGDISK, "-a", "1"]
    for number, (start, size) in zip((1, 2, 5, 9, 128), gaps(rng, 5, 64, BLOCKS - 64, 8),
                                     strict=True):  # fmt: skip
        command += ["-n", f"{number}:{start}:{start + size - 1}", "-c", f"{number}:part {number}"]
    run(*command, str(image))
    dumped = sfdisk_dump(image)
    table = probe_image(image)
    assert [(s.offset, s.size, str(s.type_uuid), str(s.stor_uuid), s.name)
            for s in table.slices] == [p[1:] for p in dumped if p.number < 128]  # fmt: skip
    assert [slice_name(s.slot) for s in table.slices] == ["s0", "s1", "s4", "s8"]
    assert any("part 127" in line for line in table.messages)

    def read(block: int, count: int) -> bytes:
        return image.read_bytes()[block * 512 : (block + count) * 512]

    first = Gpt.parse(read, BLOCKS, 512)
    assert first == Gpt.parse(read, BLOCKS, 512, backup=True)
    again = tmp_path / "b.img"
    write_sectors(again, BLOCKS, first.emit())
    assert again.read_bytes()[512:] == image.read_bytes()[512:]


def gpt_image(table: Gpt) -> bytearray:
    image = bytearray(table.blocks * table.blksize)
    for block, data in table.emit().items():
        image[block * table.blksize : block * table.blksize + len(data)] = data
    return image


@pytest.mark.parametrize("blksize", [512, 4096])
def test_gpt_round_trips_on_both_sector_sizes(rng: random.Random, blksize: int) -> None:
    """What if sectors are 4 KiB?"""
    table = random_gpt(rng, 8192, blksize)
    image = gpt_image(table)

    def read(block: int, count: int) -> bytes:
        return bytes(image[block * blksize : (block + count) * blksize])

    for backup in (False, True):
        assert Gpt.parse(read, 8192, blksize, backup=backup) == table
    used = [entry for entry in table.entries if entry.type.int]
    found = probe_image(bytes(image), blksize)
    assert [s.stor_uuid for s in found.slices] == [entry.uuid for entry in used]


def test_the_probe_checks_what_dragonfly_checks(rng: random.Random) -> None:
    """What if header or entries are damaged: which damage matters, and when is the copy used?"""
    table = random_gpt(rng)
    good = gpt_image(table)
    count = len(probe_image(bytes(good)).slices)
    info = DiskInfo(512, BLOCKS)

    def probe(image: bytearray, backup: bool) -> tuple[str, int]:
        found = run_probe(
            mbrinit(info, gpt_backup=backup),
            lambda r: bytes(image[r.block * 512 : (r.block + r.nblocks) * 512]),
        )
        return found.kind, len(found.slices)

    header = bytearray(good)
    header[512 + 40] ^= 1
    assert probe(header, False) == ("none", 0)
    assert probe(header, True) == ("gpt", count)
    entries = bytearray(good)
    entries[1024 + 56] ^= 1  # the name of the first entry
    assert probe(entries, False) == ("gpt", count)
    assert probe(entries, True) == ("gpt", count)
    assert probe(bytearray(BLOCKS * 512), True) == ("none", 0)


def test_entries_that_lie_wrong_are_left_out_alone() -> None:
    """What if entries overlap the table, end beyond the disk, run backwards or have one sector?"""
    good = GptEntry(HAMMER2, uuid.UUID(int=1), 100, 200)
    table = Gpt.make(BLOCKS, 512, uuid.UUID(int=9), [good])
    bad = (
        GptEntry(HAMMER2, uuid.UUID(int=2), 33, 40),
        GptEntry(HAMMER2, uuid.UUID(int=3), 300, BLOCKS),
        GptEntry(HAMMER2, uuid.UUID(int=4), 500, 400),
        GptEntry(HAMMER2, uuid.UUID(int=5), 600, 600),
    )
    image = gpt_image(table)
    for number, entry in enumerate(bad):
        image[1024 + 128 * (number + 1) : 1024 + 128 * (number + 2)] = entry.emit()
    found = probe_image(bytes(image))
    assert [(s.slot, s.offset) for s in found.slices] == [(0, 100)]
    assert sum("unavailable" in line for line in found.messages) == 4


def test_what_a_gpt_cannot_hold() -> None:
    """What if partitions overlap or are too many, the name too long, the disk too small?"""
    part = GptEntry(HAMMER2, uuid.UUID(int=1), 100, 200)
    for used in ([part, part], [part._replace(lba_end=BLOCKS)], [part._replace(lba_start=10)],
                 [part] * 129):  # fmt: skip
        with pytest.raises(GptError):
            Gpt.make(BLOCKS, 512, uuid.UUID(int=1), used)
    with pytest.raises(GptError):
        Gpt.make(60, 512, uuid.UUID(int=1), [])
    for name in ("x" * 37, "\U0001f600" * 19, "\ud800"):
        with pytest.raises(GptError):
            part._replace(name=name).emit()
    with pytest.raises(KError):
        gpt_type("no uuid")
    assert gpt_type(GPT_ENT_TYPE_DRAGONFLY_HAMMER2) == HAMMER2


@given(st.data())
def test_no_bytes_crash_the_probe(data: st.DataObject) -> None:
    """What if sectors are damaged at random, CRCs made right again or not?"""
    table = random_gpt(random.Random(data.draw(st.integers(0, 5))))
    image = gpt_image(table)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(446, 4096))
        image[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        size = max(92, min(512, struct.unpack_from("<I", image, 512 + 12)[0]))
        struct.pack_into("<8sII", image, 512, b"EFI PART", 0x10000, size)
        struct.pack_into("<I", image, 512 + 16, 0)
        import zlib

        struct.pack_into("<I", image, 512 + 16, zlib.crc32(image[512 : 512 + size]))
    info = DiskInfo(512, BLOCKS)
    for backup in (False, True):
        found = run_probe(
            mbrinit(info, gpt_backup=backup),
            lambda r: bytes(image[r.block * 512 : (r.block + r.nblocks) * 512]),
        )
        for entry in found.slices:
            assert 0 <= entry.offset < entry.offset + entry.size <= BLOCKS
            assert entry.slot < found.nslots


@given(st.binary(max_size=512), st.randoms(use_true_random=False))
def test_no_chain_of_anything_crashes_the_probe(head: bytes, rng: random.Random) -> None:
    """What if every sector of the disk is rubbish that ends in 55 AA?"""

    def read(request: ReadSectors) -> bytes:
        body = bytearray((head * 2 + rng.randbytes(512))[:512])
        for place in range(4):
            if rng.random() < 0.6:
                body[446 + 16 * place + 4] = rng.choice((5, 15, 0x6C, 0x83, 0x54, 0xEE))
        body[510:512] = b"\x55\xaa"
        return bytes(body) * request.nblocks

    table = run_probe(mbrinit(DiskInfo(512, 1 << 30)), read)
    for entry in table.slices:
        assert 0 <= entry.offset <= entry.offset + entry.size <= 1 << 30


def test_header_sizes_and_signatures() -> None:
    """What if a header is larger than 92 bytes, too large, or has no signature?"""
    header = GptHeader(1, 99, 34, 66, uuid.UUID(int=7), 2, 128, 128, 5, size=120)
    assert GptHeader.parse(header.emit(512)) == header
    for broken in (b"", bytes(512), b"X" + header.emit(512)[1:],
                   header._replace(size=4096).emit(4096)[:512],
                   header._replace(size=80).emit(512)):  # fmt: skip
        with pytest.raises(GptError):
            GptHeader.parse(broken)
    assert BootRecord.parse(protective_mbr(100, 512)).partitions[0].size == 99  # type: ignore[union-attr]
