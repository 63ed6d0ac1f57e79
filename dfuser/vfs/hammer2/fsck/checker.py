"""The order of a check, and who tells how far it is.

::

    headers      every copy on every device
    topology     the super-root, then each PFS: blocks, inodes, names
    freemap      its trees, then its bits against the blocks that were found
    topology     again, lightly, and the freemap, for each further window of 256 GiB with blocks
    old headers  blocks that only older header copies lead to

Memory: one object for each table on the way to the present block; for each 4 MiB with blocks 2 KiB
(of one window) and half a KiB with metadata; 30 bytes for each inode and each name of the PFS
that is being checked. Findings are handed over as they are made.

A check reads and never writes, so it can be left at any point: whoever runs it stops asking, and
`statistics` says what was done until then.

Counterpart: sbin/fsck_hammer2/test.c.
Token/lock order: takes none. Reading is a callable of the volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dfuser.libkern.errno import KError
from dfuser.vfs.hammer2.fsck.blocks import WINDOW, BlockMap
from dfuser.vfs.hammer2.fsck.freemap import Freemap
from dfuser.vfs.hammer2.fsck.headers import OldTrees, check_headers
from dfuser.vfs.hammer2.fsck.names import Names
from dfuser.vfs.hammer2.fsck.report import (
    Counts,
    Finding,
    Kind,
    Progress,
    Report,
    Severity,
    Statistics,
)
from dfuser.vfs.hammer2.fsck.topology import Topology
from dfuser.vfs.hammer2.ondisk.blockref import Blockref, unpack_blockref
from dfuser.vfs.hammer2.ondisk.const import SEGSIZE
from dfuser.vfs.hammer2.ondisk.keys import cookie_of
from dfuser.vfs.hammer2.reader import Pfs, Reader
from dfuser.vfs.hammer2.volume import VolumeSet

#: After how many steps progress is told, whatever a step was.
_STRIDE: Final = 64


class Fsck:
    """One check of one volume."""

    __slots__ = ("_labels", "_phase", "_report", "_total", "_window", "counts", "volume")

    def __init__(self, volume: VolumeSet, *, window: int = WINDOW) -> None:
        """Prepare a check.

        Args:
            volume: what is checked; nothing of it is changed.
            window: how many bytes of the volume the map of blocks covers at a time, rounded up
                to whole segments.
        """
        self.volume = volume
        self.counts = Counts()
        self._report = Report()
        self._window = -(-window // SEGSIZE) * SEGSIZE
        self._phase = "headers"
        self._total = unpack_blockref(volume.header.sroot_blockset).stats[0]
        self._labels: set[bytes] = set()

    def statistics(self) -> Statistics:
        """What was looked at and found so far."""
        counts, found = self.counts, self._report.severities
        return Statistics(
            counts.headers, counts.pfss, counts.inodes, counts.names, counts.blocks,
            counts.data_blocks, counts.bytes, counts.used, counts.leaked, counts.staged,
            found[Severity.ERROR], found[Severity.WARNING], found[Severity.NOTE],
        )  # fmt: skip

    def findings(self) -> Iterator[Finding]:
        """Run the whole check; only what it finds."""
        for record in self.run():
            if isinstance(record, Finding):
                yield record

    def run(self) -> Iterator[Finding | Progress]:
        """Run the whole check: findings as they are made, and progress in between."""
        for step, _ in enumerate(self._steps()):
            yield from self._report.take()
            if not step % _STRIDE:
                yield Progress(self._phase, self.counts.blocks, self.counts.bytes, self._total)
        yield from self._report.take()

    def _steps(self) -> Iterator[None]:
        """All phases, a small piece at a time."""
        yield from check_headers(self.volume, self._report, self.counts)
        freemap = Freemap(self.volume, self._report, self.counts)
        elsewhere: set[int] = set()
        for base in range(0, self.volume.size, self._window):
            blocks = BlockMap(base, self._window)
            self._phase = "topology"
            if not base or base // self._window in elsewhere:
                yield from self._topology(blocks, light=base > 0)
                elsewhere |= blocks.elsewhere
            self._phase = "freemap"
            self._report.pfs = None
            if not base:
                yield from freemap.walk()
            yield from freemap.compare(blocks)
        freemap.finish()
        self._phase = "old headers"
        yield from OldTrees(self.volume, self._report, self.counts).walk()

    def _topology(self, blocks: BlockMap, *, light: bool) -> Iterator[None]:
        """The super-root and all PFSs."""
        report = self._report
        topology = Topology(self.volume, report, self.counts, blocks, light=light)
        report.pfs = None
        yield from topology.walk_super_root()
        for bref in topology.pfss:
            report.pfs = None
            report.damaged.clear()
            yield from topology.walk_pfs(bref)
            if not light:
                self.counts.pfss += 1
                yield from self._finish_pfs(bref, topology.names)

    def _finish_pfs(self, bref: Blockref, names: Names | None) -> Iterator[None]:
        """What can be told when a PFS was walked: its names, and which files are damaged."""
        report = self._report
        label = report.pfs
        if label is not None and label in self._labels:
            report.add(Kind.PFS, "two PFSs have this label", key=bref.key, data_off=bref.data_off)
        elif label is not None:
            self._labels.add(label)
        if names is None:
            return
        yield from names.finish()
        yield
        pfs = self._open(label)
        if pfs is None:
            return
        if pfs.root.meta.pfs_inum < names.highest:
            report.add(
                Kind.PFS,
                f"inode numbers up to {names.highest:#x} are in use, new ones begin behind "
                f"{pfs.root.meta.pfs_inum:#x}",
                severity=Severity.WARNING, expected=names.highest, found=pfs.root.meta.pfs_inum,
            )  # fmt: skip
        for inum in list(report.damaged):
            yield
            path = path_of(pfs, names, inum)
            if path is not None:
                shown = path.decode(errors="backslashreplace")
                report.add(Kind.PATH, f"this is {shown}", inum=inum)

    def _open(self, label: bytes | None) -> Pfs | None:
        """A PFS as a reader sees it; None if a reader cannot see it."""
        try:
            return None if label is None else Reader(self.volume).pfs(label)
        except KError:
            return None


def path_of(pfs: Pfs, names: Names, inum: int) -> bytes | None:
    """The path of an inode from the root of its PFS, None if it cannot be found out."""
    way = names.way(inum)
    if way is None:
        return None
    path = b""
    try:
        for directory, key in way:
            entry = next(pfs.readdir(pfs.inode(directory), cookie_of(key)), None)
            if entry is None or entry.key != key:
                return None
            path += b"/" + entry.name
    except KError:
        return None
    return path or b"/"
