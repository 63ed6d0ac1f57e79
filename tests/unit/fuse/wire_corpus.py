"""The traffic of two real mounts, recorded by `test_wire_mount` on Linux 6.18 (protocol 7.45)."""

from __future__ import annotations

import lzma
import struct
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

PATH = Path(__file__).with_name("test_wire_traffic.xz")


class Recorded(NamedTuple):
    """One message: of which mount, whether the kernel said it, its bytes."""

    mount: int
    kernel: bool
    data: bytes

    @property
    def unique(self) -> int:
        """The request's number; 0 in a notification."""
        return int.from_bytes(self.data[8:16], "little")


@cache
def recorded() -> tuple[Recorded, ...]:
    """All messages, in order."""
    if sys.byteorder != "little":
        pytest.skip("the recording was made on a little-endian machine")
    raw, found, at = lzma.decompress(PATH.read_bytes()), [], 0
    head = struct.Struct("<BBI")
    while at < len(raw):
        number, kernel, size = head.unpack_from(raw, at)
        at += head.size
        found.append(Recorded(number, bool(kernel), raw[at : at + size]))
        at += size
    return tuple(found)
