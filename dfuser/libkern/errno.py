"""Error numbers as DragonFly counts them, and the two ways a kernel path can fail.

A UNIX kernel reports failure as a small number. The names are the same on every
UNIX, the numbers are not: EAGAIN is 35 here and 11 on Linux, and ENOATTR or EFTYPE
exist only on the BSD side. Inside dfuser every error carries the number of this file;
it becomes a Linux number in one place only (linux_errno.py), at the edge where the
host reads it.

There are two kinds of failure, and they are kept apart by the type of the exception::

    BaseException
      +-- Panic            an invariant of the kernel is broken: nobody may go on
    Exception
      +-- OSError
            +-- KError     the operation failed in a way its caller is told about

``KError`` is what the C code returns as ``error``. It is an OSError, so that it prints
and compares like one, but Python's own subclasses are not chosen: match on ``.errno``.
``Panic`` is deliberately not an Exception: a handler that turns bugs into EIO must not
swallow it. What comes from outside (a bad packet, a torn block, a wrong argument) is
never a reason to panic.

Counterpart: sys/errno.h; panic(9), KKASSERT (sys/systm.h).
Differs from DragonFly: an error travels as an exception instead of a return value.
    Negative namecache hits, the one frequent "error", are values and never raise.
Token/lock order: takes none.
Invariants: the numbers 1 to 93 and 99 are all defined; 94 to 98 are unused; the
    negative ones never leave the kernel.
"""

from __future__ import annotations

from enum import IntEnum, unique
from types import MappingProxyType
from typing import Final, NoReturn

# The classic ones.
EPERM: Final = 1
ENOENT: Final = 2
ESRCH: Final = 3
EINTR: Final = 4
EIO: Final = 5
ENXIO: Final = 6
E2BIG: Final = 7
ENOEXEC: Final = 8
EBADF: Final = 9
ECHILD: Final = 10
EDEADLK: Final = 11
ENOMEM: Final = 12
EACCES: Final = 13
EFAULT: Final = 14
ENOTBLK: Final = 15
EBUSY: Final = 16
EEXIST: Final = 17
EXDEV: Final = 18
ENODEV: Final = 19
ENOTDIR: Final = 20
EISDIR: Final = 21
EINVAL: Final = 22
ENFILE: Final = 23
EMFILE: Final = 24
ENOTTY: Final = 25
ETXTBSY: Final = 26
EFBIG: Final = 27
ENOSPC: Final = 28
ESPIPE: Final = 29
EROFS: Final = 30
EMLINK: Final = 31
EPIPE: Final = 32

# Arguments of functions.
EDOM: Final = 33
ERANGE: Final = 34

# Non-blocking work and work in progress.
EAGAIN: Final = 35
EWOULDBLOCK: Final = EAGAIN
EINPROGRESS: Final = 36
EALREADY: Final = 37

# Sockets: wrong arguments.
ENOTSOCK: Final = 38
EDESTADDRREQ: Final = 39
EMSGSIZE: Final = 40
EPROTOTYPE: Final = 41
ENOPROTOOPT: Final = 42
EPROTONOSUPPORT: Final = 43
ESOCKTNOSUPPORT: Final = 44
EOPNOTSUPP: Final = 45
ENOTSUP: Final = EOPNOTSUPP
EPFNOSUPPORT: Final = 46
EAFNOSUPPORT: Final = 47
EADDRINUSE: Final = 48
EADDRNOTAVAIL: Final = 49

# Sockets: the operation failed.
ENETDOWN: Final = 50
ENETUNREACH: Final = 51
ENETRESET: Final = 52
ECONNABORTED: Final = 53
ECONNRESET: Final = 54
ENOBUFS: Final = 55
EISCONN: Final = 56
ENOTCONN: Final = 57
ESHUTDOWN: Final = 58
ETOOMANYREFS: Final = 59
ETIMEDOUT: Final = 60
ECONNREFUSED: Final = 61

# Path names, hosts, quotas.
ELOOP: Final = 62
ENAMETOOLONG: Final = 63
EHOSTDOWN: Final = 64
EHOSTUNREACH: Final = 65
ENOTEMPTY: Final = 66
EPROCLIM: Final = 67
EUSERS: Final = 68
EDQUOT: Final = 69

# Remote procedure calls.
ESTALE: Final = 70
EREMOTE: Final = 71
EBADRPC: Final = 72
ERPCMISMATCH: Final = 73
EPROGUNAVAIL: Final = 74
EPROGMISMATCH: Final = 75
EPROCUNAVAIL: Final = 76

# Locks, formats, authentication, System V.
ENOLCK: Final = 77
ENOSYS: Final = 78
EFTYPE: Final = 79
EAUTH: Final = 80
ENEEDAUTH: Final = 81
EIDRM: Final = 82
ENOMSG: Final = 83
EOVERFLOW: Final = 84
ECANCELED: Final = 85
EILSEQ: Final = 86

# Attributes, streams, links.
ENOATTR: Final = 87
EDOOFUS: Final = 88
EBADMSG: Final = 89
EMULTIHOP: Final = 90
ENOLINK: Final = 91
EPROTO: Final = 92
ENOMEDIUM: Final = 93
EASYNC: Final = 99

ELAST: Final = 99
"""The largest number in use."""

# Answers between layers of the kernel; none of them is ever shown to a program.
ERESTART: Final = -1
"""Run the system call again after the signal handler."""
EJUSTRETURN: Final = -2
"""The return registers are already as they shall be."""
ENOIOCTL: Final = -3
"""This layer does not know the ioctl; ask the next one."""
EMOUNTEXIT: Final = -4
"""The process that served a mount is done with it."""


@unique
class Errno(IntEnum):
    """The same numbers as an enumeration, each with the text strerror(3) gives for it.

    For tables, messages and tests. Kernel code uses the plain integers above: comparing
    an int with an int is what the hot paths can afford.

    Counterpart: sys/errno.h, sys_errlist.
    """

    text: str

    def __new__(cls, number: int, text: str) -> Errno:
        """Make a member that is the number and carries the text."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.text = text
        return member

    EPERM = 1, "Operation not permitted"
    ENOENT = 2, "No such file or directory"
    ESRCH = 3, "No such process"
    EINTR = 4, "Interrupted system call"
    EIO = 5, "Input/output error"
    ENXIO = 6, "Device not configured"
    E2BIG = 7, "Argument list too long"
    ENOEXEC = 8, "Exec format error"
    EBADF = 9, "Bad file descriptor"
    ECHILD = 10, "No child processes"
    EDEADLK = 11, "Resource deadlock avoided"
    ENOMEM = 12, "Cannot allocate memory"
    EACCES = 13, "Permission denied"
    EFAULT = 14, "Bad address"
    ENOTBLK = 15, "Block device required"
    EBUSY = 16, "Device busy"
    EEXIST = 17, "File exists"
    EXDEV = 18, "Cross-device link"
    ENODEV = 19, "Operation not supported by device"
    ENOTDIR = 20, "Not a directory"
    EISDIR = 21, "Is a directory"
    EINVAL = 22, "Invalid argument"
    ENFILE = 23, "Too many open files in system"
    EMFILE = 24, "Too many open files"
    ENOTTY = 25, "Inappropriate ioctl for device"
    ETXTBSY = 26, "Text file busy"
    EFBIG = 27, "File too large"
    ENOSPC = 28, "No space left on device"
    ESPIPE = 29, "Illegal seek"
    EROFS = 30, "Read-only file system"
    EMLINK = 31, "Too many links"
    EPIPE = 32, "Broken pipe"
    EDOM = 33, "Numerical argument out of domain"
    ERANGE = 34, "Result too large"
    EAGAIN = 35, "Resource temporarily unavailable"
    EINPROGRESS = 36, "Operation now in progress"
    EALREADY = 37, "Operation already in progress"
    ENOTSOCK = 38, "Socket operation on non-socket"
    EDESTADDRREQ = 39, "Destination address required"
    EMSGSIZE = 40, "Message too long"
    EPROTOTYPE = 41, "Protocol wrong type for socket"
    ENOPROTOOPT = 42, "Protocol not available"
    EPROTONOSUPPORT = 43, "Protocol not supported"
    ESOCKTNOSUPPORT = 44, "Socket type not supported"
    EOPNOTSUPP = 45, "Operation not supported"
    EPFNOSUPPORT = 46, "Protocol family not supported"
    EAFNOSUPPORT = 47, "Address family not supported by protocol family"
    EADDRINUSE = 48, "Address already in use"
    EADDRNOTAVAIL = 49, "Can't assign requested address"
    ENETDOWN = 50, "Network is down"
    ENETUNREACH = 51, "Network is unreachable"
    ENETRESET = 52, "Network dropped connection on reset"
    ECONNABORTED = 53, "Software caused connection abort"
    ECONNRESET = 54, "Connection reset by peer"
    ENOBUFS = 55, "No buffer space available"
    EISCONN = 56, "Socket is already connected"
    ENOTCONN = 57, "Socket is not connected"
    ESHUTDOWN = 58, "Can't send after socket shutdown"
    ETOOMANYREFS = 59, "Too many references: can't splice"
    ETIMEDOUT = 60, "Operation timed out"
    ECONNREFUSED = 61, "Connection refused"
    ELOOP = 62, "Too many levels of symbolic links"
    ENAMETOOLONG = 63, "File name too long"
    EHOSTDOWN = 64, "Host is down"
    EHOSTUNREACH = 65, "No route to host"
    ENOTEMPTY = 66, "Directory not empty"
    EPROCLIM = 67, "Too many processes"
    EUSERS = 68, "Too many users"
    EDQUOT = 69, "Disc quota exceeded"
    ESTALE = 70, "Stale NFS file handle"
    EREMOTE = 71, "Too many levels of remote in path"
    EBADRPC = 72, "RPC struct is bad"
    ERPCMISMATCH = 73, "RPC version wrong"
    EPROGUNAVAIL = 74, "RPC prog. not avail"
    EPROGMISMATCH = 75, "Program version wrong"
    EPROCUNAVAIL = 76, "Bad procedure for program"
    ENOLCK = 77, "No locks available"
    ENOSYS = 78, "Function not implemented"
    EFTYPE = 79, "Inappropriate file type or format"
    EAUTH = 80, "Authentication error"
    ENEEDAUTH = 81, "Need authenticator"
    EIDRM = 82, "Identifier removed"
    ENOMSG = 83, "No message of desired type"
    EOVERFLOW = 84, "Value too large to be stored in data type"
    ECANCELED = 85, "Operation canceled"
    EILSEQ = 86, "Illegal byte sequence"
    ENOATTR = 87, "Attribute not found"
    EDOOFUS = 88, "Programming error"
    EBADMSG = 89, "Bad message"
    EMULTIHOP = 90, "Multihop attempted"
    ENOLINK = 91, "Link has been severed"
    EPROTO = 92, "Protocol error"
    ENOMEDIUM = 93, "No medium found"
    EASYNC = 99, "Operation is being done asynchronously"
    ERESTART = -1, "Restart system call"
    EJUSTRETURN = -2, "Registers are already set"
    ENOIOCTL = -3, "Ioctl not handled by this layer"
    EMOUNTEXIT = -4, "Mount point released"


_TEXTS: Final = MappingProxyType({int(e): e.text for e in Errno} | {0: "No error"})
_NAMES: Final = MappingProxyType({int(e): e.name for e in Errno})


def strerror(number: int) -> str:
    """Say in words what an error number means.

    Args:
        number: a DragonFly errno; 0 and unknown numbers are allowed.

    Returns:
        The text, never empty. It does not depend on the host or its locale.
    """
    return _TEXTS.get(number) or f"Unknown error: {number}"


def errno_name(number: int) -> str:
    """Give the symbol of an error number: ``"ENOENT"`` for 2, its digits when unknown."""
    return _NAMES.get(number) or str(number)


class KError(OSError):
    """An operation of the kernel failed and its caller is told why.

    ``KError(ENOENT)`` speaks with the words of `strerror`; ``KError(ENOENT, "no such
    label")`` with its own. ``.errno`` is always a DragonFly number (an int).

    Counterpart: the ``int error`` every kernel function returns.
    """

    errno: int
    strerror: str

    def __init__(self, number: int, text: str | None = None) -> None:
        """Make the error; costs one dictionary lookup and nothing else.

        Args:
            number: a DragonFly errno from this module.
            text: words that say more than the number does, or None.
        """
        super().__init__(number, text or _TEXTS.get(number) or f"Unknown error: {number}")

    def __str__(self) -> str:
        """Name and words: ``ENOENT: No such file or directory``."""
        return f"{errno_name(self.errno)}: {self.strerror}"

    def __repr__(self) -> str:
        """Readable in a traceback: ``KError(ENOENT, 'No such file or directory')``."""
        return f"KError({errno_name(self.errno)}, {self.strerror!r})"


class Panic(BaseException):
    """The kernel found itself in a state that must not exist.

    It passes every ``except Exception`` and ends in boot's panic handler, which writes
    the dump and takes the mounts down. ``args[0]`` is the panic string.

    Counterpart: panic(9).
    """


def panic(message: str) -> NoReturn:
    """Stop the kernel because going on would damage what users have stored.

    Raises:
        Panic: always.
    """
    raise Panic(message)


def KKASSERT(condition: object, message: str = "assertion failed") -> None:
    """Panic unless the condition holds.

    For invariants of the kernel itself, never for input. The message is built by the
    caller even when the condition holds, so hot paths pass a constant string.

    Counterpart: KKASSERT and KASSERT (sys/systm.h).

    Raises:
        Panic: the condition is false.
    """
    if not condition:
        raise Panic(message)
