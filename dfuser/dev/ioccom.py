"""Numbers of ioctls: what they encode, and how a host's are turned round.

An ioctl's number says which way its argument goes and how long it is, so that whoever carries it
(a system call, the FUSE protocol) can copy the bytes without knowing what they mean::

    bits      31 30 29    28 (29) .. 16    15 .. 8    7 .. 0
    ours      IN OUT VOID     length        group     number
    Linux's   OUT IN          length        group     number

Ours and Linux's differ in the top bits only: "out", from the kernel to the caller, is 0x4 here and
0x8 there. A program on the host that was compiled with ``_IOR('f', 127, int)`` means the same
as one of ours, so turning the bits round (`ioc_from_host`) is all it takes; inside there is one
spelling, DragonFly's. A Linux number without a length (TCGETS) becomes one that moves nothing and
that nobody knows.

Counterpart: sys/ioccom.h, sys/filio.h.
Differs from DragonFly: none in the numbers; the way from the host's is an addition.
Token and lock order: takes none.
Invariants: ioc_to_host(ioc_from_host(n)) == n for every number that has a counterpart.
"""

from __future__ import annotations

from typing import Final

from dfuser.libkern.errno import ENOTTY, KError

#: The longest argument a number can say. Counterpart: IOCPARM_MASK, IOCPARM_MAX.
IOCPARM_MASK: Final = 0x1FFF
IOC_VOID: Final = 0x2000_0000
"""No argument moves."""
IOC_OUT: Final = 0x4000_0000
"""The kernel answers: bytes are copied to the caller."""
IOC_IN: Final = 0x8000_0000
"""The caller gives bytes."""
IOC_INOUT: Final = IOC_IN | IOC_OUT

_SHIFT: Final = 16
_HOST_SIZE: Final = 0x3FFF
_HOST_IN: Final = 0x4000_0000
_HOST_OUT: Final = 0x8000_0000

# ioctls every file may know. Counterpart: sys/filio.h.
FIONREAD: Final = 0x4004667F
FIONBIO: Final = 0x8004667E
FIOASYNC: Final = 0x8004667D
FIODTYPE: Final = 0x4004667A
"""What kind of device it is: D.TYPEMASK of its driver's flags."""


def ioc(direction: int, group: str, number: int, length: int) -> int:
    """Put a number together. Counterpart: _IOC.

    Args:
        direction: IOC_VOID, IOC_OUT, IOC_IN or IOC_INOUT.
        group: one letter.
        number: 0 to 255.
        length: bytes of the argument.
    """
    return direction | (length & IOCPARM_MASK) << _SHIFT | ord(group) << 8 | number


def ioc_len(command: int) -> int:
    """Bytes of the argument. Counterpart: IOCPARM_LEN."""
    return command >> _SHIFT & IOCPARM_MASK


def ioc_from_host(command: int) -> int:
    """Our spelling of a number that a Linux program used.

    Raises:
        KError: ENOTTY, its argument is longer than our numbers can say: nobody here knows it.
    """
    length = command >> _SHIFT & _HOST_SIZE
    if length > IOCPARM_MASK or command >> 32:
        raise KError(ENOTTY)
    direction = (IOC_OUT if command & _HOST_OUT else 0) | (IOC_IN if command & _HOST_IN else 0)
    return (direction or IOC_VOID) | length << _SHIFT | command & 0xFFFF


def ioc_to_host(command: int) -> int:
    """Linux's spelling of one of our numbers."""
    direction = (_HOST_OUT if command & IOC_OUT else 0) | (_HOST_IN if command & IOC_IN else 0)
    return direction | command & (IOCPARM_MASK << _SHIFT | 0xFFFF)
