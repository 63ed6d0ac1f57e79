"""devfs rules: what a mounted devfs shows, under which names, and to whom.

An ordered list for the whole kernel. Each rule says **where** it holds (one mount point or ``*``,
jailed mounts or the others), **for which nodes** (a name pattern, a type of device, or all), and
**what** happens: HIDE, SHOW, PERM (owner and mode) or LINK (a further name). They are applied in
their order to each new node, and to all nodes of a mount on ``apply``; a later rule wins.

/dev/devfs is the door: reading it lists the rules, writing it changes them, one command a write::

    add [-m mountpoint] [-j] [-t disk|tape|tty|mem] [-n pattern] hide
    add ... show
    add ... perm MODE UID GID
    add ... link NAME
    apply MOUNTPOINT      (or *)
    reset MOUNTPOINT      undo: show what rules hid, owners and modes of the devices, no links
    clear MOUNTPOINT      forget the rules of exactly this mount point; * forgets all

A pattern has ``*`` and ``?``, ignores case, and matches the last word of a node's path; a path in
front of it names the directory the node must be in. When a link's pattern ends in ``*``, what the
star stood for is added to the link's name. The node ``devfs`` itself can never be hidden, so rules
can always be changed.

Counterpart: vfs/devfs/devfs_rules.c, sys/devfs_rules.h, devfsctl(8).
Differs from DragonFly: text besides ioctls (ruleioctl.py); so /dev/devfs may be opened for reading
or writing alone (there EPERM), and an ioctl needs an open for writing. Rules without a command, and
by-type rules without a type, are EINVAL (there they are kept and never do anything). LINK does not
apply to links, which there makes links of links without end. HIDE does not apply to what users have
made. The list is limited.
Token and lock order: takes none.
Invariants: rules are immutable; the order is that of adding.
"""

from __future__ import annotations

import re
import shlex
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dfuser.dev.devsw import GID_WHEEL, UID_ROOT, Buffer, Cdev, D, DevOps
from dfuser.libkern.errno import EINVAL, ENODEV, ENOSPC, ENOTTY, EPERM, KError
from dfuser.libkern.fcntl import FWRITE, O_NONBLOCK
from dfuser.libkern.stat import ALLPERMS, VType
from dfuser.libkern.sysctl import INT, RD, RW, Sysctl

from .node import DEVFS, DevfsNode
from .ruleioctl import (
    DEVFS_RULE_ADD,
    DEVFS_RULE_APPLY,
    DEVFS_RULE_CLEAR,
    DEVFS_RULE_JAIL,
    DEVFS_RULE_NAME,
    DEVFS_RULE_RESET,
    DEVFS_RULE_TYPE,
    RuleIoctl,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfuser.dev.devlist import DevList
    from dfuser.libkern.ucred import Ucred

    from .node import DevfsMount

RULES_MAX: Final = 1024
COMMAND_MAX: Final = 4096

_TYPES: Final = MappingProxyType({"tape": D.TAPE, "disk": D.DISK, "tty": D.TTY, "mem": D.MEM})
#: The commands of a rule, and how many words follow each.
_VERBS: Final = MappingProxyType({"hide": 0, "show": 0, "perm": 3, "link": 1})


class DevfsRule(NamedTuple):
    """One rule. Counterpart: struct devfs_rule (sys/devfs_rules.h)."""

    cmd: str
    """``hide``, ``show``, ``perm`` or ``link``."""
    mntpoint: str = "*"
    jail: bool = False
    name: str = ""
    """Pattern of the NAME type, "" when the rule is not by name."""
    dev_type: int = 0
    """D bits of the TYPE type, 0 when the rule is not by type."""
    linkname: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0

    def text(self) -> str:
        """The rule as a command that would add it."""
        words = ["add", "-m", shlex.quote(self.mntpoint)]
        if self.jail:
            words.append("-j")
        if self.dev_type:
            words += ["-t", next(word for word, bit in _TYPES.items() if bit == self.dev_type)]
        if self.name:
            words += ["-n", shlex.quote(self.name)]
        words.append(self.cmd)
        if self.cmd == "perm":
            words += [f"{self.mode:o}", str(self.uid), str(self.gid)]
        elif self.cmd == "link":
            words.append(shlex.quote(self.linkname))
        return " ".join(words)


def wild_case_cmp(pattern: str, name: str) -> bool:
    """Whether ``name`` matches; ``*`` and ``?``, ignoring case. Counterpart: devfs_WildCaseCmp."""
    parts = [".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern]
    return re.fullmatch("".join(parts), name, re.IGNORECASE | re.DOTALL) is not None


class RulesStatistics(NamedTuple):
    """Size of the list, and what it did since boot."""

    rules: int
    mounts: int
    matched: int
    commands: int


class DevfsRules:
    """The rules of one kernel. Counterpart: devfs_rule_list."""

    sysctls = (
        Sysctl("vfs.devfs.rules", "Rules in force", getter="count", kind=INT, flags=RD),
        Sysctl("vfs.devfs.maxrules", "Most rules allowed", attr="limit", kind=INT, flags=RW,
               minimum=0, maximum=100_000),
    )  # fmt: skip

    def __init__(self, limit: int = RULES_MAX) -> None:
        """Begin without rules."""
        self.limit = limit
        self.matched = 0
        self.commands = 0
        self._rules: list[DevfsRule] = []
        self.mounts: list[DevfsMount] = []

    def __iter__(self) -> Iterator[DevfsRule]:
        return iter(tuple(self._rules))

    def count(self) -> int:
        """Rules in force."""
        return len(self._rules)

    def insert(self, rule: DevfsRule) -> None:
        """Add a rule at the end; it holds for new nodes, and for others after `apply`.

        Raises:
            KError: EINVAL, it names no place, link or command; ENOSPC, there are too many.

        Counterpart: devfs_rule_insert.
        """
        if (
            not rule.mntpoint
            or rule.cmd not in _VERBS
            or (rule.cmd == "link") != bool(rule.linkname and rule.name)
        ):
            raise KError(EINVAL, "a rule needs a place and a command, a link both its names")
        if len(self._rules) >= self.limit:
            raise KError(ENOSPC, "too many devfs rules")
        self._rules.append(rule)

    def clear(self, mntpoint: str) -> None:
        """Forget the rules of a mount point, or all with ``*``. Counterpart: devfs_rule_clear."""
        if not mntpoint:
            raise KError(EINVAL)
        kept = [] if mntpoint[0] == "*" else [r for r in self._rules if r.mntpoint != mntpoint]
        self._rules[:] = kept

    def apply(self, mntpoint: str) -> None:
        """Apply the rules to the nodes of a mount point, or of all with ``*``.

        Counterpart: devfs_apply_rules.
        """
        for fs in self._chosen(mntpoint):
            for node in fs.walk(fs.root):
                if node.flags & DEVFS.LINKED and node is not fs.root:
                    self.check_apply(fs, node)
            fs.mp.namecache_news()

    def reset(self, mntpoint: str) -> None:
        """Undo what rules did to the nodes of a mount point, or of all with ``*``.

        Counterpart: devfs_reset_rules, devfs_rule_reset_node.
        """
        for fs in self._chosen(mntpoint):
            for node in fs.walk(fs.root):
                if node.flags & DEVFS.RULE_HIDDEN:
                    node.flags &= ~(DEVFS.HIDDEN | DEVFS.RULE_HIDDEN)
                if node.flags & DEVFS.RULE_CREATED and node.flags & DEVFS.LINKED:
                    fs.gc(node)
                elif node.dev is not None:
                    node.mode, node.uid, node.gid = node.dev.perms, node.dev.uid, node.dev.gid
                fs.changed(node)
            fs.mp.namecache_news()

    def _chosen(self, mntpoint: str) -> list[DevfsMount]:
        if not mntpoint:
            raise KError(EINVAL)
        if mntpoint[0] == "*":
            return list(self.mounts)
        return [fs for fs in self.mounts if fs.onname == mntpoint][:1]

    # --- applying ----------------------------------------------------------------------------

    def check_apply(self, fs: DevfsMount, node: DevfsNode) -> None:
        """Apply every rule that concerns a node, in order. Counterpart: devfs_rule_check_apply."""
        for rule in self:
            if rule.jail != fs.jailed or rule.mntpoint not in ("*", fs.onname):
                continue
            if rule.dev_type and not self._type_matches(rule, node):
                continue
            if rule.name and not self._name_matches(rule, fs, node):
                continue
            self.matched += 1
            self._execute(rule, fs, node)
        fs.changed(node)

    @staticmethod
    def _type_matches(rule: DevfsRule, node: DevfsNode) -> bool:
        dev = node.dev
        return dev is not None and not dev.dead and bool(dev.ops.flags & rule.dev_type)

    @staticmethod
    def _name_matches(rule: DevfsRule, fs: DevfsMount, node: DevfsNode) -> bool:
        """Counterpart: devfs_rule_checkname."""
        path, _, pattern = rule.name.rpartition("/")
        parent = fs.find(path) if path else fs.root
        if parent is None or node.parent is not parent:
            return False
        return wild_case_cmp(pattern, node.name.decode("utf-8", "surrogateescape"))

    @staticmethod
    def _execute(rule: DevfsRule, fs: DevfsMount, node: DevfsNode) -> None:
        if rule.cmd == "hide":
            if node.name == b"devfs" or node.flags & DEVFS.USER_CREATED:
                return
            node.flags |= DEVFS.HIDDEN | DEVFS.RULE_HIDDEN
            for gone in (node, *node.links):
                if gone.vp is not None:
                    fs.vfs.cache.purge(gone.vp)
                    fs.vfs.cache.inval_vp(gone.vp)
        elif rule.cmd == "show":
            node.flags &= ~DEVFS.HIDDEN
        elif rule.cmd == "perm":
            node.mode, node.uid, node.gid = rule.mode, rule.uid, rule.gid
        elif node.type is not VType.VLNK:
            name = rule.linkname
            if rule.name.endswith("*"):
                literal = len(rule.name.rpartition("/")[2]) - 1
                name += node.name.decode("utf-8", "surrogateescape")[literal:]
            known = fs.find(name)
            if known is None or known.link_target is not node:
                fs.make_link(name, node, DEVFS.RULE_CREATED)

    # --- text --------------------------------------------------------------------------------

    def command(self, text: str) -> None:
        """Obey one line; see the head of this file.

        Raises:
            KError: EINVAL or ENOSPC.
        """
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise KError(EINVAL, str(error)) from None
        verb = words.pop(0) if words else ""
        if verb == "add":
            self.insert(parse_rule(words))
        elif verb in ("apply", "reset", "clear") and len(words) == 1:
            {"apply": self.apply, "reset": self.reset, "clear": self.clear}[verb](words[0])
        else:
            raise KError(EINVAL, f"unknown devfs command {text[:40]!r}")
        self.commands += 1

    def ioctl(self, command: int, data: Buffer) -> bytes:
        """Obey one ioctl. Counterpart: devfs_dev_ioctl, devfs_rule_alloc.

        Returns:
            The structure as it came: its numbers say that it goes both ways.

        Raises:
            KError: ENOTTY, another number; EINVAL; ENOSPC, there are too many rules.
        """
        orders = {
            DEVFS_RULE_APPLY: self.apply,
            DEVFS_RULE_CLEAR: self.clear,
            DEVFS_RULE_RESET: self.reset,
        }
        if command != DEVFS_RULE_ADD and command not in orders:
            raise KError(ENOTTY)
        record = RuleIoctl.unpack(data)
        if command == DEVFS_RULE_ADD:
            self.insert(rule_of(record))
        else:
            orders[command](_text(record.mntpoint))
        self.commands += 1
        return bytes(data)

    def statistics(self) -> RulesStatistics:
        """Size now and counters since boot."""
        return RulesStatistics(len(self._rules), len(self.mounts), self.matched, self.commands)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def rule_of(record: RuleIoctl) -> DevfsRule:
    """A rule from the structure of an ioctl. Raises KError EINVAL."""
    by_name = bool(record.rule_type & DEVFS_RULE_NAME)
    by_type = bool(record.rule_type & DEVFS_RULE_TYPE)
    if (by_name and not record.name) or (by_type and record.dev_type not in _TYPES.values()):
        raise KError(EINVAL, "a rule by name or type needs one")
    perm = record.cmd == "perm"
    return DevfsRule(
        cmd=record.cmd,
        mntpoint=_text(record.mntpoint),
        jail=bool(record.rule_type & DEVFS_RULE_JAIL),
        name=_text(record.name) if by_name else "",
        dev_type=record.dev_type if by_type else 0,
        linkname=_text(record.linkname) if record.cmd == "link" else "",
        mode=record.mode & ALLPERMS if perm else 0,
        uid=record.uid if perm else 0,
        gid=record.gid if perm else 0,
    )


def parse_rule(words: list[str]) -> DevfsRule:
    """A rule from the words after ``add``. Raises KError EINVAL."""
    words = list(words)
    given: dict[str, str] = {}
    jail = False
    while words and words[0].startswith("-"):
        switch = words.pop(0)
        if switch == "-j":
            jail = True
        elif switch in ("-m", "-t", "-n") and words and words[0]:
            given[switch] = words.pop(0)
        else:
            raise KError(EINVAL, f"devfs rule: {switch}")
    cmd = words.pop(0) if words else ""
    if len(words) != _VERBS.get(cmd, -1):
        raise KError(EINVAL, f"devfs rule: {cmd or 'no command'}")
    if given.get("-t", "disk") not in _TYPES:
        raise KError(EINVAL, f"no device type {given['-t']}")
    mode = uid = gid = 0
    if cmd == "perm":
        try:
            mode, uid, gid = int(words[0], 8), int(words[1]), int(words[2])
        except ValueError:
            raise KError(EINVAL, "perm needs an octal mode and two ids") from None
        if not 0 <= mode <= ALLPERMS or not (0 <= uid < 1 << 32 and 0 <= gid < 1 << 32):
            raise KError(EINVAL, "mode or id out of range")
    return DevfsRule(
        cmd=cmd,
        mntpoint=given.get("-m", "*"),
        jail=jail,
        name=given.get("-n", ""),
        dev_type=_TYPES[given["-t"]] if "-t" in given else 0,
        linkname=words[0] if cmd == "link" else "",
        mode=mode,
        uid=uid,
        gid=gid,
    )


class DevfsDevOps(DevOps):
    """The driver of /dev/devfs. Counterpart: devfs_dev_ops."""

    __slots__ = ("rules",)

    def __init__(self, rules: DevfsRules) -> None:
        super().__init__("devfs")
        self.rules = rules

    def attach(self, devices: DevList) -> None:
        """Make /dev/devfs."""
        devices.make_dev(self, 0, UID_ROOT, GID_WHEEL, 0o600, "devfs")

    def d_open(self, dev: Cdev, oflags: int, cred: Ucred) -> Any:
        """Whoever the permission bits let, but not non-blocking (ENODEV), as in DragonFly."""
        if oflags & O_NONBLOCK:
            raise KError(ENODEV)
        return None

    def d_read(self, dev: Cdev, offset: int, size: int, ioflag: int, priv: Any) -> Buffer:
        """The rules, each as the command that adds it."""
        text = "".join(rule.text() + "\n" for rule in self.rules).encode()
        return text[offset : offset + size]

    def d_write(self, dev: Cdev, offset: int, data: Buffer, ioflag: int, priv: Any) -> int:
        """One command. Raises KError EINVAL or ENOSPC."""
        text = bytes(data).decode("utf-8", "surrogateescape").strip()
        if len(data) > COMMAND_MAX or not text or "\n" in text or "\0" in text:
            raise KError(EINVAL, "one write is one command of one line")
        self.rules.command(text)
        return len(data)

    def d_ioctl(
        self, dev: Cdev, cmd: int, data: Buffer, fflag: int, cred: Ucred, priv: Any = None
    ) -> bytes:
        """A rule or a command of `DevfsRules.ioctl`. Raises KError EPERM, not open for writing."""
        if not fflag & FWRITE:
            raise KError(EPERM)
        return self.rules.ioctl(cmd, data)
