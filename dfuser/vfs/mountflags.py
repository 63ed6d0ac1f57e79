"""The flags of a mount, and the option words that people write for them.

``MNT`` is what a mount was asked to be (read-only, no set-uid programs) and what it is (local, the
root); ``MNTK`` is what the kernel notes about it while it works; ``VFCF`` describes a file system
type. The numbers are DragonFly's, so statfs and mountctl answers can be compared.

Counterpart: MNT_*, MNTK_*, VFCF_* (sys/mount.h); the option table of mount(8) (lib/libutil).
Differs from DragonFly: the MPSAFE flags of MNTK do not exist here. ``parse_options`` also knows the
    words Linux users write (``nosymfollow``, ``relatime`` is accepted and means the default).
Token/lock order: takes none.
Invariants: the command bits (UPDATE, RELOAD, FORCE, DELEXPORT) are set on a mount only while the
    command runs.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, NamedTuple


class MNT:
    """User-visible mount flags. Counterpart: MNT_* (sys/mount.h)."""

    RDONLY: Final = 0x00000001
    SYNCHRONOUS: Final = 0x00000002
    NOEXEC: Final = 0x00000004
    NOSUID: Final = 0x00000008
    NODEV: Final = 0x00000010
    AUTOMOUNTED: Final = 0x00000020
    ASYNC: Final = 0x00000040
    EXRDONLY: Final = 0x00000080
    EXPORTED: Final = 0x00000100
    DEFEXPORTED: Final = 0x00000200
    EXPORTANON: Final = 0x00000400
    EXKERB: Final = 0x00000800
    LOCAL: Final = 0x00001000
    QUOTA: Final = 0x00002000
    ROOTFS: Final = 0x00004000
    USER: Final = 0x00008000
    UPDATE: Final = 0x00010000
    DELEXPORT: Final = 0x00020000
    RELOAD: Final = 0x00040000
    FORCE: Final = 0x00080000
    SUIDDIR: Final = 0x00100000
    SOFTDEP: Final = 0x00200000
    NOSYMFOLLOW: Final = 0x00400000
    IGNORE: Final = 0x00800000
    TRIM: Final = 0x01000000
    NOATIME: Final = 0x10000000
    EXPUBLIC: Final = 0x20000000
    NOCLUSTERR: Final = 0x40000000
    NOCLUSTERW: Final = 0x80000000

    #: Flags that a mount or an update sets or clears as the caller says.
    SETTABLE: Final = (
        NOSUID | NOEXEC | NODEV | SYNCHRONOUS | ASYNC | NOATIME | NOSYMFOLLOW | IGNORE | TRIM
        | NOCLUSTERR | NOCLUSTERW | SUIDDIR | AUTOMOUNTED
    )  # fmt: skip
    CMDFLAGS: Final = UPDATE | DELEXPORT | RELOAD | FORCE
    VISFLAGMASK: Final = 0xFFFFFFFF & ~CMDFLAGS


class MNTK:
    """The kernel's own notes about a mount. Counterpart: MNTK_* (sys/mount.h)."""

    UNMOUNTF: Final = 0x00000001
    """A forced unmount is going on."""
    QUICKHALT: Final = 0x00008000
    """May be unhooked without being unmounted when the kernel halts."""
    NCALIASED: Final = 0x00800000
    """Shares the namecache of another mount (nullfs)."""
    UNMOUNT: Final = 0x01000000
    """An unmount is going on; lookups stay out."""
    MWAIT: Final = 0x02000000
    WANTRDWR: Final = 0x04000000
    """An update from read-only to read-write is going on."""
    FSMID: Final = 0x08000000
    NOSTKMNT: Final = 0x10000000
    """Nothing may be mounted inside."""
    NOMSYNC: Final = 0x20000000
    """The syncer has nothing to do here (tmpfs)."""
    THR_SYNC: Final = 0x40000000


class VFCF:
    """Properties of a file system type. Counterpart: VFCF_* (sys/mount.h)."""

    STATIC: Final = 0x00010000
    NETWORK: Final = 0x00020000
    READONLY: Final = 0x00040000
    SYNTHETIC: Final = 0x00080000
    LOOPBACK: Final = 0x00100000
    UNICODE: Final = 0x00200000
    MPSAFE: Final = 0x00400000


#: What a waiting EVFILT_FS watcher is told. Counterpart: VQ_* (sys/mount.h).
VQ_NOTRESP: Final = 0x0001
VQ_LOWDISK: Final = 0x0004
VQ_MOUNT: Final = 0x0008
VQ_UNMOUNT: Final = 0x0010
VQ_DEAD: Final = 0x0020

_WORDS: Final = MappingProxyType(
    {
        "ro": MNT.RDONLY,
        "rdonly": MNT.RDONLY,
        "sync": MNT.SYNCHRONOUS,
        "async": MNT.ASYNC,
        "noexec": MNT.NOEXEC,
        "nosuid": MNT.NOSUID,
        "nodev": MNT.NODEV,
        "noatime": MNT.NOATIME,
        "nosymfollow": MNT.NOSYMFOLLOW,
        "suiddir": MNT.SUIDDIR,
        "noclusterr": MNT.NOCLUSTERR,
        "noclusterw": MNT.NOCLUSTERW,
        "trim": MNT.TRIM,
        "ignore": MNT.IGNORE,
        "force": MNT.FORCE,
        "update": MNT.UPDATE,
        "reload": MNT.RELOAD,
        "automounted": MNT.AUTOMOUNTED,
    }
)
_CLEAR: Final = MappingProxyType(
    {
        "rw": MNT.RDONLY,
        "exec": MNT.NOEXEC,
        "suid": MNT.NOSUID,
        "dev": MNT.NODEV,
        "atime": MNT.NOATIME,
        "symfollow": MNT.NOSYMFOLLOW,
        "nosync": MNT.SYNCHRONOUS,
        "noasync": MNT.ASYNC,
        "clusterr": MNT.NOCLUSTERR,
        "clusterw": MNT.NOCLUSTERW,
    }
)
_NOOP: Final = frozenset({"defaults", "relatime", "auto", "noauto", "late", ""})

#: The words a mount is described with, in the order of mount(8).
_SHOWN: Final = (
    (MNT.ASYNC, "asynchronous"),
    (MNT.LOCAL, "local"),
    (MNT.NOATIME, "noatime"),
    (MNT.NODEV, "nodev"),
    (MNT.NOEXEC, "noexec"),
    (MNT.NOSUID, "nosuid"),
    (MNT.NOSYMFOLLOW, "nosymfollow"),
    (MNT.RDONLY, "read-only"),
    (MNT.SYNCHRONOUS, "synchronous"),
    (MNT.SUIDDIR, "suiddir"),
    (MNT.TRIM, "trim"),
    (MNT.QUOTA, "with quotas"),
    (MNT.AUTOMOUNTED, "automounted"),
    (MNT.USER, "user mount"),
)


class MountOptions(NamedTuple):
    """What `parse_options` found in a string of options."""

    flags: int
    """MNT.* bits that are asked for."""
    clear: int
    """MNT.* bits that are asked to go (``rw``, ``exec``)."""
    options: dict[str, str]
    """What is left for the file system: ``{"size": "1m"}``; a word alone has the value ""."""


def parse_options(text: str) -> MountOptions:
    """Split ``"ro,noexec,size=1m"`` into flags and options for the file system.

    A later word wins over an earlier one (``ro,rw`` is read-write). Unknown words are no error
    here: the file system judges them. Never blocks.
    """
    flags = clear = 0
    options: dict[str, str] = {}
    for word in text.split(","):
        word = word.strip()
        if word in _WORDS:
            flags |= _WORDS[word]
            clear &= ~_WORDS[word]
        elif word in _CLEAR:
            clear |= _CLEAR[word]
            flags &= ~_CLEAR[word]
        elif word not in _NOOP:
            key, _, value = word.partition("=")
            options[key] = value
    return MountOptions(flags, clear, options)


def format_flags(flags: int) -> str:
    """Describe mount flags as mount(8) prints them: ``"local, nosuid"``; "" for none."""
    return ", ".join(text for bit, text in _SHOWN if flags & bit)
