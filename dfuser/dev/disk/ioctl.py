"""Asking about slices and labels: DIOCGPART and its relatives.

====================  =======  ================================================================
number                device   what it does
====================  =======  ================================================================
DIOCGPART             any      where the device lies, its sector size, type and UUIDs
DIOCGDINFO32/64       slice    the label; ENOATTR if it has the other kind
DIOCGDVIRGIN32/64     slice    a label to start from
DIOCSDINFO32/64       slice    use this label from now on
DIOCWDINFO32/64       slice    the same, and write it to the medium
DIOCWLABEL            slice    whether the label's place may be written
DIOCGSLICEINFO        any      the table of slices
DIOCSYNCSLICEINFO     disk     probe again; EBUSY if anything but the disk is open and the
                               argument is 0
====================  =======  ================================================================

A new label must leave every open partition what it is; it may make it larger.

Counterpart: dsioctl (kern/subr_diskslice.c), sys/diskslice.h, sys/disklabel32.h,
    sys/disklabel64.h.
Differs from DragonFly: the label is flushed after it was written; struct diskslices is given with
    its pointers zero and at most 16 slices.
Token and lock order: takes none. What must wait is a `Job`, and the core raises Block.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from dfuser.libkern.errno import (
    EBADF,
    EBUSY,
    EINVAL,
    ENOATTR,
    ENODEV,
    ENXIO,
    KError,
)
from dfuser.libkern.fcntl import FWRITE
from dfuser.lwkt.block import Block

from . import disklabel32, disklabel64
from .bio import BufCmd
from .disklabel32 import Disklabel32
from .disklabel64 import Disklabel64
from .jobs import Steps, Transfer, read_label
from .label import MAXPARTITIONS, Disklabel, LabelError, PartitionKind
from .slices import WHOLE_SLICE_PART, Diskslice, Diskslices
from .table import DSO_COMPATLABEL, MAX_SLICES, WHOLE_DISK_SLICE, DiskInfo

if TYPE_CHECKING:
    from dfuser.dev.devsw import Buffer

    from .diskdev import DiskNode
    from .layer import DiskLayer
    from .physio import DiskFile

_PARTINFO: Final = struct.Struct("<QQQi4xQi16xIIII32x16s16s4x")
_SLICES: Final = struct.Struct("<8xIIIiii")
_SLICE: Final = struct.Struct("<8xQQI16s16sii4x8x8x128x8IB3xi")
_INT: Final = struct.Struct("<i")


# 'd' 101 to 112; the length of the label says which kind is meant.
DIOCGDINFO32: Final = 0x41946465
DIOCGDINFO64: Final = 0x46C86465
DIOCSDINFO32: Final = 0x81946466
DIOCSDINFO64: Final = 0x86C86466
DIOCWDINFO32: Final = 0x81946467
DIOCWDINFO64: Final = 0x86C86467
DIOCGPART: Final = 0x40906468
DIOCGDVIRGIN32: Final = 0x41946469
DIOCGDVIRGIN64: Final = 0x46C86469
DIOCWLABEL: Final = 0x8004646D
DIOCGSLICEINFO: Final = 0x5020646F
DIOCSYNCSLICEINFO: Final = 0x80046470


class _Call:
    """One ioctl: what it is asked of, and what it needs to know."""

    __slots__ = ("file", "info", "layer", "node", "slices", "sp")

    def __init__(self, layer: DiskLayer, node: DiskNode, file: DiskFile) -> None:
        """Gather.

        Raises:
            KError: ENXIO, the disk has not been probed; EINVAL, the slice is gone.
        """
        disk = node.disk
        if disk.slices is None or disk.info is None:
            raise KError(ENXIO)
        sp = disk.slices.get(node.slot)
        if sp is None:
            raise KError(EINVAL)
        self.layer = layer
        self.node = node
        self.file = file
        self.slices: Diskslices = disk.slices
        self.info: DiskInfo = disk.info
        self.sp: Diskslice = sp

    @property
    def whole_disk(self) -> bool:
        """Whether it is asked of the disk itself."""
        return self.node.slot == WHOLE_DISK_SLICE

    def need_whole_slice(self) -> None:
        """Refuse partitions.

        Raises:
            KError: EINVAL.
        """
        if self.node.part != WHOLE_SLICE_PART:
            raise KError(EINVAL)

    def run(self, key: Any, steps: Steps) -> Any:
        """Do work that may have to wait.

        Raises:
            Block: it is under way.
            KError: it failed.
        """
        job = self.file.jobs.get(key)
        if job is None:
            job = self.layer.start_job(self.node.disk, steps)
            self.file.jobs[key] = job
        if not job.done:
            raise Block(job.wait, "dskioc")
        del self.file.jobs[key]
        if job.error is not None:
            raise KError(job.error.errno, job.error.strerror)
        return job.result


def dsioctl(
    layer: DiskLayer, node: DiskNode, cmd: int, data: Buffer, fflag: int, file: DiskFile
) -> bytes | None:
    """Answer an ioctl; None where it is not ours to answer.

    Raises:
        Block: the disk must be waited for.
        KError: as the table at the head of the module says.

    Counterpart: dsioctl.
    """
    if cmd >> 8 & 0xFF != ord("d"):
        return None
    call = _Call(layer, node, file)
    if cmd in (DIOCGDVIRGIN32, DIOCGDVIRGIN64):
        return _virgin(call, wide=cmd == DIOCGDVIRGIN64)
    if cmd in (DIOCGDINFO32, DIOCGDINFO64):
        return _get_label(call, wide=cmd == DIOCGDINFO64)
    if cmd == DIOCGPART:
        return _getpart(call)
    if cmd == DIOCGSLICEINFO:
        return _sliceinfo(call)
    if cmd in (DIOCSDINFO32, DIOCSDINFO64, DIOCWDINFO32, DIOCWDINFO64):
        wide = cmd in (DIOCSDINFO64, DIOCWDINFO64)
        _set_label(call, bytes(data), fflag, wide=wide, write=cmd in (DIOCWDINFO32, DIOCWDINFO64))
        return b""
    if cmd == DIOCWLABEL:
        return _wlabel(call, bytes(data), fflag)
    if cmd == DIOCSYNCSLICEINFO:
        return _sync_slices(call, bytes(data))
    return None


def _virgin(call: _Call, *, wide: bool) -> bytes:
    if not call.whole_disk:
        call.need_whole_slice()
    extent = call.slices.extent(call.sp)
    if wide:
        return disklabel64.makevirginlabel(call.info, extent, uuid4).pack()
    return disklabel32.makevirginlabel(call.info, extent).pack()


def _get_label(call: _Call, *, wide: bool) -> bytes:
    call.need_whole_slice()
    if call.whole_disk and not call.info.dsflags & DSO_COMPATLABEL:
        raise KError(ENODEV)
    label = _load_label(call)
    if label is None:
        raise KError(EINVAL, "no disk label")
    if label.bits != (64 if wide else 32):
        raise KError(ENOATTR)
    return label.pack()


def _load_label(call: _Call) -> Disklabel | None:
    """The label of the slice; read from the medium if it is not known."""
    if call.sp.label is None and not call.whole_disk:
        call.run("read", _read_steps(call))
    return call.sp.label


def _read_steps(call: _Call) -> Generator[Transfer, None, None]:
    sp = call.sp
    try:
        label = yield from read_label(call.slices, sp)
    except LabelError:
        return
    sp.set_label(label, call.slices.secsize)
    call.layer.show(call.node.disk)


def _getpart(call: _Call) -> bytes:
    """Struct partinfo of a device."""
    info, sp, part = call.info, call.sp, call.node.part
    if part == WHOLE_SLICE_PART:
        _load_label(call)
    start, blocks = call.slices.bounds(call.node.slot, part)
    kind = PartitionKind(0, sp.type_uuid, sp.stor_uuid)
    if part != WHOLE_SLICE_PART and sp.label is not None:
        kind = sp.label.partition_kind(part)
    size = info.media_blksize
    return _PARTINFO.pack(
        (sp.offset + start) * size, blocks * size, blocks, size, max(sp.reserved - start, 0),
        kind.fstype, info.nheads, info.ncylinders, info.secpertrack, info.secpercyl,
        kind.type_uuid.bytes_le, kind.stor_uuid.bytes_le,
    )  # fmt: skip


def _sliceinfo(call: _Call) -> bytes:
    """Struct diskslices."""
    slices, disk = call.slices, call.node.disk
    shift = (slices.secsize // 512).bit_length() - 1
    data = _SLICES.pack(
        0, min(slices.nslices, MAX_SLICES), 0, slices.secsize // 512, shift, slices.secsize
    )
    for slot in range(MAX_SLICES):
        sp = slices.get(slot) or Diskslice()
        opens = disk.opens(slot)
        openmask = sum(1 << part for part in opens)
        words = [openmask >> at & 0xFFFF_FFFF for at in range(0, 256, 32)]
        data += _SLICE.pack(
            sp.offset, sp.size, min(sp.reserved, 0xFFFF_FFFF), sp.type_uuid.bytes_le,
            sp.stor_uuid.bytes_le, sp.type, sp.flags, *words, sp.wlabel, sum(opens.values()),
        )  # fmt: skip
    return data


def _set_label(call: _Call, data: bytes, fflag: int, *, wide: bool, write: bool) -> None:
    """Use a new label, and perhaps write it."""
    if not call.whole_disk:
        call.need_whole_slice()
    if call.whole_disk:
        raise KError(ENODEV)
    if not fflag & FWRITE:
        raise KError(EBADF)
    key = ("write", data)
    if key not in call.file.jobs:
        old = call.sp.label
        if old is not None and old.bits != (64 if wide else 32):
            raise KError(ENOATTR)
        label = _checked(call, old, data, wide=wide)
        if not write:
            _install(call, label)
            return
        steps = _write_steps(call, label)
    else:
        steps = iter_nothing()
    call.run(key, steps)


def _checked(call: _Call, old: Disklabel | None, data: bytes, *, wide: bool) -> Disklabel:
    """The label in ``data``, if it may be used."""
    extent = call.slices.extent(call.sp)
    opens = call.node.disk.opens(call.node.slot) if old is not None else {}
    mask = sum(1 << part for part in opens if part < MAXPARTITIONS)
    if wide:
        before = old if isinstance(old, Disklabel64) else None
        return disklabel64.setdisklabel(before, data, extent, mask)
    before32 = old if isinstance(old, Disklabel32) else None
    return disklabel32.setdisklabel(before32, data, extent, mask)


def _install(call: _Call, label: Disklabel) -> None:
    call.sp.set_label(label, call.slices.secsize)
    call.layer.show(call.node.disk)


def iter_nothing() -> Generator[Transfer, None, None]:
    """No steps at all: for a call that only collects what it began before."""
    yield from ()


def _write_steps(call: _Call, label: Disklabel) -> Generator[Transfer, None, None]:
    """Read the label's place, put the label in, write it back, flush. Then use the label."""
    secsize = call.slices.secsize
    offset = call.sp.offset * secsize
    extent = call.slices.extent(call.sp)
    if isinstance(label, Disklabel64):
        area = bytearray(disklabel64.span(secsize))
        put = partial(disklabel64.put, label=label)
    else:
        assert isinstance(label, Disklabel32)
        area = bytearray(secsize)
        offset += disklabel32.LABELSECTOR32 * secsize
        put = partial(disklabel32.put, label=label, extent=extent)
    yield Transfer(BufCmd.READ, offset, area)
    yield Transfer(BufCmd.WRITE, offset, bytearray(put(bytes(area))))
    yield Transfer(BufCmd.FLUSH, 0, bytearray())
    if call.node.disk.slices is call.slices:
        _install(call, label)


def _wlabel(call: _Call, data: bytes, fflag: int) -> bytes:
    if call.whole_disk:
        raise KError(ENODEV)
    if not fflag & FWRITE:
        raise KError(EBADF)
    call.sp.wlabel = _INT.unpack(data)[0] != 0
    return b""


def _sync_slices(call: _Call, data: bytes) -> bytes:
    """Probe the disk again."""
    if not call.whole_disk or call.node.part != WHOLE_SLICE_PART:
        raise KError(EINVAL)
    if not _INT.unpack(data)[0]:
        disk = call.node.disk
        if disk.opencount > disk.cdev.opencount:
            raise KError(EBUSY)
    call.layer.reprobe(call.node.disk)
    return b""
