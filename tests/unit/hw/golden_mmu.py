"""The permission matrix of the MMU: its cases, who runs them, and the golden table of answers.

A case is one access (8 kinds) under one setting of the control registers (16 modes) through one
combination of page-table bits. The combinations fall into groups, which share what stands above
the page directory:

- six groups with full rights above cover every combination of {P W U A NX 51} in the directory
  entry and {P W U A D NX 51} in the page-table entry, and for large pages every combination of
  {P W U A D NX 51 13 12(PAT)}; what lies below an entry that stops the walk is not varied;
- nine groups, one for each way in which an upper entry can be less than perfect (read-only,
  supervisor, NX in the PML4 or the PDPT entry; a reserved bit in either; PDPT entry absent), repeat
  the combinations of {P W U NX} and {W U NX}.

Each case has a directory entry and a page-table entry of its own, so that none sees the accessed
and dirty flags of another. The answer to a case is one byte (see ``answer``), and the golden table
is all of them in order, compressed. It was written by a KVM vCPU; to do that again::

    python -m tests.unit.hw.golden_mmu

Distinct cases: (2608 + 9 * 144) * 16 * 8 = 499,712.
"""

from __future__ import annotations

import itertools
import lzma
import struct
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dfuser.hw.kvm import PORT_USER, RFLAGS_AC, VECTOR_PF, KvmVcpu
from dfuser.hw.mmu.fault import (
    ACCESS_AC,
    ACCESS_FETCH,
    ACCESS_READ,
    ACCESS_USER,
    ACCESS_WRITE,
    Protection,
)
from dfuser.hw.mmu.pte import PG_FRAME, PageTables
from dfuser.hw.mmu.regs import (
    CR0_KERNEL,
    CR0_WP,
    CR4_KERNEL,
    CR4_SMAP,
    CR4_SMEP,
    EFER_KERNEL,
    EFER_NXE,
    ControlRegisters,
    MmuFeatures,
)
from dfuser.hw.physmem import PhysMem

GOLDEN = Path(__file__).with_name("golden_mmu.xz")
MAXPHYADDR = 48
P, W, U, A, D, PS, PAT, BIT13, BIT51, NX = (
    1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 12, 1 << 13, 1 << 51, 1 << 63,
)  # fmt: skip
FULL = P | W | U
MODES = tuple(
    Protection(*bits) for bits in itertools.product((False, True), repeat=4)
)  # nxe, wp, smep, smap
ACCESSES = (
    ACCESS_USER | ACCESS_READ,
    ACCESS_USER | ACCESS_WRITE,
    ACCESS_USER | ACCESS_FETCH,
    ACCESS_READ,
    ACCESS_WRITE,
    ACCESS_FETCH,
    ACCESS_READ | ACCESS_AC,
    ACCESS_WRITE | ACCESS_AC,
)
STRIDE = (1 << 21) + (1 << 12)
"""From one case of a group to the next: the next directory entry and the next table entry."""
FAULT, CHANGED = 0x80, 0x40
PAGE_OF_TESTS = 2 << 20
"""Where the 2 MiB of pages lie to which all tables lead."""
CODE = b"\xe6\x80"  # out PORT_USER, al
LOAD = b"\x48\x8b\x47\x10" + CODE  # mov rax, [rdi + 16]
STORE = b"\x88\x47\x08" + CODE  # mov [rdi + 8], al
KERNEL = 0xFFFF_FFFF_8000_0000
USER_CODE = 255 << 39


class Group(NamedTuple):
    """Cases that share the entries above the page directory."""

    name: str
    pml4e: int
    pdpte: int
    pdes: tuple[int, ...]
    ptes: tuple[int, ...]


def subsets(*bits: int) -> Iterator[int]:
    """Every combination of some bits."""
    for chosen in itertools.product(*((0, bit) for bit in bits)):
        yield sum(chosen)


def combinations() -> Iterator[tuple[int, int]]:
    """Pairs of directory and table entry flags under full rights."""
    for pde in subsets(W, U, A, NX):
        for pte in subsets(P, W, U, A, D, NX, BIT51):
            yield P | pde, pte
    for pde in subsets(W, U, A, NX, BIT51):
        yield pde, FULL
    for pde in subsets(W, U, A, NX):
        yield P | BIT51 | pde, FULL
    for pde in subsets(P, W, U, A, D, NX, BIT51, BIT13, PAT):
        yield PS | pde, 0


def few_combinations() -> Iterator[tuple[int, int]]:
    """Pairs of flags under imperfect upper entries."""
    for pde in subsets(W, U, NX):
        for pte in subsets(P, W, U, NX):
            yield P | pde, pte
    for pde in subsets(P, W, U, NX):
        yield PS | pde, 0


@cache
def groups() -> tuple[Group, ...]:
    """All groups, at most 512 cases each."""
    pairs = list(combinations())
    found = [
        Group(f"full {at // 512}", FULL, FULL, *zip(*pairs[at : at + 512], strict=True))
        for at in range(0, len(pairs), 512)
    ]
    few = list(few_combinations())
    for name, pml4e, pdpte in (
        ("PML4E read-only", P | U, FULL),
        ("PML4E supervisor", P | W, FULL),
        ("PML4E no-execute", FULL | NX, FULL),
        ("PML4E reserved", FULL | PS, FULL),
        ("PDPTE read-only", FULL, P | U),
        ("PDPTE supervisor", FULL, P | W),
        ("PDPTE no-execute", FULL, FULL | NX),
        ("PDPTE reserved", FULL, FULL | BIT51),
        ("PDPTE absent", FULL, W | U),
    ):
        found.append(Group(name, pml4e, pdpte, *zip(*few, strict=True)))
    return tuple(found)


@cache
def cases() -> int:
    """Cases of one mode and one access."""
    return sum(len(group.pdes) for group in groups())


def describe(at: int, mode: Protection, access: int) -> str:
    """Name the case at a place of a slice, for a failure."""
    for group in groups():
        if at < len(group.pdes):
            bits = f"PDE {group.pdes[at]:#x} PTE {group.ptes[at]:#x}"
            return f"{group.name}: {bits}, access {access:#x}, {mode}"
        at -= len(group.pdes)
    raise AssertionError(at)


def answer(error: int | None, before: tuple[int, int], after: tuple[int, int]) -> int:
    """Make the byte: a fault and its error code, or the flags of both entries afterwards.

    A fault that changed an entry has CHANGED in it. Without a fault the byte has A of the
    directory entry (1), A (2) and D (4) of the table entry, D of the directory entry (8), and
    CHANGED where any other bit changed.
    """
    if error is not None:
        return FAULT | error | (CHANGED if before != after else 0)
    other = (before[0] ^ after[0]) & ~(A | D) or (before[1] ^ after[1]) & ~(A | D)
    pde, pte = after
    return (
        (pde & A) >> 5
        | (pte & A) >> 4
        | (pte & D) >> 4
        | (pde & D) >> 3
        | (CHANGED if other else 0)
    )


class Bench:
    """Page tables with every case of one mode, for some accesses, in memory of their own."""

    def __init__(self, accesses: tuple[int, ...] = ACCESSES) -> None:
        tables = len(accesses) * len(groups()) * 2
        self.physmem = PhysMem(PAGE_OF_TESTS + (2 << 20) + (tables + 64 << 12))
        self.tables = PageTables(self.physmem)
        self.next = PAGE_OF_TESTS + (2 << 20)
        self.root = self.frame()
        self.accesses = accesses
        self.places: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.upper: dict[tuple[int, int], tuple[int, int]] = {}
        for page in range(512):
            at = PAGE_OF_TESTS + (page << 12)
            self.physmem.write(at, CODE)
            self.physmem.write(at + 16, struct.pack("<Q", page))
        self.pdpts: dict[int, tuple[int, int, int]] = {}
        for access in accesses:
            for number, group in enumerate(groups()):
                self.build(access, number, group)

    def frame(self) -> int:
        """Take a fresh frame; returns its address."""
        self.next += 4096
        return self.next - 4096

    def build(self, access: int, number: int, group: Group) -> None:
        """Make the tables of one group for one access."""
        pdpt, slot, used = self.pdpts.get(group.pml4e, (0, 0, 0))
        if not pdpt:
            pdpt, slot = self.frame(), len(self.pdpts)
            self.tables.pte_store(self.root + 8 * slot, pdpt | group.pml4e)
        self.pdpts[group.pml4e] = (pdpt, slot, used + 1)
        directory, table = self.frame(), self.frame()
        self.tables.pte_store(pdpt + 8 * used, directory | group.pdpte)
        pdes = [pde | (PAGE_OF_TESTS if pde & PS else table) for pde in group.pdes]
        ptes = [pte | PAGE_OF_TESTS + (at << 12) for at, pte in enumerate(group.ptes)]
        self.physmem.write(directory, struct.pack(f"<{len(pdes)}Q", *pdes))
        self.physmem.write(table, struct.pack(f"<{len(ptes)}Q", *ptes))
        self.places[access, number] = (slot << 39 | used << 30, directory >> 3, table >> 3)
        self.upper[access, number] = (self.root + 8 * slot, pdpt + 8 * used)

    def slice(self, access: int, ask: Callable[[int], int | None]) -> bytes:
        """Answer all cases of one access; ``ask`` takes the address and gives the error code."""
        words = self.tables.words
        out = bytearray()
        for number, group in enumerate(groups()):
            va, pde, pte = self.places[access, number]
            for _ in group.pdes:
                before = (words[pde], words[pte])
                error = ask(va)
                out.append(answer(error, before, (words[pde], words[pte])))
                va, pde, pte = va + STRIDE, pde + 1, pte + 1
        return bytes(out)

    def upper_entries(self) -> dict[tuple[int, int], tuple[int, int]]:
        """The entries above the directories, as they are now."""
        load = self.tables.pte_load
        return {key: (load(high), load(low)) for key, (high, low) in self.upper.items()}

    def close(self) -> None:
        """Give the memory back."""
        self.tables.close()
        self.physmem.close()


def registers(mode: Protection, root: int, features: MmuFeatures) -> ControlRegisters:
    """Control registers of a mode."""
    regs = ControlRegisters(features)
    regs.mov_cr0(CR0_KERNEL if mode.wp else CR0_KERNEL & ~CR0_WP)
    regs.mov_cr4(CR4_KERNEL | (CR4_SMEP if mode.smep else 0) | (CR4_SMAP if mode.smap else 0))
    regs.wrmsr_efer(EFER_KERNEL if mode.nxe else EFER_KERNEL & ~EFER_NXE)
    regs.mov_cr3(root)
    return regs


class Vcpu:
    """A KVM vCPU that runs the cases of one mode.

    The firmware and the code of the accesses are mapped in places of their own; nothing has run
    on the tables before all entries are in place, so no host can have an old copy of them.
    """

    def __init__(self, bench: Bench, mode: Protection) -> None:
        self.bench, self.mode = bench, mode
        store, frame, write = bench.tables.pte_store, bench.frame, bench.physmem.write
        firmware = [frame() for _ in range(4)]
        code = frame()
        write(code, LOAD)
        write(code + 16, STORE)
        pages = {KERNEL + (n << 12): at | P | W for n, at in enumerate(firmware)}
        pages |= {KERNEL + 0x10000: code | P, USER_CODE: code | P | U}
        for va, entry in pages.items():
            table = bench.root
            for shift in (39, 30, 21):
                at = table + 8 * (va >> shift & 511)
                if not bench.tables.pte_load(at):
                    store(at, frame() | FULL)
                table = bench.tables.pte_load(at) & PG_FRAME
            store(table + 8 * (va >> 12 & 511), entry)
        self.cpu = KvmVcpu(bench.physmem, firmware[0] >> 12, KERNEL)

    def slice(self, access: int) -> bytes:
        """Run all cases of one access."""
        regs = registers(self.mode, self.bench.root, MmuFeatures(self.cpu.maxphyaddr))
        user = access & ACCESS_USER
        self.cpu.load(
            cr0=regs.cr0, cr3=regs.cr3, cr4=regs.cr4, efer=regs.efer, cpl=3 if user else 0
        )
        code = USER_CODE if user else KERNEL + 0x10000
        flags = 2 | (RFLAGS_AC if access & ACCESS_AC else 0)
        run, register = self.cpu.run, self.cpu.register

        def fetch(va: int) -> int | None:
            return error_of(va, run(va, rflags=flags))

        def load(va: int) -> int | None:
            out = error_of(va + 16, run(code, rdi=va, rflags=flags))
            assert out is not None or register("rax") == va >> 12 & 511, hex(va)
            return out

        def save(va: int) -> int | None:
            return error_of(va + 8, run(code + 16, rdi=va, rflags=flags))

        def error_of(va: int, out: tuple[int, int, int, int, int]) -> int | None:
            if out[0] == PORT_USER:
                return None
            assert out[0] == VECTOR_PF, (hex(va), out)
            assert out[4] == va, (hex(va), out)
            return out[1]

        if access & ACCESS_FETCH:
            return self.bench.slice(access, fetch)
        return self.bench.slice(access, save if access & ACCESS_WRITE else load)


def golden() -> dict[tuple[Protection, int], bytes]:
    """The committed answers, by mode and access."""
    table = lzma.decompress(GOLDEN.read_bytes())
    size = cases()
    keys = list(itertools.product(MODES, ACCESSES))
    assert len(table) == size * len(keys), "the golden table is of another matrix"
    return {key: table[size * n : size * (n + 1)] for n, key in enumerate(keys)}


def main() -> int:
    """Let a KVM vCPU answer everything and write the golden table."""
    out = bytearray()
    for mode in MODES:
        bench = Bench()
        vcpu = Vcpu(bench, mode)
        if vcpu.cpu.maxphyaddr != MAXPHYADDR:
            sys.exit(f"this host has {vcpu.cpu.maxphyaddr} address bits, not {MAXPHYADDR}")
        for access in ACCESSES:
            out += vcpu.slice(access)
        vcpu.cpu.close()
        bench.close()
    GOLDEN.write_bytes(lzma.compress(out, preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(out)} cases in {GOLDEN.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
