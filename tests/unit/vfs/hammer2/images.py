"""Disk images in memory: the golden ones of tests/images, and damage done to them on the fly."""

from __future__ import annotations

import ast
import hashlib
import lzma
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from dfuser.vfs.hammer2.node import Node
from dfuser.vfs.hammer2.ondisk.const import ObjType
from dfuser.vfs.hammer2.reader import Pfs, Reader
from dfuser.vfs.hammer2.volume import Device, open_set

FOLDER = Path(__file__).resolve().parents[3] / "images"
#: Image and PFS of each manifest.
MANIFESTS = (
    ("lz4_xxhash", "DATA"),
    ("zlib_crc32", "DATA"),
    ("snapshots", "DATA"),
    ("snapshots", "snap2"),
    ("four_headers", "DATA"),
    ("fresh", "ROOT"),
)
NAMES = ("lz4_xxhash", "zlib_crc32", "snapshots", "four_headers", "fresh")
BLOCK = 65536
ZEROES = bytes(BLOCK)
LETTERS = {
    ObjType.DIRECTORY: "d",
    ObjType.REGFILE: "f",
    ObjType.SOFTLINK: "l",
    ObjType.FIFO: "p",
    ObjType.SOCKET: "s",
}


class SparseImage:
    """A disk image of which only the blocks that are not zero take memory."""

    def __init__(self, size: int, name: str = "image") -> None:
        self.size = size
        self.name = name
        self.blocks: dict[int, bytearray] = {}

    def write_at(self, offset: int, data: bytes) -> None:
        """Change bytes; what lies behind the end raises."""
        if offset + len(data) > self.size:
            raise ValueError("behind the end of the image")
        while data:
            block, at = divmod(offset, BLOCK)
            part = data[: BLOCK - at]
            self.blocks.setdefault(block, bytearray(BLOCK))[at : at + len(part)] = part
            offset, data = offset + len(part), data[len(part) :]

    def read_at(self, offset: int, size: int) -> bytes:
        """Bytes of the image; fewer at its end."""
        size = max(0, min(size, self.size - offset))
        block, at = divmod(offset, BLOCK)
        if at + size <= BLOCK:
            return bytes(memoryview(self.blocks.get(block, ZEROES))[at : at + size])
        first = BLOCK - at
        return self.read_at(offset, first) + self.read_at(offset + first, size - first)

    def device(self, size: int | None = None) -> Device:
        """The image as a device, or its first bytes only."""
        return Device(self.name, self.size if size is None else size, self.read_at)

    def flipped(self, offset: int, bit: int) -> Device:
        """The image with one bit changed, as a device."""

        def read_at(start: int, size: int) -> bytes:
            data = self.read_at(start, size)
            if not start <= offset < start + len(data):
                return data
            changed = bytearray(data)
            changed[offset - start] ^= 1 << bit
            return bytes(changed)

        return Device(self.name, self.size, read_at)

    def write_to(self, path: Path) -> None:
        """Make a sparse file of the image."""
        with path.open("wb") as out:
            out.truncate(self.size)
            for block, data in sorted(self.blocks.items()):
                out.seek(block * BLOCK)
                out.write(data[: self.size - block * BLOCK])

    def sha256(self) -> str:
        """The hash of all its bytes."""
        digest = hashlib.sha256()
        for block in range(self.size // BLOCK):
            digest.update(self.blocks.get(block, ZEROES))
        return digest.hexdigest()


@cache
def load(name: str) -> SparseImage:
    """A golden image; shared, so nobody may change it."""
    with lzma.open(FOLDER / f"{name}.ext.xz") as packed:
        image = SparseImage(*struct.unpack("<Q", packed.read(8)), name)
        while head := packed.read(12):
            offset, length = struct.unpack("<QI", head)
            image.write_at(offset, packed.read(length))
    return image


def reader(name: str) -> Reader:
    """A reader of its own for a golden image."""
    return Reader(open_set([load(name).device()]))


def manifest_lines(image: str, label: str) -> list[str]:
    """The lines that say what a PFS holds."""
    packed = (FOLDER / f"{image}.{label}.manifest.xz").read_bytes()
    return lzma.decompress(packed).decode().splitlines()


def path_of(line: str) -> bytes:
    """The path at the end of a line; a link's target before it is a literal as well."""
    found = line.rfind(" b'"), line.rfind(' b"')
    path: bytes = ast.literal_eval(line[max(found) + 1 :])
    return path.removeprefix(b"./")


def line_of(pfs: Pfs, path: bytes, node: Node) -> str:
    """The line of a manifest for one object."""
    meta = node.meta
    letter = LETTERS[ObjType(meta.type)]
    links, size, last = str(meta.nlinks), str(meta.size), "-"
    if letter == "d":
        links = size = "-"
    elif letter == "l":
        last = repr(pfs.readlink(node))
    elif letter == "f":
        last = content_hash(pfs, node)
    name = b"./" + path if path else b"."
    return (
        f"{letter} {meta.mode:04o} {meta.unix_uid} {meta.unix_gid} {links} {size} {meta.mtime} "
        f"{last} {name!r}"
    )


def content_hash(pfs: Pfs, node: Node) -> str:
    """The hash of a file's data, read in pieces of an odd size."""
    digest = hashlib.sha256()
    at = 0
    while data := pfs.read(node, at, 300_000):
        digest.update(data)
        at += len(data)
    return digest.hexdigest()


def lines_of(pfs: Pfs) -> Iterator[str]:
    """The manifest of a PFS as the reader sees it."""
    for path, node in pfs.walk():
        yield line_of(pfs, path, node)
