"""How a class declares a sysctl variable: the immutable half of sysctl.

A declaration says where the value lives (an attribute, or a method that works it out),
what may be stored there, and who may do it. It holds no value and knows no kernel, so
one declaration serves every kernel of a process. What reads text and prints it is here
too, because that follows from the declaration alone.

Users import these names from `dfuser.libkern.sysctl`, where the tree is.

Counterpart: the SYSCTL_* macros and sysctl_handle_* (sys/sysctl.h, kern/kern_sysctl.c).
Differs from DragonFly: a declaration is bound to an attribute of an object, not to an
    address; a range can be declared instead of a handler being written for it.
Token/lock order: takes none.
Invariants: `check` answers a value inside the declared range or raises; `store` is only
    given such a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import Any, Final

from dfuser.libkern.errno import EINVAL, KError

OID_AUTO: Final = -1
"""The tree shall choose the number."""


class CtlType(IntEnum):
    """What a leaf holds; the numbers are the CTLTYPE_ ones (sys/sysctl.h)."""

    NODE = 0x01
    INT = 0x02
    STRING = 0x03
    QUAD = 0x04
    OPAQUE = 0x05
    UINT = 0x06
    LONG = 0x07
    ULONG = 0x08
    UQUAD = 0x09
    U8 = 0x0A
    U16 = 0x0B
    S8 = 0x0C
    S16 = 0x0D


class CtlFlag(IntFlag):
    """Who may do what; the numbers are the CTLFLAG_ ones (sys/sysctl.h)."""

    RD = 0x8000_0000
    WR = 0x4000_0000
    RW = 0xC000_0000
    ANYBODY = 0x1000_0000
    SECURE = 0x0800_0000
    PRISON = 0x0400_0000
    DYN = 0x0200_0000
    SKIP = 0x0100_0000


NODE: Final = CtlType.NODE
INT: Final = CtlType.INT
UINT: Final = CtlType.UINT
LONG: Final = CtlType.LONG
ULONG: Final = CtlType.ULONG
QUAD: Final = CtlType.QUAD
UQUAD: Final = CtlType.UQUAD
STRING: Final = CtlType.STRING
OPAQUE: Final = CtlType.OPAQUE

RD: Final = CtlFlag.RD
WR: Final = CtlFlag.WR
RW: Final = CtlFlag.RW
ANYBODY: Final = CtlFlag.ANYBODY
SECURE: Final = CtlFlag.SECURE
PRISON: Final = CtlFlag.PRISON
SKIP: Final = CtlFlag.SKIP

_RANGES: Final = MappingProxyType(
    {
        INT: (-(1 << 31), (1 << 31) - 1),
        UINT: (0, (1 << 32) - 1),
        LONG: (-(1 << 63), (1 << 63) - 1),
        ULONG: (0, (1 << 64) - 1),
        QUAD: (-(1 << 63), (1 << 63) - 1),
        UQUAD: (0, (1 << 64) - 1),
        CtlType.U8: (0, 255),
        CtlType.U16: (0, 65535),
        CtlType.S8: (-128, 127),
        CtlType.S16: (-32768, 32767),
    }
)
_FORMATS: Final = MappingProxyType(
    {NODE: "N", INT: "I", UINT: "IU", LONG: "L", ULONG: "LU", QUAD: "Q", UQUAD: "QU",
     STRING: "A", OPAQUE: "S", CtlType.U8: "CU", CtlType.U16: "SU", CtlType.S8: "C",
     CtlType.S16: "S"}
)  # fmt: skip
_NUMBER: Final = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\Z")
_STRING_MAX: Final = 4096

SysctlName = str | Callable[[Any], str]
Getter = str | Callable[[Any], object]


class Sysctl:
    """Declares one variable as part of the class that owns it. Immutable, holds no value.

    Counterpart: SYSCTL_INT, SYSCTL_PROC and their sisters (sys/sysctl.h).
    """

    __slots__ = ("attr", "descr", "flags", "fmt", "getter", "kind", "maximum", "minimum",
                 "name", "number", "render", "setter")  # fmt: skip

    def __init__(
        self,
        name: SysctlName,
        descr: str,
        *,
        attr: str | None = None,
        kind: CtlType = INT,
        flags: CtlFlag = RD,
        minimum: int | None = None,
        maximum: int | None = None,
        getter: Getter | None = None,
        setter: str | None = None,
        number: int = OID_AUTO,
        fmt: str | None = None,
        render: Callable[[Any], str] | None = None,
    ) -> None:
        """Declare a variable.

        Args:
            name: the dotted name, or a callable that makes it from the owning object.
            descr: one line for ``sysctl -d``.
            attr: attribute of the object that holds the value; dots reach into parts.
            kind: the type; NODE declares only the description of an inner node.
            flags: RD, WR or RW, with ANYBODY, SECURE, PRISON, SKIP added.
            minimum: smallest value (or shortest string) a writer may store.
            maximum: largest value (or longest string, in characters) he may store.
            getter: method name or callable that answers the value instead of `attr`.
            setter: method that is given the checked value instead of a store to `attr`.
            number: the number in the MIB, or OID_AUTO.
            fmt: format string as in oid_fmt, when the kind does not say it.
            render: makes the text of a value that is not a number or a string.

        Raises:
            ValueError: a leaf without attr and getter, or writable without a place.
        """
        if kind is not NODE and attr is None and getter is None:
            raise ValueError(f"sysctl {name}: neither attr nor getter")
        if flags & WR and kind is not NODE and attr is None and setter is None:
            raise ValueError(f"sysctl {name}: writable, but neither attr nor setter")
        low, high = _RANGES.get(kind, (0, _STRING_MAX))
        self.name = name
        self.descr = descr
        self.attr = attr
        self.kind = kind
        self.flags = flags
        self.minimum = low if minimum is None else minimum
        self.maximum = high if maximum is None else maximum
        self.getter = getter
        self.setter = setter
        self.number = number
        self.fmt = fmt or _FORMATS[kind]
        self.render = render

    def name_for(self, owner: object) -> str:
        """The dotted name this declaration gives to one owner."""
        return self.name if isinstance(self.name, str) else self.name(owner)

    def read(self, owner: object) -> object:
        """Read the live value. Never suspends."""
        if self.getter is not None:
            if callable(self.getter):
                return self.getter(owner)
            return getattr(owner, self.getter)()
        value: object = owner
        for part in (self.attr or "").split("."):
            value = getattr(value, part)
        return value

    def store(self, owner: object, value: object) -> None:
        """Store a checked value: by the setter, else into the attribute."""
        if self.setter is not None:
            getattr(owner, self.setter)(value)
            return
        *path, last = (self.attr or "").split(".")
        for part in path:
            owner = getattr(owner, part)
        if isinstance(getattr(owner, last), bool):
            value = bool(value)
        setattr(owner, last, value)

    def check(self, text: str | int | bytes) -> object:
        """Turn what a writer sent into a value of the kind, or refuse it.

        Numbers may be decimal, octal with a leading 0, hexadecimal with 0x, negative.

        Raises:
            KError: EINVAL, not a number, not a string, or out of range.
        """
        if self.kind in (NODE, OPAQUE):
            raise KError(EINVAL, f"{self.kind.name} cannot be set from text")
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        if self.kind is STRING:
            line = str(text).removesuffix("\n")
            if "\0" in line or not self.minimum <= len(line) <= self.maximum:
                raise KError(EINVAL, f"string must have {self.minimum} to {self.maximum} chars")
            return line
        value = text if isinstance(text, int) else _parse_number(text)
        if not self.minimum <= value <= self.maximum:
            raise KError(EINVAL, f"value must lie between {self.minimum} and {self.maximum}")
        return value

    def text(self, value: object) -> str:
        """Print a value the way sysctl(8) does."""
        if self.render is not None:
            return self.render(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return value.hex()
        if isinstance(value, int):
            return str(int(value))
        return str(value)

    def __repr__(self) -> str:
        """Name and kind."""
        return f"<Sysctl {self.name!r} {self.kind.name}>"


def _parse_number(text: str) -> int:
    """Read a number as strtol with base 0 does; anything else after it is an error."""
    word = text.strip()
    if not _NUMBER.match(word):
        raise KError(EINVAL, f"not a number: {word[:40]!r}")
    digits = word.lstrip("+-")
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    return int(word, base)


def declarations(cls: type) -> list[Sysctl]:
    """Collect the declarations of a class: attributes that are a `Sysctl` or a tuple of them.

    A subclass that binds the same attribute again replaces its parent's declaration.
    """
    seen: dict[str, list[Sysctl]] = {}
    for base in cls.__mro__:
        for key, entry in vars(base).items():
            if key in seen:
                continue
            if isinstance(entry, Sysctl):
                seen[key] = [entry]
            elif isinstance(entry, tuple) and entry and isinstance(entry[0], Sysctl):
                seen[key] = list(entry)
            else:
                seen[key] = []
    return [decl for group in seen.values() for decl in group]
