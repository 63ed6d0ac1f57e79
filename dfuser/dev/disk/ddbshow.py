"""What the debugger shows of disks: ``show disks``, ``show devstat``.

Counterpart: none; DragonFly has the tools disklabel64, diskinfo and iostat.
Token and lock order: takes none; only reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfuser.libkern.ddbcmd import ddb_show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .layer import DiskLayer


class DiskDdb:
    """The debugger commands of one disk layer; boot registers it."""

    def __init__(self, layer: DiskLayer) -> None:
        self.layer = layer

    @ddb_show("disks")
    def ddb_show_disks(self, *args: str) -> Iterator[str]:
        """One line a device: place and size in sectors, opens, transfers in flight, kind."""
        yield "device              start       blocks opens inflight  kind"
        for disk in self.layer.enumerate():
            slices = disk.slices
            for (slot, part), dev in disk.devices():
                start, blocks = slices.place(slot, part) if slices is not None else (-1, 0)
                node = dev.drv1
                active = node.track.active if node is not None else 0
                kind = slices.kind if slices is not None else "unprobed"
                sp = slices.get(slot) if slices is not None else None
                if slot != 1 and sp is not None:
                    kind = f"{sp.type:#x}" + (f" label{sp.label.bits}" if sp.label else "")
                yield (
                    f"{dev.name:<16} {start:>8} {blocks:>12} {dev.opencount:>5} {active:>8}  {kind}"
                )

    @ddb_show("devstat")
    def ddb_show_devstat(self, *args: str) -> Iterator[str]:
        """One line a device: requests and bytes by kind, busy time."""
        yield "device      reads        bytes   writes        bytes    frees  other busy    busy_ms"
        for stat in self.layer.devstats:
            s = stat.statistics()
            yield (
                f"{s.name + str(s.unit):<8} {s.num_reads:>8} {s.bytes_read:>12} {s.num_writes:>8}"
                f" {s.bytes_written:>12} {s.num_frees:>8} {s.num_other:>6} {s.busy_count:>4}"
                f" {s.busy_ns // 1_000_000:>10}"
            )
