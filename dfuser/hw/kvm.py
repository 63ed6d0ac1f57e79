"""A virtual machine of the host, by plain ioctls: one VM, one virtual CPU over our memory.

``/dev/kvm`` runs x86-64 code natively under *our* page tables, which makes it two things: an
oracle (what does a processor say to this table and this access?) and an engine for programs.
This file is the part both need: the device, the memory slot, registers, segments, descriptor
tables and a way out of the guest for every exception.

How the guest gets out. Each of its 32 exception vectors leads to a stub of three instructions,
``out vector, al; [add rsp, 8;] iretq``. The ``out`` ends ``KvmVcpu.run``, which then reads the
frame that the CPU pushed, from the guest's own memory. Code under test ends itself with an
``out`` to a port from ``PORT_USER`` to 255; the I/O map of the TSS lets CPL 3 do it. The stubs,
the GDT, the IDT, the TSS and the stack take ``FIRMWARE_PAGES`` frames that the caller gives; his
page tables must map them at the linear address he names, writable, executable, supervisor.

Hosts differ. Hardware virtualisation with nested paging walks our tables in silicon. A host that
is itself a guest may offer a software KVM (PVM), which walks them in its own C code, emulates
ring 0 instruction by instruction, and keeps shadow tables. ``selftest`` finds out what matters and
answers a ``KvmReport``; on PVM expect ``stale_ptes`` (a present entry changed by the host is not
seen until the memory slot is set anew: ``KvmVcpu.reset_memory``) and ``syscall_stays_user``.
There, too, the 512 GiB from 0xffff800000000000 belong to the host: a user access to them may fault
with a reserved-bit error code (0xd) whatever our tables say, so nothing should be mapped there.

Source: the kernel's Documentation/virt/kvm/api.rst; Intel SDM volume 3, chapters 5, 6 and 7 for
    segments, interrupts and tasks.
Counterpart: platform/vkernel64, where vmspace_ctl(VMSPACE_CTL_RUN) does what KVM_RUN does.
Differs from DragonFly: no devices, no timer, no interrupts from outside.
Token/lock order: takes none. ``run`` keeps the host thread until the guest exits; callers bound
    it by what they let the guest execute.
Invariants: the PhysMem cannot be closed before the VM; ``close`` leaves no descriptor or mapping.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from typing import Final, NamedTuple

from dfuser.hw.mmu.pte import (
    PG_FRAME,
    X86_PG_A,
    X86_PG_M,
    X86_PG_NX,
    X86_PG_RW,
    X86_PG_U,
    X86_PG_V,
    PageTables,
    pte_index,
)
from dfuser.hw.mmu.regs import CR0_KERNEL, CR4_KERNEL, EFER_KERNEL
from dfuser.hw.physmem import PhysMem
from dfuser.libkern.param import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

KVM_DEVICE: Final = "/dev/kvm"
KVM_API_VERSION: Final = 12
# ioctl numbers: direction << 30 | size << 16 | 0xAE00 | number.
KVM_GET_API_VERSION: Final = 0xAE00
KVM_CREATE_VM: Final = 0xAE01
KVM_CHECK_EXTENSION: Final = 0xAE03
KVM_GET_VCPU_MMAP_SIZE: Final = 0xAE04
KVM_CREATE_VCPU: Final = 0xAE41
KVM_RUN: Final = 0xAE80
KVM_GET_SUPPORTED_CPUID: Final = 0xC008AE05
KVM_SET_USER_MEMORY_REGION: Final = 0x4020AE46
KVM_SET_CPUID2: Final = 0x4008AE90
KVM_GET_SREGS: Final = 0x8138AE83
KVM_SET_SREGS: Final = 0x4138AE84
KVM_SET_MSRS: Final = 0x4008AE89

KVM_CAP_SYNC_REGS: Final = 74
KVM_EXIT_IO: Final = 2
KVM_EXIT_HLT: Final = 5

MSR_STAR: Final = 0xC0000081
MSR_LSTAR: Final = 0xC0000082
MSR_SFMASK: Final = 0xC0000084

# struct kvm_run: where things are in it.
RUN_EXIT_REASON: Final = 8
RUN_IO_PORT: Final = 34
RUN_VALID_REGS: Final = 288
RUN_DIRTY_REGS: Final = 296
RUN_REGS: Final = 304
RUN_SREGS: Final = RUN_REGS + 144
SYNC_REGS: Final = 1
SYNC_SREGS: Final = 2
REG_NAMES: Final = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
REGS: Final = struct.Struct("<18Q")
SREGS: Final = struct.Struct("<192s16s16s6Q")
"""struct kvm_sregs up to EFER: eight segments, GDT, IDT, CR0, CR2, CR3, CR4, CR8, EFER."""
SEGMENT: Final = struct.Struct("<QIHBBBBBBBBBB")
SEGMENT_ORDER: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")

RFLAGS_FIXED: Final = 0x2
RFLAGS_AC: Final = 1 << 18

FIRMWARE_PAGES: Final = 4
"""Frames for the tables (GDT, TSS), the IDT, the stubs and the stack, in this order."""
PORT_USER: Final = 0x80
"""First port that code under test may use; below are exception vectors."""
PORT_INT: Final = 0xE0
PORT_SYSCALL: Final = 0xF0
VECTORS: Final = 32
VECTOR_GP: Final = 13
VECTOR_PF: Final = 14
VECTOR_INT: Final = 0x80
"""The one gate for programs, where a kernel may have its old system call; exits at PORT_INT."""
ERROR_CODE_VECTORS: Final = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
STUB_SIZE: Final = 16
SYSCALL_STUB: Final = VECTORS * STUB_SIZE
INT_STUB: Final = SYSCALL_STUB + STUB_SIZE
GDT: Final = (
    0,
    0x00AF_9B00_0000_FFFF,  # 0x08: 64-bit code, ring 0
    0x00CF_9300_0000_FFFF,  # 0x10: data, ring 0
    0x00CF_FB00_0000_FFFF,  # 0x18: 32-bit code, ring 3 (the base of sysret)
    0x00CF_F300_0000_FFFF,  # 0x20: data, ring 3
    0x00AF_FB00_0000_FFFF,  # 0x28: 64-bit code, ring 3
)
SEL_KCODE: Final = 0x08
SEL_KDATA: Final = 0x10
SEL_UDATA: Final = 0x23
SEL_UCODE: Final = 0x2B
SEL_TSS: Final = 0x30
TSS_OFFSET: Final = 0x100
TSS_SIZE: Final = 0x68
IO_MAP: Final = bytes([0xFF] * (PORT_USER // 8) + [0] * (32 - PORT_USER // 8) + [0xFF])
"""Ports 0 to 255 and the byte that must end it; a clear bit lets CPL 3 use the port."""
TSS_LIMIT: Final = TSS_SIZE + len(IO_MAP) - 1


class KvmUnavailable(Exception):
    """KVM cannot be used here; the text says why."""


class KvmExit(NamedTuple):
    """Why the guest stopped.

    Attributes:
        port: the exception vector, or the port that the code under test wrote to.
        error: the error code pushed by the exception; 0 where there is none.
        rip: where the exception happened; for a port, the address after the ``out``.
        cs: the code segment that was interrupted; its low two bits are the CPL.
        cr2: the linear address of the last page fault.
    """

    port: int
    error: int
    rip: int
    cs: int
    cr2: int


class KvmStatistics(NamedTuple):
    """What one virtual CPU did: runs, how many of them ended in an exception, memory resets."""

    runs: int
    exceptions: int
    resets: int


def _segment(selector: int, kind: int, dpl: int, *, code: bool = False) -> bytes:
    """Build a struct kvm_segment for a flat code or data segment."""
    return SEGMENT.pack(
        0, 0xFFFF_FFFF, selector, kind, 1, dpl, 0 if code else 1, 1, int(code), 1, 0, 0, 0
    )


class KvmVcpu:
    """One VM with one CPU in 64-bit mode. Counterpart: struct vmspace_entry under a vkernel's lwp.

    Args:
        physmem: the machine's memory; guest physical address 0 is its byte 0.
        firmware: the first of ``FIRMWARE_PAGES`` frames for the way out of the guest.
        at: the linear address at which the page tables map those frames.
        device: the KVM device.

    Raises:
        KvmUnavailable: there is no usable KVM here.
        ValueError: the firmware's frames are not all in memory, or its address is no page's.

    Attributes:
        maxphyaddr: bits of a physical address, as the guest's CPUID says.
        page1gb: whether the guest's CPUID has 1 GiB pages.
    """

    __slots__ = ("_cpu", "_fds", "_frame", "_host", "_memory", "_pin", "_run", "_segments",
                 "_stack", "at", "exceptions", "maxphyaddr", "page1gb", "resets",
                 "runs")  # fmt: skip

    def __init__(self, physmem: PhysMem, firmware: int, at: int, device: str = KVM_DEVICE) -> None:
        if not 0 <= firmware <= physmem.npages - FIRMWARE_PAGES or at & PAGE_MASK:
            raise ValueError(f"no firmware fits at frame {firmware}, linear address {at:#x}")
        self._fds: list[int] = []
        self._pin = physmem.buf[:]
        self._memory = physmem
        self.at = at
        self.runs = self.exceptions = self.resets = 0
        self._run: mmap.mmap | None = None
        try:
            self._open(device)
        except OSError as error:
            self.close()
            raise KvmUnavailable(f"{device}: {error.strerror or error}") from None
        except KvmUnavailable:
            self.close()
            raise
        base = firmware << PAGE_SHIFT
        self._stack = at + FIRMWARE_PAGES * PAGE_SIZE
        self._frame = base + FIRMWARE_PAGES * PAGE_SIZE
        self._install(base)

    def _open(self, device: str) -> None:
        """Create the VM, its memory and its CPU."""
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        self._fds.append(kvm)
        version = fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0)
        if version != KVM_API_VERSION:
            raise KvmUnavailable(f"{device}: API version {version}, not {KVM_API_VERSION}")
        wanted = SYNC_REGS | SYNC_SREGS
        if fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS) & wanted != wanted:
            raise KvmUnavailable(f"{device}: registers cannot be shared (KVM_CAP_SYNC_REGS)")
        self._fds.append(fcntl.ioctl(kvm, KVM_CREATE_VM, 0))
        anchor = ctypes.c_char.from_buffer(self._memory.mem)
        self._host = ctypes.addressof(anchor)
        del anchor
        self._slot(self._memory.size)
        self._cpu = fcntl.ioctl(self._fds[1], KVM_CREATE_VCPU, 0)
        self._fds.append(self._cpu)
        size = fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)
        self._run = mmap.mmap(self._cpu, size)
        self._cpuid(kvm)

    def _slot(self, size: int) -> None:
        """Set the memory slot; size 0 deletes it."""
        slot = struct.pack("<IIQQQ", 0, 0, 0, size, self._host)
        fcntl.ioctl(self._fds[1], KVM_SET_USER_MEMORY_REGION, slot)

    def _cpuid(self, kvm: int) -> None:
        """Give the guest every feature the host supports, and note what bears on paging."""
        room = 256
        table = bytearray(8 + 40 * room)
        struct.pack_into("<I", table, 0, room)
        fcntl.ioctl(kvm, KVM_GET_SUPPORTED_CPUID, table)
        fcntl.ioctl(self._cpu, KVM_SET_CPUID2, table)
        self.maxphyaddr, self.page1gb = 36, False
        for entry in range(struct.unpack_from("<I", table)[0]):
            function, _, _, eax, _, _, edx = struct.unpack_from("<7I", table, 8 + 40 * entry)
            if function == 0x8000_0008:
                self.maxphyaddr = eax & 0xFF
            elif function == 0x8000_0001:
                self.page1gb = bool(edx >> 26 & 1)

    def _install(self, base: int) -> None:
        """Write the firmware: GDT, TSS, IDT, stubs; and prepare the segments of both rings."""
        at, write = self.at, self._memory.write
        tss = at + TSS_OFFSET
        low = TSS_LIMIT | (tss & 0xFF_FFFF) << 16 | 0x89 << 40 | (tss >> 24 & 0xFF) << 56
        write(base, struct.pack("<8Q", *GDT, low, tss >> 32))
        write(base + TSS_OFFSET, struct.pack("<IQ90xH", 0, self._stack, TSS_SIZE) + IO_MAP)
        stubs = base + 2 * PAGE_SIZE
        for vector in range(VECTORS):
            skip = b"\x48\x83\xc4\x08" if vector in ERROR_CODE_VECTORS else b""
            write(stubs + STUB_SIZE * vector, b"\xe6%c%b\x48\xcf" % (vector, skip))
            # Breakpoints and INTO may come from CPL 3; everything else is the CPU's own.
            self._gate(base, vector, STUB_SIZE * vector, 3 if vector in (3, 4) else 0)
        write(stubs + SYSCALL_STUB, b"\xe6%c\x48\x0f\x07" % PORT_SYSCALL)
        write(stubs + INT_STUB, b"\xe6%c\x48\xcf" % PORT_INT)
        self._gate(base, VECTOR_INT, INT_STUB, 3)
        task = SEGMENT.pack(tss, TSS_LIMIT, SEL_TSS, 11, 1, 0, 0, 0, 0, 0, 0, 0, 0)
        self._segments = []
        for code, data, dpl in ((SEL_KCODE, SEL_KDATA, 0), (SEL_UCODE, SEL_UDATA, 3)):
            flat = _segment(data, 3, dpl)
            none = SEGMENT.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0)
            self._segments.append(_segment(code, 11, dpl, code=True) + flat * 5 + task + none)

    def _gate(self, base: int, vector: int, stub: int, dpl: int) -> None:
        """Write an interrupt gate that leads to a stub, for CPL up to ``dpl``."""
        to = self.at + 2 * PAGE_SIZE + stub
        gate = struct.pack(
            "<HHBBHII", to & 0xFFFF, SEL_KCODE, 0, 0x8E | dpl << 5, to >> 16 & 0xFFFF, to >> 32, 0
        )
        self._memory.write(base + PAGE_SIZE + 16 * vector, gate)

    @property
    def syscall_entry(self) -> int:
        """The linear address of a stub to which LSTAR can point: it exits at PORT_SYSCALL."""
        return self.at + 2 * PAGE_SIZE + SYSCALL_STUB

    def set_msrs(self, msrs: dict[int, int]) -> None:
        """Write model-specific registers of the guest.

        Raises:
            OSError: the host refuses one; those before it are written.
        """
        entries = b"".join(struct.pack("<IIQ", index, 0, value) for index, value in msrs.items())
        table = bytearray(struct.pack("<II", len(msrs), 0) + entries)
        done = fcntl.ioctl(self._cpu, KVM_SET_MSRS, table)
        if done != len(msrs):
            raise OSError(errno.EINVAL, f"MSR {list(msrs)[done]:#x} refused")

    def load(self, *, cr0: int, cr3: int, cr4: int, efer: int, cpl: int) -> None:
        """Set the control registers and the privilege level for the runs that follow.

        Raises:
            OSError: the host refuses the combination.
        """
        sregs = bytearray(312)
        fcntl.ioctl(self._cpu, KVM_GET_SREGS, sregs)
        gdt = struct.pack("<QH6x", self.at, 8 * (len(GDT) + 2) - 1)
        idt = struct.pack("<QH6x", self.at + PAGE_SIZE, PAGE_SIZE - 1)
        segments = self._segments[1 if cpl else 0]
        SREGS.pack_into(sregs, 0, segments, gdt, idt, cr0, 0, cr3, cr4, 0, efer)
        fcntl.ioctl(self._cpu, KVM_SET_SREGS, bytes(sregs))
        run = self._mapping()
        struct.pack_into("<QQ", run, RUN_VALID_REGS, SYNC_REGS | SYNC_SREGS, 0)
        run[RUN_SREGS : RUN_SREGS + 312] = bytes(sregs)

    def run(
        self, rip: int, *, rdi: int = 0, rsp: int | None = None, rflags: int = RFLAGS_FIXED
    ) -> KvmExit:
        """Run guest code from an address until it exits.

        Each run starts with the registers given to ``load``; the exception of a run before has
        left nothing behind.

        Args:
            rip: where to start.
            rdi: the register RDI, for an operand; the other general registers are 0.
            rsp: the stack; the firmware's own where not given.
            rflags: the flags.

        Raises:
            KvmUnavailable: the guest stopped in a way it should not be able to.
            OSError: the host failed.
        """
        run = self._mapping()
        stack = self._stack if rsp is None else rsp
        regs = [0] * 18
        regs[5], regs[6], regs[16] = rdi, stack, rip
        regs[17] = rflags | RFLAGS_FIXED
        REGS.pack_into(run, RUN_REGS, *regs)
        start = run[RUN_SREGS : RUN_SREGS + 312]
        struct.pack_into("<Q", run, RUN_DIRTY_REGS, SYNC_REGS | SYNC_SREGS)
        self.runs += 1
        self._enter()
        (reason,) = struct.unpack_from("<I", run, RUN_EXIT_REASON)
        if reason != KVM_EXIT_IO:
            raise KvmUnavailable(f"the guest stopped with exit reason {reason}")
        (port,) = struct.unpack_from("<H", run, RUN_IO_PORT)
        (cr2,) = struct.unpack_from("<Q", run, RUN_SREGS + 232)
        (here,) = struct.unpack_from("<Q", run, RUN_REGS + 8 * 16)
        (cs,) = struct.unpack_from("<H", run, RUN_SREGS + 12)
        run[RUN_SREGS : RUN_SREGS + 312] = start
        if port >= VECTORS:
            return KvmExit(port, 0, here, cs, cr2)
        self.exceptions += 1
        words = 6 if port in ERROR_CODE_VECTORS else 5
        frame = self._memory.read(self._frame - 8 * words, 8 * words)
        error = struct.unpack_from("<Q", frame)[0] if words == 6 else 0
        rip, cs = struct.unpack_from("<QQ", frame, 8 * (words - 5))
        return KvmExit(port, error, rip, cs, cr2)

    def _enter(self) -> None:
        """Enter the guest, again where a signal to this process came between."""
        while True:
            try:
                fcntl.ioctl(self._cpu, KVM_RUN, 0)
            except InterruptedError:
                continue
            return

    def register(self, name: str) -> int:
        """Read a general register as the last exit left it."""
        at = RUN_REGS + 8 * REG_NAMES.index(name)
        return int.from_bytes(self._mapping()[at : at + 8], "little")

    def reset_memory(self) -> None:
        """Make the host forget every shadow of our page tables: the slot goes and comes back."""
        self.resets += 1
        self._slot(0)
        self._slot(self._memory.size)

    def statistics(self) -> KvmStatistics:
        """Count what it did."""
        return KvmStatistics(self.runs, self.exceptions, self.resets)

    def close(self) -> None:
        """Destroy the VM. A second call does nothing."""
        if self._run is not None:
            self._run.close()
            self._run = None
        while self._fds:
            os.close(self._fds.pop())
        self._pin.release()

    def _mapping(self) -> mmap.mmap:
        if self._run is None:
            raise KvmUnavailable("the virtual machine is closed")
        return self._run


class KvmReport(NamedTuple):
    """What ``selftest`` found out about the KVM of this host.

    Attributes:
        available: whether a guest ran at all.
        reason: why not; empty where it did.
        maxphyaddr: bits of a physical address in the guest.
        page1gb: whether the guest has 1 GiB pages.
        page_faults: whether six kinds of page fault gave the error codes and addresses they must.
        accessed_dirty: whether A and D appear in our tables.
        stale_ptes: whether a present entry that the host changed stays unseen after CR3 is loaded.
        reset_helps: whether ``KvmVcpu.reset_memory`` makes it seen.
        syscall_stays_user: whether SYSCALL leaves the CPU at CPL 3 (then the first instruction at
            LSTAR faults, and that fault stands for the system call).
        software_interrupts: whether ``int n`` reaches its gate.
    """

    available: bool
    reason: str = ""
    maxphyaddr: int = 0
    page1gb: bool = False
    page_faults: bool = False
    accessed_dirty: bool = False
    stale_ptes: bool = False
    reset_helps: bool = False
    syscall_stays_user: bool = False
    software_interrupts: bool = False

    @property
    def behaves(self) -> bool:
        """Whether it can be trusted as an oracle and an engine, with the quirks reported."""
        return self.available and self.page_faults and self.accessed_dirty and self.reset_helps


class _Trial:
    """The guest of the self-test: a few frames, tables for one kernel and one user region."""

    KERNEL = 0xFFFF_FFFF_8000_0000
    CODE, SPARE = 12, 14
    LOAD, STORE, SYSCALL, INT = 0x00, 0x10, 0x20, 0x30
    USER = X86_PG_V | X86_PG_U
    FLAGS = X86_PG_A | X86_PG_M

    def __init__(self, physmem: PhysMem, device: str) -> None:
        self.physmem = physmem
        self.root = 4 << PAGE_SHIFT
        self._next = 5
        self.tables = PageTables(physmem)
        try:
            for page in range(FIRMWARE_PAGES):
                self.map(self.KERNEL + (page << PAGE_SHIFT), page << PAGE_SHIFT, X86_PG_RW)
            self.map(PAGE_SIZE, self.CODE << PAGE_SHIFT, X86_PG_U)
            for at, code in (
                (self.LOAD, b"\x48\x8b\x07\xe6\x80"),  # mov rax, [rdi]; out 0x80, al
                (self.STORE, b"\x88\x07\xe6\x80"),  # mov [rdi], al; out 0x80, al
                (self.SYSCALL, b"\x0f\x05\xe6\x80"),  # syscall; out 0x80, al
                (self.INT, b"\xcd\x80\xe6\x80"),  # int 0x80; out 0x80, al
            ):
                physmem.write((self.CODE << PAGE_SHIFT) + at, code)
            self.vcpu = KvmVcpu(physmem, 0, self.KERNEL, device)
        except BaseException:
            self.tables.close()
            raise
        self.reload()

    def map(self, va: int, address: int, flags: int) -> int:
        """Map a page; returns where its entry is."""
        load, store = self.tables.pte_load, self.tables.pte_store
        table = self.root
        for level in (4, 3, 2):
            at = table + 8 * pte_index(va, level)
            if not load(at):
                store(at, self._next << PAGE_SHIFT | self.USER | X86_PG_RW)
                self._next += 1
            table = load(at) & PG_FRAME
        at = table + 8 * pte_index(va, 1)
        store(at, address | flags | X86_PG_V)
        return at

    def reload(self) -> None:
        """Load the registers anew, CR3 among them, for code at CPL 3."""
        self.vcpu.load(cr0=CR0_KERNEL, cr3=self.root, cr4=CR4_KERNEL, efer=EFER_KERNEL, cpl=3)

    def run(self, code: int, operand: int = 0) -> KvmExit:
        """Run one of the pieces of code."""
        return self.vcpu.run(PAGE_SIZE + code, rdi=operand)

    def accessed_dirty(self) -> bool:
        """Try whether a load sets A alone and a store D."""
        at = self.map(0x10_000, self.SPARE << PAGE_SHIFT, X86_PG_U | X86_PG_RW)
        read = self.run(self.LOAD, 0x10_000).port, self.tables.pte_load(at) & self.FLAGS
        write = self.run(self.STORE, 0x10_000).port, self.tables.pte_load(at) & self.FLAGS
        return read == (PORT_USER, X86_PG_A) and write == (PORT_USER, self.FLAGS)

    def page_faults(self) -> bool:
        """Try whether faults have the right error code and address."""
        page, va, good = self.SPARE << PAGE_SHIFT, 0x20_000, []
        for code, flags, error in (
            (self.LOAD, 0, 0x5),
            (self.STORE, X86_PG_U, 0x7),
            (self.LOAD, X86_PG_U | 1 << 51, 0xD),
            (None, X86_PG_U | X86_PG_NX, 0x15),
        ):
            self.map(va, page, flags)
            start = va if code is None else PAGE_SIZE + code
            out = self.vcpu.run(start, rdi=va)
            good.append((out.port, out.error, out.cr2) == (VECTOR_PF, error, va))
            va += PAGE_SIZE
        for code, error in ((self.LOAD, 0x4), (self.STORE, 0x6)):
            out = self.run(code, 0x30_000)
            good.append((out.port, out.error, out.cr2) == (VECTOR_PF, error, 0x30_000))
        return all(good)

    def stale(self) -> tuple[bool, bool]:
        """Try whether a changed entry stays unseen, and whether resetting the memory helps."""
        for page in (0, 1):
            self.physmem.write(self.SPARE + page << PAGE_SHIFT, bytes([0x11 * (page + 1)] * 8))
        self.map(0x40_000, self.SPARE << PAGE_SHIFT, X86_PG_U)
        self.run(self.LOAD, 0x40_000)
        self.map(0x40_000, self.SPARE + 1 << PAGE_SHIFT, X86_PG_U)
        self.reload()
        self.run(self.LOAD, 0x40_000)
        stale = self.vcpu.register("rax") & 0xFF == 0x11
        self.vcpu.reset_memory()
        self.run(self.LOAD, 0x40_000)
        return stale, self.vcpu.register("rax") & 0xFF == 0x22

    def syscall_stays_user(self) -> bool:
        """Try where SYSCALL leads."""
        entry = self.vcpu.syscall_entry
        star = 0x1B << 48 | SEL_KCODE << 32
        self.vcpu.set_msrs({MSR_STAR: star, MSR_LSTAR: entry, MSR_SFMASK: 0x4_7700})
        out = self.run(self.SYSCALL)
        return out.port == VECTOR_PF and out.rip == entry and out.cs & 3 == 3

    def close(self) -> None:
        """Destroy the guest."""
        self.vcpu.close()
        self.tables.close()


def selftest(device: str = KVM_DEVICE) -> KvmReport:
    """Find out whether KVM is there and how it behaves. Takes some milliseconds, never raises."""
    physmem = PhysMem(64 * PAGE_SIZE)
    try:
        trial = _Trial(physmem, device)
        try:
            stale, reset_helps = trial.stale()
            return KvmReport(
                available=True,
                maxphyaddr=trial.vcpu.maxphyaddr,
                page1gb=trial.vcpu.page1gb,
                page_faults=trial.page_faults(),
                accessed_dirty=trial.accessed_dirty(),
                stale_ptes=stale,
                reset_helps=reset_helps,
                syscall_stays_user=trial.syscall_stays_user(),
                software_interrupts=trial.run(trial.INT).port == PORT_INT,
            )
        finally:
            trial.close()
    except (KvmUnavailable, OSError) as error:
        return KvmReport(available=False, reason=str(error))
    finally:
        physmem.close()
