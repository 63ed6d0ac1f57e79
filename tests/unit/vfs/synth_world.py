"""A kernel without an event loop that has every synthetic file system mounted.

The root is a synthetic directory with places to mount on. Everything goes through the kern_* cores,
as the requests of the host do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dfuser.dev.console import ConsoleOps
from dfuser.dev.devlist import DevList
from dfuser.dev.klog import LogOps
from dfuser.dev.memio import MemOps
from dfuser.hw.clock import VirtualClock
from dfuser.hw.entropy import SeededEntropy
from dfuser.kern.kinfo import KinfoTable
from dfuser.kern.kinfo_mib import KernMib
from dfuser.kern.proc import ProcTable
from dfuser.kern.procfs import ProcfsContents
from dfuser.libkern.errno import KError
from dfuser.libkern.fcntl import O_RDONLY, O_RDWR, O_WRONLY
from dfuser.libkern.ktr import Ktr
from dfuser.libkern.log import MsgBuf
from dfuser.libkern.stat import VType
from dfuser.libkern.sysctl import SysctlTree
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.machine import Lwkt
from dfuser.vfs.devfs.devfs import DevfsVfsOps
from dfuser.vfs.devfs.rules import DevfsDevOps, DevfsRules
from dfuser.vfs.kernfs.ctl import ControlCommands
from dfuser.vfs.kernfs.kernfs import KernfsVfsOps
from dfuser.vfs.kernfs.registry import KernViews
from dfuser.vfs.kernfs.views_dev import DevViews
from dfuser.vfs.kernfs.views_lwkt import LwktViews
from dfuser.vfs.kernfs.views_vfs import VfsViews
from dfuser.vfs.mount import Mount
from dfuser.vfs.mountflags import MNTK, VFCF
from dfuser.vfs.namecache import NcHandle
from dfuser.vfs.nlookup import NlookupData, nlookup
from dfuser.vfs.procfs.procfs import ProcfsVfsOps
from dfuser.vfs.pseudofs import ROOT_INO, InodeTable, PfsDir, StaticDir
from dfuser.vfs.pseudofs_vnops import PfsVfsOps
from dfuser.vfs.syscalls import (
    kern_close,
    kern_open,
    kern_read,
    kern_readdir,
    kern_readlink,
    kern_stat,
    kern_write,
)
from dfuser.vfs.sysctlfs.sysctlfs import SysctlfsVfsOps
from dfuser.vfs.vfs import Vfs

ROOT = Ucred.root()
USER = Ucred.of(1000, 100)
PLACES = ("dev", "proc", "sysctl", "kern", "mnt", "mnt2")


class PlacesFs(PfsVfsOps):
    """Directories to mount on."""

    def vfs_mount(self, mp: Mount, source: str, options: dict[str, str], cred: Ucred) -> None:
        super().vfs_mount(mp, source, options, cred)
        mp.kern_flag &= ~MNTK.NOSTKMNT

    def make_root(self, inodes: InodeTable) -> PfsDir:
        root = StaticDir(ROOT_INO, None)
        for name in PLACES:
            root.children[name.encode()] = StaticDir(inodes.number(name), root)
        return root


class SynthWorld:
    """The kernel."""

    def __init__(self) -> None:
        clock = self.clock = VirtualClock()
        self.msgbuf = MsgBuf()
        self.ktr = Ktr(2, clock, entries=64)
        self.lwkt = Lwkt(2, clock, self.ktr, self.msgbuf)
        self.vfs = Vfs(lwkt=self.lwkt, clock=clock, ktr=self.ktr, msgbuf=self.msgbuf)
        self.tree = SysctlTree()
        self.devices = DevList()
        self.rules = DevfsRules()
        self.procs = ProcTable(clock)
        self.kinfo = KinfoTable(self.procs, lambda: self.lwkt.threads)
        self.contents = ProcfsContents(self.procs, self.kinfo)
        self.views = KernViews()
        self.mib = KernMib(clock, 2, "test", "dfuser 0")
        self.commands = ControlCommands(self.vfs)
        self.log = LogOps(self.msgbuf, self.lwkt)
        self._sysctls()
        self._views()
        self._devices()
        self._mounts()

    def _sysctls(self) -> None:
        owners = (self.devices, self.rules, self.procs, self.views, self.mib, self.msgbuf)
        for owner in (*owners, *self.vfs.sysctl_owners()):
            self.tree.register(owner)
        self.ktr.attach(self.tree)

    def _views(self) -> None:
        for source in (
            VfsViews(self.vfs), LwktViews(self.lwkt, self.ktr), DevViews(self.devices, self.msgbuf),
            self.kinfo, self.mib, self.commands,
        ):  # fmt: skip
            source.register(self.views)

    def _devices(self) -> None:
        for driver in (
            MemOps(SeededEntropy(1)), self.log, ConsoleOps(self.msgbuf), DevfsDevOps(self.rules),
        ):  # fmt: skip
            driver.attach(self.devices)

    def _mounts(self) -> None:
        register = self.vfs.fstypes.register
        register("places", PlacesFs, VFCF.SYNTHETIC)
        register("devfs", DevfsVfsOps.factory(self.devices, self.rules), VFCF.SYNTHETIC)
        register("procfs", ProcfsVfsOps.factory(self.contents), VFCF.SYNTHETIC)
        register("sysctlfs", SysctlfsVfsOps.factory(self.tree), VFCF.SYNTHETIC)
        register("kernfs", KernfsVfsOps.factory(self.views), VFCF.SYNTHETIC)
        self.vfs.mounts.mount("places", "root", None, {}, 0, ROOT)
        for fstype, where in (
            ("devfs", "/dev"), ("procfs", "/proc"), ("sysctlfs", "/sysctl"), ("kernfs", "/kern"),
        ):  # fmt: skip
            self.mount(fstype, where)

    def mount(self, fstype: str, where: str, cred: Ucred = ROOT, **options: str) -> Mount:
        """Mount a file system on a path."""
        with self.at(where) as nd:
            return self.vfs.mounts.mount(fstype, fstype, nd.found, options, 0, cred)

    def close(self) -> None:
        """End every thread, unmount everything; nothing may be left."""
        self.lwkt.shutdown_nowait()
        assert not self.lwkt.threads
        self.vfs.close()
        assert self.vfs.vnodes.numvnodes == 0
        self.log.detach()

    # --- paths ---------------------------------------------------------------------------------

    def at(self, path: str, cred: Ucred = ROOT) -> NlookupData:
        """A walk that has found the path; a context manager. Links at the end are not followed."""
        nd = NlookupData(self.vfs, None, None, path.encode(), cred, 0)
        try:
            nlookup(nd)
        except BaseException:
            nd.done()
            raise
        return nd

    def open(self, path: str, flags: int = O_RDONLY, cred: Ucred = ROOT) -> Any:
        """Open a path, permissions checked."""
        with self.at(path, cred) as nd:
            return kern_open(self.vfs, nd.found, flags, cred)

    def read(self, path: str, cred: Ucred = ROOT, piece: int = 1 << 16) -> bytes:
        """The whole text of a file, in pieces of a size."""
        file = self.open(path, O_RDONLY, cred)
        try:
            return b"".join(self.pieces(file, piece))
        finally:
            kern_close(file)

    @staticmethod
    def pieces(file: Any, piece: int) -> Iterator[bytes]:
        """What is left of an open file."""
        while data := bytes(kern_read(file, None, piece)):
            yield data

    def write(self, path: str, data: bytes | str, cred: Ucred = ROOT, flags: int = O_WRONLY) -> int:
        """One write to a file, as `echo` does it."""
        file = self.open(path, flags, cred)
        try:
            return kern_write(file, None, data.encode() if isinstance(data, str) else data)
        finally:
            kern_close(file)

    def names(self, path: str, cred: Ucred = ROOT, limit: int = 3) -> list[str]:
        """The names in a directory, read a few at a time."""
        return [entry.name.decode() for entry in self.entries(path, cred, limit)]

    def entries(self, path: str, cred: Ucred = ROOT, limit: int = 3) -> list[Any]:
        """The directory entries, read a few at a time, without . and .. ."""
        file = self.open(path, O_RDONLY, cred)
        try:
            found: list[Any] = []
            cookie = 0
            while batch := kern_readdir(file, cookie, limit):
                assert len(batch) <= limit
                found += batch
                cookie = batch[-1].cookie
        finally:
            kern_close(file)
        assert [e.name for e in found[:2]] == [b".", b".."]
        return found[2:]

    def stat(self, path: str, cred: Ucred = ROOT) -> Any:
        """Attributes of a path; links are not followed."""
        with self.at(path, cred) as nd:
            return kern_stat(self.vfs, nd.found)

    def readlink(self, path: str) -> str:
        """The target of a link."""
        with self.at(path) as nd:
            return kern_readlink(self.vfs, nd.found, ROOT).decode()

    def hold(self, path: str) -> NcHandle:
        """A held place."""
        with self.at(path) as nd:
            return self.vfs.cache.hold(nd.found)

    def errno(self, func: Any, *args: Any, **kwargs: Any) -> int:
        """The errno a call fails with; 0 when it does not fail."""
        try:
            func(*args, **kwargs)
        except KError as error:
            return error.errno or -1
        return 0

    def walk(self, top: str) -> Iterator[tuple[str, Any]]:
        """Every path below ``top`` that is no directory, with its attributes."""
        for entry in self.entries(top):
            path = f"{top.rstrip(chr(47))}/{entry.name.decode()}"
            attrs = self.stat(path)
            assert attrs.fileid == entry.ino, path
            if attrs.type is VType.VDIR:
                yield from self.walk(path)
            else:
                yield path, attrs

    def mount_of(self, fstype: str) -> Mount:
        """The mount of a type."""
        return next(mp for mp in self.vfs.mounts if mp.fstype.name == fstype)


__all__ = ["O_RDONLY", "O_RDWR", "O_WRONLY", "PLACES", "ROOT", "USER", "SynthWorld"]
