"""sysctl: every tunable number of the kernel, readable and settable by name.

A sysctl variable is a window on a field of a live object. Nothing is copied into the
tree: reading ``vfs.cache.numneg`` reads the attribute of the name cache at that moment,
writing stores there (or calls the object's own method, when a change has consequences).

The variable is declared where it lives, as part of its class::

    class NameCache:
        sysctl_numneg = Sysctl("vfs.cache.numneg", "Negative entries", attr="numneg",
                               kind=LONG, flags=RD)
        sysctl_limit = Sysctl("vfs.cache.neglimit", "Most negative entries allowed",
                              attr="neglimit", kind=INT, flags=RW, minimum=16)

The declaration is immutable and holds no value. A booted kernel owns a `SysctlTree` and
registers its objects; the tree looks at the class, finds the declarations and hangs one
leaf for each. Per-CPU objects give a callable as the name: ``lambda cpu:
f"lwkt.cpu{cpu.cpuid}.switches"``. Many kernels in one process share the classes and
nothing else.

A name is a path of at most CTL_MAXNAME words; each word also has a number, and the
numbers of a path are its MIB. The numbers of the first words are fixed, the rest are
given out from 256 upwards unless the declaration asks for one.

Counterpart: sys/sysctl.h, kern/kern_sysctl.c, kern/kern_mib.c.
Differs from DragonFly: leaves are bound to Python attributes instead of addresses; text
    is the exchange format (a raw structure is printed by its declaration); node locks
    do not exist, because handlers never suspend. Nodes appear with their first leaf and
    go with their last; the top level always stays.
Token/lock order: takes none; callers run on the kernel's thread.
Invariants: a name is either a node or a leaf; a registration is all or nothing; a write
    is validated whole before anything is stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Final, NamedTuple

from dfuser.libkern.errno import EISDIR, ENOENT, ENOTDIR, EPERM, KError
from dfuser.libkern.sysctl_decl import (
    ANYBODY,
    INT,
    LONG,
    NODE,
    OID_AUTO,
    OPAQUE,
    PRISON,
    QUAD,
    RD,
    RW,
    SECURE,
    SKIP,
    STRING,
    UINT,
    ULONG,
    UQUAD,
    WR,
    CtlFlag,
    CtlType,
    Sysctl,
    declarations,
)
from dfuser.libkern.ucred import Ucred

__all__ = (
    "ANYBODY",
    "CTL_MAXNAME",
    "INT",
    "LONG",
    "NODE",
    "OID_AUTO",
    "OPAQUE",
    "PRISON",
    "QUAD",
    "RD",
    "RW",
    "SECURE",
    "SKIP",
    "STRING",
    "TOP_LEVEL",
    "UINT",
    "ULONG",
    "UQUAD",
    "WR",
    "CtlFlag",
    "CtlType",
    "Sysctl",
    "SysctlOid",
    "SysctlStatistics",
    "SysctlTree",
    "declarations",
)

CTL_MAXNAME: Final = 12
"""Most words a name may have."""
CTL_AUTO_START: Final = 0x100
"""First number the tree gives out by itself."""

TOP_LEVEL: Final = MappingProxyType(
    {
        "kern": (1, "High kernel: processes, limits"),
        "vm": (2, "Virtual memory"),
        "vfs": (3, "File systems"),
        "net": (4, "Network"),
        "debug": (5, "Debugging"),
        "hw": (6, "Hardware"),
        "machdep": (7, "Machine dependent"),
        "user": (8, "User-level limits"),
        "p1003_1b": (9, "POSIX 1003.1B"),
        "lwkt": (10, "Light weight kernel threads"),
    }
)

_WORD: Final = re.compile(r"[A-Za-z0-9_%+-][A-Za-z0-9_%+-]*\Z")


class SysctlOid:
    """One word of the tree: an inner node with children, or a leaf bound to an object.

    Counterpart: struct sysctl_oid (sys/sysctl.h).
    """

    __slots__ = ("children", "decl", "descr", "name", "next_number", "number", "owner",
                 "parent", "tree", "word")  # fmt: skip

    def __init__(self, tree: SysctlTree, parent: SysctlOid | None, word: str, number: int) -> None:
        """Make an inner node; `SysctlTree` turns it into a leaf by binding it."""
        self.tree = tree
        self.parent = parent
        self.word = word
        self.number = number
        self.name: str = f"{parent.name}.{word}" if parent is not None and parent.name else word
        self.children: dict[str, SysctlOid] = {}
        self.next_number = CTL_AUTO_START
        self.decl: Sysctl | None = None
        self.owner: object = None
        self.descr = ""

    @property
    def is_node(self) -> bool:
        """Whether this is an inner node."""
        return self.decl is None

    @property
    def kind(self) -> CtlType:
        """The type of the value; NODE for an inner node."""
        return NODE if self.decl is None else self.decl.kind

    @property
    def flags(self) -> CtlFlag:
        """Access flags; an inner node can be read."""
        return RD if self.decl is None else self.decl.flags

    @property
    def fmt(self) -> str:
        """Format string as in oid_fmt: ``I`` int, ``LU`` unsigned long, ``A`` string, ..."""
        return "N" if self.decl is None else self.decl.fmt

    @property
    def mib(self) -> tuple[int, ...]:
        """The numbers from the top level down to this word."""
        return (*self.parent.mib, self.number) if self.parent is not None else ()

    def sorted_children(self) -> list[SysctlOid]:
        """The words below, in the order of their numbers."""
        return sorted(self.children.values(), key=lambda oid: oid.number)

    def value(self) -> object:
        """Read the live value.

        Raises:
            KError: EISDIR on a node, EPERM when it cannot be read.
        """
        if self.decl is None:
            raise KError(EISDIR, f"{self.name} is a node")
        if not self.decl.flags & RD:
            self.tree.refused += 1
            raise KError(EPERM, f"{self.name} cannot be read")
        self.tree.reads += 1
        return self.decl.read(self.owner)

    def get(self) -> str:
        """Read the live value as text, without a newline at its end.

        Raises:
            KError: EISDIR on a node, EPERM when it cannot be read.
        """
        value = self.value()
        return self.decl.text(value) if self.decl is not None else ""

    def set(self, text: str | int | bytes, cred: Ucred | None = None) -> None:
        """Change the value. Access is checked first, then the value, then it is stored.

        Args:
            text: the new value; see `Sysctl.check`.
            cred: who asks; None is the kernel itself.

        Raises:
            KError: EISDIR on a node; EPERM when it is read-only, protected by the secure
                level, or the caller may not; EINVAL for a bad value; whatever the
                object's own setter raises.
        """
        if self.decl is None:
            raise KError(EISDIR, f"{self.name} is a node")
        self.tree.check_write(self, cred)
        value = self.decl.check(text)
        self.decl.store(self.owner, value)
        self.tree.writes += 1

    def __repr__(self) -> str:
        """Full name and kind."""
        return f"<SysctlOid {self.name or '(root)'} {self.kind.name}>"


class SysctlStatistics(NamedTuple):
    """How big the tree is and how much it was used."""

    nodes: int
    leaves: int
    objects: int
    reads: int
    writes: int
    refused: int
    generation: int


class SysctlTree:
    """The names of one booted kernel.

    It keeps a registered object alive until `unregister`; the boot order that registers
    also unregisters.

    Counterpart: sysctl__children and sysctl_root (kern/kern_sysctl.c).
    """

    sysctl_securelevel = Sysctl(
        "kern.securelevel", "Current secure level; can be raised, not lowered",
        attr="securelevel", setter="raise_securelevel", kind=INT, flags=RW, number=9,
    )  # fmt: skip

    def __init__(self, may_write: Callable[[Ucred, SysctlOid], bool] | None = None) -> None:
        """Make a tree that holds the top level only.

        Args:
            may_write: decides whether a caller may change a leaf that is not ANYBODY;
                the room that owns privileges and prisons hands it in. Without it root
                may, and a root in a prison only where the leaf says PRISON.
        """
        self.securelevel = -1
        self.reads = 0
        self.writes = 0
        self.refused = 0
        self.generation = 0
        self._may_write = may_write or _root_may_write
        self._root = SysctlOid(self, None, "", 0)
        self._bound: dict[int, tuple[object, list[SysctlOid]]] = {}
        for word, (number, descr) in TOP_LEVEL.items():
            self._root.children[word] = SysctlOid(self, self._root, word, number)
            self._root.children[word].descr = descr
        self.register(self)

    def register(self, owner: object) -> None:
        """Hang every variable an object declares into the tree, all of them or none.

        Raises:
            ValueError: the object is registered already, or one of its names is
                malformed, too deep, taken, or a node where a leaf is wanted. These are
                mistakes of the kernel's own code, found at boot.
        """
        if id(owner) in self._bound:
            raise ValueError(f"registered twice: {owner!r}")
        named = [(decl.name_for(owner), decl) for decl in declarations(type(owner))]
        self._check_names(named)
        leaves: list[SysctlOid] = []
        for name, decl in named:
            oid = self._make(name, decl.number)
            oid.descr = decl.descr
            if decl.kind is not NODE:
                oid.decl, oid.owner = decl, owner
                leaves.append(oid)
        self._bound[id(owner)] = (owner, leaves)
        self.generation += 1

    def unregister(self, owner: object) -> None:
        """Take an object's variables out again, and the nodes that become empty.

        Raises:
            KError: ENOENT, the object is not registered.
        """
        entry = self._bound.pop(id(owner), None)
        if entry is None:
            raise KError(ENOENT, "not registered")
        for oid in entry[1]:
            oid.decl = oid.owner = None
            node: SysctlOid | None = oid
            while node is not None and node.parent is not None and not node.children:
                if node.parent is self._root and node.word in TOP_LEVEL:
                    break
                del node.parent.children[node.word]
                node = node.parent
        self.generation += 1

    def find(self, name: str) -> SysctlOid:
        """Find a leaf or node by its dotted name; the empty name is the root.

        Raises:
            KError: ENOENT, no such name; ENOTDIR, the name goes on below a leaf.
        """
        oid = self._root
        for word in name.split(".") if name else ():
            if oid.decl is not None:
                raise KError(ENOTDIR, f"{oid.name} is not a node")
            child = oid.children.get(word)
            if child is None:
                raise KError(ENOENT, f"unknown sysctl {name!r}")
            oid = child
        return oid

    def get(self, name: str) -> str:
        """Read a variable as text.

        Raises:
            KError: ENOENT, ENOTDIR, EISDIR, EPERM.
        """
        return self.find(name).get()

    def value(self, name: str) -> object:
        """Read a variable as the Python value it is.

        Raises:
            KError: ENOENT, ENOTDIR, EISDIR, EPERM.
        """
        return self.find(name).value()

    def set(self, name: str, text: str | int | bytes, cred: Ucred | None = None) -> None:
        """Change a variable; see `SysctlOid.set`.

        Raises:
            KError: ENOENT, ENOTDIR, EISDIR, EPERM, EINVAL or the setter's own error.
        """
        self.find(name).set(text, cred)

    def walk(self, prefix: str = "", *, nodes: bool = False) -> Iterator[SysctlOid]:
        """Visit the leaves below a name in the order of their numbers.

        Leaves flagged SKIP are left out unless the prefix names them. Registering while
        walking is allowed; what is new may or may not be seen.

        Args:
            prefix: where to start; the whole tree by default.
            nodes: visit inner nodes too, each before what is below it.

        Raises:
            KError: ENOENT or ENOTDIR for the prefix.
        """
        start = self.find(prefix)
        if start.decl is not None:
            yield start
            return
        stack = start.sorted_children()[::-1]
        while stack:
            oid = stack.pop()
            if oid.decl is not None:
                if not oid.decl.flags & SKIP:
                    yield oid
                continue
            if nodes:
                yield oid
            stack.extend(oid.sorted_children()[::-1])

    def name2oid(self, name: str) -> tuple[int, ...]:
        """Translate a name into its MIB numbers.

        Raises:
            KError: ENOENT or ENOTDIR.
        """
        return self.find(name).mib

    def oid2name(self, mib: tuple[int, ...]) -> str:
        """Translate MIB numbers into the name.

        Raises:
            KError: ENOENT, unknown or longer than CTL_MAXNAME.
        """
        oid = self._root
        for number in mib:
            child = next((c for c in oid.children.values() if c.number == number), None)
            if child is None:
                raise KError(ENOENT, f"unknown MIB {mib}")
            oid = child
        return oid.name

    def check_write(self, oid: SysctlOid, cred: Ucred | None) -> None:
        """Decide whether a write may go on; the kernel itself (None) skips privilege only.

        Raises:
            KError: EPERM.
        """
        flags = oid.flags
        locked = not flags & WR or (flags & SECURE and self.securelevel > 0)
        if locked or not (cred is None or flags & ANYBODY or self._may_write(cred, oid)):
            self.refused += 1
            raise KError(EPERM, f"{oid.name} may not be changed")

    def raise_securelevel(self, level: int) -> None:
        """Setter of kern.securelevel.

        Raises:
            KError: EPERM, the level would sink.
        """
        if level < self.securelevel:
            raise KError(EPERM, "the secure level cannot be lowered")
        self.securelevel = level

    def statistics(self) -> SysctlStatistics:
        """Count nodes and leaves and report the use made of them."""
        everything = list(self.walk(nodes=True))
        nodes = sum(1 for oid in everything if oid.is_node)
        leaves = sum(len(bound) for _, bound in self._bound.values())
        return SysctlStatistics(
            nodes, leaves, len(self._bound), self.reads, self.writes, self.refused, self.generation
        )

    def _check_names(self, named: list[tuple[str, Sysctl]]) -> None:
        """Validate a registration as a whole; raises ValueError before anything changed."""
        taken: dict[str, bool] = {}
        for name, decl in named:
            words = name.split(".")
            if len(words) > CTL_MAXNAME or not all(_WORD.match(word) for word in words):
                raise ValueError(f"bad sysctl name {name!r}")
            paths = [".".join(words[: i + 1]) for i in range(len(words))]
            for path in paths:
                leaf = path == name and decl.kind is not NODE
                present = self._lookup(path)
                clash = taken.get(path, leaf) != leaf or (leaf and path in taken)
                if clash or (present is not None and (leaf or present.decl is not None)):
                    raise ValueError(f"sysctl name taken: {path!r} (wanted for {name!r})")
                taken[path] = leaf
            parent = self._lookup(".".join(words[:-1]))
            used = {c.number for c in parent.children.values()} if parent is not None else set()
            if decl.number != OID_AUTO and decl.number in used and self._lookup(name) is None:
                raise ValueError(f"sysctl number {decl.number} of {name!r} is taken")

    def _lookup(self, name: str) -> SysctlOid | None:
        """Find by name without raising."""
        oid: SysctlOid | None = self._root
        for word in name.split(".") if name else ():
            oid = oid.children.get(word) if oid is not None else None
        return oid

    def _make(self, name: str, number: int) -> SysctlOid:
        """Walk down a name, making the nodes that are missing; the last gets the number."""
        oid = self._root
        words = name.split(".")
        for depth, word in enumerate(words):
            child = oid.children.get(word)
            if child is None:
                wanted = number if depth == len(words) - 1 else OID_AUTO
                if wanted == OID_AUTO:
                    wanted = oid.next_number
                    oid.next_number += 1
                child = oid.children[word] = SysctlOid(self, oid, word, wanted)
            oid = child
        return oid


def _root_may_write(cred: Ucred, oid: SysctlOid) -> bool:
    """Root may; a root inside a prison only where the leaf is made for prisons."""
    return cred.is_root and (cred.prison is None or bool(oid.flags & PRISON))
