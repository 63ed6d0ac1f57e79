"""``dfuser newfs``: make a HAMMER2 volume in an image. Counterpart: newfs_hammer2(8)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from dfuser.vfs.hammer2.ondisk.const import CHECK_STRINGS, COMP_STRINGS
from dfuser.vfs.hammer2.ondisk.geometry import header_slots

from .exits import CliError, ExitCode
from .image import text
from .output import size as in_words
from .output import warn
from .talk import json_option
from .verb import verb

if TYPE_CHECKING:
    from dfuser.hw.disk.image import ImageDisk

#: The least size with four header copies, which a volume needs to survive a power cut.
DEFAULT_SIZE: Final = "8g"
_ALIGN: Final = 8 << 20


def _size(words: str) -> int:
    """Bytes of a new image, in whole 8 MiB. Raises `CliError`."""
    from dfuser.boot.config import parse_size

    try:
        found = parse_size(words) // _ALIGN * _ALIGN
    except ValueError as error:
        raise CliError(ExitCode.USAGE, f"--size: {error}") from None
    if not found:
        raise CliError(ExitCode.USAGE, f"--size {words} is less than 8m")
    return found


def _open(path: str, words: str | None, force: bool, stack: contextlib.ExitStack) -> ImageDisk:
    """The image to write, made if it is not there."""
    from dfuser.hw.disk.image import ImageDisk
    from dfuser.libkern.errno import KError

    if os.path.exists(path) and not force:
        raise CliError(
            ExitCode.USAGE, f"{path} exists: what is in it would be lost; use --force, or rm it"
        )
    try:
        if os.path.exists(path):
            if words is not None and os.path.isfile(path):
                os.truncate(path, _size(words))
            disk = ImageDisk.open(path)
        else:
            disk = ImageDisk.create(path, _size(words or DEFAULT_SIZE))
    except KError as error:
        raise CliError(ExitCode.SOURCE, str(error.strerror)) from None
    except OSError as error:
        raise CliError(ExitCode.SOURCE, f"{path}: {error.strerror}") from None
    stack.callback(disk.close)
    return disk


@verb()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("-L", "--label", "labels", multiple=True, metavar="LABEL",
              help="A PFS to make beside LOCAL (default: DATA); up to three.")  # fmt: skip
@click.option("-s", "--size", "words", metavar="SIZE",
              help=f"Of each new image, sparse (default {DEFAULT_SIZE}).")  # fmt: skip
@click.option("--compress", type=click.Choice(COMP_STRINGS), default="lz4", show_default=True)
@click.option("--check", type=click.Choice(CHECK_STRINGS), default="xxhash64", show_default=True)
@click.option("-V", "--version", "version", type=click.Choice(("1", "2")), default="2",
              help="Of the format; 1 is for old systems (default: 2).")  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Write over an image that exists.")
@json_option
def command(
    images: Sequence[str], labels: Sequence[str], words: str | None, compress: str, check: str,
    version: str, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make a HAMMER2 volume in an image, or over several.

    A volume of 8 GiB or more has four copies of its header and loses nothing at a power cut; one
    below 2 GiB has a single copy, which is overwritten in place. The image is sparse: it takes
    room as it is filled.

    Examples:
      dfuser newfs disk.img
      dfuser newfs -s 20g -L ROOT -L BUILD disk.img && dfuser info disk.img
    """
    from dfuser.hw.entropy import HostEntropy
    from dfuser.libkern.errno import KError
    from dfuser.vfs.hammer2.io import DiskDevice
    from dfuser.vfs.hammer2.newfs import newfs

    names = tuple(os.fsencode(label) for label in labels) or (b"DATA",)
    with contextlib.ExitStack() as stack:
        disks = [_open(path, words, force, stack) for path in images]
        try:
            header = newfs(
                [DiskDevice(disk) for disk in disks], names, clock=time.time_ns,
                entropy=HostEntropy().read, version=int(version), comp=COMP_STRINGS.index(compress),
                check=CHECK_STRINGS.index(check),
            )  # fmt: skip
        except KError as error:
            raise CliError(ExitCode.USAGE, str(error.strerror)) from None
        total = sum(disk.size for disk in disks)
        single = header_slots(disks[0].size) == 1
    if as_json:
        _print(images, names, total, header.allocator_free)
        return
    shown = ", ".join(text(name) for name in (b"LOCAL", *names))
    click.echo(f"{' '.join(images)}: {in_words(total)}, PFSs {shown}")
    if single:
        warn("one header copy only: a power cut while it is written can lose the volume")


def _print(images: Sequence[str], names: Sequence[bytes], total: int, free: int) -> None:
    from .output import print_json

    labels = [text(name) for name in names]
    record = {"images": list(images), "labels": labels, "bytes": total, "free_bytes": free}
    print_json("volume", record)
