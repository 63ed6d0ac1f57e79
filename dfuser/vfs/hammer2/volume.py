"""Volumes: which copy of the header counts, and how devices make one volume.

Up to four copies of the header lie 2 GiB apart. Each flush writes the next one, so at any time one
is the newest, and one may be torn. A copy counts if its magic number and its three CRCs hold; of
those the one with the highest mirror_tid is the volume. A device below 2 GiB + 4 MiB has one copy
only, overwritten in place.

Version 1 is one device. Version 2 is up to 64; the blocks of all are numbered through. Device 0
has the header that matters; the others' headers say which part of the volume they are, and all
must be there. Blocks never cross devices, for each begins at a multiple of 1 GiB.

What is refused, in one sentence: no magic number, the other byte order, no intact copy, a version
nobody knows, a device shorter than its header says, devices missing, given twice, or of different
volumes.

Counterpart: hammer2_install_volume_header (vfs/hammer2/hammer2_vfsops.c).
Differs from DragonFly: the CRC over the whole header must hold too, since the freemap's blockset
    has no other. Sets of devices are DragonFly's volume version 2, younger than the sources of
    2020.
Token/lock order: takes none. Reading is a callable handed in; nothing here waits by itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from attrs import frozen

from dfuser.libkern.errno import EINVAL, EIO
from dfuser.vfs.hammer2.errors import VolumeError
from dfuser.vfs.hammer2.ondisk.const import (
    MAX_VOLUMES,
    NUM_VOLHDRS,
    RESERVE_SPACING,
    VOL_VERSION_MAX,
    VOL_VERSION_MIN,
    VOL_VERSION_MULTI_VOLUMES,
    VOLUME_BYTES,
    VOLUME_ID_ABO,
    VOLUME_ID_HBO,
)
from dfuser.vfs.hammer2.ondisk.geometry import header_offset
from dfuser.vfs.hammer2.ondisk.volhdr import FSTYPE, VolumeData, wrong_icrc

#: Reads `size` bytes at `offset`. Fewer come at the end; what cannot be read raises OSError.
ReadAt = Callable[[int, int], bytes]


class Device(NamedTuple):
    """Something that bytes are read from: an image file, a disk."""

    name: str
    size: int
    read_at: ReadAt


class HeaderCopy(NamedTuple):
    """One of the places where a header lies, and what was found there."""

    number: int
    offset: int
    header: VolumeData | None
    problem: str

    @property
    def valid(self) -> bool:
        """Whether this copy may be used."""
        return not self.problem


class Volume(NamedTuple):
    """One device with its headers read."""

    device: Device
    copies: tuple[HeaderCopy, ...]
    best: int
    header: VolumeData


def read_header(device: Device, number: int) -> HeaderCopy:
    """Look at one place of a header; whatever is there, it does not raise."""
    offset = header_offset(number)
    try:
        data = bytes(device.read_at(offset, VOLUME_BYTES))
    except OSError as exc:
        return HeaderCopy(number, offset, None, f"cannot be read ({exc.strerror or exc})")
    if len(data) != VOLUME_BYTES:
        return HeaderCopy(number, offset, None, "lies behind the end of the device")
    magic = int.from_bytes(data[:8], "little")
    if magic == VOLUME_ID_ABO:
        return HeaderCopy(number, offset, None, "has the other byte order")
    if magic != VOLUME_ID_HBO:
        return HeaderCopy(number, offset, None, "has no magic number")
    header = VolumeData.unpack_from(data)
    wrong = wrong_icrc(data, header)
    return HeaderCopy(number, offset, header, f"has a wrong CRC of {wrong}" if wrong else "")


def read_headers(device: Device) -> tuple[HeaderCopy, ...]:
    """All places of a header that lie on a device: none to four."""
    return tuple(
        read_header(device, number)
        for number in range(NUM_VOLHDRS)
        if header_offset(number) + VOLUME_BYTES <= device.size
    )


def _why_none(device: Device, copies: Sequence[HeaderCopy]) -> VolumeError:
    """The sentence for a device without a valid header."""
    name = device.name
    if not copies:
        return VolumeError(f"{name} has {device.size} bytes, too few for that HAMMER2 header")
    if any(copy.problem == "has the other byte order" for copy in copies):
        return VolumeError(f"{name} was made on a machine with the other byte order")
    if all(copy.problem == "has no magic number" for copy in copies):
        return VolumeError(f"{name} is no HAMMER2 volume: no header has its magic number")
    told = ", ".join(f"copy {copy.number} {copy.problem}" for copy in copies)
    unreadable = all(copy.problem.startswith("cannot be read") for copy in copies)
    return VolumeError(
        f"{name} has no intact HAMMER2 header: {told}", EIO if unreadable else EINVAL
    )


def open_volume(device: Device, number: int | None = None) -> Volume:
    """Read a device's headers and choose the one that counts.

    Args:
        device: what to read.
        number: choose this copy, however old it is; None for the newest intact one.

    Raises:
        VolumeError: there is none, or it says what this program cannot serve. EINVAL; EIO if
            nothing could be read.
    """
    copies = read_headers(device)
    best: tuple[int, VolumeData] | None = None
    for copy in copies:
        if not copy.valid or copy.header is None or number not in (None, copy.number):
            continue
        if best is None or best[1].mirror_tid < copy.header.mirror_tid:
            best = copy.number, copy.header
    if best is None:
        asked = [copy for copy in copies if number in (None, copy.number)]
        raise _why_none(device, asked)
    _check_header(device, best[1])
    return Volume(device, copies, *best)


def _check_header(device: Device, header: VolumeData) -> None:
    """Refuse an intact header that cannot be served."""
    if header.version > VOL_VERSION_MAX:
        raise VolumeError(
            f"{device.name} has HAMMER2 version {header.version}, newer than {VOL_VERSION_MAX}"
        )
    if header.version < VOL_VERSION_MIN:
        raise VolumeError(f"{device.name} has HAMMER2 version {header.version}, which never was")
    if header.fstype != FSTYPE:
        raise VolumeError(f"{device.name} says that its file system is not HAMMER2")
    if header.nvolumes > MAX_VOLUMES:
        raise VolumeError(f"{device.name} says that it is one of {header.nvolumes} devices")
    if header.volu_size > device.size:
        raise VolumeError(
            f"{device.name} is truncated: {device.size} bytes of a volume of {header.volu_size}"
        )
    if header.volu_size < VOLUME_BYTES:
        raise VolumeError(f"{device.name} says that its volume has {header.volu_size} bytes")


@frozen
class VolumeSet:
    """A whole volume: its devices in order, and one run of bytes over all of them."""

    volumes: tuple[Volume, ...]
    starts: tuple[int, ...]
    size: int

    @property
    def header(self) -> VolumeData:
        """The header that counts: of device 0."""
        return self.volumes[0].header

    @property
    def name(self) -> str:
        """What the volume is called: the names of its devices, joined as DragonFly does."""
        return ":".join(volume.device.name for volume in self.volumes)

    def read_at(self, offset: int, size: int) -> bytes:
        """Read bytes of the volume; they must lie on one device.

        Raises:
            OSError: what the device's own reading raises.
        """
        if len(self.volumes) == 1:
            return self.volumes[0].device.read_at(offset, size)
        index = bisect_right(self.starts, offset) - 1
        return self.volumes[index].device.read_at(offset - self.starts[index], size)


def open_set(devices: Sequence[Device], number: int | None = None) -> VolumeSet:
    """Make a volume of its devices, given in any order.

    Args:
        devices: all devices of the volume.
        number: which header copy counts; None for the newest of each device.

    Raises:
        VolumeError: a device is refused (see `open_volume`), or they do not make a volume.
    """
    if not devices:
        raise VolumeError("a volume needs a device")
    volumes = [open_volume(device, number) for device in devices]
    first = volumes[0]
    if first.header.version < VOL_VERSION_MULTI_VOLUMES:
        if len(volumes) > 1:
            raise VolumeError(
                f"{first.device.name} is a volume of one device; {len(volumes)} given"
            )
        return VolumeSet((first,), (0,), first.header.volu_size)
    _check_members(volumes)
    volumes.sort(key=lambda volume: volume.header.volu_id)
    return VolumeSet(tuple(volumes), *_check_layout(volumes))


def _check_members(volumes: Sequence[Volume]) -> None:
    """Refuse devices of different volumes, given twice, or missing."""
    first = volumes[0]
    seen: dict[int, str] = {}
    for volume in volumes:
        name, header = volume.device.name, volume.header
        if (header.fsid, header.version, header.nvolumes) != (
            first.header.fsid,
            first.header.version,
            first.header.nvolumes,
        ):
            raise VolumeError(f"{name} and {first.device.name} are of different volumes")
        if header.volu_id in seen:
            twice = f"{seen[header.volu_id]}, {name}"
            raise VolumeError(f"device {header.volu_id} was given twice: {twice}")
        seen[header.volu_id] = name
    count = first.header.nvolumes
    missing = [number for number in range(count) if number not in seen]
    if missing or len(volumes) != count:
        told = ", ".join(map(str, missing)) or "none"
        raise VolumeError(
            f"{first.device.name} is one of {count} devices, {len(volumes)} given; missing: {told}"
        )


def _check_layout(volumes: Sequence[Volume]) -> tuple[tuple[int, ...], int]:
    """Where each device begins, and the size of all; refuses gaps and overlaps."""
    root = volumes[0].header
    end = 0
    for number, volume in enumerate(volumes):
        name, size = volume.device.name, volume.header.volu_size
        if root.volu_loff[number] != end or end % RESERVE_SPACING:
            raise VolumeError(f"{name} does not begin where the device before it ends")
        end += size
    if end != root.total_size:
        raise VolumeError(f"the devices have {end} bytes, their volume {root.total_size}")
    return tuple(root.volu_loff[: len(volumes)]), end
