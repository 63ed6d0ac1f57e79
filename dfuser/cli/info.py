"""``dfuser info``: headers, space and PFSs of images. Counterpart: hammer2 info, volhdr."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import click

from dfuser.vfs.hammer2.errors import VolumeError
from dfuser.vfs.hammer2.ondisk.const import PfsSubtype, PfsType, pfs_type
from dfuser.vfs.hammer2.reader import Pfs
from dfuser.vfs.hammer2.volume import HeaderCopy, Volume, open_volume

from .exits import CliError, ExitCode
from .image import Image, Verdict, named, open_device, text, uuid, when
from .output import Column, clean, dash, print_json, print_table, size, warn
from .talk import json_option
from .verb import verb

#: The share of the volume that only root may fill.
_RESERVE: Final = 20
COPIES: Final = (
    Column("device", "DEVICE"),
    Column("copy", "COPY", True),
    Column("offset", "OFFSET", True, hex),
    Column("mirror_tid", "MIRROR_TID", True, lambda tid: "-" if tid is None else f"{tid:#x}"),
    Column("state", "STATE"),
)
PFSS: Final = (
    Column("label", "LABEL"),
    Column("type", "TYPE"),
    Column("inodes", "INODES", True),
    Column("data_bytes", "DATA", True, size),
    Column("cluster_id", "CLUSTER"),
    Column("filesystem_id", "FSID"),
    Column("snapshot_tid", "SNAPSHOT_TID", True, dash),
)


def kind_of(pfs: Pfs) -> str:
    """The type of a PFS in DragonFly's words: MASTER, SNAPSHOT, SLAVE ..."""
    meta = pfs.root.meta
    number = pfs_type(meta.pfs_type)
    if number == PfsType.MASTER and meta.pfs_subtype:
        known = {int(sub): sub.name for sub in PfsSubtype}
        return known.get(meta.pfs_subtype, f"MASTER/{meta.pfs_subtype}")
    return {int(kind): kind.name for kind in PfsType}.get(number, f"{meta.pfs_type:#04x}")


def pfs_row(pfs: Pfs) -> dict[str, Any]:
    """What is told of a PFS."""
    meta = pfs.root.meta
    data_count, inode_count = pfs.root.bref.stats
    return {
        **named(pfs.label, "label"),
        "type": kind_of(pfs),
        "inodes": inode_count,
        "data_bytes": data_count,
        "cluster_id": uuid(meta.pfs_clid),
        "filesystem_id": uuid(meta.pfs_fsid),
        "snapshot_tid": meta.pfs_lsnap_tid,
        "next_inode": meta.pfs_inum + 1,
        "created": when(meta.btime or meta.ctime),
    }


def copy_row(volume: Volume, copy: HeaderCopy) -> dict[str, Any]:
    """What is told of one header copy, and why it counts or does not."""
    header = copy.header
    if copy.number == volume.best:
        state = "in use: the newest intact copy"
        if any(other.valid and other.header is not None and header is not None
               and other.header.mirror_tid > header.mirror_tid
               for other in volume.copies):  # fmt: skip
            state = "in use: asked for"
    elif copy.problem:
        state = copy.problem
    else:
        state = "intact, older"
        if header is not None and header.mirror_tid > volume.header.mirror_tid:
            state = "intact, newer"
    return {
        "device": clean(volume.device.name),
        "copy": copy.number,
        "offset": copy.offset,
        "mirror_tid": None if header is None else header.mirror_tid,
        "freemap_tid": None if header is None else header.freemap_tid,
        "valid": copy.valid,
        "used": copy.number == volume.best,
        "state": state,
    }


def describe(image: Image) -> dict[str, Any]:
    """Everything that is told of a volume."""
    volumes = image.volume.volumes
    header = image.volume.header
    lost: list[str] = []
    pfss = [
        pfs_row(pfs)
        for pfs in image.reader.pfs_list(lambda _, exc: lost.append(exc.strerror or str(exc)))
    ]
    return {
        "image": clean(image.volume.name),
        "size": image.volume.size,
        "version": header.version,
        "filesystem_id": uuid(header.fsid),
        "devices": [
            {
                "name": clean(one.device.name),
                "number": one.header.volu_id,
                "size": one.header.volu_size,
            }
            for one in volumes
        ],
        "headers": [copy_row(one, copy) for one in volumes for copy in one.copies],
        "single_header": any(len(one.copies) == 1 for one in volumes[:1]),
        "mirror_tid": header.mirror_tid,
        "freemap_tid": header.freemap_tid,
        "allocation": {
            "size": header.allocator_size,
            "free": header.allocator_free,
            "used": header.allocator_size - header.allocator_free,
            "reserve": header.allocator_size // _RESERVE,
            "first_byte": header.allocator_beg,
        },
        "boot_area": [header.boot_beg, header.boot_end],
        "aux_area": [header.aux_beg, header.aux_end],
        "pfss": pfss,
        "damage": lost,
    }


def show(row: dict[str, Any]) -> None:
    """Print what is told of a volume, for people."""
    space = row["allocation"]
    lines = (
        ("image", row["image"]),
        ("size", f"{row['size']} ({size(row['size'])})"),
        ("version", row["version"]),
        ("fsid", row["filesystem_id"]),
        ("mirror_tid", f"{row['mirror_tid']:#x}"),
        ("freemap_tid", f"{row['freemap_tid']:#x}"),
        ("allocatable", f"{space['size']} ({size(space['size'])})"),
        ("used", f"{space['used']} ({size(space['used'])})"),
        ("free", f"{space['free']} ({size(space['free'])}), {size(space['reserve'])} reserved"),
        ("labels", ", ".join(pfs["label"] for pfs in row["pfss"]) or "none"),
    )
    for name, value in lines:
        print(f"{name:<12} {text(os.fsencode(str(value)))}")
    print()
    print_table(row["headers"], COPIES)
    print()
    print_table(row["pfss"], PFSS)


def warnings(row: dict[str, Any]) -> None:
    """What is dangerous, on stderr."""
    if row["single_header"]:
        warn(
            f"{row['image']} is below 2 GiB and has one header, which each sync overwrites: "
            "a torn write of it loses the volume"
        )
    for told in row["damage"]:
        warn(f"{row['image']}: a PFS cannot be read: {told}")


def grouped(images: Sequence[str], verdict: Verdict) -> list[list[str]]:
    """The images, those that say they are devices of one volume together."""
    groups: dict[object, list[str]] = {}
    for name in images:
        try:
            fd, device = open_device(name)
        except CliError as exc:
            verdict.tell(exc)
            continue
        try:
            header = open_volume(device).header
        except VolumeError as exc:
            verdict.tell(CliError(ExitCode.SOURCE, exc.strerror))
        else:
            key: object = header.fsid if header.nvolumes > 1 else (len(groups), name)
            groups.setdefault(key, []).append(name)
        finally:
            os.close(fd)
    return list(groups.values())


@verb()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@json_option
def command(images: tuple[str, ...], as_json: bool) -> int:
    """Show the headers, space and PFSs of HAMMER2 images.

    Devices that say they belong to one volume are shown as one. The header that counts is the
    newest one that is intact.

    Examples:
      dfuser info disk.img
      dfuser info --json disk0.img disk1.img
    """
    verdict = Verdict()
    rows = []
    for names in grouped(images, verdict):
        try:
            with Image(names[0], names[1:]) as image:
                rows.append(describe(image))
        except CliError as exc:
            verdict.tell(exc)
    if as_json:
        print_json("volumes", rows)
    for number, row in enumerate(rows):
        if not as_json:
            if number:
                print()
            show(row)
        warnings(row)
        if row["damage"]:
            verdict.code = verdict.code or ExitCode.DAMAGED
    return verdict.code
