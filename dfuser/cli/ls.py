"""``dfuser ls``: files in an image. Counterpart: ls(1)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK, filemode
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import click

from dfuser.libkern.errno import KError
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.node import Node
from dfuser.vfs.hammer2.ondisk.const import ObjType
from dfuser.vfs.hammer2.reader import Pfs

from .exits import CliError
from .image import (
    Image,
    Meter,
    Source,
    Verdict,
    damaged,
    emit,
    image_options,
    named,
    parse_source,
    resolve,
    text,
    when,
)
from .output import print_json
from .talk import json_option
from .verb import verb

#: The types of stat(2) for those of the media.
MODES: Final = MappingProxyType(
    {
        int(ObjType.DIRECTORY): S_IFDIR,
        int(ObjType.REGFILE): S_IFREG,
        int(ObjType.FIFO): S_IFIFO,
        int(ObjType.CDEV): S_IFCHR,
        int(ObjType.BDEV): S_IFBLK,
        int(ObjType.SOFTLINK): S_IFLNK,
        int(ObjType.SOCKET): S_IFSOCK,
    }
)
_DEVICES: Final = (int(ObjType.CDEV), int(ObjType.BDEV))
_GAP: Final = 2


class Row(NamedTuple):
    """One file of a listing; ``node`` is None where the inode is damaged."""

    name: bytes
    inum: int
    node: Node | None


class Options(NamedTuple):
    """How a listing looks."""

    long: bool
    recursive: bool
    everything: bool
    itself: bool
    single: bool
    inodes: bool


class Listing:
    """Lists files of one PFS."""

    def __init__(self, pfs: Pfs, options: Options, verdict: Verdict) -> None:
        self._pfs = pfs
        self._options = options
        self._verdict = verdict
        self._meter = Meter()
        self._seen: set[int] = set()

    def tell(self, path: bytes, exc: KError) -> None:
        """Say that something below a path is damaged."""
        self._meter.clear()
        self._verdict.tell(damaged(f"{text(path)}: {exc.strerror}"))

    def directories(self, path: bytes, node: Node) -> Iterator[tuple[bytes, list[Row]]]:
        """A directory's path and rows; with -R those below it as well, parents first."""
        todo = [(path, node)]
        while todo:
            path, node = todo.pop()
            self._seen.add(node.meta.inum)
            rows = self._rows(path, node)
            yield path, rows
            if self._options.recursive:
                below = [
                    (path.rstrip(b"/") + b"/" + row.name, row.node)
                    for row in rows
                    if row.node is not None and row.node.is_directory
                    and row.name not in (b".", b"..") and row.node.meta.inum not in self._seen
                ]  # fmt: skip
                todo += reversed(below)

    def _rows(self, path: bytes, node: Node) -> list[Row]:
        """The rows of a directory by name."""
        rows = [Row(b".", node.meta.inum, node)] if self._options.everything else []
        if self._options.everything:
            rows.append(self._parent(node))
        wanted = self._options.long or self._options.recursive
        try:
            for entry in self._pfs.readdir(node, 0, lambda _, exc: self.tell(path, exc)):
                if entry.name.startswith(b".") and not self._options.everything:
                    continue
                below = self._node(path, entry) if wanted else None
                rows.append(Row(entry.name, entry.inum, below))
                self._meter.show(lambda: f"{text(path)}: {len(rows)} names")
        except MediaError as exc:
            self.tell(path, exc)
        rows.sort(key=lambda row: (row.name not in (b".", b".."), row.name))
        return rows

    def _parent(self, node: Node) -> Row:
        """The row of ``..``; the root is its own parent."""
        inum = node.meta.iparent or self._pfs.root.meta.inum
        if node is self._pfs.root:
            return Row(b"..", node.meta.inum, node)
        try:
            return Row(b"..", inum, self._pfs.inode(inum))
        except KError:
            return Row(b"..", inum, None)

    def _node(self, path: bytes, entry: Any) -> Node | None:
        try:
            return self._pfs.node(entry)
        except MediaError as exc:
            self.tell(path.rstrip(b"/") + b"/" + entry.name, exc)
            return None

    def target(self, row: Row) -> bytes | None:
        """Where a symbolic link points; None if it is none or cannot be read."""
        node = row.node
        if node is None or node.meta.type != ObjType.SOFTLINK:
            return None
        try:
            return self._pfs.readlink(node)
        except MediaError as exc:
            self.tell(row.name, exc)
            return None

    def as_json(self, path: bytes, row: Row) -> dict[str, Any]:
        """A row for programs."""
        out: dict[str, Any] = {**named(row.name), **named(path, "directory"), "inode": row.inum}
        node = row.node
        if node is None:
            return out
        meta = node.meta
        out |= {
            "type": _type_name(meta.type),
            "mode": meta.mode,
            "links": meta.nlinks,
            "uid": meta.unix_uid,
            "gid": meta.unix_gid,
            "size": meta.size,
            "modified": when(meta.mtime),
            "modified_usec": meta.mtime,
        }
        target = self.target(row)
        if target is not None:
            out |= named(target, "target")
        if meta.type in _DEVICES:
            out |= {"major": meta.rmajor, "minor": meta.rminor}
        return out

    def print_rows(self, rows: list[Row]) -> None:
        """Print rows as the options say."""
        self._meter.clear()
        out = sys.stdout.buffer
        sys.stdout.flush()
        if self._options.long:
            for line in self._long(rows):
                out.write(line + b"\n")
            return
        names = [emit(row.name) for row in rows]
        if self._options.inodes:
            width = max((len(str(row.inum)) for row in rows), default=0)
            names = [b"%*d %s" % (width, row.inum, name)
                     for row, name in zip(rows, names, strict=True)]  # fmt: skip
        if sys.stdout.isatty() and not self._options.single:
            names = list(columns(names, shutil.get_terminal_size().columns))
        for name in names:
            out.write(name + b"\n")

    def _long(self, rows: Iterable[Row]) -> Iterator[bytes]:
        """The lines of -l, their columns aligned."""
        cells = [self._cells(row) for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)] if cells else []
        for row, cell in zip(rows, cells, strict=True):
            sized = enumerate(zip(cell, widths, strict=True))
            words = [word.rjust(width) if at else word.ljust(width) for at, (word, width) in sized]
            if self._options.inodes:
                words.insert(0, f"{row.inum:>8}")
            target = self.target(row)
            arrow = b" -> " + emit(target) if target is not None else b""
            yield " ".join(words).encode() + b" " + emit(row.name) + arrow

    def _cells(self, row: Row) -> tuple[str, ...]:
        """Mode, links, owner, group, size, time of a row."""
        if row.node is None:
            return ("?" * 10, "?", "?", "?", "?", "?")
        meta = row.node.meta
        size = str(meta.size)
        if meta.type in _DEVICES:
            size = f"{meta.rmajor},{meta.rminor}"
        return (
            filemode(MODES.get(meta.type, 0) | meta.mode & 0o7777), str(meta.nlinks),
            str(meta.unix_uid), str(meta.unix_gid), size, when(meta.mtime)[:19],
        )  # fmt: skip


def _type_name(objtype: int) -> str:
    """The kind of a file in a word."""
    return ObjType(objtype).name.lower() if objtype in set(ObjType) else str(objtype)


def columns(names: list[bytes], width: int) -> Iterator[bytes]:
    """Names side by side, as many columns as a terminal of a width has room for."""
    shown = [name.decode(errors="replace") for name in names]
    most = max((len(name) for name in shown), default=0) + _GAP
    count = max(1, width // most)
    height = -(-len(shown) // count)
    for row in range(height):
        line = "".join(name.ljust(most) for name in shown[row::height])
        yield line.rstrip().encode()


@verb()
@click.argument("sources", metavar="IMAGE[@LABEL][:/PATH]...", nargs=-1, required=True)
@click.option("-l", "long", is_flag=True, help="Mode, links, owner, size, time; links' targets.")
@click.option("-R", "recursive", is_flag=True, help="Directories below as well.")
@click.option("-a", "everything", is_flag=True, help="Names that begin with a dot as well.")
@click.option("-d", "itself", is_flag=True, help="A directory itself, not what is in it.")
@click.option("-1", "single", is_flag=True, help="One name a line, on a terminal too.")
@click.option("-i", "inodes", is_flag=True, help="Inode numbers.")
@image_options
@json_option
def command(
    sources: tuple[str, ...], devices: tuple[str, ...], header: int | None, as_json: bool,
    **flags: bool,
) -> int:  # fmt: skip
    """List files in a HAMMER2 image; no mount, no root.

    Without a path the root of the PFS is listed. Times are UTC. A device of a volume of several
    is given with --device.

    Examples:
      dfuser ls disk.img
      dfuser ls -lR disk.img@DATA:/etc
      dfuser ls --device disk1.img disk0.img@ROOT:/
    """
    verdict = Verdict()
    options = Options(**flags)
    found: list[dict[str, Any]] = []
    for number, given in enumerate(sources):
        source = parse_source(given)
        try:
            with Image(source.image, devices, header) as image:
                listing = Listing(image.pfs(source.label), options, verdict)
                _list(listing, image.pfs(source.label), source, (given, number, len(sources)),
                      found if as_json else None)  # fmt: skip
        except CliError as exc:
            verdict.tell(exc)
    if as_json:
        print_json("files", found)
    return verdict.code


def _list(
    listing: Listing, pfs: Pfs, source: Source, place: tuple[str, int, int],
    found: list[dict[str, Any]] | None,
) -> None:  # fmt: skip
    """List one argument: into `found` for JSON, else on stdout."""
    given, number, count = place
    options = listing._options
    path = source.path or b"/"
    node = resolve(pfs, source, follow=not (options.long or options.itself))
    if options.itself or not node.is_directory:
        row = Row(path, node.meta.inum, node)
        if found is not None:
            found.append(listing.as_json(os.path.dirname(path), row))
        else:
            listing.print_rows([row])
        return
    if number and found is None:
        print()
    for turn, (where, rows) in enumerate(listing.directories(path, node)):
        if found is not None:
            found += [listing.as_json(where, row) for row in rows]
            continue
        if options.recursive or count > 1:
            if turn:
                print()
            title = where if count == 1 else os.fsencode(given) if not turn else where
            sys.stdout.flush()
            sys.stdout.buffer.write(emit(title) + b":\n")
        listing.print_rows(rows)
