"""A pyfuse3 server that can do next to nothing: the floor under any pyfuse3 file system.

One directory with one file "f", both in a dict; lookup and getattr answer with ready-made
attributes. Whatever a real file system takes longer than this for the same request is its own.
"""

from __future__ import annotations

import errno
import stat
import sys

import pyfuse3
import trio

FILE = pyfuse3.ROOT_INODE + 1


class Minimal(pyfuse3.Operations):
    """Answers lookup and getattr from a dict, and lists the one file."""

    enable_writeback_cache = False

    def __init__(self) -> None:
        """Prepare the attributes of both inodes."""
        super().__init__()
        self.attributes = {
            pyfuse3.ROOT_INODE: attributes(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755, 2),
            FILE: attributes(FILE, stat.S_IFREG | 0o644, 1),
        }
        self.missing = pyfuse3.EntryAttributes()
        self.missing.st_ino = pyfuse3.InodeT(0)
        self.missing.entry_timeout = 300

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find the one file; say of all other names that they are not there, for 300 seconds."""
        return self.attributes[FILE] if name == b"f" else self.missing

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Hand out the ready-made attributes."""
        return self.attributes[inode]

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """Open the one file."""
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode))

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """The file is empty."""
        return b""

    async def opendir(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileHandleT:
        """Open the directory."""
        return pyfuse3.FileHandleT(inode)

    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        """List the one file."""
        if start_id == 0:
            pyfuse3.readdir_reply(token, pyfuse3.FileNameT(b"f"), self.attributes[FILE], 1)

    async def mkdir(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Nothing can be made."""
        raise pyfuse3.FUSEError(errno.EROFS)


def attributes(inode: int, mode: int, links: int) -> pyfuse3.EntryAttributes:
    """Attributes that the kernel may keep for 300 seconds."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(inode)
    entry.st_mode = pyfuse3.ModeT(mode)
    entry.st_nlink = links
    entry.entry_timeout = entry.attr_timeout = 300
    return entry


def main(target: str) -> None:
    """Serve at `target` until it is unmounted."""
    options = set(pyfuse3.default_options) | {"fsname=minimal"}
    pyfuse3.init(Minimal(), target, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(sys.argv[1])
