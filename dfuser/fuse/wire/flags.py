"""INIT flags: one table, one decision a row.

In INIT the kernel offers what it can do and the server answers what it wants; what is not answered
stays off for the life of the connection. Each row of `FLAGS` says what the bit is, since which
minor version it exists, whether dfuser wants it and why. `init` turns the table and one mount's
wishes into an answer.

Rules of the table:

* The kernel's offer is believed, whatever its version says: distributions carry flags back.
* A flag is *wanted* always, never, or if a wish of the mount says so (`init.Wishes`).
* `needs`: the flag is worth nothing without another one; it is dropped if that one is.
* `yields`: the two exclude each other and the other one wins.
* `told`: the bit only tells what the kernel can do. It is answered like the others, so that the
  connection's record shows what can be relied upon, and the kernel does not read it.
* `brings`: members of the reply that count only if the flag is on.

Counterpart: process_init_reply and fuse_new_init (fs/fuse/inode.c of Linux), which decide the same
from the other side; the INIT flags of linux/fuse.h.
Invariants: every bit of the protocol has exactly one row; a name in needs and yields is a row.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, NamedTuple

#: Values of `Flag.wish` that are no wishes.
ALWAYS: Final = "always"
NEVER: Final = "never"


class Flag(NamedTuple):
    """One INIT flag and what dfuser makes of it.

    Attributes:
        name: as in the header, without FUSE_.
        bit: its mask, in 64 bits.
        since: the minor version that brought it.
        wish: ALWAYS, NEVER, or the attribute of `init.Wishes` that decides.
        why: what is gained, or lost.
        needs: flags it is worth nothing without.
        yields: flags it stays off for.
        told: it only announces.
        brings: members of the reply that it makes count.
    """

    name: str
    bit: int
    since: int
    wish: str
    why: str
    needs: tuple[str, ...] = ()
    yields: tuple[str, ...] = ()
    told: bool = False
    brings: tuple[str, ...] = ()


FLAGS: Final = (
    Flag(
        "ASYNC_READ", 1 << 0, 6, ALWAYS,
        "several reads of one file may be under way; the loop answers in any order",
    ),
    Flag(
        "POSIX_LOCKS", 1 << 1, 7, "locks",
        "record locks are served by our lockf, with its deadlock rules, and are seen in /kern",
    ),
    Flag("FILE_OPS", 1 << 2, 9, NEVER, "the kernel never made anything of it"),
    Flag(
        "ATOMIC_O_TRUNC", 1 << 3, 9, ALWAYS,
        "open and truncate are one operation, so no other process sees the moment between; "
        "without OPEN requests the truncation must come as SETATTR",
        yields=("NO_OPEN_SUPPORT",),
    ),
    Flag(
        "EXPORT_SUPPORT", 1 << 4, 9, ALWAYS,
        "nodeids are file handles: lookups of . and .. work after the kernel forgot the file",
    ),
    Flag("BIG_WRITES", 1 << 5, 9, ALWAYS, "writes larger than a page"),
    Flag(
        "DONT_MASK", 1 << 6, 12, ALWAYS,
        "the umask comes with the request and a default ACL can take its place",
    ),
    Flag("SPLICE_WRITE", 1 << 7, 14, NEVER, "requests are read with readv into one buffer"),
    Flag("SPLICE_MOVE", 1 << 8, 14, NEVER, "pages are frames of our memory, not given away"),
    Flag("SPLICE_READ", 1 << 9, 14, NEVER, "replies go out with writev from page memory"),
    Flag(
        "FLOCK_LOCKS", 1 << 10, 17, "locks",
        "flock is served by our lockf too, so both kinds are seen in one place",
    ),
    Flag(
        "HAS_IOCTL_DIR", 1 << 11, 18, ALWAYS, "ioctls on directories reach us",
        told=True,
    ),
    Flag(
        "AUTO_INVAL_DATA", 1 << 12, 20, ALWAYS,
        "pages go when a fresh size or mtime says so: for mounts that do not notify",
        yields=("EXPLICIT_INVAL_DATA",),
    ),
    Flag(
        "DO_READDIRPLUS", 1 << 13, 21, ALWAYS,
        "a listing brings the attributes along: ls -l is one request a hundred entries",
    ),
    Flag(
        "READDIRPLUS_AUTO", 1 << 14, 21, ALWAYS,
        "plain READDIR for who only wants names: find and rm do not pay for attributes",
        needs=("DO_READDIRPLUS",),
    ),
    Flag("ASYNC_DIO", 1 << 15, 22, ALWAYS, "direct reads and writes may overlap"),
    Flag(
        "WRITEBACK_CACHE", 1 << 16, 23, "writeback",
        "small writes are gathered in the page cache; the kernel keeps size and mtime meanwhile; "
        "it refuses passthrough beside it",
        yields=("PASSTHROUGH",),
    ),
    Flag(
        "NO_OPEN_SUPPORT", 1 << 17, 23, "zero_open",
        "ENOSYS to the first OPEN saves all later ones and their RELEASE; "
        "only where a file system needs no state of an open file",
        told=True,
    ),
    Flag(
        "PARALLEL_DIROPS", 1 << 18, 25, ALWAYS,
        "lookups and listings of one directory need not queue: the namecache has its own locks",
    ),
    Flag(
        "HANDLE_KILLPRIV", 1 << 19, 26, "killpriv",
        "we drop set-id bits on write, chown and truncate",
        yields=("HANDLE_KILLPRIV_V2",),
    ),
    Flag(
        "POSIX_ACL", 1 << 20, 26, "acl",
        "the kernel checks access by our ACLs; switches default_permissions on",
    ),
    Flag(
        "ABORT_ERROR", 1 << 21, 27, ALWAYS,
        "reading after an abort says ECONNABORTED, after an unmount ENODEV: they can be told apart",
    ),
    Flag(
        "MAX_PAGES", 1 << 22, 28, ALWAYS, "requests of 1 MiB instead of 128 KiB",
        brings=("max_pages",),
    ),
    Flag(
        "CACHE_SYMLINKS", 1 << 23, 28, "cache_symlinks",
        "READLINK once a link; not where what a link says may change without a new inode",
    ),
    Flag(
        "NO_OPENDIR_SUPPORT", 1 << 24, 29, "zero_opendir",
        "ENOSYS to the first OPENDIR saves all later ones; cookies are ours and stable",
        told=True,
    ),
    Flag(
        "EXPLICIT_INVAL_DATA", 1 << 25, 30, "explicit_inval",
        "pages stay until we say so: every change inside is notified",
    ),
    Flag(
        "MAP_ALIGNMENT", 1 << 26, 31, NEVER, "DAX windows exist on virtiofs only",
        brings=("map_alignment",),
    ),
    Flag(
        "SUBMOUNTS", 1 << 27, 32, NEVER,
        "mounts inside are connections of their own, not automounts of the kernel",
    ),
    Flag(
        "HANDLE_KILLPRIV_V2", 1 << 28, 33, "killpriv",
        "we drop set-id bits where the request says so, and the kernel saves an xattr look-up "
        "for each write",
    ),
    Flag(
        "SETXATTR_EXT", 1 << 29, 33, ALWAYS,
        "SETXATTR says when setting an ACL shall drop the set-group-id bit",
    ),
    Flag("INIT_EXT", 1 << 30, 36, ALWAYS, "without it the flags end at bit 31"),
    Flag("INIT_RESERVED", 1 << 31, 36, NEVER, "reserved by the protocol"),
    Flag(
        "SECURITY_CTX", 1 << 32, 36, NEVER,
        "DragonFly has no labels; 7.36 and 7.37 append them without total_extlen",
        needs=("INIT_EXT",),
    ),
    Flag(
        "HAS_INODE_DAX", 1 << 33, 36, NEVER, "DAX windows exist on virtiofs only",
        needs=("INIT_EXT",),
    ),
    Flag(
        "CREATE_SUPP_GROUP", 1 << 34, 38, ALWAYS,
        "files take their directory's group, and keep set-group-id only for its members",
        needs=("INIT_EXT",),
    ),
    Flag(
        "HAS_EXPIRE_ONLY", 1 << 35, 38, ALWAYS,
        "a name below which something is mounted can be expired without being detached",
        needs=("INIT_EXT",), told=True,
    ),
    Flag(
        "DIRECT_IO_ALLOW_MMAP", 1 << 36, 39, ALWAYS,
        "shared mappings of direct-I/O files work instead of failing with ENODEV",
        needs=("INIT_EXT",),
    ),
    Flag(
        "PASSTHROUGH", 1 << 37, 40, "passthrough",
        "reads and writes go to a backing file without us; no mount asks: file data are VM pages",
        needs=("INIT_EXT",), brings=("max_stack_depth",),
    ),
    Flag(
        "NO_EXPORT_SUPPORT", 1 << 38, 40, NEVER, "our nodeids can be exported",
        needs=("INIT_EXT",), yields=("EXPORT_SUPPORT",),
    ),
    Flag(
        "HAS_RESEND", 1 << 39, 40, ALWAYS,
        "a server that takes over asks for what its predecessor read and did not answer",
        needs=("INIT_EXT",), told=True,
    ),
    Flag(
        "ALLOW_IDMAP", 1 << 40, 41, NEVER,
        "requests would come with unmapped owners, which our credentials cannot say; "
        "the kernel also ends a mount that asks for it without default_permissions",
        needs=("INIT_EXT",),
    ),
    Flag(
        "OVER_IO_URING", 1 << 41, 42, NEVER,
        "read and writev cost a single-threaded server no more than the ring",
        needs=("INIT_EXT",),
    ),
    Flag(
        "REQUEST_TIMEOUT", 1 << 42, 43, "request_timeout",
        "the kernel aborts a connection that does not answer for so many seconds",
        needs=("INIT_EXT",), brings=("request_timeout",),
    ),
)  # fmt: skip

#: Rows by name.
BY_NAME: Final = MappingProxyType({flag.name: flag for flag in FLAGS})

# The bits that other files of the codec test themselves.
FUSE_BIG_WRITES: Final = 1 << 5
FUSE_MAX_PAGES: Final = 1 << 22
FUSE_SETXATTR_EXT: Final = 1 << 29
FUSE_INIT_EXT: Final = 1 << 30
FUSE_PASSTHROUGH: Final = 1 << 37
FUSE_REQUEST_TIMEOUT: Final = 1 << 42


def names(flags: int) -> tuple[str, ...]:
    """The names of the bits that are set; a bit without a name is shown as ``bit 45``."""
    known = tuple(flag.name for flag in FLAGS if flags & flag.bit)
    rest = flags & ~sum(flag.bit for flag in FLAGS)
    unknown = tuple(f"bit {n}" for n in range(rest.bit_length()) if rest >> n & 1)
    return known + unknown
