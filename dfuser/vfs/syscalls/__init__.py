"""The kern_* cores: what the system calls, the bridge and the control socket do with files.

Three tiers, as in DragonFly: a ``sys_`` function of the kern room takes the arguments of a process
apart, a ``kern_`` core (here) applies the rules every file system shares, a ``vop_`` does the work.
The cores take resolved places (`NcHandle`) and single names. They are plain functions: they answer,
raise `KError`, or raise `Block` before they have changed anything.

**Borrowed answers.** A handle that a core returns is not held: it is good until the caller suspends
or calls the VFS again (`NameCache.hold` keeps it). A `File` is the caller's until `kern_close`.

**Permissions.** ``chk=False`` (the caller's host has checked, HOSTCHECKED) leaves out who-may
questions and nothing else: flags of the mount, types, limits and existence are always checked. File
flags (immutable, append-only), which a host does not know, bind in the file systems themselves.

**Who is told.** After a change each core tells ``vfs.hostcache``; watchers of vnodes are told by
the file system, which knows exactly what changed.

========= ================================================================
namespace kern_lookup create tmpfile mkdir mknod symlink link unlink rmdir rename
open      kern_open close read write readdir fsync
range     kern_seek lseek fallocate copy_file_range
control   kern_ioctl advlock, vn_ioctl
attr      kern_stat setattr access readlink statfs pathconf fhtovp
xattr     kern_getxattr setxattr removexattr listxattr
mounting  kern_mount unmount getmntinfo
========= ================================================================

Counterpart: kern/vfs_syscalls.c, kern/vfs_vnops.c, kern/vfs_vopops.c.
"""

from __future__ import annotations

from ..nlookup import lookup1 as kern_lookup
from .attr import (
    kern_access,
    kern_fhtovp,
    kern_pathconf,
    kern_readlink,
    kern_setattr,
    kern_stat,
    kern_statfs,
)
from .control import kern_advlock, kern_ioctl, vn_ioctl
from .mounting import MountInfo, kern_getmntinfo, kern_mount, kern_unmount
from .namespace import (
    kern_create,
    kern_link,
    kern_mkdir,
    kern_mknod,
    kern_rmdir,
    kern_symlink,
    kern_tmpfile,
    kern_unlink,
)
from .open import (
    kern_close,
    kern_fsync,
    kern_open,
    kern_read,
    kern_readdir,
    kern_readviews,
    kern_write,
    vn_open,
)
from .range import kern_copy_file_range, kern_fallocate, kern_lseek, kern_seek
from .rename import kern_rename
from .xattr import kern_getxattr, kern_listxattr, kern_removexattr, kern_setxattr

__all__ = [
    "MountInfo",
    "kern_access",
    "kern_advlock",
    "kern_close",
    "kern_copy_file_range",
    "kern_create",
    "kern_fallocate",
    "kern_fhtovp",
    "kern_fsync",
    "kern_getmntinfo",
    "kern_getxattr",
    "kern_ioctl",
    "kern_link",
    "kern_listxattr",
    "kern_lookup",
    "kern_lseek",
    "kern_mkdir",
    "kern_mknod",
    "kern_mount",
    "kern_open",
    "kern_pathconf",
    "kern_read",
    "kern_readdir",
    "kern_readlink",
    "kern_readviews",
    "kern_removexattr",
    "kern_rename",
    "kern_rmdir",
    "kern_seek",
    "kern_setattr",
    "kern_setxattr",
    "kern_stat",
    "kern_statfs",
    "kern_symlink",
    "kern_tmpfile",
    "kern_unlink",
    "kern_unmount",
    "kern_write",
    "vn_ioctl",
    "vn_open",
]
