"""The disk layer: a driver's disk becomes devices named vn0, vn0s1, vn0s1a.

`DiskLayer.disk_create` makes the device of the whole disk; `DiskLayer.disk_setdiskinfo` tells what
the medium is, and has it probed: slice table first, then the label of each slice that may have one.
What is found becomes devices, and aliases by what it calls itself::

    vn0                whole disk                      serno/SERIAL
    vn0s1              slice                           slice-by-uuid/UUID, by-label/PACK
    vn0s1a             partition                       part-by-uuid/UUID, part-by-label/PACK.a

A disk that was written to is probed again when it is closed. Devices that are still right stay,
with everything that is open; others go, and who has them open finds ENXIO. A device that is open
and would now lie elsewhere is replaced as well: nobody may find himself on other sectors.

A probe of a disk that answers at once is over when the call returns. Where the disk must be waited
for, the probe goes on in the thread ``disk_msg_core``; `DiskLayer.sync` waits for all of them.
Probes of one disk never overlap: one that is asked for meanwhile runs afterwards.

Counterpart: kern/subr_disk.c (disk_create, disk_setdiskinfo, disk_probe, disk_probe_slice,
    disk_destroy, disk_msg_core). Opening and transfers are in `diskdev`.
Differs from DragonFly: what is open stays marked through a new probe; `disk_create_clone` is
    missing, because a clone handler here makes its device itself; no cluster export
    (subr_diskiocom), no dumps, no devctl events.
Token and lock order: takes none; a probe changes the list of slices and devices in one step,
    without suspending.
Invariants: ``nodes`` is exactly what is on the list of devices for that disk; a disk has at most
    one probe under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from dfuser.dev.devsw import GID_OPERATOR, UID_ROOT, Cdev, DeadDevOps
from dfuser.libkern.errno import EEXIST, EINVAL, KError
from dfuser.libkern.param import PINTERLOCKED
from dfuser.libkern.sysctl import RD, RW, STRING, Sysctl
from dfuser.lwkt.synch import tsleep, tsleep_interlock, wakeup
from dfuser.lwkt.thread import TDPRI

from . import disklabel32, disklabel64
from .bioq import BioqTunables
from .device import StrategyOps
from .devstat import DevstatList
from .diskdev import WHOLE_KEY, Disk, DiskNode, DiskOps
from .jobs import Job, Steps, Transfer, probe_steps, read_label
from .label import FS_UNUSED, Disklabel, LabelError
from .mbr import LABEL_TYPES, mbrinit
from .slices import (
    DKMAXUNITS,
    WHOLE_SLICE_PART,
    Diskslice,
    Diskslices,
    dkmakeminor,
)
from .table import (
    DSO_COMPATLABEL,
    DSO_DEVICEMAPPER,
    DSO_MBRQUIET,
    NIL,
    NO_TABLE,
    WHOLE_DISK_SLICE,
    DiskInfo,
    slice_name,
)

if TYPE_CHECKING:
    from dfuser.dev.devlist import DevList
    from dfuser.lwkt.machine import Lwkt

#: Folders of the aliases the disk layer gives.
ALIAS_FOLDERS: Final = (
    "serno/", "by-label/", "part-by-label/", "part-by-uuid/", "slice-by-uuid/",
)  # fmt: skip
#: A slice of this many sectors or more has its label made up with 64 bits.
_LARGE: Final = 1 << 32


class Log(Protocol):
    """Where the disk layer speaks."""

    def kprintf(self, text: str) -> None:
        """Say one line."""


class DiskStatistics(NamedTuple):
    """What the disk layer has.

    Attributes:
        disks, nodes: disks, and devices of slices and partitions.
        opens: opens of all of them.
        probes: probes that ended. probing: under way now.
    """

    disks: int
    nodes: int
    opens: int
    probes: int
    probing: int


class _Wanted(NamedTuple):
    """A device a disk should have."""

    name: str
    where: tuple[int, int]
    aliases: tuple[str, ...]


class DiskLayer:
    """The disks of one kernel.

    Args:
        devices: the list of devices.
        log: the kernel's log.
        devstats: what the drivers' counters are shown in.
        tunables: of the drivers' queues.
    """

    sysctls = (
        Sysctl("kern.disks", "names of available disks", getter="names", kind=STRING, flags=RD),
        Sysctl("kern.disk_debug", "Enable subr_disk debugging", attr="debug", flags=RW),
        Sysctl("kern.disk_gpt_backup", "Use the backup GPT where the first one is bad",
               attr="gpt_backup", flags=RW, minimum=0, maximum=1),
    )  # fmt: skip

    def __init__(
        self,
        devices: DevList,
        log: Log,
        devstats: DevstatList | None = None,
        tunables: BioqTunables | None = None,
    ) -> None:
        self.devices = devices
        self.log = log
        self.devstats = devstats or DevstatList()
        self.tunables = tunables or BioqTunables()
        self.ops = DiskOps(self)
        self.debug = 0
        self.gpt_backup = 0
        self.disks: dict[str, Disk] = {}
        self.probes = 0
        self.lwkt: Lwkt | None = None
        self._ready: deque[Job] = deque()
        self._active: set[Job] = set()

    # --- the thread ------------------------------------------------------------------------

    def start(self, lwkt: Lwkt) -> None:
        """Start the thread that goes on with probes that had to wait. Once a kernel."""
        self.lwkt = lwkt
        lwkt.create(self._core, name="disk_msg_core", pri=TDPRI.KERN_DAEMON, cpu=0)

    async def _core(self) -> None:
        """The thread. Counterpart: disk_msg_core."""
        while True:
            while self._ready:
                self._ready.popleft().run()
            tsleep_interlock(self)
            if not self._ready:
                await tsleep(self, PINTERLOCKED, "dskmsg")

    def resume(self, job: Job) -> None:
        """A job can go on: in the thread, or at once where there is none. An interrupt."""
        if self.lwkt is None:
            job.run()
            return
        self._ready.append(job)
        wakeup(self)

    def start_job(
        self, disk: Disk, steps: Steps, ended: Callable[[Job], object] | None = None
    ) -> Job:
        """Begin work on a disk; it is over when the call returns if the disk answers at once."""

        def over(job: Job) -> None:
            self._active.discard(job)
            if ended is not None:
                ended(job)

        job = Job(steps, disk.strategy, self.resume, over)
        self._active.add(job)
        job.run()
        return job

    async def sync(self) -> int:
        """Wait for all work under way; returns 0 or an errno. Counterpart: DISK_SYNC."""
        while self._active:
            error = await next(iter(self._active)).wait()
            if error:
                return error
        return 0

    # --- disks -----------------------------------------------------------------------------

    def disk_create(self, unit: int, raw_ops: StrategyOps, name: str | None = None) -> Disk:
        """Put a driver's disk under management and show the device of the whole disk.

        It cannot be opened before `disk_setdiskinfo`.

        Args:
            unit: number among the driver's disks.
            raw_ops: the driver. The disk's ``rawdev.drv1`` is free for it.
            name: of the disk; the driver's name and the unit by default.

        Raises:
            KError: EINVAL, the unit is too large; EEXIST, ENOSPC as `DevList.make_dev`.

        Counterpart: disk_create, disk_create_named.
        """
        if not 0 <= unit < DKMAXUNITS:
            raise KError(EINVAL, f"unit {unit} is not below {DKMAXUNITS}")
        name = name or f"{raw_ops.name}{unit}"
        minor = dkmakeminor(unit, WHOLE_DISK_SLICE, WHOLE_SLICE_PART)
        rawdev = Cdev(name, raw_ops, 0, minor, UID_ROOT, GID_OPERATOR, 0o640)
        disk = Disk(name, unit, raw_ops, rawdev)
        disk.cdev = self.devices.make_dev(self.ops, minor, UID_ROOT, GID_OPERATOR, 0o640, name)
        disk.cdev.drv1 = DiskNode(disk, WHOLE_DISK_SLICE, WHOLE_SLICE_PART)
        self.disks[name] = disk
        return disk

    def disk_setdiskinfo(self, disk: Disk, info: DiskInfo) -> None:
        """Tell what the medium is, or has become, and have it probed.

        Raises:
            KError: EINVAL, a sector size that is no power of two.

        Counterpart: disk_setdiskinfo.
        """
        if info.media_blksize & (info.media_blksize - 1):
            raise KError(EINVAL, f"{disk.name}: sectors of {info.media_blksize} bytes")
        serial = (info.serialno or "").strip(" ")
        info.serialno = clean_serial(serial) or None
        disk.info = info
        self.reprobe(disk)

    def disk_destroy(self, disk: Disk) -> None:
        """Take a disk and all its devices away. A second call does nothing.

        Counterpart: disk_destroy.
        """
        if self.disks.get(disk.name) is not disk:
            return
        disk.destroyed = True
        del self.disks[disk.name]
        self.disk_unprobe(disk)
        self.devices.destroy_dev(disk.cdev)
        disk.settle()
        disk.slices = None
        disk.rawdev.ops = DeadDevOps()
        disk.cdev.drv1 = disk.rawdev.drv1 = None

    def disk_unprobe(self, disk: Disk) -> None:
        """Take the devices of slices and partitions away. Counterpart: disk_unprobe."""
        for key in list(disk.nodes):
            self._unmake(disk, key)

    def disk_invalidate(self, disk: Disk) -> None:
        """Forget the slices: opens and transfers fail until a probe. Counterpart: dsgone."""
        disk.slices = None

    def enumerate(self) -> Iterator[Disk]:
        """Every disk, newest first. Counterpart: disk_enumerate."""
        return iter(tuple(reversed(self.disks.values())))

    def names(self) -> str:
        """The disks' names, newest first. Counterpart: sysctl_disks."""
        return " ".join(disk.name for disk in self.enumerate())

    def complain(self, dev: Cdev, line: str) -> None:
        """Say what is wrong with a device."""
        self.log.kprintf(f"{dev.name}: {line}")

    def statistics(self) -> DiskStatistics:
        """What there is."""
        disks = self.disks.values()
        return DiskStatistics(
            disks=len(disks),
            nodes=sum(len(disk.nodes) for disk in disks),
            opens=sum(disk.opencount for disk in disks),
            probes=self.probes,
            probing=len(self._active),
        )

    # --- probing ---------------------------------------------------------------------------

    def reprobe(self, disk: Disk, slot: int | None = None) -> None:
        """Look at a disk again, or at the label of one slice.

        Counterpart: DISK_DISK_PROBE, DISK_DISK_REPROBE, DISK_SLICE_REPROBE.
        """
        if slot is None:
            disk.again = True
        else:
            disk.reslice.add(slot)
        if disk.job is None:
            self._next_probe(disk)

    def _next_probe(self, disk: Disk) -> None:
        """Start a probe that was asked for, if any."""
        while disk.job is None and not disk.destroyed and (disk.again or disk.reslice):
            if disk.again:
                disk.again = False
                disk.reslice.clear()
                steps = self._probe(disk)
            else:
                steps = self._probe_slice(disk, disk.reslice.pop())
            job = Job(steps, disk.strategy, self.resume, partial(self._probed, disk))
            disk.job = job
            self._active.add(job)
            job.run()

    def _probed(self, disk: Disk, job: Job) -> None:
        """A probe has ended."""
        self._active.discard(job)
        disk.job = None
        disk.probes += 1
        self.probes += 1
        if job.error is not None:
            self.log.kprintf(f"{disk.name}: probe: {job.error}")
        self._next_probe(disk)

    def _probe(self, disk: Disk) -> Generator[Transfer, None, None]:
        """Look at a whole disk. Counterpart: disk_probe."""
        info = disk.info
        if info is None or not info.media_blksize:
            return
        failed = False
        try:
            probe = mbrinit(info, gpt_backup=bool(self.gpt_backup))
            table = yield from probe_steps(probe, info.media_blksize)
        except KError as error:
            if not info.dsflags & DSO_MBRQUIET:
                self.log.kprintf(f"{disk.name}: reading primary partition table: error {error}")
            table, failed = NO_TABLE, True
        for line in table.messages:
            self.log.kprintf(f"{disk.name}: {line}")
        slices = Diskslices(info, table)
        if failed or info.dsflags & DSO_DEVICEMAPPER:
            slices.slices[0] = None
        for slot, sp in enumerate(slices.slices):
            if sp is not None and slot != WHOLE_DISK_SLICE and sp.size and sp.type in LABEL_TYPES:
                label = yield from self._label(disk, slices, slot, sp)
                sp.set_label(label, slices.secsize)
        if disk.destroyed:
            return
        if table.geometry is not None:
            info.nheads, info.secpertrack, info.ncylinders = table.geometry
            info.secpercyl = info.nheads * info.secpertrack
        if disk.slices is not None:
            slices.inherit(disk.slices)
        disk.slices = slices
        self.show(disk)

    def _probe_slice(self, disk: Disk, slot: int) -> Generator[Transfer, None, None]:
        """Look at the label of one slice. Counterpart: disk_probe_slice."""
        slices = disk.slices
        sp = slices.get(slot) if slices is not None else None
        if sp is None or slices is None:
            return
        label = yield from self._label(disk, slices, slot, sp)
        if disk.slices is slices:
            sp.set_label(label, slices.secsize)
            self.show(disk)

    def _label(
        self, disk: Disk, slices: Diskslices, slot: int, sp: Diskslice
    ) -> Generator[Transfer, None, Disklabel | None]:
        """The label of a slice, or None."""
        info = disk.info
        assert info is not None
        try:
            return (yield from read_label(slices, sp))
        except LabelError as error:
            if info.dsflags & DSO_COMPATLABEL:
                extent = slices.extent(sp)
                if sp.size >= _LARGE:
                    return disklabel64.clone_label(info, extent)
                return disklabel32.clone_label(info, extent)
            if sp.type > 1:
                where = f"{disk.name}{slice_name(slot)}"
                self.log.kprintf(f"{where}: cannot find label ({error})")
            return None

    # --- devices ---------------------------------------------------------------------------

    def show(self, disk: Disk) -> None:
        """Bring the list of devices in line with the slices and labels of a disk.

        What is no longer right goes first, so that its names are free for what comes.
        """
        wanted = dict(self._wanted(disk))
        for key, dev in list(disk.nodes.items()):
            entry = wanted.get(key)
            if entry is None or (dev.opencount and dev.drv1.moves(entry.where)):
                self._unmake(disk, key)
            else:
                dev.drv1.where = entry.where
        disk.settle()
        aliases = {WHOLE_KEY: self._disk_aliases(disk)} | {k: w.aliases for k, w in wanted.items()}
        have = {alias.name: alias.target for alias in self.devices.aliases()}
        for key, dev in disk.devices():
            for name, target in have.items():
                if target is dev and name not in aliases[key] and name.startswith(ALIAS_FOLDERS):
                    self.devices.destroy_dev_alias(dev, name)
        for key, entry in wanted.items():
            if key not in disk.nodes:
                self._make(disk, key, entry)
        for key, names in aliases.items():
            node = disk.cdev if key == WHOLE_KEY else disk.nodes.get(key)
            if node is not None:
                self._alias(node, [name for name in names if have.get(name) is not node])

    def _disk_aliases(self, disk: Disk) -> tuple[str, ...]:
        serial = disk.info.serialno if disk.info else None
        return (f"serno/{serial}",) if serial else ()

    def _wanted(self, disk: Disk) -> Iterator[tuple[tuple[int, int], _Wanted]]:
        """The devices a disk should have; a slice before its partitions."""
        slices, info = disk.slices, disk.info
        assert slices is not None
        assert info is not None
        dot = "." if info.dsflags & DSO_DEVICEMAPPER else ""
        for slot, sp in enumerate(slices.slices):
            if sp is None or slot == WHOLE_DISK_SLICE or not sp.size:
                continue
            name = f"{disk.name}{dot}{slice_name(slot)}"
            pack = sp.label.packname if sp.label is not None else ""
            serial = f"serno/{info.serialno}.{slice_name(slot)}" if info.serialno else ""
            aliases = (
                serial,
                f"slice-by-uuid/{sp.stor_uuid}" if sp.stor_uuid != NIL else "",
                f"by-label/{pack}" if pack else "",
            )
            where = (sp.offset, sp.size)
            yield (slot, WHOLE_SLICE_PART), _Wanted(name, where, tuple(filter(None, aliases)))
            if sp.label is not None:
                yield from self._wanted_parts(slices, slot, sp.label, name, serial)

    def _wanted_parts(
        self, slices: Diskslices, slot: int, label: Disklabel, name: str, serial: str
    ) -> Iterator[tuple[tuple[int, int], _Wanted]]:
        """The devices of a label's partitions."""
        pack = label.packname
        for part in range(label.npartitions):
            kind = label.partition_kind(part)
            if kind.fstype == FS_UNUSED:
                continue
            letter = chr(ord("a") + part)
            aliases = (
                f"{serial}{letter}" if serial else "",
                f"part-by-uuid/{kind.stor_uuid}" if kind.stor_uuid != NIL else "",
                f"part-by-label/{pack}.{letter}" if pack else "",
            )
            where = slices.place(slot, part)
            yield (slot, part), _Wanted(name + letter, where, tuple(filter(None, aliases)))

    def _make(self, disk: Disk, key: tuple[int, int], wanted: _Wanted) -> None:
        """Make one device; only a line in the log where the name is taken or the list full."""
        slot, part = key
        minor = dkmakeminor(disk.unit, slot, part)
        parent = disk.cdev if part == WHOLE_SLICE_PART else disk.nodes.get((slot, WHOLE_SLICE_PART))
        try:
            dev = self.devices.make_dev(
                self.ops, minor, UID_ROOT, GID_OPERATOR, 0o640, wanted.name, parent
            )
        except KError as error:
            self.log.kprintf(f"{disk.name}: {error}")
            return
        dev.drv1 = DiskNode(disk, slot, part)
        dev.drv1.where = wanted.where
        disk.nodes[key] = dev

    def _unmake(self, disk: Disk, key: tuple[int, int]) -> None:
        """Destroy one device; who has it open finds ENXIO."""
        dev = disk.nodes.pop(key)
        self.devices.destroy_dev(dev)
        dev.drv1 = None

    def _alias(self, dev: Cdev, names: list[str]) -> None:
        """Give a device aliases; only a line in the log where one is taken."""
        for name in names:
            try:
                self.devices.make_dev_alias(dev, name)
            except KError as error:
                why = "is taken" if error.errno == EEXIST else str(error)
                self.log.kprintf(f"{dev.name}: alias {name} {why}")


def clean_serial(serial: str) -> str:
    """A serial number as part of a device's name. Counterpart: disk_cleanserial."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-@+.") else "_" for c in serial)
