"""A small file system of blocks for tests of the buffer cache, and a machine to run it on.

Files have numbers. The device begins with a block of 4 KiB for each: size and a bitmap of the
blocks that are there, kept in buffers of the device. Behind them each file has its own area; with
``scatter`` its blocks lie in an order that lets no two neighbours travel together.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from dfuser.dev.disk.bio import NOOFFSET, Bio, BufCmd, biodone, push_bio
from dfuser.dev.disk.device import dev_dstrategy
from dfuser.hw.disk.disk import Disk
from dfuser.hw.disk.fault import FaultDisk
from dfuser.hw.disk.ram import RamDisk
from dfuser.hw.physmem import PhysMem
from dfuser.libkern.param import MAXPHYS
from dfuser.libkern.stat import VType
from dfuser.libkern.ucred import Ucred
from dfuser.lwkt.callout import callwheel
from dfuser.vfs.bdevvp import bdevvp
from dfuser.vfs.bio import BufCache, CacheBuf
from dfuser.vfs.cluster import Sequential
from dfuser.vfs.mount import MNT, Mount, VfsOps
from dfuser.vfs.vattr import Statfs
from dfuser.vfs.vfs import Vfs
from dfuser.vfs.vnode import V, Vnode
from dfuser.vfs.vop import MNT_WAIT, OpsCell, VnodeOps
from dfuser.vm.page import VmPages
from tests.unit.dev.disk.world import World as DiskWorld

ROOT = Ucred.root()
NFILES = 8
INODE = struct.Struct("<Q496s")  # in one sector: never torn
INODE_SIZE = 4096
MIB = 1 << 20


class Node:
    def __init__(self, number: int) -> None:
        self.number = number
        self.size = 0
        self.blocks = 0
        self.dirty = False
        self.seq = Sequential()


class BlkFs(VfsOps):
    """One mounted file system."""

    def __init__(self, bufs: BufCache, dev: Any, bsize: int, scatter: bool = False) -> None:
        self.bufs = bufs
        self.dev = dev
        self.bsize = bsize
        self.scatter = scatter
        self.vnodes: dict[int, Vnode] = {}
        self.clustered = True
        self.area = 4096 * 1024

    def place(self, number: int, block: int) -> int:
        if self.scatter:
            block ^= 1
        return MIB + number * self.area + block * self.bsize

    def vfs_mount(self, mp: Mount, source: str, options: dict[str, str], cred: Ucred) -> None:
        self.mp = mp
        mp.data, mp.vn_cell = self, OpsCell(BlkOps(self))
        self.devvp = bdevvp(mp.vfs.vnodes, self.bufs, self.dev)

    def vfs_root(self, mp: Mount) -> Vnode:
        return self.vnode(NFILES)

    def vfs_statfs(self, mp: Mount) -> Statfs:
        return Statfs(4096, 1000, 500, 500, 100, 100, 10)

    def vfs_unmount(self, mp: Mount, flags: int) -> None:
        self.mp.vfs.vnodes.vgone(self.devvp)
        self.devvp.rele()

    def vfs_sync(self, mp: Mount, waitfor: int) -> None:
        for vp in list(self.vnodes.values()):
            if vp.bufs is not None and (vp.bufs.dirty or vp.data.dirty):
                vp.ops.use.vop_fsync(vp, waitfor)
        self.bufs.vfsync(self.devvp, waitfor, self.devvp)

    def vnode(self, number: int) -> Vnode:
        found = self.vnodes.get(number)
        if found is not None:
            return found.ref()
        node = Node(number)
        if number < NFILES:
            bp = self.bufs.bread(self.devvp, number * INODE_SIZE, INODE_SIZE)
            node.size, bits = INODE.unpack(bp.read(0, INODE.size))
            node.blocks = int.from_bytes(bits, "little")
            self.bufs.bqrelse(bp)
        vtype = VType.VREG if number < NFILES else VType.VDIR
        vp = self.mp.vfs.vnodes.getnewvnode(self.mp, self.mp.vn_cell, vtype)
        vp.data, vp.ino = node, number + 2
        vp.flag |= V.ROOT if number == NFILES else 0
        self.vnodes[number] = vp
        self.bufs.nvextendbuf(vp, node.size)
        return vp


class BlkOps(VnodeOps):
    __slots__ = ("fs",)

    def __init__(self, fs: BlkFs) -> None:
        self.fs = fs

    def vop_bmap(self, vp: Vnode, offset: int) -> tuple[int, int, int]:
        fs, node = self.fs, vp.data
        block = offset // fs.bsize
        if not node.blocks >> block & 1:
            return NOOFFSET, 0, 0
        start = fs.place(node.number, block)
        count = 1
        while (
            count * fs.bsize < MAXPHYS
            and node.blocks >> block + count & 1
            and fs.place(node.number, block + count) == start + count * fs.bsize
        ):
            count += 1
        return start, count * fs.bsize, 0

    def vop_strategy(self, vp: Vnode, bio: Bio) -> None:
        nbio = push_bio(bio)
        if nbio.offset == NOOFFSET:
            nbio.offset = self.vop_bmap(vp, bio.offset)[0]
        if nbio.offset == NOOFFSET:
            assert bio.buf.cmd is BufCmd.READ
            for piece in bio.buf.buffers():
                piece[:] = bytes(len(piece))
            biodone(bio)
            return
        dev_dstrategy(self.fs.dev, nbio)

    def vop_read(
        self, vp: Vnode, offset: int, size: int, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> bytes:
        fs, node = self.fs, vp.data
        end = min(offset + size, node.size)
        maxreq = node.seq.note(offset, size) if fs.clustered else 0
        parts = []
        at = offset
        while at < end:
            start = at - at % fs.bsize
            bp = fs.bufs.cluster_read(vp, node.size, start, fs.bsize, end - start, maxreq)
            take = min(start + fs.bsize, end) - at
            parts.append(bp.read(at - start, take))
            fs.bufs.bqrelse(bp)
            at += take
        return b"".join(parts)

    def vop_write(
        self, vp: Vnode, offset: int, data: Any, ioflag: int, cred: Ucred, fdata: Any = None
    ) -> int:
        self.fs.bufs.bwillwrite(len(data))
        done = 0
        while done < len(data):
            try:
                done += self.write_block(vp, offset + done, data[done:])
            except Exception:
                if done:
                    return done
                raise
        return done

    def write_block(self, vp: Vnode, offset: int, data: bytes) -> int:
        fs, node, bufs = self.fs, vp.data, self.fs.bufs
        block, inside = divmod(offset, fs.bsize)
        data = data[: fs.bsize - inside]
        if len(data) == fs.bsize:
            bp = bufs.getblk(vp, block * fs.bsize, fs.bsize)
        else:
            bp = bufs.bread(vp, block * fs.bsize, fs.bsize)
        bp.write(inside, data)
        node.blocks |= 1 << block
        node.dirty = True
        if offset + len(data) > node.size:
            node.size = offset + len(data)
            bufs.nvextendbuf(vp, node.size)
        if fs.clustered:
            bufs.cluster_write(bp, node.size, len(data))
        else:
            bufs.bdwrite(bp)
        return len(data)

    def truncate(self, vp: Vnode, length: int) -> None:
        fs, node = self.fs, vp.data
        fs.bufs.nvtruncbuf(vp, length, fs.bsize)
        node.blocks &= (1 << -(-length // fs.bsize)) - 1
        node.size = length
        node.dirty = True

    def vop_fsync(self, vp: Vnode, waitfor: int, cred: Ucred | None = None) -> None:
        fs, node, bufs = self.fs, vp.data, self.fs.bufs
        if node.number == NFILES:
            return
        bufs.vfsync(vp, waitfor)
        if node.dirty:
            bp = bufs.getblk(fs.devvp, node.number * INODE_SIZE, INODE_SIZE)
            bp.zero()
            bp.write(0, INODE.pack(node.size, node.blocks.to_bytes(496, "little")))
            bufs.bdwrite(bp)
            node.dirty = False
        bufs.vfsync(fs.devvp, waitfor, fs.devvp)

    def vop_reclaim(self, vp: Vnode) -> None:
        self.fs.bufs.reclaim(vp)
        self.fs.vnodes.pop(vp.data.number, None)
        vp.data = None


class World(DiskWorld):
    """A machine with a disk, a buffer cache, and the file system mounted as its root."""

    def __init__(
        self, disk: Disk | None = None, *, bsize: int = 16384, nbuf: int = 256, memory: int = 16,
        scatter: bool = False, daemons: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(machine=True)
        assert self.lwkt is not None
        self.machine = self.lwkt
        for cpu in self.machine.cpus:
            callwheel(cpu).start()
        self.physmem = PhysMem(memory * MIB)
        self.pages = VmPages(self.physmem)
        self.vfs = Vfs(lwkt=self.machine, clock=self.clock, pages=self.pages)
        self.bufs = BufCache(self.pages, self.clock, self.vfs.syncer, nbuf)
        self.disk = disk or RamDisk(64 * MIB, 512)
        self.vkd.attach(self.disk, name="vn0")
        self.settle()
        self.fs = BlkFs(self.bufs, self.dev("vn0"), bsize, scatter)
        self.vfs.fstypes.register("blkfs", lambda: self.fs)
        self.vfs.mounts.mount("blkfs", "vn0", None, {}, 0, ROOT)
        if daemons:
            self.bufs.start(lambda fn, name: self.machine.create(fn, name=name, cpu=0))
            self.machine.run_until_idle()

    # Running.

    def until(self, done: Callable[[], object], limit_ns: int = 600 * 10**9) -> None:
        """Let threads run and time pass until something is so."""
        end = self.clock.monotonic_ns() + limit_ns
        while True:
            self.machine.run_until_idle()
            if done():
                return
            deadline = self.clock.next_deadline()
            assert deadline is not None, "nothing will ever happen"
            assert deadline <= end, "it did not happen"
            self.clock.advance(max(0, deadline - self.clock.monotonic_ns()))

    def pass_time(self, ns: int) -> None:
        """Let threads run for so long."""
        end = self.clock.monotonic_ns() + ns
        while True:
            self.machine.run_until_idle()
            deadline = self.clock.next_deadline()
            if deadline is None or deadline > end:
                break
            self.clock.advance(max(0, deadline - self.clock.monotonic_ns()))
        self.clock.advance(max(0, end - self.clock.monotonic_ns()))
        self.machine.run_until_idle()

    def call(self, core: Callable[..., Any], *args: Any) -> Any:
        """Run a core as a thread to its end; its result, or its error."""
        results = self.thread(core, *args)
        self.until(lambda: results)
        if isinstance(results[0], BaseException):
            raise results[0]
        return results[0]

    # Files.

    def file(self, number: int) -> Vnode:
        vp: Vnode = self.call(self.fs.vnode, number)
        return vp

    def write(self, vp: Vnode, offset: int, data: bytes) -> None:  # type: ignore[override]
        while data:
            done = self.call(vp.ops.use.vop_write, vp, offset, data, 0, ROOT)
            offset, data = offset + done, data[done:]

    def read(self, vp: Vnode, offset: int, size: int) -> bytes:  # type: ignore[override]
        data: bytes = self.call(vp.ops.use.vop_read, vp, offset, size, 0, ROOT)
        return data

    def fsync(self, vp: Vnode) -> None:
        self.call(vp.ops.use.vop_fsync, vp, MNT_WAIT)

    def truncate(self, vp: Vnode, length: int) -> None:
        self.call(vp.ops.use.truncate, vp, length)

    def evict(self) -> None:
        """Forget whatever is clean and not in use."""
        while self.bufs._reuse_one():
            pass
        self.bufs.scan.scan(1 << 30)

    def unmount(self) -> None:
        mounts, mp = self.vfs.mounts, self.vfs.mounts.root
        if mp is not None:
            self.call(lambda: mounts.unmount(mp, MNT.FORCE, halting=True))

    def check(self) -> None:
        self.bufs.check()
        self.pages.check()

    def stop(self) -> None:
        """Unmount by force, end everything, and see that nothing is left."""
        if isinstance(self.disk, FaultDisk):
            self.disk.clear_rules()
            self.disk.power_on()
        self.unmount()
        self.machine.shutdown_nowait()
        cpu = self.machine.cpus[0]
        td = cpu.borrow()
        try:
            self.vfs.close()
        finally:
            td.cpu.unborrow(td)
        while (deadline := self.clock.next_deadline()) is not None:
            self.clock.advance(max(0, deadline - self.clock.monotonic_ns()))
        s = self.bufs.statistics()
        assert (s.bufspace, s.dirtybufcount, s.runningbufspace) == (0, 0, 0)
        assert s.empty == s.headers
        assert not self.bufs.owners
        self.bufs.close()
        self.pages.check()
        assert self.pages.v_free_count == self.pages.v_page_count
        self.physmem.close()


def blocks_of(vp: Vnode) -> list[CacheBuf]:
    assert vp.bufs is not None
    return [vp.bufs.hash[offset] for offset in sorted(vp.bufs.hash)]


def contents(disk: RamDisk, fs: BlkFs, number: int) -> bytes:
    """What a file of an image holds, read without the cache."""
    size, bits = INODE.unpack_from(disk.read(number * INODE_SIZE, INODE_SIZE))
    blocks = int.from_bytes(bits, "little")
    parts = [
        disk.read(fs.place(number, block), fs.bsize) if blocks >> block & 1 else bytes(fs.bsize)
        for block in range(-(-size // fs.bsize))
    ]
    return b"".join(parts)[:size]
