"""``dfuser cat``: files out of an image, to stdout. Counterpart: cat(1)."""

from __future__ import annotations

import sys
from typing import Final

import click

from dfuser.libkern.errno import KError
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.node import Node
from dfuser.vfs.hammer2.ondisk.const import ObjType
from dfuser.vfs.hammer2.reader import Pfs

from .exits import CliError, ExitCode
from .image import Image, Verdict, damaged, image_options, parse_source, resolve, text, why
from .verb import verb

#: Bytes read at a time.
CHUNK: Final = 1 << 20


def pour(pfs: Pfs, node: Node, path: bytes) -> None:
    """Write a file's data to stdout.

    Raises:
        CliError: it is no file, or damaged; what was before the damage is written.
    """
    if node.meta.type != ObjType.REGFILE:
        kind = "a directory" if node.is_directory else "no regular file"
        raise CliError(ExitCode.SOURCE, f"{text(path)} is {kind}")
    at = 0
    out = sys.stdout.buffer
    try:
        while data := pfs.read(node, at, CHUNK):
            out.write(data)
            at += len(data)
    except MediaError:
        at = _to_the_damage(pfs, node, at)
    except KError as exc:
        raise damaged(f"{text(path)}: {why(exc)}") from None
    else:
        return
    out.flush()
    raise damaged(f"{text(path)}: damaged at byte {at} of {node.meta.size}; the rest is left out")


def _to_the_damage(pfs: Pfs, node: Node, at: int) -> int:
    """Write what is left before a damaged piece; where that begins."""
    piece = 1 << 16
    while True:
        try:
            data = pfs.read(node, at, piece - at % piece)
        except MediaError:
            return at
        if not data:
            return at
        sys.stdout.buffer.write(data)
        at += len(data)


@verb()
@click.argument("sources", metavar="IMAGE[@LABEL]:/PATH...", nargs=-1, required=True)
@image_options
def command(sources: tuple[str, ...], devices: tuple[str, ...], header: int | None) -> int:
    """Print files out of a HAMMER2 image; no mount, no root.

    A damaged file ends where the damage begins; 'dfuser cp' goes on behind it.

    Examples:
      dfuser cat disk.img@DATA:/etc/motd
      dfuser cat disk.img:/var/log/messages | less
    """
    verdict = Verdict()
    sys.stdout.flush()
    for given in sources:
        source = parse_source(given)
        try:
            if source.path is None:
                raise CliError(ExitCode.USAGE, f"{given} has no :/PATH")
            with Image(source.image, devices, header) as image:
                pfs = image.pfs(source.label)
                pour(pfs, resolve(pfs, source), source.path)
        except CliError as exc:
            verdict.tell(exc)
    sys.stdout.buffer.flush()
    return verdict.code
