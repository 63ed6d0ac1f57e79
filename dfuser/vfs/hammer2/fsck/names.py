"""Names against inodes: whether each name leads somewhere, and each inode is named as it says.

While the trees of one PFS are walked, its inodes and names are written down in arrays, about 30
bytes each: names are met before the inodes they lead to, and a table of objects for a million
files would take ten times as much. When the PFS is done, `finish` joins them: every name is looked
up, names are counted, and the directories are followed to the root.

A directory has one name. How many links its inode counts is not looked at beyond "more than
none", because DragonFly's kernel counts two and its makefs one.

What was lost with a damaged block cannot be told from what was never there. So when inodes are
missing, names without inode are not told, and when names are missing, link counts and orphans are
not; one note says so.

Counterpart: none; neither DragonFly's fsck nor its kernel compares the two.
Token/lock order: takes none.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from dfuser.vfs.hammer2.fsck.report import Kind, Report, Severity
from dfuser.vfs.hammer2.ondisk.const import ROOT_INUM, ObjType

_DIRECTORY: Final = int(ObjType.DIRECTORY)
#: After how many records a long loop lets its caller look around.
_STRIDE: Final = 2048
#: Deeper than this nobody is told a path.
_DEPTH: Final = 1000


class Names:
    """Inodes and names of one PFS."""

    __slots__ = (
        "_counts", "_entry_child", "_entry_key", "_entry_parent", "_entry_type", "_first",
        "_inums", "_iparents", "_nlinks", "_report", "_root", "_types", "_up", "inodes_lost",
        "names_lost",
    )  # fmt: skip

    def __init__(self, report: Report, root: int = ROOT_INUM) -> None:
        """Nothing is known yet.

        Args:
            report: takes the findings.
            root: the number of the root's inode.
        """
        self._report = report
        self._root = root
        self._inums, self._nlinks, self._iparents = array("Q"), array("Q"), array("Q")
        self._types = bytearray()
        self._entry_child, self._entry_parent, self._entry_key = (
            array("Q"),
            array("Q"),
            array("Q"),
        )
        self._entry_type = bytearray()
        self._counts = array("Q")
        #: For each inode: the first name that leads to it, one more than its place; 0 for none.
        self._first = array("Q")
        #: For each directory: the number of the directory it is named in.
        self._up = array("Q")
        self.inodes_lost = False
        self.names_lost = False

    @property
    def inodes(self) -> int:
        """How many inodes are known, the root not counted."""
        return len(self._inums)

    @property
    def entries(self) -> int:
        """How many names are known."""
        return len(self._entry_child)

    @property
    def highest(self) -> int:
        """The highest number of an inode."""
        return max(self._inums, default=0)

    def inode(self, inum: int, objtype: int, nlinks: int, iparent: int) -> None:
        """Note an inode under the number by which names lead to it."""
        self._inums.append(inum)
        self._types.append(objtype)
        self._nlinks.append(nlinks)
        self._iparents.append(iparent)

    def entry(self, child: int, parent: int, key: int, objtype: int) -> None:
        """Note a name."""
        self._entry_child.append(child)
        self._entry_parent.append(parent)
        self._entry_key.append(key)
        self._entry_type.append(objtype)

    def finish(self) -> Iterator[None]:
        """Compare; yields now and then."""
        self._sort()
        count = len(self._inums)
        self._counts, self._first, self._up = (
            array("Q", bytes(8 * count)),
            array("Q", bytes(8 * count)),
            array("Q", bytes(8 * count)),
        )
        yield from self._join()
        if self.names_lost:
            self._report.add(Kind.SKIPPED, "names are missing: link counts were not compared")
        else:
            yield from self._compare()
        yield from self._climb()

    def _sort(self) -> None:
        """Bring inodes into ascending order, as they are unless they come from old volumes."""
        inums = self._inums
        if all(inums[at] < inums[at + 1] for at in range(len(inums) - 1)):
            return
        order = sorted(range(len(inums)), key=inums.__getitem__)
        kept: list[int] = []
        for at in order:
            if kept and inums[kept[-1]] == inums[at]:
                self._report.add(
                    Kind.INODE, "its number belongs to two inodes", inum=inums[at], key=inums[at]
                )
            else:
                kept.append(at)
        self._inums = array("Q", [inums[at] for at in kept])
        self._types = bytearray([self._types[at] for at in kept])
        self._nlinks = array("Q", [self._nlinks[at] for at in kept])
        self._iparents = array("Q", [self._iparents[at] for at in kept])

    def _index(self, inum: int) -> int:
        """The place of an inode; -1 if there is none."""
        at = bisect_left(self._inums, inum)
        return at if at < len(self._inums) and self._inums[at] == inum else -1

    def _join(self) -> Iterator[None]:
        """Follow every name to its inode."""
        missing = 0
        for at, child in enumerate(self._entry_child):
            if not at % _STRIDE:
                yield
            index = self._index(child)
            if index >= 0:
                self._named(at, index)
            elif child == self._root:
                self._tell(Kind.LOOP, at, "a name leads to the root")
            elif self.inodes_lost:
                missing += 1
            else:
                self._tell(Kind.DANGLING, at, f"a name leads to inode {child:#x}, there is none")
        if missing:
            self._report.add(
                Kind.SKIPPED,
                f"inodes are missing: {missing} names lead to none that could be read",
            )

    def _named(self, at: int, index: int) -> None:
        """Count a name for its inode."""
        objtype = self._types[index]
        if self._entry_type[at] != objtype:
            text = f"a name says type {self._entry_type[at]}, its inode {objtype}"
            self._tell(Kind.ENTRY_TYPE, at, text, expected=objtype, found=self._entry_type[at])
        self._counts[index] += 1
        if not self._first[index]:
            self._first[index] = at + 1
            self._up[index] = self._entry_parent[at]
        elif objtype == _DIRECTORY:
            self._tell(Kind.LOOP, at, "a directory has a second name")

    def _tell(
        self, kind: Kind, at: int, text: str, expected: int | None = None, found: int | None = None
    ) -> None:
        """Tell something about a name: its directory and key say which."""
        where = f"{text} (in directory {self._entry_parent[at]:#x}, key {self._entry_key[at]:#x})"
        self._report.add(
            kind, where, inum=self._entry_child[at], key=self._entry_key[at], expected=expected,
            found=found,
        )  # fmt: skip

    def _compare(self) -> Iterator[None]:
        """Compare what inodes count with the names they have."""
        for index, inum in enumerate(self._inums):
            if not index % _STRIDE:
                yield
            names, nlinks = self._counts[index], self._nlinks[index]
            directory = self._types[index] == _DIRECTORY
            if not names:
                self._orphan(inum, nlinks)
            elif (directory and not nlinks) or (not directory and names != nlinks):
                self._report.add(
                    Kind.LINK_COUNT, f"it counts {nlinks} links and has {names}", inum=inum,
                    key=inum, expected=names, found=nlinks,
                )  # fmt: skip
            elif directory and self._iparents[index] != self._up[index]:
                self._report.add(
                    Kind.PARENT, f"it says it lies in directory {self._iparents[index]:#x}",
                    inum=inum, key=inum, expected=self._up[index], found=self._iparents[index],
                )  # fmt: skip

    def _orphan(self, inum: int, nlinks: int) -> None:
        """An inode without a name; if it counts none, it was deleted while in use."""
        if nlinks:
            text = f"it has no name and counts {nlinks} links"
            self._report.add(Kind.ORPHAN, text, inum=inum, key=inum, expected=0, found=nlinks)
        else:
            text = "it has no name; it was deleted while somebody used it"
            self._report.add(Kind.ORPHAN, text, severity=Severity.WARNING, inum=inum, key=inum)

    def _climb(self) -> Iterator[None]:
        """Follow each directory up; one that comes back to itself is cut off from the root."""
        state = bytearray(len(self._inums))
        for start in range(len(state)):
            if not start % _STRIDE:
                yield
            if self._types[start] != _DIRECTORY or state[start]:
                continue
            way, at = [], start
            while at >= 0 and not state[at]:
                state[at] = 1
                way.append(at)
                at = self._index(self._up[at]) if self._first[at] else -1
            if at >= 0 and state[at] == 1:
                inum = self._inums[at]
                self._report.add(Kind.LOOP, "a directory lies below itself", inum=inum, key=inum)
            for at in way:
                state[at] = 2

    def way(self, inum: int) -> list[tuple[int, int]] | None:
        """The names that lead to an inode, from the root down, after `finish`.

        Returns:
            For each the number of the directory and the key; None if the inode cannot be reached.
        """
        way: list[tuple[int, int]] = []
        while inum != self._root:
            index = self._index(inum)
            if index < 0 or not self._first[index] or len(way) > _DEPTH:
                return None
            at = self._first[index] - 1
            inum = self._entry_parent[at]
            way.append((inum, self._entry_key[at]))
        return way[::-1]
