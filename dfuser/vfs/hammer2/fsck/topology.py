"""Every block from the super-root down, and what its blockref says about it.

One walk goes through the super-root and collects PFSs; then each PFS is walked for itself, so
that its names and inodes can be compared. Snapshots share almost all of their blocks. Metadata
that two PFSs share is read for both, since both need its names, but what is wrong in it is told
once, and the data below it is verified once: the same bytes hold the same check codes. Files that
were seen whole are not entered again.

Within one PFS no metadata block may be met twice. That is also why a walk ends: whatever the
bytes are, there are only so many blocks, and trees of indirect blocks have a depth limit.

For every block: can one lie there, does it overlap another (blocks.py), does its check code hold,
are its keys in order and in range and its statistics right (table.py), is it no younger than what
refers to it, and may such a block be there at all::

    super-root   inodes only: the roots of PFSs, by the hash of their labels
    PFS root     inodes by number, and the root's own names
    directory    names; inodes in their place on volumes of the very first versions
    file, link   pieces of data
    anything     indirect blocks; nothing below devices, FIFOs and sockets

Counterpart: hammer2_bulk_scan (vfs/hammer2/hammer2_bulkfree.c); sbin/fsck_hammer2/test.c.
Differs from DragonFly: the statistics of the super-root and the leaf_count of PFS roots are not
    compared, because newfs and snapshots leave them at zero and nobody counts what was there.
Token/lock order: takes none.
Invariants: no byte of a block is believed before its check code held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import MappingProxyType
from typing import Final

from attrs import Factory, define

from dfuser.vfs.hammer2.check import testcheck
from dfuser.vfs.hammer2.errors import MediaError
from dfuser.vfs.hammer2.fsck import files
from dfuser.vfs.hammer2.fsck.blocks import Added, BlockMap, Marks
from dfuser.vfs.hammer2.fsck.names import Names
from dfuser.vfs.hammer2.fsck.report import Counts, Kind, Report, Severity
from dfuser.vfs.hammer2.fsck.table import check_table, sums
from dfuser.vfs.hammer2.ondisk.blockref import Blockref
from dfuser.vfs.hammer2.ondisk.const import (
    ALLOC_MIN,
    BLOCKREF_LEAF_MAX,
    DIRENT_INLINE_NAME,
    DIRHASH_LOMASK,
    DIRHASH_VISIBLE,
    INODE_BYTES,
    INODE_MAXNAME,
    KEY_MAX,
    BrefType,
    ObjType,
    PfsType,
)
from dfuser.vfs.hammer2.ondisk.geometry import block_fits, reserved
from dfuser.vfs.hammer2.ondisk.inode import InodeData, unpack_inode
from dfuser.vfs.hammer2.ondisk.keys import dirhash, dirhash_last
from dfuser.vfs.hammer2.tree import MAX_DEPTH
from dfuser.vfs.hammer2.volume import VolumeSet

_INODE: Final = int(BrefType.INODE)
_INDIRECT: Final = int(BrefType.INDIRECT)
_DATA: Final = int(BrefType.DATA)
_DIRENT: Final = int(BrefType.DIRENT)
_DIRECTORY: Final = int(ObjType.DIRECTORY)
_DOTS: Final = (b".", b"..")

#: Whose tree is walked, and what may lie in it besides indirect blocks.
_SUPER, _ROOT, _DIR, _FILE, _OTHER = "super-root", "PFS root", "directory", "file", "inode"
_MAY_HOLD: Final = MappingProxyType(
    {
        _SUPER: frozenset({_INODE}),
        _ROOT: frozenset({_INODE, _DIRENT}),
        _DIR: frozenset({_INODE, _DIRENT}),
        _FILE: frozenset({_DATA}),
        _OTHER: frozenset[int](),
    }
)


@define(eq=False)
class Owner:
    """The inode whose tree is walked; the names with the hash that was met last."""

    kind: str
    inum: int | None
    size: int = 0
    run_key: int = -1
    run_names: set[bytes] = Factory(set)


@define(eq=False)
class Frame:
    """A table that is being gone through."""

    bref: Blockref
    owner: Owner
    entries: Iterator[Blockref]
    #: How many tables of the owner's tree lie above.
    depth: int
    #: What lies in this table was seen before, through another PFS.
    shared: bool


class Topology:
    """Walks the trees of one volume; one object a pass."""

    __slots__ = (
        "_counts", "_forbidden", "_light", "_quiet", "_report", "_seen", "_volume", "_walked",
        "blocks", "names", "pfss",
    )  # fmt: skip

    def __init__(
        self, volume: VolumeSet, report: Report, counts: Counts, blocks: BlockMap,
        *, light: bool = False,
    ) -> None:  # fmt: skip
        """Prepare a pass.

        Args:
            volume: what is checked.
            report: takes the findings.
            counts: counts what is done.
            blocks: takes the blocks that lie in its window.
            light: fill in `blocks`, and tell nothing but overlaps: the rest was told before.
        """
        self._volume = volume
        self._report = report
        self._counts = counts
        self._light = light
        #: Metadata blocks met so far, and those met in the present PFS.
        self._seen, self._walked = Marks(), Marks()
        self._quiet = False
        header = volume.header
        areas = (header.boot_beg, header.boot_end), (header.aux_beg, header.aux_end)
        self._forbidden = [range(*area) for area in areas]
        self.blocks = blocks
        self.names: Names | None = None
        self.pfss: list[Blockref] = []

    def walk_super_root(self) -> Iterator[None]:
        """Check the super-root and note the PFSs in `pfss`."""
        entries = check_table(self._volume.header.sroot_blockset, 0, KEY_MAX)
        self._quiet = self._light
        for problem in entries.problems:
            self._say(problem.kind, problem.text, key=problem.key)
        found = [bref for bref in entries.brefs if bref.type == _INODE and not bref.key]
        if not found:
            self._say(Kind.PFS, "the volume has no super-root")
            return
        for bref in entries.brefs:
            if bref is not found[0]:
                text = f"besides the super-root the header refers to type {bref.type}"
                self._say(Kind.BLOCKREF, text, key=bref.key, data_off=bref.data_off)
        yield from self._walk(self._enter_super_root(found[0]))

    def walk_pfs(self, bref: Blockref) -> Iterator[None]:
        """Check one PFS; afterwards `names` has what is known of its names, None if nothing.

        The label is noted in the report, which keeps it until the next PFS.
        """
        self._walked = Marks()
        self.names = None
        self._quiet = self._light
        frame = self._enter_pfs(bref)
        yield
        yield from self._walk(frame)

    def _say(
        self, kind: Kind, text: str, *, severity: Severity | None = None,
        inum: int | None = None, key: int | None = None, data_off: int = 0,
        expected: int | None = None, found: int | None = None,
    ) -> None:  # fmt: skip
        """Tell a finding, unless it was told before."""
        if not self._quiet:
            self._report.add(
                kind, text, severity=severity, inum=inum, key=key, data_off=data_off,
                expected=expected, found=found,
            )  # fmt: skip

    def _walk(self, frame: Frame | None) -> Iterator[None]:
        """Go through a tree and all trees below."""
        stack = [frame] if frame is not None else []
        while stack:
            frame = stack[-1]
            for bref in frame.entries:
                self._quiet = self._light or frame.shared
                below = self._entry(bref, frame)
                if bref.data_off:
                    yield
                if below is not None:
                    stack.append(below)
                    break
            else:
                stack.pop()

    def _entry(self, bref: Blockref, frame: Frame) -> Frame | None:
        """Check one entry; what lies below it, if it is to be walked now."""
        owner = frame.owner
        if bref.mirror_tid > frame.bref.mirror_tid:
            self._say(
                Kind.TID, f"its mirror_tid {bref.mirror_tid:#x} is above that of what refers to it",
                inum=owner.inum, key=bref.key, data_off=bref.data_off,
                expected=frame.bref.mirror_tid, found=bref.mirror_tid,
            )  # fmt: skip
        if bref.type == _INDIRECT and owner.kind != _OTHER:
            return self._indirect(bref, frame)
        if bref.type not in _MAY_HOLD[owner.kind]:
            kind = Kind.DATA if owner.kind == _OTHER or bref.type == _DATA else Kind.BLOCKREF
            text = f"type {bref.type} lies below a {owner.kind}"
            self._say(kind, text, inum=owner.inum, key=bref.key, data_off=bref.data_off)
            return None
        if bref.type == _DATA:
            self._data(bref, frame)
        elif bref.type == _DIRENT:
            self._dirent(bref, owner)
        elif owner.kind == _SUPER:
            self.pfss.append(bref)
        else:
            return self._inode(bref, owner)
        return None

    def _take(self, bref: Blockref, inum: int | None) -> bytes | None:
        """Look at the place of a metadata block and read it; None if it cannot be used."""
        if not self._place(bref, inum):
            return None
        offset = bref.offset
        if self._walked.add(offset):
            self._say(
                Kind.DUPLICATE, "this block is used twice in one PFS", inum=inum, key=bref.key,
                data_off=bref.data_off,
            )  # fmt: skip
            return None
        seen = self._seen.add(offset)
        added = self.blocks.add(offset, bref.nbytes)
        if added is Added.OVERLAP or (added is Added.SAME and not seen):
            self._overlap(bref, inum)
        data = self._read(bref, inum)
        # What this blockref says is its own; what the block says was told when it was first seen.
        self._quiet = self._quiet or seen
        return data

    def _place(self, bref: Blockref, inum: int | None) -> bool:
        """Whether a block can be read from where a blockref says."""
        offset = bref.offset
        if not block_fits(bref.data_off, self._volume.size) or offset % ALLOC_MIN:
            text = "no block can lie there"
        elif reserved(offset) or any(offset in area for area in self._forbidden):
            text = "this block lies where no file system's blocks may"
        else:
            return True
        self._say(Kind.PLACE, text, inum=inum, key=bref.key, data_off=bref.data_off)
        return False

    def _overlap(self, bref: Blockref, inum: int | None) -> None:
        """Tell that a block shares bytes with another; also in a pass that tells nothing else."""
        self._report.add(
            Kind.OVERLAP, "this block overlaps another, or is data and metadata at once",
            inum=inum, key=bref.key, data_off=bref.data_off,
        )  # fmt: skip

    def _read(self, bref: Blockref, inum: int | None) -> bytes | None:
        """Read a block and verify it; None, and a finding, if that fails."""
        size = bref.nbytes
        kind, text, data = Kind.UNREADABLE, "", b""
        try:
            data = self._volume.read_at(bref.offset, size)
            if len(data) != size:
                text = f"only {len(data)} bytes can be read"
            elif not testcheck(bref, data):
                kind, text = Kind.CHECK, "wrong check code"
        except MediaError as exc:
            kind, text = Kind.BLOCKREF, exc.strerror or "unknown kind of check code"
        except OSError as exc:
            text = f"cannot be read: {exc.strerror or exc}"
        self._counts.blocks += 1
        self._counts.bytes += size
        if not text:
            return data
        self._say(kind, text, inum=inum, key=bref.key, data_off=bref.data_off)
        return None

    def _lose(self, owner: Owner, key: int) -> None:
        """Note what cannot be known because something is damaged."""
        names = self.names
        if names is None:
            return
        if owner.kind == _ROOT and key < DIRHASH_VISIBLE:
            names.inodes_lost = names.names_lost = True
        elif owner.kind in (_ROOT, _DIR):
            names.names_lost = True

    def _table(
        self, bref: Blockref, data: bytes, span: tuple[int, int], owner: Owner
    ) -> list[Blockref]:
        """Decode and check the entries in the block of a blockref."""
        checked = check_table(data, *span)
        for problem in checked.problems:
            self._say(
                problem.kind, problem.text, inum=owner.inum, key=problem.key,
                data_off=bref.data_off,
            )  # fmt: skip
            self._lose(owner, problem.key)
        if not checked.problems and owner.kind != _SUPER:
            self._statistics(bref, checked.brefs, owner)
        return checked.brefs

    def _statistics(self, bref: Blockref, entries: Iterable[Blockref], owner: Owner) -> None:
        """Compare the counters of a blockref with those of the entries in its block."""
        want = sums(entries)
        pairs = [*zip(("data_count", "inode_count"), bref.stats, want, strict=False)]
        if owner.kind != _ROOT or bref.type != _INODE:
            leaves = bref.leaf_count
            if BLOCKREF_LEAF_MAX not in (leaves, want.leaf_count):
                pairs.append(("leaf_count", leaves, want.leaf_count))
        for name, found, expected in pairs:
            if found != expected:
                self._say(
                    Kind.STATISTICS, f"{name} is {found}, counted are {expected}",
                    inum=owner.inum, key=bref.key, data_off=bref.data_off, expected=expected,
                    found=found,
                )  # fmt: skip

    def _indirect(self, bref: Blockref, frame: Frame) -> Frame | None:
        """Check an indirect block."""
        owner = frame.owner
        if frame.depth >= MAX_DEPTH:
            self._say(Kind.DEPTH, "a tree too deep to be one", inum=owner.inum, key=bref.key)
            return None
        known = bref.offset in self._seen
        data = self._take(bref, owner.inum)
        if data is None:
            self._lose(owner, bref.key)
            return None
        entries = self._table(bref, data, (bref.key, bref.last_key), owner)
        if known and owner.kind == _FILE:
            return None
        return Frame(bref, owner, iter(entries), frame.depth + 1, known)

    def _load_inode(self, bref: Blockref, inum: int | None) -> InodeData | None:
        """Read an inode; None, and a finding, if there is none that can be used."""
        if bref.nbytes != INODE_BYTES:
            text = f"an inode of {bref.nbytes} bytes"
            self._say(Kind.BLOCKREF, text, inum=inum, key=bref.key, data_off=bref.data_off)
            return None
        data = self._take(bref, inum)
        if data is None:
            return None
        inode = unpack_inode(data)
        why = files.usable(inode.meta)
        if why:
            self._say(Kind.INODE, why, inum=inum, key=bref.key, data_off=bref.data_off)
            return None
        return inode

    def _check(self, bref: Blockref, sayings: Iterable[files.Saying], inum: int | None) -> None:
        """Tell what is wrong with one record."""
        for kind, text, severity in sayings:
            self._say(
                kind, text, severity=severity, inum=inum, key=bref.key, data_off=bref.data_off
            )

    def _enter_super_root(self, bref: Blockref) -> Frame | None:
        """The super-root's own table."""
        inode = self._load_inode(bref, None)
        if inode is None:
            return None
        if inode.meta.type != _DIRECTORY or inode.meta.pfs_type != PfsType.SUPROOT:
            self._say(Kind.PFS, "the super-root does not say that it is one")
        owner = Owner(_SUPER, None)
        entries = self._table(bref, inode.u, (0, KEY_MAX), owner)
        return Frame(bref, owner, iter(entries), 0, False)

    def _enter_pfs(self, bref: Blockref) -> Frame | None:
        """The table of a PFS's root."""
        inode = self._load_inode(bref, None)
        if inode is None:
            return None
        meta = inode.meta
        self._report.pfs = inode.name
        self._check(bref, files.check_inode(bref, inode), meta.inum)
        self._check(bref, files.check_pfs(bref, inode), meta.inum)
        if meta.type != _DIRECTORY or meta.directdata:
            return None
        if not self._light:
            self.names = Names(self._report, meta.inum)
        owner = Owner(_ROOT, meta.inum)
        entries = self._table(bref, inode.u, (0, KEY_MAX), owner)
        return Frame(bref, owner, iter(entries), 0, False)

    def _inode(self, bref: Blockref, owner: Owner) -> Frame | None:
        """Check an inode; what lies below it."""
        indexed = owner.kind == _ROOT and bref.key < DIRHASH_VISIBLE
        known = bref.offset in self._seen
        inode = self._load_inode(bref, bref.key if indexed else None)
        if inode is None:
            self._lose(owner, bref.key if indexed else KEY_MAX)
            if not indexed and self.names is not None:
                self.names.inodes_lost = True
            return None
        meta = inode.meta
        inum = bref.key if indexed else meta.inum
        self._counts.inodes += not known and not self._light
        if meta.inum != inum:
            self._say(
                Kind.INODE, f"it says its number is {meta.inum:#x}", inum=inum, key=bref.key,
                data_off=bref.data_off, expected=inum, found=meta.inum,
            )  # fmt: skip
        self._check(bref, files.check_inode(bref, inode), inum)
        if self.names is not None:
            self.names.inode(inum, meta.type, meta.nlinks, meta.iparent)
            if not indexed:
                self._name(bref, owner, inode.name, inum, meta.type)
        return self._below(bref, inode, inum, known=known)

    def _below(self, bref: Blockref, inode: InodeData, inum: int, *, known: bool) -> Frame | None:
        """The table of an inode, unless all below it was seen."""
        meta = inode.meta
        kind = _OTHER
        if meta.type == _DIRECTORY:
            kind = _DIR
        elif meta.type in files.WITH_DATA:
            kind = _FILE
        owner = Owner(kind, inum, meta.size)
        data = b"" if meta.directdata and kind != _DIR else inode.u
        entries = self._table(bref, data, (0, KEY_MAX), owner)
        if known and kind != _DIR:
            return None
        return Frame(bref, owner, iter(entries), 0, known)

    def _data(self, bref: Blockref, frame: Frame) -> None:
        """Check a piece of a file."""
        owner = frame.owner
        self._check(bref, files.check_piece(bref, owner.size), owner.inum)
        if not self._place(bref, owner.inum):
            return
        added = self.blocks.add(bref.offset, bref.nbytes)
        metadata = added is Added.SAME and bref.offset in self._seen
        if (added is Added.OVERLAP or metadata) and not frame.shared:
            self._overlap(bref, owner.inum)
        if self._light or frame.shared:
            return
        self._counts.data_blocks += 1
        data = self._read(bref, owner.inum)
        if data is not None:
            why = files.check_payload(bref, data)
            if why:
                self._say(Kind.PAYLOAD, why, inum=owner.inum, key=bref.key, data_off=bref.data_off)

    def _dirent(self, bref: Blockref, owner: Owner) -> None:
        """Check a directory entry."""
        head = bref.dirent
        if bref.keybits or not 0 < head.namlen < INODE_MAXNAME:
            text = f"a name of {head.namlen} bytes that covers {bref.keybits} bits of keys"
            self._say(Kind.NAME, text, inum=owner.inum, key=bref.key, data_off=bref.data_off)
            self._lose(owner, KEY_MAX)
            return
        if head.namlen <= DIRENT_INLINE_NAME:
            name = bref.check[: head.namlen]
        else:
            data = self._take(bref, owner.inum)
            if data is None:
                # The name is lost, but not that there is one.
                if self.names is not None:
                    self.names.entry(head.inum, owner.inum or 0, bref.key, head.type)
                return
            name = data[: head.namlen]
        self._name(bref, owner, name, head.inum, head.type)

    def _name(self, bref: Blockref, owner: Owner, name: bytes, inum: int, objtype: int) -> None:
        """Check a name, and note that it leads to an inode."""
        if b"/" in name or b"\0" in name or name in _DOTS:
            self._say(Kind.NAME, f"no file can be called {name!r}", inum=owner.inum, key=bref.key)
        base = dirhash(name)
        if not base <= bref.key <= dirhash_last(base):
            self._say(
                Kind.NAME, f"{name!r} lies at a key where nobody looks for it",
                inum=owner.inum, key=bref.key, expected=base, found=bref.key,
            )  # fmt: skip
        if owner.run_key != bref.key & ~DIRHASH_LOMASK:
            owner.run_key, owner.run_names = bref.key & ~DIRHASH_LOMASK, {name}
        elif name in owner.run_names:
            self._say(Kind.NAME, f"{name!r} is there twice", inum=owner.inum, key=bref.key)
        else:
            owner.run_names.add(name)
        if self.names is not None:
            self._counts.names += 1
            self.names.entry(inum, owner.inum or 0, bref.key, objtype)
