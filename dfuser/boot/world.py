"""The default world: devices, file system types, what is mounted at boot, and the daemons.

`World` is the part of boot that knows what a dfuser usually has. It declares its steps with
SYSINIT, so that the order is seen in one place: drivers, then file system types, then the root and
what is mounted on it, then the daemons once threads may run.

Counterpart: vfs_conf.c (vfs_mountroot), kern_memio.c and subr_log.c (attach), the kproc_start
entries of vfs_sync.c and vfs_lock.c.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from dfuser.dev.console import ConsoleOps
from dfuser.dev.klog import LogOps
from dfuser.dev.memio import MemOps
from dfuser.kern.kinfo import KinfoTable
from dfuser.kern.kinfo_mib import KernMib
from dfuser.kern.procfs import ProcfsContents
from dfuser.libkern.errno import EEXIST, ENOENT, ENOTDIR, KError
from dfuser.libkern.param import HZ
from dfuser.libkern.sysinit import (
    SI_ORDER_FIRST,
    SI_ORDER_SECOND,
    SI_SUB_DRIVERS,
    SI_SUB_MOUNT_ROOT,
    SI_SUB_VFS,
    sysinit,
    sysuninit,
)
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.callout import callwheel
from dfuser.lwkt.synch import tsleep
from dfuser.lwkt.thread import TDPRI
from dfuser.vfs.devfs.devfs import DevfsVfsOps
from dfuser.vfs.devfs.rules import DevfsDevOps, DevfsRules
from dfuser.vfs.kernfs.ctl import ControlCommands
from dfuser.vfs.kernfs.kernfs import KernfsVfsOps
from dfuser.vfs.kernfs.registry import KernViews
from dfuser.vfs.mountflags import VFCF, parse_options
from dfuser.vfs.nullfs.vfsops import NullVfsOps
from dfuser.vfs.procfs.procfs import ProcfsVfsOps
from dfuser.vfs.syscalls import kern_lookup, kern_mkdir, kern_stat
from dfuser.vfs.sysctlfs.sysctlfs import SysctlfsVfsOps
from dfuser.vfs.tmpfs.vfsops import TmpfsVfsOps

from . import views

if TYPE_CHECKING:
    from dfuser.vfs.mount import Mount, VfsOps
    from dfuser.vfs.namecache import NcHandle
    from dfuser.vfs.syncer import SyncerCtx

    from .config import MountSpec
    from .kernel import Kernel

#: Seconds between two looks of the daemon that gives free memory back to the host.
TRIM_SECONDS: Final = 10


class World:
    """What a kernel has besides its machinery."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.root_cred = Ucred.root()
        self.mem = MemOps(kernel.host.entropy)
        self.klog = LogOps(kernel.msgbuf, kernel.lwkt)
        self.console = ConsoleOps(kernel.msgbuf)
        self.devfs_rules = DevfsRules()
        self.devfs_ctl = DevfsDevOps(self.devfs_rules)
        self.kinfo = KinfoTable(kernel.procs, lambda: kernel.lwkt.threads)
        self.mib = KernMib(
            kernel.host.clock, len(kernel.lwkt.cpus), kernel.config.hostname, kernel.version
        )
        self.procfs = ProcfsContents(kernel.procs, self.kinfo)
        self.views = KernViews()
        #: What /kern/ctl and the control socket obey.
        self.commands = ControlCommands(kernel.vfs)

    def owners(self) -> tuple[object, ...]:
        """The parts that declare sysctls."""
        return (
            self.mem,
            self.klog,
            self.console,
            self.mib,
            self.kinfo,
            self.views,
            self.devfs_rules,
        )

    # --- steps -----------------------------------------------------------------------------

    @sysinit(SI_SUB_DRIVERS)
    def attach_devices(self) -> None:
        """Make the devices of the pseudo drivers."""
        devices = self.kernel.devices
        self.mem.attach(devices)
        self.klog.attach(devices)
        self.console.attach(devices)
        self.devfs_ctl.attach(devices)

    @sysuninit(SI_SUB_DRIVERS)
    def detach_devices(self) -> None:
        """Stop following the message buffer."""
        self.klog.detach()

    @sysinit(SI_SUB_VFS)
    def register_types(self) -> None:
        """Make the file system types known."""
        kernel = self.kernel
        synthetic = VFCF.SYNTHETIC
        types: list[tuple[str, Callable[[], VfsOps], int]] = [
            ("tmpfs", TmpfsVfsOps, 0),
            ("null", NullVfsOps, VFCF.LOOPBACK),
            ("nullfs", NullVfsOps, VFCF.LOOPBACK),
            ("devfs", DevfsVfsOps.factory(kernel.devices, self.devfs_rules), synthetic),
            ("procfs", ProcfsVfsOps.factory(self.procfs), synthetic),
            ("sysctlfs", SysctlfsVfsOps.factory(kernel.sysctl), synthetic),
            ("kernfs", KernfsVfsOps.factory(self.views), synthetic),
        ]
        for name, factory, flags in types:
            kernel.vfs.fstypes.register(name, factory, flags)

    @sysinit(SI_SUB_MOUNT_ROOT, SI_ORDER_FIRST)
    def mount_world(self) -> None:
        """Mount the root and everything on it. Raises KError naming the mount that fails."""
        world = sorted(self.kernel.config.world, key=lambda spec: spec.on.count("/"))
        world.sort(key=lambda spec: spec.on != "/")
        for spec in world:
            try:
                self.mount(spec)
            except KError as error:
                text = f"cannot mount {spec.fstype} on {spec.on}: {error.strerror}"
                raise KError(error.errno or ENOENT, text) from None

    @sysinit(SI_SUB_MOUNT_ROOT, SI_ORDER_SECOND)
    def register_views(self) -> None:
        """Fill /kern."""
        views.register(self.kernel)

    # --- mounting --------------------------------------------------------------------------

    def mount(self, spec: MountSpec) -> Mount:
        """Mount one file system; the directory it goes on is made if it is not there."""
        mounts = self.kernel.vfs.mounts
        parsed = parse_options(spec.options)
        on = None if spec.on == "/" else self.directory(spec.on)
        source = spec.source or spec.fstype
        return mounts.mount(spec.fstype, source, on, parsed.options, parsed.flags, self.root_cred)

    def directory(self, path: str) -> NcHandle:
        """The handle of an absolute path, whose missing directories are made.

        They belong to whom the root belongs: the host lets a user mount on his own directories.
        """
        vfs = self.kernel.vfs
        nch = vfs.mounts.rootnch
        root = kern_stat(vfs, nch)
        owner = Ucred.of(root.uid or 0, root.gid or 0)
        for name in filter(None, path.encode().split(b"/")):
            if nch.ncp.vp is None:
                raise KError(ENOTDIR)
            found = kern_lookup(vfs, nch, name, self.root_cred)
            if found is None:
                try:
                    found = kern_mkdir(vfs, nch, name, 0o755, owner, chk=False)
                except KError as error:
                    if error.errno != EEXIST:
                        raise
                    found = kern_lookup(vfs, nch, name, self.root_cred)
            if found is None:
                raise KError(ENOENT)
            nch = found
        return nch

    # --- daemons ---------------------------------------------------------------------------

    def start_daemons(self) -> None:
        """Start the kernel's own threads. Needs no event loop: threads run when CPUs do."""
        kernel = self.kernel
        create = partial(kernel.lwkt.create, pri=TDPRI.KERN_DAEMON, cpu=0)
        for cpu in kernel.lwkt.cpus:
            callwheel(cpu).start()
        kernel.taskqueues.start()
        create(kernel.vfs.vnodes.vnlru_daemon, name="vnlru")
        create(self._trim_daemon, name="pagetrim")

        def syncer(ctx: SyncerCtx) -> Any:
            return create(ctx.daemon, name="syncer")

        kernel.vfs.syncer.start(syncer)

    async def _trim_daemon(self) -> None:
        """Give memory that has been free for a while back to the host."""
        while True:
            await tsleep(self, 0, "trim", TRIM_SECONDS * HZ)
            self.kernel.pages.trim()
