"""What the two kinds of disk label share.

A label lies at the start of a slice and divides it into partitions ``a`` to ``p``. The 32-bit kind
(`disklabel32`) is BSD's of old: sector 1, sectors counted from the start of the *disk* on the
medium. The 64-bit kind (`disklabel64`) is DragonFly's own: byte 0, bytes counted from the start of
the slice. A slice is looked at for the first kind, then for the second.

In memory both are slice-relative, and answer the same questions: `Disklabel`.

Counterpart: struct disklabel_ops (sys/disklabel.h), struct partinfo's label part (sys/diskslice.h),
    sys/dtype.h.
Token and lock order: takes none.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol
from uuid import UUID

from .table import NIL

MAXPARTITIONS: Final = 16
#: Partition c of a 32-bit label is the whole slice. Counterpart: RAW_PART.
RAW_PART: Final = 2
BBSIZE: Final = 8192
SBSIZE: Final = 8192

# Types of partitions. Counterpart: FS_* (sys/dtype.h).
FS_UNUSED: Final = 0
FS_SWAP: Final = 1
FS_BSDFFS: Final = 7
FS_MSDOS: Final = 8
FS_OTHER: Final = 10
FS_ISO9660: Final = 12
FS_HAMMER: Final = 22
FS_HAMMER2: Final = 23


class LabelError(ValueError):
    """Bytes that are no valid label; the text says why.

    ``absent`` is true where there is none at all, so that the other kind may be looked for.
    """

    def __init__(self, text: str, *, absent: bool = False) -> None:
        super().__init__(text)
        self.absent = absent


class Extent(NamedTuple):
    """Where a slice lies: sectors of ``blksize`` bytes."""

    offset: int
    size: int
    blksize: int


class PartitionKind(NamedTuple):
    """What a label says of a partition besides where it is. Nil UUIDs in a 32-bit label."""

    fstype: int
    type_uuid: UUID = NIL
    stor_uuid: UUID = NIL


class Disklabel(Protocol):
    """A label in memory, slice-relative."""

    @property
    def bits(self) -> int:
        """32 or 64."""

    @property
    def npartitions(self) -> int:
        """Partitions it has room for."""

    @property
    def packname(self) -> str:
        """What its owner calls it, often empty."""

    def getpartbounds(self, part: int, blksize: int) -> tuple[int, int]:
        """First sector in the slice, and sectors, of a partition.

        Raises:
            KError: EINVAL, no such partition, or it does not lie on whole sectors.
        """

    def partition_kind(self, part: int) -> PartitionKind:
        """What the partition is for; FS_UNUSED where there is none."""

    def reserved(self, blksize: int) -> int:
        """Sectors at the start of the slice that are protected."""

    def pack(self) -> bytes:
        """The label as DIOCGDINFO gives it."""


def packname_text(raw: bytes) -> str:
    """A pack name as part of a device's name: up to its first NUL, slashes replaced."""
    text = raw.partition(b"\0")[0].decode("utf-8", "replace")
    return text.replace("/", "_")
