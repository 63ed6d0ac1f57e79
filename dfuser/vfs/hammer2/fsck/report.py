"""Findings: what a check says, in words for people and numbers for programs.

A finding has a kind, which tells what rule was broken, a severity, one sentence, and the place:
PFS, inode, key and block, as far as they are known. Where a number is wrong, ``found`` is what
the volume says and ``expected`` what the rest of the volume makes of it, so that a repair needs
to compute nothing again.

Severities::

    error     something is lost, or will be: a reader gets EIO or nothing, a writer does harm
    warning   nothing is lost: something that DragonFly itself mends, or leaves behind after a
              crash
    note      no fault, but good to know: space that bulkfree would return, checks left out

Counterpart: none; DragonFly's fsck prints.
Token/lock order: takes none.
Invariants: findings are handed over as they are made, never collected here, so that their number
    costs no memory.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple


class Severity(Enum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Kind(Enum):
    """Which rule was broken. The values are part of the interface of ``dfuser fsck --json``."""

    HEADER = "header"
    """A header copy is not intact, or its fields contradict each other."""
    OLD_TREE = "old-tree"
    """An older header copy leads to a block that is damaged or was used again."""
    PLACE = "place"
    """A blockref points to where no block can lie: outside, misaligned, reserved."""
    UNREADABLE = "unreadable"
    """The device cannot read a block."""
    CHECK = "check"
    """A block's check code is wrong."""
    PAYLOAD = "payload"
    """A block of file data cannot be decompressed."""
    BLOCKREF = "blockref"
    """A blockref is of a type that cannot be there, or has impossible fields."""
    KEY_ORDER = "key-order"
    """Entries of a table do not ascend: DragonFly's search would miss some."""
    KEY_OVERLAP = "key-overlap"
    """Two entries of a table cover one key."""
    KEY_RANGE = "key-range"
    """An entry leaves the range of the block it lies in."""
    DEPTH = "depth"
    """A tree is too deep to be one."""
    DUPLICATE = "duplicate"
    """Two blockrefs of one PFS lead to the same metadata block."""
    OVERLAP = "overlap"
    """Two blocks share bytes, but are not the same block."""
    TID = "tid"
    """A block says that it is younger than what refers to it."""
    STATISTICS = "statistics"
    """Counters do not agree with what is counted."""
    INODE = "inode"
    """An inode says what no inode may say."""
    NAME = "name"
    """A directory entry that cannot be found or used: bad name, wrong hash, a name twice."""
    DANGLING = "dangling"
    """A name leads to an inode that is not there."""
    ENTRY_TYPE = "entry-type"
    """A name says another type than its inode."""
    LINK_COUNT = "link-count"
    """An inode counts more or fewer names than it has."""
    ORPHAN = "orphan"
    """An inode has no name."""
    LOOP = "loop"
    """A directory has two names, or lies below itself."""
    PARENT = "parent"
    """A directory's inode says that it lies in another directory."""
    DATA = "data"
    """A piece of a file that cannot be one, or data where a file has none."""
    PFS = "pfs"
    """The root of a PFS is not what one must be."""
    HOLE = "hole"
    """A block in use that the allocator could give out."""
    STAGED = "staged"
    """A block in use that is marked as possibly free."""
    LEAK = "leak"
    """Blocks are marked allocated that nothing refers to."""
    FREEMAP = "freemap"
    """The freemap contradicts itself."""
    SKIPPED = "skipped"
    """A check that could not be made, because of damage told before."""
    PATH = "path"
    """Which file a damaged inode is."""


_MILD: Final = MappingProxyType(
    {
        Kind.OLD_TREE: Severity.WARNING,
        Kind.TID: Severity.WARNING,
        Kind.PARENT: Severity.WARNING,
        Kind.STAGED: Severity.WARNING,
        Kind.LEAK: Severity.NOTE,
        Kind.SKIPPED: Severity.NOTE,
        Kind.PATH: Severity.NOTE,
    }
)


class Finding(NamedTuple):
    """One thing that is wrong, or worth knowing."""

    kind: Kind
    severity: Severity
    text: str
    pfs: bytes | None = None
    inum: int | None = None
    key: int | None = None
    data_off: int = 0
    expected: int | None = None
    found: int | None = None


class Progress(NamedTuple):
    """How far a check is. ``total`` is an estimate in bytes, 0 if there is none."""

    phase: str
    blocks: int
    bytes: int
    total: int


class Statistics(NamedTuple):
    """What a check has looked at and found so far."""

    headers: int
    pfss: int
    inodes: int
    names: int
    blocks: int
    data_blocks: int
    bytes: int
    used: int
    leaked: int
    staged: int
    errors: int
    warnings: int
    notes: int


class Counts:
    """What is counted while checking; see `Statistics`."""

    __slots__ = (
        "blocks", "bytes", "data_blocks", "headers", "inodes", "leaked", "names", "pfss",
        "staged", "used",
    )  # fmt: skip

    def __init__(self) -> None:
        """Everything at zero."""
        self.headers = self.pfss = self.inodes = self.names = 0
        self.blocks = self.data_blocks = self.bytes = 0
        self.used = self.leaked = self.staged = 0


class Report:
    """Takes findings from the checks and hands them out in order."""

    __slots__ = ("_pending", "damaged", "limit", "pfs", "severities")

    def __init__(self, limit: int = 1000) -> None:
        """Nothing found yet.

        Args:
            limit: for how many damaged inodes of a PFS the path is told at its end.
        """
        self._pending: list[Finding] = []
        self.severities = dict.fromkeys(Severity, 0)
        self.pfs: bytes | None = None
        #: Inodes of the present PFS that have errors, in the order they were found.
        self.damaged: dict[int, None] = {}
        self.limit = limit

    def add(
        self, kind: Kind, text: str, *, severity: Severity | None = None, inum: int | None = None,
        key: int | None = None, data_off: int = 0, expected: int | None = None,
        found: int | None = None,
    ) -> None:  # fmt: skip
        """Take a finding; its severity is that of its kind if none is given."""
        if severity is None:
            severity = _MILD.get(kind, Severity.ERROR)
        self.severities[severity] += 1
        if severity is Severity.ERROR and inum and len(self.damaged) < self.limit:
            self.damaged[inum] = None
        self._pending.append(
            Finding(kind, severity, text, self.pfs, inum, key, data_off, expected, found)
        )

    def take(self) -> list[Finding]:
        """The findings since this was last asked."""
        if not self._pending:
            return []
        pending, self._pending = self._pending, []
        return pending
