"""The KVM oracle: what it needs, what it says of itself, and what it leaves behind."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from dfuser.hw import kvm
from dfuser.hw.kvm import KvmReport, KvmUnavailable, KvmVcpu, selftest
from dfuser.hw.mmu.fault import ACCESS_READ, ACCESS_USER, T_PAGEFLT, T_PROTFLT, trap_of
from dfuser.hw.mmu.pte import PG_FRAME, X86_PG_PS, X86_PG_RW, X86_PG_U, X86_PG_V, PageTables
from dfuser.hw.mmu.regs import CR0_KERNEL, CR4_KERNEL, EFER_KERNEL, ControlRegisters, MmuFeatures
from dfuser.hw.mmu.walk import Walker
from dfuser.hw.physmem import PhysMem

FULL = X86_PG_V | X86_PG_RW | X86_PG_U
KERNEL = 0xFFFF_FFFF_8000_0000
ROOT = 0x8000
CODE = 0x20000
VECTORS = {T_PAGEFLT: kvm.VECTOR_PF, T_PROTFLT: kvm.VECTOR_GP}


def descriptors() -> list[str]:
    """What this process has open."""
    return sorted(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("device", ["/dev/null", "/nonexistent/kvm"])
def test_no_kvm_is_a_sentence_and_not_an_accident(device: str) -> None:
    """What if there is no KVM, or the file is something else?"""
    before = descriptors()
    report = selftest(device)
    assert not report.available
    assert not report.behaves
    assert report.reason.startswith(device + ": ")
    physmem = PhysMem(1 << 16)
    with pytest.raises(KvmUnavailable, match=device):
        KvmVcpu(physmem, 0, KERNEL, device)
    physmem.close()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({kvm.KVM_GET_API_VERSION: 11}, "API version 11, not 12"),
        ({kvm.KVM_GET_API_VERSION: 12, kvm.KVM_CHECK_EXTENSION: 1}, "registers cannot be shared"),
    ],
)
def test_a_kvm_that_is_too_old(
    answers: dict[int, int], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What if the host's KVM lacks what is needed: it must be said, and nothing stay open."""
    before = descriptors()
    physmem = PhysMem(1 << 16)
    monkeypatch.setattr(kvm.fcntl, "ioctl", lambda fd, number, argument: answers[number])
    with pytest.raises(KvmUnavailable, match=why):
        KvmVcpu(physmem, 0, KERNEL, "/dev/null")
    physmem.close()
    assert descriptors() == before


def test_what_it_takes_to_behave() -> None:
    """What if a host that gets page faults wrong were trusted as an oracle?"""
    good = KvmReport(True, page_faults=True, accessed_dirty=True, reset_helps=True)
    assert good.behaves
    assert good._replace(stale_ptes=True, syscall_stays_user=True).behaves
    for field in ("available", "page_faults", "accessed_dirty", "reset_helps"):
        assert not good._replace(**{field: False}).behaves


@pytest.fixture
def report() -> KvmReport:
    """What KVM is like here; without a good one the tests that need it are skipped."""
    found = selftest()
    if not found.behaves:
        pytest.skip(f"no KVM here: {found.reason or found}")
    return found


class Guest:
    """A guest with one page of code at CPL 3."""

    def __init__(self) -> None:
        self.physmem = PhysMem(4 << 20)
        self.tables = PageTables(self.physmem)
        self.next = ROOT + 0x1000
        for page in range(kvm.FIRMWARE_PAGES):
            self.map(KERNEL + (page << 12), page << 12, X86_PG_RW)
        self.map(CODE, CODE, X86_PG_U)
        self.physmem.write(CODE, b"\x48\x8b\x07\xe6\x80")  # mov rax, [rdi]; out 0x80, al
        self.cpu = KvmVcpu(self.physmem, 0, KERNEL)
        self.load(3)

    def load(self, cpl: int) -> None:
        self.cpu.load(cr0=CR0_KERNEL, cr3=ROOT, cr4=CR4_KERNEL, efer=EFER_KERNEL, cpl=cpl)

    def map(self, va: int, address: int, flags: int, level: int = 1) -> None:
        table = ROOT
        for shift in (39, 30, 21, 12)[: 4 - level]:
            at = table + 8 * (va >> shift & 511)
            if not self.tables.pte_load(at):
                self.tables.pte_store(at, self.next | FULL)
                self.next += 0x1000
            table = self.tables.pte_load(at) & PG_FRAME
        shift = (12, 21, 30)[level - 1]
        self.tables.pte_store(table + 8 * (va >> shift & 511), address | flags | X86_PG_V)

    def close(self) -> None:
        self.cpu.close()
        self.tables.close()
        self.physmem.close()


@pytest.fixture
def guest(report: KvmReport) -> Iterator[Guest]:
    """A fresh guest."""
    before = descriptors()
    made = Guest()
    yield made
    made.close()
    assert descriptors() == before


def test_memory_outlives_the_guest(guest: Guest) -> None:
    """What if the memory of a running guest were unmapped under it?"""
    guest.tables.close()
    with pytest.raises(BufferError):
        guest.physmem.close()
    guest.cpu.close()
    guest.cpu.close()
    with pytest.raises(KvmUnavailable, match="closed"):
        guest.cpu.run(CODE)


@pytest.mark.parametrize("cpl", [0, 3])
def test_addresses_that_are_not_canonical(guest: Guest, cpl: int) -> None:
    """What if the edge of the canonical halves were elsewhere for a processor?"""
    regs = ControlRegisters(MmuFeatures(guest.cpu.maxphyaddr, guest.cpu.page1gb))
    regs.mov_cr3(ROOT)
    walker = Walker(guest.tables, regs)
    guest.load(cpl)
    user = ACCESS_USER if cpl == 3 else 0
    for va in (
        0x7FFF_FFFF_F000,
        1 << 47,
        (1 << 64) - (1 << 47) - 8,
        (1 << 64) - (1 << 47),
        1 << 63,
    ):
        out = guest.cpu.run(CODE, rdi=va)
        trap, error = trap_of(walker.walk(va, user | ACCESS_READ))
        assert (out.port, out.rip) == (VECTORS[trap], CODE)
        # A software KVM has its own tables in the first 512 GiB above the hole.
        assert out.error == error or va >> 39 == 0x1FF_FF00
        assert out.cs & 3 == cpl
        assert trap != T_PAGEFLT or out.cr2 == va


def test_a_page_of_one_gib(guest: Guest) -> None:
    """What if a PDPT entry with PS meant something else to the processor than to the walker?"""
    guest.map(1 << 30, 0, FULL | X86_PG_PS, level=3)
    guest.physmem.write(0x30_1238, struct.pack("<Q", 0xFEED))
    regs = ControlRegisters(MmuFeatures(guest.cpu.maxphyaddr, guest.cpu.page1gb))
    regs.mov_cr3(ROOT)
    va = (1 << 30) + 0x30_1238
    out = guest.cpu.run(CODE, rdi=va)
    result = Walker(guest.tables, regs).walk(va, ACCESS_USER)
    if guest.cpu.page1gb:
        assert out.port == kvm.PORT_USER
        assert guest.cpu.register("rax") == 0xFEED
        assert result & PG_FRAME == 0x30_1000
    else:
        assert (out.port, out.error) == (kvm.VECTOR_PF, 0xD)
        assert trap_of(result) == (T_PAGEFLT, 0xD)


def test_exceptions_without_an_error_code(guest: Guest) -> None:
    """What if the frame of an exception that pushes no error code were read one word off?"""
    guest.physmem.write(CODE + 0x100, b"\x0f\x0b")  # ud2
    guest.physmem.write(CODE + 0x200, b"\x31\xc9\xf7\xf1")  # xor ecx, ecx; div ecx
    assert guest.cpu.run(CODE + 0x100)[:4] == (6, 0, CODE + 0x100, kvm.SEL_UCODE)
    assert guest.cpu.run(CODE + 0x200)[:4] == (0, 0, CODE + 0x202, kvm.SEL_UCODE)
    # The run after an exception starts as if nothing had been.
    guest.map(0x40_0000, 0x30000, X86_PG_U)
    assert guest.cpu.run(CODE, rdi=0x40_0000).port == kvm.PORT_USER


def test_what_the_vcpu_refuses(guest: Guest) -> None:
    """What if a register could not be written, or the firmware not fit, and nobody said so?"""
    with pytest.raises(OSError, match="0xc0000082"):
        guest.cpu.set_msrs({kvm.MSR_STAR: 0, kvm.MSR_LSTAR: 1 << 60})
    for firmware, at in ((-1, KERNEL), (1021, KERNEL), (0, KERNEL + 8)):
        with pytest.raises(ValueError, match="firmware"):
            KvmVcpu(guest.physmem, firmware, at)


def test_a_signal_does_not_end_a_run(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if the host's kernel interrupts KVM_RUN for a signal to this process?"""
    guest.map(0x40_0000, 0x30000, X86_PG_U)
    real, interrupts = kvm.fcntl.ioctl, [InterruptedError(), InterruptedError()]

    def ioctl(fd: int, number: int, *rest: int) -> int:
        if number == kvm.KVM_RUN and interrupts:
            raise interrupts.pop()
        return real(fd, number, *rest)

    monkeypatch.setattr(kvm.fcntl, "ioctl", ioctl)
    assert guest.cpu.run(CODE, rdi=0x40_0000).port == kvm.PORT_USER
    assert not interrupts


def test_a_guest_that_stops_in_another_way(guest: Guest) -> None:
    """What if guest code halts the CPU: the host must be told, not wait."""
    guest.map(KERNEL + 0x10000, CODE, X86_PG_RW)
    guest.physmem.write(CODE + 0x300, b"\xf4")  # hlt
    guest.load(0)
    with pytest.raises(KvmUnavailable, match="exit reason"):
        guest.cpu.run(KERNEL + 0x10300)


def test_a_changed_entry_is_seen_after_a_reset(guest: Guest, report: KvmReport) -> None:
    """What if an engine trusted a CR3 load where the report says that it does not help?"""
    for page in (1, 2):
        guest.physmem.write(0x40000 + 0x1000 * page, struct.pack("<Q", page))
    guest.map(0x40_0000, 0x41000, X86_PG_U)
    guest.cpu.run(CODE, rdi=0x40_0000)
    assert guest.cpu.register("rax") == 1
    guest.map(0x40_0000, 0x42000, X86_PG_U)
    guest.load(3)
    guest.cpu.run(CODE, rdi=0x40_0000)
    assert guest.cpu.register("rax") == (1 if report.stale_ptes else 2)
    guest.cpu.reset_memory()
    guest.cpu.run(CODE, rdi=0x40_0000)
    assert guest.cpu.register("rax") == 2
    assert guest.cpu.statistics() == (3, 0, 1)
