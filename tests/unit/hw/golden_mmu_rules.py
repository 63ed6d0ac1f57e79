"""The SDM's paging rules once more, as its text and tables put them: slow, plain, independent.

Nothing here uses the MMU's code. An address is a string of 64 binary digits that is cut into
pieces; reserved bits are sets of bit numbers; the access rights are the sentences of section
4.6.1 one after the other. Two implementations that agree on random tables are either both right
or wrong in the same way for different reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

PAGE_BYTES = {"PTE": 1 << 12, "PDE": 1 << 21, "PDPTE": 1 << 30}
RESERVED_IN_LEAF = {"PTE": set(), "PDE": set(range(13, 21)), "PDPTE": set(range(13, 30))}


class Machine(NamedTuple):
    """The state of the CPU that matters."""

    root: int
    nxe: bool = True
    wp: bool = True
    smep: bool = False
    smap: bool = False
    pge: bool = True
    maxphyaddr: int = 48
    page1gb: bool = True
    la57: bool = False


class Access(NamedTuple):
    """What is done: "read", "write" or "fetch", by whom."""

    kind: str
    user: bool
    ac: bool = False
    implicit: bool = False


class Outcome(NamedTuple):
    """What the architecture answers.

    ``fault`` is None, "GP" or "PF"; ``stores`` are the entries as the processor leaves them.
    """

    fault: str | None
    error: int = 0
    address: int = 0
    stores: Mapping[int, int] = MappingProxyType({})
    size: int = 0
    glob: bool = False
    memory_type: int = 0
    granted: frozenset[str] = frozenset()


def bit(entry: int, number: int) -> bool:
    return bin(entry)[2:].zfill(64)[63 - number] == "1"


def reserved(name: str, entry: int, leaf: bool, cpu: Machine) -> bool:
    """Tables 4-14 to 4-20: is any reserved bit set?"""
    numbers = set(range(cpu.maxphyaddr, 52))
    if not cpu.nxe:
        numbers.add(63)
    if name in ("PML5E", "PML4E") or (name == "PDPTE" and not cpu.page1gb):
        numbers.add(7)
    elif leaf:
        numbers |= RESERVED_IN_LEAF[name]
    return any(bit(entry, number) for number in numbers)


def allowed(access: Access, cpu: Machine, user_page: bool, writable: bool, xd: bool) -> bool:
    """Section 4.6.1, sentence by sentence."""
    if access.user:
        if not user_page:
            return False
        if access.kind == "read":
            return True
        if access.kind == "write":
            return writable
        return not cpu.nxe or not xd
    smap_ok = not cpu.smap or (access.ac and not access.implicit)
    if access.kind == "read":
        return True if not user_page else smap_ok
    if access.kind == "write":
        if not user_page:
            return not cpu.wp or writable
        return smap_ok and (not cpu.wp or writable)
    if not user_page:
        return not cpu.nxe or not xd
    return not cpu.smep and (not cpu.nxe or not xd)


def error_code(access: Access, cpu: Machine, present: bool, rsvd: bool) -> int:
    """Section 4.7."""
    code = 1 if present else 0
    if access.kind == "write":
        code += 2
    if access.user:
        code += 4
    if rsvd:
        code += 8
    if access.kind == "fetch" and (cpu.smep or cpu.nxe):
        code += 16
    return code


def translate(load: Callable[[int], int], cpu: Machine, va: int, access: Access) -> Outcome:
    """Translate, reading entries with ``load`` (by physical address); nothing is stored."""
    digits = f"{va:064b}"
    width = 57 if cpu.la57 else 48
    if len(set(digits[: 64 - width + 1])) != 1:
        return Outcome("GP")
    names = ["PML5E", "PML4E", "PDPTE", "PDE", "PTE"][0 if cpu.la57 else 1 :]
    digits = digits[64 - width :]
    table = cpu.root
    used: list[tuple[int, int]] = []
    for name in names:
        number, digits = int(digits[:9], 2), digits[9:]
        where = table + 8 * number
        entry = load(where)
        if not bit(entry, 0):
            return Outcome("PF", error_code(access, cpu, False, False))
        leaf = name == "PTE" or (bit(entry, 7) and name in ("PDE", "PDPTE"))
        if reserved(name, entry, leaf, cpu):
            return Outcome("PF", error_code(access, cpu, True, True))
        used.append((where, entry))
        if leaf:
            return finish(cpu, access, name, digits, used)
        table = address_of(entry, 12)
    raise AssertionError("a page table has no children")


def address_of(entry: int, low: int) -> int:
    return int(f"{entry:064b}"[12 : 64 - low] + "0" * low, 2)


def finish(
    cpu: Machine, access: Access, name: str, digits: str, used: list[tuple[int, int]]
) -> Outcome:
    """Judge the rights and say what the leaf means."""
    user_page = all(bit(entry, 2) for _, entry in used)
    writable = all(bit(entry, 1) for _, entry in used)
    xd = any(bit(entry, 63) for _, entry in used)
    if not allowed(access, cpu, user_page, writable, xd):
        return Outcome("PF", error_code(access, cpu, True, False))
    stores = {}
    for where, entry in used:
        flags = {5}
        if access.kind == "write" and (where, entry) == used[-1]:
            flags.add(6)
        stores[where] = entry + sum(1 << flag for flag in flags if not bit(entry, flag))
    leaf = used[-1][1]
    size = PAGE_BYTES[name]
    pat = bit(leaf, 7 if name == "PTE" else 12)
    granted = {"user": user_page, "write": writable, "fetch": not xd}
    return Outcome(
        None,
        address=address_of(leaf, size.bit_length() - 1) + int(digits, 2),
        stores=stores,
        size=size,
        glob=cpu.pge and bit(leaf, 8),
        memory_type=4 * pat + 2 * bit(leaf, 4) + bit(leaf, 3),
        granted=frozenset(right for right, given in granted.items() if given),
    )
