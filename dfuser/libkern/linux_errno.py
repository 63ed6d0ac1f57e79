"""The one table between DragonFly's error numbers and the host's.

dfuser speaks DragonFly inside and Linux at its edges: a FUSE reply carries a Linux
number, and a failed call on a disk image brings one in. Both directions live here and
nowhere else, so that no error can be translated twice or not at all.

Most names exist on both sides and translate by name. The rest is a decision, made once:

* Errors that only the BSD side has become the Linux error whose meaning a Linux program
  would act upon in the same way: ENOATTR becomes ENODATA (what getxattr(2) documents),
  EPROCLIM becomes EAGAIN (what fork(2) documents), EFTYPE becomes EINVAL.
* Errors that only Linux has become the nearest DragonFly one; a failing device always
  ends as EIO.
* ENOSYS stays ENOSYS. Mind that a FUSE server which answers it switches the operation
  off for the whole connection; the edge that replies has to care, not this table.
* An internal code or a number unknown to the table becomes EIO: nothing is ever passed
  on unread.

Counterpart: none in DragonFly's tree of 2020; the emulation layers of the BSDs have such
    tables (the former linuxulator's bsd_to_linux_errno).
Differs from DragonFly: does not apply.
Token/lock order: takes none.
Invariants: `to_linux` answers a number the host's errno module knows for everything but
    zero; for each name both sides have, from_linux(to_linux(n)) == n.
"""

from __future__ import annotations

import errno as host
from types import MappingProxyType
from typing import Final

from dfuser.libkern import errno as bsd
from dfuser.libkern.errno import Errno, KError

# DragonFly errors without a Linux twin of the same name, and what stands in for them.
_BSD_ONLY: Final = MappingProxyType(
    {
        bsd.EPROCLIM: host.EAGAIN,
        bsd.EBADRPC: host.EBADMSG,
        bsd.ERPCMISMATCH: host.EPROTO,
        bsd.EPROGUNAVAIL: host.EPROTONOSUPPORT,
        bsd.EPROGMISMATCH: host.EPROTO,
        bsd.EPROCUNAVAIL: host.EOPNOTSUPP,
        bsd.EFTYPE: host.EINVAL,
        bsd.EAUTH: host.EACCES,
        bsd.ENEEDAUTH: host.EACCES,
        bsd.ENOATTR: host.ENODATA,
        bsd.EDOOFUS: host.EINVAL,
        # A message that is still on its way is no answer; if one leaks out it is a bug.
        bsd.EASYNC: host.EIO,
        bsd.ERESTART: host.EINTR,
        bsd.EJUSTRETURN: host.EIO,
        bsd.ENOIOCTL: host.ENOTTY,
        bsd.EMOUNTEXIT: host.EIO,
    }
)

# Linux errors without a DragonFly twin of the same name. Missing here means EIO.
_LINUX_ONLY: Final = MappingProxyType(
    {
        "ENODATA": bsd.ENOATTR,
        "ETIME": bsd.ETIMEDOUT,
        "EBADFD": bsd.EBADF,
        "ENONET": bsd.ENETDOWN,
        "ERFKILL": bsd.ENETDOWN,
        "ENOTUNIQ": bsd.EADDRINUSE,
        "ENOPKG": bsd.EOPNOTSUPP,
        "EMEDIUMTYPE": bsd.EFTYPE,
        "ERESTART": bsd.EINTR,
        "EKEYREJECTED": bsd.EAUTH,
        "EKEYREVOKED": bsd.EAUTH,
        "EKEYEXPIRED": bsd.EAUTH,
        "ENOKEY": bsd.ENEEDAUTH,
        "EOWNERDEAD": bsd.ESRCH,
        "ENOTRECOVERABLE": bsd.EDOOFUS,
        "ESTRPIPE": bsd.EPIPE,
        "ENOSR": bsd.ENOBUFS,
        "ENOSTR": bsd.ENOTTY,
        "ELIBBAD": bsd.ENOEXEC,
        "ELIBEXEC": bsd.ENOEXEC,
        "ELIBACC": bsd.ENOENT,
        "EBADE": bsd.EINVAL,
        "EBADR": bsd.EINVAL,
        "EBADRQC": bsd.EINVAL,
        "EBADSLT": bsd.EINVAL,
        "EDOTDOT": bsd.EIO,
    }
)


def _build_to_linux() -> dict[int, int]:
    """Translate by name where the host has the name, by decision where it has not."""
    table = {0: 0}
    for err in Errno:
        stand_in = _BSD_ONLY.get(int(err))
        table[int(err)] = getattr(host, err.name) if stand_in is None else stand_in
    return table


def _build_from_linux() -> dict[int, int]:
    """Turn the names both sides share round and add the errors only Linux has."""
    table = {0: 0}
    for name, number in _LINUX_ONLY.items():
        if hasattr(host, name):
            table[getattr(host, name)] = number
    for err in Errno:
        if int(err) not in _BSD_ONLY:
            table[getattr(host, err.name)] = int(err)
    return table


_TO_LINUX: Final = MappingProxyType(_build_to_linux())
_FROM_LINUX: Final = MappingProxyType(_build_from_linux())


def to_linux(number: int) -> int:
    """Translate a DragonFly errno for a reader on the host.

    Args:
        number: a DragonFly errno, an internal code, or 0.

    Returns:
        A Linux errno (0 stays 0); EIO for a number nobody defined.
    """
    return _TO_LINUX.get(number, host.EIO)


def from_linux(number: int) -> int:
    """Translate an errno the host gave us into DragonFly's.

    Args:
        number: a Linux errno, or 0.

    Returns:
        A DragonFly errno (0 stays 0); EIO for what DragonFly cannot say.
    """
    return _FROM_LINUX.get(number, bsd.EIO)


def kerror_from_host(error: OSError) -> KError:
    """Make the KError that reports a failed call on the host.

    A KError passes unchanged, so that a path which meets both kinds need not care.
    """
    if isinstance(error, KError):
        return error
    return KError(from_linux(error.errno if error.errno is not None else host.EIO))
