"""Header copies: each one by itself, against each other, and what older ones lead to.

The newest intact copy is the volume; the others are what a mount falls back to when that one is
torn. So they must be intact too, which one write of a crash may have prevented: a copy that is
not is a warning, and the next flushes write it again. A place without any copy, all zeroes, is
what growfs leaves.

An older copy must still lead to whole trees. Almost all of it is the newest tree, so the two are
walked together and blockrefs that are equal in both are left out: only blocks that the newest
copy no longer refers to are read. A block that fails was used again too early, or is damaged; a
fallback would lose what is below it.

Counterpart: hammer2_install_volume_header (vfs/hammer2/hammer2_vfsops.c); DragonFly's fsck walks
    the trees of all copies from end to end.
Token/lock order: takes none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dfuser.vfs.hammer2.check import testcheck
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.fsck.blocks import Marks
from dfuser.vfs.hammer2.fsck.report import Counts, Kind, Report, Severity
from dfuser.vfs.hammer2.fsck.table import check_table
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    BLOCKREF_BYTES,
    INODE_BYTES,
    KEY_MAX,
    VOLUME_ALIGN,
    VOLUME_BYTES,
    BrefType,
)
from dfuser.vfs.hammer2.ondisk.geometry import block_fits
from dfuser.vfs.hammer2.ondisk.inode import unpack_inode
from dfuser.vfs.hammer2.ondisk.volhdr import VolumeData
from dfuser.vfs.hammer2.tree import MAX_DEPTH
from dfuser.vfs.hammer2.volume import HeaderCopy, Volume, VolumeSet

_INODE: Final = int(BrefType.INODE)
_INNER: Final = frozenset({int(BrefType.INDIRECT), int(BrefType.FREEMAP_NODE)})

#: An entry of an older tree, and the one at its place in the newest.
Pair = tuple[Blockref, Blockref | None]


def check_headers(volumes: VolumeSet, report: Report, counts: Counts) -> Iterator[None]:
    """Check every header copy of every device."""
    for volume in volumes.volumes:
        for copy in volume.copies:
            counts.headers += 1
            _check_copy(volume, copy, report)
            yield
    _check_fields(volumes.header, report)
    for volume in volumes.volumes:
        if len(volume.copies) == 1:
            report.add(
                Kind.HEADER,
                f"{volume.device.name} has one header, overwritten in place: a torn write of it "
                "loses the volume",
                severity=Severity.NOTE,
            )


def _check_copy(volume: Volume, copy: HeaderCopy, report: Report) -> None:
    """Check one copy against the one that counts."""
    if copy.header is None and _is_blank(volume, copy):
        return
    where = f"header copy {copy.number} of {volume.device.name}"
    if copy.problem:
        text = f"{where} {copy.problem}"
        report.add(Kind.HEADER, text, severity=Severity.WARNING, found=copy.number)
    elif copy.header is not None and (
        copy.header.fsid != volume.header.fsid or copy.header.volu_id != volume.header.volu_id
    ):
        report.add(Kind.HEADER, f"{where} is of another volume", found=copy.number)


def _is_blank(volume: Volume, copy: HeaderCopy) -> bool:
    """Whether nobody ever wrote a header there."""
    try:
        return not any(volume.device.read_at(copy.offset, VOLUME_BYTES))
    except OSError:
        return False


def _check_fields(header: VolumeData, report: Report) -> None:
    """Check what the header that counts says about itself."""
    size = max(header.volu_size, header.total_size)
    if not header.allocator_free <= header.allocator_size <= size:
        report.add(
            Kind.HEADER,
            f"of {header.volu_size} bytes {header.allocator_size} can be allocated and "
            f"{header.allocator_free} are free",
        )
    if header.volu_size % VOLUME_ALIGN:
        text = f"its size {header.volu_size} is no multiple of {VOLUME_ALIGN}"
        report.add(Kind.HEADER, text, severity=Severity.WARNING)
    if not (header.boot_beg <= header.boot_end and header.aux_beg <= header.aux_end):
        report.add(Kind.HEADER, "an area of the header ends before it begins")
    if header.freemap_tid < header.mirror_tid:
        report.add(
            Kind.TID,
            "the freemap is older than the blocks it is for; mounting read-write mends it",
            expected=header.mirror_tid, found=header.freemap_tid,
        )  # fmt: skip


class OldTrees:
    """Walks what older header copies lead to, and the newest does not."""

    __slots__ = ("_counts", "_number", "_report", "_volume", "_walked")

    def __init__(self, volume: VolumeSet, report: Report, counts: Counts) -> None:
        """Nothing is read yet."""
        self._volume = volume
        self._report = report
        self._counts = counts
        self._walked = Marks()
        self._number = 0

    def walk(self) -> Iterator[None]:
        """Check the trees of all intact copies that are older than the one that counts."""
        first = self._volume.volumes[0]
        now = first.header
        for copy in first.copies:
            header = copy.header
            if not copy.valid or header is None or copy.number == first.best:
                continue
            self._number = copy.number
            self._walked = Marks()
            yield from self._walk(header.sroot_blockset, now.sroot_blockset)
            yield from self._walk(header.freemap_blockset, now.freemap_blockset)

    def _walk(self, old: bytes, new: bytes) -> Iterator[None]:
        """Walk two trees together; only what differs is entered."""
        stack = [self._pairs(old, (0, KEY_MAX), new)]
        while stack:
            for bref, now in stack[-1]:
                below = self._enter(bref, now)
                yield
                if below is not None and len(stack) < MAX_DEPTH:
                    stack.append(below)
                    break
            else:
                stack.pop()

    def _pairs(self, old: bytes, span: tuple[int, int], new: bytes) -> Iterator[Pair]:
        """The entries of an old table that the new one does not have."""
        checked = check_table(old, *span)
        for problem in checked.problems:
            self._tell(problem.text, 0)
        present = {bref.key: bref for bref in check_table(new, *span).brefs} if new else {}
        for bref in checked.brefs:
            now = present.get(bref.key)
            if bref != now:
                yield bref, now

    def _enter(self, bref: Blockref, now: Blockref | None) -> Iterator[Pair] | None:
        """Verify a block of an old tree; what lies below, if that differs."""
        if not bref.data_off:
            return None
        metadata = bref.type == _INODE or bref.type in _INNER
        if metadata and self._walked.add(bref.offset):
            return None
        data = self._load(bref)
        if data is None:
            self._tell("leads to a block that cannot be used", bref.data_off, bref.key)
            return None
        if not metadata:
            return None
        other = self._load(now) if now is not None and now.type == bref.type else None
        if bref.type in _INNER:
            return self._pairs(data, (bref.key, bref.last_key), other or b"")
        if len(data) != INODE_BYTES:
            self._tell("leads to an inode of another size", bref.data_off, bref.key)
            return None
        return self._pairs(_blockset(data), (0, KEY_MAX), _blockset(other or b""))

    def _tell(self, text: str, data_off: int, key: int | None = None) -> None:
        """Tell what is wrong with the tree of the present copy."""
        told = f"header copy {self._number}, which is older, {text}"
        self._report.add(Kind.OLD_TREE, told, key=key, data_off=data_off, found=self._number)

    def _load(self, bref: Blockref) -> bytes | None:
        """The block of a blockref if it is whole."""
        if not block_fits(bref.data_off, self._volume.size):
            return None
        self._counts.blocks += 1
        self._counts.bytes += bref.nbytes
        try:
            data = self._volume.read_at(bref.offset, bref.nbytes)
            return data if len(data) == bref.nbytes and testcheck(bref, data) else None
        except (MediaError, OSError):
            return None


def _blockset(data: bytes) -> bytes:
    """The blockset in an inode's block; empty if it has none."""
    if len(data) != INODE_BYTES:
        return b""
    inode = unpack_inode(data)
    return b"" if inode.meta.directdata else inode.u[: 4 * BLOCKREF_BYTES]
