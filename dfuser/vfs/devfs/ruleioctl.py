"""The structure of the ioctls of /dev/devfs: rules in the form that devfsctl(8) sends.

One structure serves four numbers; each uses the members it needs::

    DEVFS_RULE_ADD      everything: a rule (rules.py)
    DEVFS_RULE_APPLY    mntpoint
    DEVFS_RULE_CLEAR    mntpoint
    DEVFS_RULE_RESET    mntpoint

A rule has one command. When several bits are given, the first of HIDE, SHOW, LINK, PERM counts,
which is the order in which DragonFly tests them. Strings end at their first NUL.

Counterpart: struct devfs_rule_ioctl (sys/devfs_rules.h), 3112 bytes on x86-64.
Differs from DragonFly: none in the layout.
Token and lock order: takes none; only bytes here.
Invariants: RuleIoctl.unpack(r.pack()) == r.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from dfuser.dev.ioccom import IOC_INOUT, ioc
from dfuser.libkern.errno import EINVAL, KError

PATH_MAX: Final = 1024
_RULE: Final = Struct(f"=QQ{PATH_MAX}s{PATH_MAX}s{PATH_MAX}sQH2xII4x")
RULE_SIZE: Final = int(_RULE.size)

DEVFS_RULE_ADD: Final = int(ioc(IOC_INOUT, "d", 221, RULE_SIZE))
DEVFS_RULE_APPLY: Final = int(ioc(IOC_INOUT, "d", 222, RULE_SIZE))
DEVFS_RULE_CLEAR: Final = int(ioc(IOC_INOUT, "d", 223, RULE_SIZE))
DEVFS_RULE_RESET: Final = int(ioc(IOC_INOUT, "d", 224, RULE_SIZE))

# rule_type.
DEVFS_RULE_NAME: Final = 0x01
DEVFS_RULE_TYPE: Final = 0x02
DEVFS_RULE_JAIL: Final = 0x04

# rule_cmd.
DEVFS_RULE_LINK: Final = 0x01
DEVFS_RULE_HIDE: Final = 0x02
DEVFS_RULE_SHOW: Final = 0x04
DEVFS_RULE_PERM: Final = 0x08

#: The commands in the order in which they are tested.
_COMMANDS: Final = (
    (DEVFS_RULE_HIDE, "hide"),
    (DEVFS_RULE_SHOW, "show"),
    (DEVFS_RULE_LINK, "link"),
    (DEVFS_RULE_PERM, "perm"),
)


class RuleIoctl(NamedTuple):
    """Counterpart: struct devfs_rule_ioctl (sys/devfs_rules.h)."""

    rule_type: int = 0
    rule_cmd: int = 0
    mntpoint: bytes = b"*"
    name: bytes = b""
    linkname: bytes = b""
    dev_type: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0

    @property
    def cmd(self) -> str:
        """The command as a word, "" when there is none."""
        return next((word for bit, word in _COMMANDS if self.rule_cmd & bit), "")

    def pack(self) -> bytes:
        """The bytes of the structure."""
        return _RULE.pack(*self)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> RuleIoctl:
        """Take the structure apart.

        Raises:
            KError: EINVAL, it has another length, or a string has no end.
        """
        if len(data) != RULE_SIZE:
            raise KError(EINVAL)
        raw = cls._make(_RULE.unpack(data))
        strings = []
        for text in (raw.mntpoint, raw.name, raw.linkname):
            string, end, _ = text.partition(b"\0")
            if not end:
                raise KError(EINVAL)
            strings.append(string)
        mntpoint, name, linkname = strings
        return raw._replace(mntpoint=mntpoint, name=name, linkname=linkname)
