"""What the debugger shows of the VFS: ``show vnodes``, ``show ncache``, ``show mounts``.

The commands walk the live structures. They only read, take nothing, and cope with a kernel that has
just panicked: an entry that cannot be printed is a line that says so.

Counterpart: DB_SHOW_COMMAND(mount) and vprint (kern/vfs_subr.c).
Differs from DragonFly: the namecache can be shown as a tree.
Token/lock order: none.
Invariants: nothing is changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfuser.libkern.ddbcmd import ddb_show

from .mountflags import format_flags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .namecache import NamecacheEntry
    from .vfs import Vfs
    from .vnode import Vnode


class VfsDdb:
    """The debugger commands of one VFS; boot registers it."""

    def __init__(self, vfs: Vfs) -> None:
        self.vfs = vfs

    @ddb_show("vnodes")
    def ddb_show_vnodes(self, *args: str) -> Iterator[str]:
        """One line a vnode: state, counts, flags, mount, inode, what the file system says."""
        yield "state    ref aux open wr act flag   mount ino"
        for vp in self.vfs.vnodes:
            yield self._vnode(vp)

    def _vnode(self, vp: Vnode) -> str:
        """One vnode."""
        index = vp.mount.index if vp.mount is not None else 0
        try:
            more = vp.ops.use.vop_print(vp)
        except Exception as error:
            more = f"({error})"
        return (
            f"{vp.state.name:<8} {vp.refcnt:>3} {vp.auxrefs:>3} {vp.opencount:>4}"
            f" {vp.writecount:>2} {vp.act:>3} {vp.flag:06x} {index:>5} {vp.ino} {vp.type.name}"
            f" {more}"
        )

    @ddb_show("mounts")
    def ddb_show_mounts(self, *args: str) -> Iterator[str]:
        """One line a mount: number, type, source, place, flags, vnodes, holders."""
        for mp in self.vfs.mounts:
            yield (
                f"{mp.index:>3} {mp.fstype.name} {mp.fromname} on {mp.onname}"
                f" ({format_flags(mp.flag)}) vnodes {len(mp.vnodes)} refs {mp.refs}"
                f" busy {mp.busycount}"
            )

    @ddb_show("ncache")
    def ddb_show_ncache(self, *args: str) -> Iterator[str]:
        """The tree of names below each mount's root: state, holders, flags."""
        for mp in self.vfs.mounts:
            yield f"{mp.onname}:"
            yield from self._tree(mp.rootncp)

    def _tree(self, top: NamecacheEntry) -> Iterator[str]:
        """An entry and what is below, without recursion."""
        todo = [(top, 1)]
        while todo:
            ncp, depth = todo.pop()
            name = ncp.name.decode("utf-8", "backslashreplace") or "/"
            state = str(ncp.vp.ino) if ncp.vp is not None else "-" if ncp.negative else "?"
            yield f"{'  ' * depth}{name} {state} refs {ncp.refs} flags {ncp.flags:04x}"
            todo += [(child, depth + 1) for child in reversed((ncp.children or {}).values())]
