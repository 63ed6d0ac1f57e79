"""fsck: the deep check of a HAMMER2 volume at rest, as findings that a program can use.

Nothing here prints, repairs or waits. `Fsck.run` gives records, one by one, while it works::

    for record in Fsck(open_set(devices)).run():
        if isinstance(record, Finding): ...      what is wrong, and where
        else: ...                                how far the check is

What is looked at, and where::

    report      findings: kinds, severities, what they carry
    checker     the order of it all, progress, statistics
    headers     every header copy, its fields, and the trees that older copies lead to
    topology    every block from the super-root down: check codes, keys, statistics, places
    table       order, ranges and overlaps of the entries of one block
    files       what an inode may say; file data, decompressed
    names       names against inodes: link counts, orphans, loops
    blocks      who lies where: blocks that overlap
    freemap     the freemap's own trees, and its bits against the blocks that are in use

DragonFly's fsck_hammer2 looks at headers and check codes; everything else here it takes for
granted.

Counterpart: sbin/fsck_hammer2, as far as there is one.
"""

from __future__ import annotations

from dfuser.vfs.hammer2.fsck.checker import Fsck
from dfuser.vfs.hammer2.fsck.report import Finding, Kind, Progress, Severity, Statistics

__all__ = ["Finding", "Fsck", "Kind", "Progress", "Severity", "Statistics"]
