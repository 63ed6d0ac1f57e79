"""The write log and the states of a power cut, against an exhaustive model."""

from __future__ import annotations

import itertools
import random
import struct
import zlib

import pytest

from dfuser.hw.disk.disk import DiskCmd, DiskRequest
from dfuser.hw.disk.fault import FaultDisk
from dfuser.hw.disk.ram import RamDisk
from dfuser.hw.disk.record import CrashExplorer, CrashState, WriteLog, tear
from dfuser.libkern.errno import EINVAL, ENOSPC, KError

SIZE = 64 << 10


def recorded() -> tuple[FaultDisk, RamDisk, WriteLog]:
    base = RamDisk(SIZE)
    log = WriteLog()
    return FaultDisk(base.snapshot(), log=log), base, log


def sectors(disk: RamDisk, count: int) -> str:
    """The first letter of each of the first sectors, a dot for zeroes."""
    return "".join(chr(disk.read(i * 512, 1 * 512)[0] or 46) for i in range(count))


def write(disk: FaultDisk, sector: int, letter: str, count: int = 1, fua: bool = False) -> None:
    disk.write(sector * 512, letter.encode() * 512 * count, fua)


def states(base: RamDisk, log: WriteLog, seed: int = 0, subsets: int = 8) -> list[CrashState]:
    return list(CrashExplorer(base, log, random.Random(seed), subsets).states())


def test_every_subset_of_an_epoch_and_nothing_else() -> None:
    """What if three writes follow a flush: are just the right states made, and all of them?"""
    disk, base, log = recorded()
    write(disk, 0, "a")
    disk.flush()
    log.mark("a is safe")
    for number in (1, 2, 3):
        write(disk, number, "b")
    made = states(base, log, subsets=200)
    last = [state for state in made if state.marks]
    assert {sectors(s.disk, 4) for s in last} == {
        "a" + "".join(letters) for letters in itertools.product(".b", repeat=3)
    }
    assert {sectors(s.disk, 4) for s in made if not s.marks} == {"....", "a..."}
    prefixes = [sectors(s.disk, 4) for s in made if s.kind == "prefix"]
    assert prefixes == ["....", "a...", "a...", "ab..", "abb.", "abbb", "abbb"]


def test_what_was_acknowledged_is_never_lost(rng: random.Random) -> None:
    """What if a random workload marks after each flush: do all states hold what the mark says?"""
    disk, base, log = recorded()
    model = bytearray(SIZE)
    for step in range(120):
        what = rng.random()
        sector, count = rng.randrange(100), rng.randrange(1, 20)
        if what < 0.6:
            data = bytes([step + 1]) * (count * 512)
            disk.write(sector * 512, data)
            model[sector * 512 : (sector + count) * 512] = data
        elif what < 0.7:
            disk.zero(sector * 512, count * 512)
            model[sector * 512 : (sector + count) * 512] = bytes(count * 512)
        else:
            disk.flush()
            log.mark((len(log.records), bytes(model)))
    checked = 0
    for state in states(base, log, seed=1):
        if not state.marks:
            continue
        index, promised = state.marks[-1]  # type: ignore[misc]
        seen = state.disk.read(0, SIZE)
        touched = bytearray(SIZE)
        for record in log.records[index:]:
            if record.begun <= state.moment:
                touched[record.offset : record.offset + record.length] = b"\1" * record.length
        for at in range(0, SIZE, 512):
            if not touched[at]:
                assert seen[at : at + 512] == promised[at : at + 512], str(state)
        checked += 1
    assert checked > 100


def test_fua_writes_are_stable_by_themselves() -> None:
    """What if a FUA write follows an ordinary one to the same place and to another?"""
    disk, base, log = recorded()
    write(disk, 0, "a")
    write(disk, 1, "a")
    write(disk, 0, "f", fua=True)
    log.mark("f")
    seen = {sectors(s.disk, 2) for s in states(base, log) if "f" in s.marks}
    assert seen == {"f.", "fa"}


def test_a_flush_covers_only_what_was_complete() -> None:
    """What if a write is still under way when a flush is submitted: may it be lost after it?"""
    log = WriteLog()
    base = RamDisk(SIZE)

    def request(sector: int, letter: str) -> DiskRequest:
        return DiskRequest(DiskCmd.WRITE, sector * 512, 512, (letter.encode() * 512,))

    first = log.begin(request(0, "a"))
    log.end(first)
    second = log.begin(request(1, "b"))
    flush = log.begin(DiskRequest(DiskCmd.FLUSH))
    log.end(second)
    log.end(flush)
    log.mark("flushed")
    seen = {sectors(s.disk, 2) for s in states(base, log) if s.marks}
    assert seen == {"a.", "ab"}


def test_a_failed_flush_promises_nothing() -> None:
    """What if the flush never completed?"""
    log = WriteLog()
    record = log.begin(DiskRequest(DiskCmd.WRITE, 0, 512, (b"a" * 512,)))
    log.end(record)
    log.begin(DiskRequest(DiskCmd.FLUSH))
    log.mark("end")
    seen = {sectors(s.disk, 1) for s in states(RamDisk(SIZE), log) if s.marks}
    assert seen == {".", "a"}


def test_torn_writes_of_both_grains() -> None:
    """What if the last write is 16 KiB: is it torn at both grains, never whole nor absent?"""
    disk, base, log = recorded()
    write(disk, 0, "t", 32)
    torn = [s for s in states(base, log) if s.torn >= 0]
    assert {s.kind for s in torn} == {"torn512", "torn4096"}
    for state in torn:
        seen = sectors(state.disk, 32)
        assert "t" in seen
        assert "." in seen
        if state.kind == "torn4096":
            assert all(len(set(seen[i : i + 8])) == 1 for i in range(0, 32, 8))


def test_states_are_apart_and_repeatable() -> None:
    """What if a tester writes on one state's disk: do the others see it? Do seeds repeat?"""
    disk, base, log = recorded()
    for number in range(6):
        write(disk, number, "x")
    explorer = CrashExplorer(base, log, random.Random(4))
    for state in explorer.states():
        state.disk.write(SIZE - 512, b"!" * 512)
    assert base.read(0, SIZE) == bytes(SIZE)
    first, second = states(base, log, 7), states(base, log, 7)
    assert [str(s) for s in first] == [str(s) for s in second]
    assert all(a.disk.same(b.disk) for a, b in zip(first, second, strict=True))
    assert all(s.disk.read(SIZE - 512, 512) == bytes(512) for s in first)


def test_an_overflowed_log_is_refused() -> None:
    """What if more is written than the log may keep?"""
    log = WriteLog(limit=1024)
    disk = FaultDisk(RamDisk(SIZE), log=log)
    for number in range(3):
        write(disk, number, "x")
    assert log.statistics().overflowed
    assert log.statistics().bytes == 1024
    with pytest.raises(KError) as refused:
        CrashExplorer(RamDisk(SIZE), log, random.Random(0))
    assert refused.value.errno == ENOSPC
    with pytest.raises(KError) as refused:
        CrashExplorer(RamDisk(SIZE), WriteLog(), random.Random(0), grains=(100,))
    assert refused.value.errno == EINVAL


def test_tear_keeps_to_the_grain(rng: random.Random) -> None:
    """What if writes of all places and sizes are torn: do the pieces add up?"""
    for _ in range(300):
        offset = rng.randrange(40) * 512
        data = rng.randbytes(rng.randrange(1, 60) * 512)
        grain = rng.choice((512, 4096))
        pieces = tear(offset, data, grain, rng)
        assert pieces
        for at, piece in pieces:
            assert data[at - offset : at - offset + len(piece)] == piece
            assert at == offset or at % grain == 0
            assert at + len(piece) == offset + len(data) or (at + len(piece)) % grain == 0
        grains = (offset + len(data) - 1) // grain - offset // grain + 1
        total = sum(len(piece) for _, piece in pieces)
        assert (total == len(data)) == (grains == 1)


def test_a_long_log_is_not_quadratic_in_disks() -> None:
    """What if thousands of epochs are explored: is only the volatile rest applied for each?"""
    disk, base, log = recorded()
    for number in range(1500):
        write(disk, number % 100, "z")
        disk.flush()
    explorer = CrashExplorer(base, log, random.Random(0), grains=())
    longest = 0
    for state in explorer.states():
        longest = max(longest, len(state.lost))
    assert explorer.made == 2 + 2 * 1500
    assert longest == 1


# --- a store that is right, and three that are not -----------------------------------------


class Store:
    """Keeps one text: writes it to a free place, then points to it. ``bug`` leaves a step out.

    Without the barrier the check code alone would do; so that bug does not look at it either.
    """

    def __init__(self, disk: FaultDisk, bug: str = "") -> None:
        self.disk = disk
        self.bug = bug
        self.serial = 0

    def put(self, text: str) -> None:
        """Returns when the text is safe."""
        self.serial += 1
        place = 8 * (1 + self.serial % 2) if self.bug != "in place" else 8
        body = text.encode().ljust(4096, b"\0")
        self.disk.write(place * 512, body)
        if self.bug != "no barrier":
            self.disk.flush()
        head = struct.pack("<IIII", 0x5107, self.serial, place, zlib.crc32(body))
        self.disk.write((self.serial % 2) * 512, head.ljust(512, b"\0"))
        if self.bug != "no flush":
            self.disk.flush()

    @staticmethod
    def get(disk: RamDisk, bug: str) -> str:
        """The newest text whose check code is right."""
        found = (0, "")
        for sector in (0, 1):
            magic, serial, place, crc = struct.unpack_from("<IIII", disk.read(sector * 512, 512))
            if magic == 0x5107 and serial > found[0]:
                body = disk.read(place * 512, 4096)
                if zlib.crc32(body) == crc or bug == "no barrier":
                    found = (serial, body.rstrip(b"\0").decode())
        return found[1]


def lost_texts(bug: str) -> int:
    """In how many states of a power cut the last acknowledged text, or the next, is missing."""
    disk, base, log = recorded()
    store = Store(disk, bug)
    texts = [f"text {number} " + "x" * 3000 for number in range(12)]
    for text in texts:
        store.put(text)
        log.mark(text)
    lost = 0
    for state in states(base, log, subsets=6):
        done = len(state.marks)
        allowed = {texts[done - 1] if done else "", texts[min(done, 11)]}
        lost += Store.get(state.disk, bug) not in allowed
    return lost


@pytest.mark.parametrize("bug", ["", "no flush", "no barrier", "in place"])
def test_the_explorer_finds_what_is_wrong(bug: str) -> None:
    """What if a store forgets a flush, a barrier, or overwrites in place: is it found out?"""
    assert (lost_texts(bug) > 0) == bool(bug)
