"""The differences between the mount and the host's tmpfs that are allowed, each with its reason.

A difference that is not here fails the tests, and one that is here but does not show any more
fails them, too. So this file is, at any time, the whole truth about what the mount cannot do.
"""

from __future__ import annotations

_NO_FALLOCATE = (
    "pyfuse3 has no fallocate handler: the kernel is told EOPNOTSUPP; posix_fallocate(3) works"
)
_NO_TMPFILE = "pyfuse3 has no tmpfile handler: O_TMPFILE is EOPNOTSUPP"
_NO_LSEEK = (
    "pyfuse3 has no lseek handler: the kernel treats the whole file as data, which POSIX allows"
)
_NO_STATX = "pyfuse3 has no statx handler: GETATTR carries no birth time"
_NO_IOCTL = "pyfuse3 has no ioctl handler: file flags cannot be read or set through the mount"

_UMASK = (
    "pyfuse3 cannot ask the kernel for FUSE_DONT_MASK: the umask is taken from the mode before the "
    "server sees it, so a default list is cut by the umask, which it should not be"
)

_BY_REASON: dict[str, tuple[str, ...]] = {
    _NO_FALLOCATE: (
        "data.fallocate[default]",
        "data.fallocate[keep-size]",
        "data.fallocate[punch-hole]",
        "data.fallocate[keep-size-past-end]",
        "data.fallocate[grow]",
    ),
    _NO_TMPFILE: (
        "opening.tmpfile_has_no_name",
        "opening.tmpfile_can_be_linked",
        "opening.tmpfile_exclusive_cannot_be_linked",
    ),
    _NO_LSEEK: ("data.seek_hole_and_data",),
    _NO_STATX: ("times.birth_time",),
    _UMASK: (
        "acls.default_is_inherited_by_files",
        "acls.default_is_inherited_by_directories",
    ),
    _NO_IOCTL: ("system.flags_by_ioctl",),
}

DIFFERENCES: dict[str, str] = {
    title: reason for reason, titles in _BY_REASON.items() for title in titles
}
