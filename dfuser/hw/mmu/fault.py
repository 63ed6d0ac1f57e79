"""Who may do what: accesses, translations, the one rule between them, and error codes.

Three kinds of plain ints meet here.

An **access** says what a program is about to do. It is built like an error code, so that the
error code can be cut out of it::

    bit 0  ACCESS_AC         EFLAGS.AC is 1 (matters to explicit supervisor data accesses only)
    bit 1  ACCESS_WRITE      a store; otherwise a load
    bit 2  ACCESS_USER       made at CPL 3; otherwise a supervisor access
    bit 3  ACCESS_IMPLICIT   a supervisor access the processor makes by itself (descriptor tables,
                             the TSS), whatever the CPL is; AC does not help it
    bit 4  ACCESS_FETCH      an instruction fetch; not together with WRITE

A **translation** is what a walk found, in the shape of a 4 KiB leaf: the frame of the very 4 KiB
page in bits 51:12; R/W, U/S and A as all levels together grant them, NX if any level sets it; D,
G and the three memory type bits of the leaf (PAT always in bit 7); and in bits 10:9, which the
architecture leaves to software, the level of the leaf (1, 2 or 3: 4 KiB, 2 MiB, 1 GiB).

A **result** is a translation, or a negative number: ``~result`` is then the fault, a page fault's
error code or ``FAULT_GP``.

The rule: *a translation serves an access if ``translation & mask == want``*, where mask and want
depend on the access and the control registers only. All of SDM 4.6 is in these pairs, 32 of them
for a setting of the registers; A and D that must still be set are part of them, so that one
comparison tells "go ahead" from "look closer". A TLB hit and a walk decide by the same pairs::

    user        U=1 W=1 if a store  NX=0 if a fetch and NXE
    supervisor      W=1 if a store and WP   NX=0 if a fetch and NXE
                U=0 if a fetch and SMEP; U=0 if a load or store and SMAP, unless AC=1 and explicit
    all         A=1                 D=1 if a store

Source: Intel SDM volume 3, sections 4.6 (access rights), 4.7 (page-fault exceptions), 4.8.
Counterpart: PGEX_* in cpu/x86_64/include/pmap.h, T_PAGEFLT and T_PROTFLT in trap.h.
Differs from the processor: protection keys (PK, bit 5), shadow stacks (SS, bit 6), HLAT (bit 7)
    and SGX (bit 15) are not modelled; those error code bits are always 0, and CR4.PKE, CR4.PKS
    and CR4.CET cannot be set.
Token/lock order: takes none.
Invariants: mask and want of a rule never mention the frame; an access that is impossible (FETCH
    with WRITE, USER with IMPLICIT) has no rule.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dfuser.hw.mmu.pte import (
    X86_PG_A,
    X86_PG_M,
    X86_PG_NX,
    X86_PG_RW,
    X86_PG_U,
)

ACCESS_READ: Final = 0x00
ACCESS_AC: Final = 0x01
ACCESS_WRITE: Final = 0x02
ACCESS_USER: Final = 0x04
ACCESS_IMPLICIT: Final = 0x08
ACCESS_FETCH: Final = 0x10
ACCESS_KINDS: Final = 0x20
"""Accesses are numbers below this."""

PGEX_P: Final = 0x01
PGEX_W: Final = 0x02
PGEX_U: Final = 0x04
PGEX_RSV: Final = 0x08
PGEX_I: Final = 0x10

FAULT_GP: Final = 1 << 16
"""``~result`` of an address that is not canonical: #GP(0), or #SS(0) for a stack reference."""

TRANSLATION_LEVEL_SHIFT: Final = 9

T_PROTFLT: Final = 9
T_PAGEFLT: Final = 12
"""DragonFly's trap numbers (machine/trap.h), not the vectors 13 and 14."""


class Protection(NamedTuple):
    """The bits of the control registers that decide about rights (SDM 4.6)."""

    nxe: bool = True
    wp: bool = True
    smep: bool = False
    smap: bool = False


class Rule(NamedTuple):
    """What one kind of access asks of a translation, and what it gets where it is refused.

    Attributes:
        mask: bits of the translation that matter.
        want: what they must be.
        rights: the bits of ``mask`` that are rights; the others are A and D, which the processor
            sets itself.
        absent: the result where an entry is not present.
        denied: the result where the rights do not suffice.
        reserved: the result where a reserved bit is set.
    """

    mask: int
    want: int
    rights: int
    absent: int
    denied: int
    reserved: int


def possible(access: int) -> bool:
    """Say whether there is such an access at all."""
    if access & ACCESS_FETCH and access & (ACCESS_WRITE | ACCESS_IMPLICIT):
        return False
    return not (access & ACCESS_USER and access & ACCESS_IMPLICIT)


def make_rule(access: int, protection: Protection) -> Rule:
    """Work out the rule for one access (SDM 4.6.1 and 4.7)."""
    nxe, wp, smep, smap = protection
    fetch, write, user = access & ACCESS_FETCH, access & ACCESS_WRITE, access & ACCESS_USER
    rights = want = 0
    if write and (user or wp):
        rights |= X86_PG_RW
        want |= X86_PG_RW
    if fetch and nxe:
        rights |= X86_PG_NX
    if user:
        rights |= X86_PG_U
        want |= X86_PG_U
    elif fetch:
        if smep:
            rights |= X86_PG_U
    elif smap and (access & ACCESS_IMPLICIT or not access & ACCESS_AC):
        rights |= X86_PG_U
    used = X86_PG_A | (X86_PG_M if write else 0)
    code = access & (ACCESS_WRITE | ACCESS_USER)
    if fetch and (nxe or smep):
        code |= PGEX_I
    return Rule(
        rights | used, want | used, rights, ~code, ~(code | PGEX_P), ~(code | PGEX_P | PGEX_RSV)
    )


def make_rules(protection: Protection) -> tuple[Rule | None, ...]:
    """Work out the rules of all accesses, indexed by the access; None where it is impossible."""
    return tuple(
        make_rule(access, protection) if possible(access) else None
        for access in range(ACCESS_KINDS)
    )


def is_fault(result: int) -> bool:
    """Say whether a result is a fault."""
    return result < 0


def trap_of(result: int) -> tuple[int, int]:
    """Name the trap of a fault: DragonFly's trap number and the error code pushed with it."""
    fault = ~result
    return (T_PROTFLT, 0) if fault & FAULT_GP else (T_PAGEFLT, fault)


def level_of(translation: int) -> int:
    """Level of the leaf a translation came from: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB."""
    return translation >> TRANSLATION_LEVEL_SHIFT & 3


def describe(result: int) -> str:
    """Say a fault in words, for logs and the debugger."""
    fault = ~result
    if fault & FAULT_GP:
        return "general protection: address not canonical"
    who = "user" if fault & PGEX_U else "supervisor"
    what = "fetch" if fault & PGEX_I else "write" if fault & PGEX_W else "read"
    why = "not present"
    if fault & PGEX_P:
        why = "reserved bit set" if fault & PGEX_RSV else "protection"
    return f"page fault: {who} {what}, {why}"
