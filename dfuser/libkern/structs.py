"""Records with a fixed layout in bytes: what C declares as a packed struct.

Disk structures, wire headers and messages to host programs are bytes in an order somebody
else has fixed. A record class says that order once::

    class Dirent(Record, endian="<"):
        ino: int = u64()
        namlen: int = u16()
        type: int = u8(default=0)
        name: bytes = chars(255)

and has a constructor, ``unpack_from(buffer, offset)``, ``pack()``, ``pack_into``, ``size``
and ``offset_of("name")``. Fields are plain attributes that may be changed; two records
are equal when all their fields are. `array` repeats a number, `nested` puts one record
into another, `pad` skips bytes (written as zeroes).

Counterpart: struct declarations with __packed; DragonFly's on-disk headers.
Differs from DragonFly: there is never hidden alignment, what is not declared is not
    there; byte order is part of the declaration.
Token/lock order: takes none.
Invariants: unpack(pack(r)) == r; size is the sum of the fields' sizes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final, Literal, Self, dataclass_transform

from dfuser.libkern.errno import EINVAL, EOVERFLOW, KError

Buffer = bytes | bytearray | memoryview
_MISSING: Final = object()


class Field:
    """One field of a record: its struct code, and how its value is loaded and dumped."""

    __slots__ = ("code", "default", "dump", "init", "load")

    def __init__(
        self,
        code: Callable[[str], str],
        default: object = _MISSING,
        load: Callable[[str, Any], object] | None = None,
        dump: Callable[[str, Any], object] | None = None,
        *,
        init: bool = True,
    ) -> None:
        """Describe a field.

        Args:
            code: makes the struct code; like `load` and `dump` it is given the byte order.
            default: the value when the constructor gets none.
            load: makes the field's value from what struct has read.
            dump: makes what struct shall write from the field's value.
            init: whether the constructor takes the field.
        """
        self.init = init
        self.code = code
        self.default = default
        self.load = load
        self.dump = dump


def _number(code: str, default: object) -> Any:
    """A field that is one number."""
    return Field(lambda _endian: code, default)


def u8(*, default: Any = _MISSING) -> Any:
    """An unsigned number of 8 bits."""
    return _number("B", default)


def u16(*, default: Any = _MISSING) -> Any:
    """An unsigned number of 16 bits."""
    return _number("H", default)


def u32(*, default: Any = _MISSING) -> Any:
    """An unsigned number of 32 bits."""
    return _number("I", default)


def u64(*, default: Any = _MISSING) -> Any:
    """An unsigned number of 64 bits."""
    return _number("Q", default)


def s8(*, default: Any = _MISSING) -> Any:
    """A signed number of 8 bits."""
    return _number("b", default)


def s16(*, default: Any = _MISSING) -> Any:
    """A signed number of 16 bits."""
    return _number("h", default)


def s32(*, default: Any = _MISSING) -> Any:
    """A signed number of 32 bits."""
    return _number("i", default)


def s64(*, default: Any = _MISSING) -> Any:
    """A signed number of 64 bits."""
    return _number("q", default)


def raw(size: int, *, default: Any = _MISSING) -> Any:
    """So many bytes exactly as they are; shorter values are filled with zeroes."""
    return Field(lambda _endian: f"{size}s", default, None, lambda _e, v: _fit(v, size))


def chars(size: int, *, default: Any = _MISSING) -> Any:
    """A string of at most so many bytes; it ends at its first NUL when unpacked."""
    return Field(
        lambda _endian: f"{size}s",
        default,
        lambda _e, v: v.partition(b"\0")[0],
        lambda _e, v: _fit(v, size),
    )


def array(element: Any, count: int, *, default: Any = _MISSING) -> Any:
    """A tuple of numbers: ``array(u32(), 4)``."""

    def form(endian: str) -> str:
        return f"{endian}{count}{element.code(endian)}"

    return Field(
        lambda endian: f"{struct.calcsize(form(endian))}s",
        default,
        lambda endian, v: struct.unpack(form(endian), v),
        lambda endian, v: struct.pack(form(endian), *v),
    )


def nested(cls: type[Record], count: int | None = None, *, default: Any = _MISSING) -> Any:
    """A record inside the record, in its own byte order; with a count, a tuple of them."""
    if count is None:
        return Field(
            lambda _endian: f"{cls.size}s",
            default,
            lambda _e, v: cls.unpack_from(v),
            lambda _e, v: v.pack(),
        )
    return Field(
        lambda _endian: f"{cls.size * count}s",
        default,
        lambda _e, v: tuple(cls.iter_unpack(v)),
        lambda _e, v: _fit(b"".join(r.pack() for r in v), cls.size * count, exact=True),
    )


def pad(size: int, *, init: Literal[False] = False) -> Any:
    """Bytes nobody reads; written as zeroes. No part of the constructor, always None."""
    return Field(
        lambda _endian: f"{size}s", None, lambda _e, _v: None, lambda _e, _v: b"", init=init
    )


def _fit(value: bytes, size: int, *, exact: bool = False) -> bytes:
    """Refuse bytes that do not fit, which struct would cut silently."""
    if len(value) > size or (exact and len(value) != size):
        raise KError(EOVERFLOW, f"{len(value)} bytes for a field of {size}")
    return value


@dataclass_transform(
    field_specifiers=(u8, u16, u32, u64, s8, s16, s32, s64, raw, chars, array, nested, pad)
)
class RecordMeta(type):
    """Turns the declared fields into slots and builds the struct.Struct."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], endian: str = "<"
    ) -> RecordMeta:
        """Make a record class; endian is ``<`` (little) or ``>`` (big)."""
        if endian not in ("<", ">"):
            raise ValueError("endian must be '<' or '>'")
        fields = {key: value for key, value in namespace.items() if isinstance(value, Field)}
        for key in fields:
            del namespace[key]
        namespace["__slots__"] = tuple(fields)
        cls = super().__new__(mcs, name, bases, namespace)
        cls.fields = fields
        cls.names = tuple(key for key, field in fields.items() if field.init)
        cls.endian = endian
        cls.layout = struct.Struct(endian + "".join(f.code(endian) for f in fields.values()))
        cls.size = cls.layout.size
        return cls

    fields: dict[str, Field]
    names: tuple[str, ...]
    endian: str
    layout: struct.Struct
    size: int


class Record(metaclass=RecordMeta):
    """Base of all records; see the head of this module for how to declare one."""

    size: ClassVar[int]
    __hash__: ClassVar[None]  # type: ignore[assignment]  # fields change, so no hash

    def __init__(self, *args: object, **values: object) -> None:
        """Make a record from its fields, by place or by name.

        Raises:
            TypeError: a field is missing, unknown, or given twice.
        """
        names = type(self).names
        if len(args) > len(names):
            raise TypeError(f"{type(self).__name__} has {len(names)} fields")
        given = dict(zip(names, args, strict=False))
        twice = given.keys() & values.keys()
        unknown = values.keys() - set(names)
        if twice or unknown:
            raise TypeError(f"fields given twice: {sorted(twice)}, unknown: {sorted(unknown)}")
        given.update(values)
        for key, field in type(self).fields.items():
            value = given.get(key, field.default)
            if value is _MISSING:
                raise TypeError(f"{type(self).__name__} needs {key}")
            setattr(self, key, value)

    @classmethod
    def unpack_from(cls, buffer: Buffer, offset: int = 0) -> Self:
        """Read a record out of a buffer.

        Raises:
            KError: EINVAL, the buffer ends before the record does.
        """
        if offset < 0 or len(buffer) - offset < cls.size:
            raise KError(EINVAL, f"{cls.__name__} needs {cls.size} bytes at {offset}")
        return cls._make(cls.layout.unpack_from(buffer, offset))

    @classmethod
    def iter_unpack(cls, buffer: Buffer) -> Iterator[Self]:
        """Read records that lie one behind the other.

        Raises:
            KError: EINVAL, the buffer does not hold a whole number of them.
        """
        if len(buffer) % cls.size:
            raise KError(EINVAL, f"not a whole number of {cls.__name__}")
        return (cls._make(values) for values in cls.layout.iter_unpack(buffer))

    @classmethod
    def offset_of(cls, name: str) -> int:
        """The byte at which a field begins.

        Raises:
            KeyError: there is no such field.
        """
        names = list(cls.fields)
        if name not in cls.fields:
            raise KeyError(name)
        before = (cls.fields[key].code(cls.endian) for key in names[: names.index(name)])
        return struct.calcsize(cls.endian + "".join(before))

    @classmethod
    def _make(cls, values: tuple[Any, ...]) -> Self:
        """Fill a record from the values struct has read."""
        record = cls.__new__(cls)
        for (key, field), value in zip(cls.fields.items(), values, strict=True):
            setattr(record, key, value if field.load is None else field.load(cls.endian, value))
        return record

    def pack(self) -> bytes:
        """Write the record as bytes.

        Raises:
            KError: EOVERFLOW, a value does not fit its field.
        """
        cls = type(self)
        values: list[object] = []
        try:
            for key, field in cls.fields.items():
                value = getattr(self, key)
                values.append(value if field.dump is None else field.dump(cls.endian, value))
            return cls.layout.pack(*values)
        except struct.error as exc:
            raise KError(EOVERFLOW, f"{cls.__name__}: {exc}") from None

    def pack_into(self, buffer: bytearray | memoryview, offset: int = 0) -> None:
        """Write the record into a buffer; nothing is written when it does not fit.

        Raises:
            KError: EOVERFLOW, a value does not fit its field; EINVAL, no room.
        """
        data = self.pack()
        if offset < 0 or len(buffer) - offset < len(data):
            raise KError(EINVAL, f"no room for {type(self).__name__} at {offset}")
        buffer[offset : offset + len(data)] = data

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed."""
        values = {key: getattr(self, key) for key in type(self).names}
        return type(self)(**(values | changes))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, key) == getattr(other, key) for key in type(self).fields)

    def __repr__(self) -> str:
        parts = (f"{key}={getattr(self, key)!r}" for key in type(self).names)
        return f"{type(self).__name__}({', '.join(parts)})"
