"""How a C structure becomes a Python record: the one description that parse, emit and tests share.

A `Layout` names the structure, the record class and the `struct.Struct`. Its leading fields are
the members of the structure in order; a record may have further fields for what follows the
structure on the wire (names, data). Padding and reserved members are ``x`` in the format: skipped
when read, zero when written.

All formats use ``=``: the host's byte order without hidden alignment, since the two ends of the
device are always one machine.

Counterpart: the structures of linux/fuse.h.
Invariants: ``layout.struct.size`` is the C size; a record made by `make` has the fields' order of
the wire, so it can be packed by unpacking it into `Layout.pack`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from struct import Struct, calcsize
from typing import Any, Final, NamedTuple

#: What requests and replies are read from. No memoryview: names are found with ``find``.
Buffer = bytes | bytearray
#: What may be written: anything ``writev`` takes.
Data = bytes | bytearray | memoryview

_TOKEN: Final = re.compile(r"(\d*)([a-zA-Z])")

#: Makes a NamedTuple from a tuple without the detour through its constructor.
make: Final = tuple.__new__


class WireError(ValueError):
    """The bytes are not what the protocol says: too short, too long, or contradicting themselves.

    The only exception that parsing raises, whatever the bytes are.
    """


class Layout(NamedTuple):
    """One structure of the protocol."""

    cname: str
    record: Any
    struct: Struct

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return self.struct.size

    def fields(self) -> Iterator[tuple[str, int, int]]:
        """Name, offset and size of each member that the record has, in order."""
        names = iter(self.record._fields)
        offset = 0
        for repeat, code in _TOKEN.findall(self.struct.format):
            width = calcsize("=" + code)
            if code in "xs":
                if code == "s":
                    yield next(names), offset, int(repeat or 1)
                offset += int(repeat or 1)
                continue
            for _ in range(int(repeat or 1)):
                yield next(names), offset, width
                offset += width

    def members(self) -> int:
        """How many leading fields of the record are members of the structure."""
        return sum(1 for _ in self.fields())

    def pack(self, *values: Any) -> bytes:
        """The structure as bytes.

        Raises:
            struct.error: a value does not fit its member; that is the caller's bug.
        """
        return self.struct.pack(*values)

    def unpack(self, data: Buffer, offset: int = 0) -> tuple[Any, ...]:
        """The members that lie at `offset`.

        Raises:
            WireError: the bytes end before the structure does.
        """
        if len(data) - offset < self.struct.size:
            raise WireError(f"{self.cname} needs {self.struct.size} bytes at {offset}")
        return self.struct.unpack_from(data, offset)

    def exact(self, data: Buffer, offset: int) -> Any:
        """The record that fills `data` from `offset` to its end.

        Raises:
            WireError: the bytes are fewer or more than the structure.
        """
        if len(data) - offset != self.struct.size:
            raise WireError(f"{self.cname} has {self.struct.size} bytes, not {len(data) - offset}")
        return make(self.record, self.struct.unpack_from(data, offset))


def align8(size: int) -> int:
    """The next multiple of eight. Counterpart: FUSE_REC_ALIGN (linux/fuse.h)."""
    return size + 7 & -8


def take_name(data: Buffer, start: int, end: int) -> bytes:
    """The name that lies from `start` to `end`, the last byte being its only NUL.

    Raises:
        WireError: there is no NUL, one in the middle, or nothing before it.
    """
    if end - start < 2 or data.find(0, start, end) != end - 1:
        raise WireError(f"no name between {start} and {end}")
    return bytes(data[start : end - 1])


def split_name(data: Buffer, start: int, end: int) -> tuple[bytes, int]:
    """The name that begins at `start`, and where the byte after its NUL lies.

    Raises:
        WireError: no NUL before `end`, or nothing before it.
    """
    at = data.find(0, start, end)
    if at <= start:
        raise WireError(f"no name at {start}")
    return bytes(data[start:at]), at + 1


def check_name(name: bytes) -> bytes:
    """A name that can be written.

    Raises:
        WireError: it is empty or has a NUL inside, so the reader would see another name.
    """
    if not name or 0 in name:
        raise WireError("a name must have bytes, and none of them NUL")
    return name


def total(buffers: Sequence[Data]) -> int:
    """How many bytes some buffers hold together."""
    return sum(map(len, buffers))
