"""/kern/ctl: commands to the kernel from any program that can write a line.

::

    echo "mount -t tmpfs -o size=1m tmpfs /mnt" > /kern/ctl
    echo "umount /mnt"                          > /kern/ctl
    echo "sync"                                 > /kern/ctl

One write is one command, and the error of the write is the error of the command: EINVAL for a
command that is unknown or malformed, else what the operation itself answers. Reading the file
lists the commands. Words with blanks are quoted as for a shell. What was wrong with a command that
is EINVAL stands in the kernel's log, since an error number is all that a write can answer.

Each command calls the handler that a system call would call; who may do what is decided there.
The control socket gives the same orders by the same methods, without words to be split. Further
rooms add commands with `ControlCommands.add`.

Counterpart: mount(8), umount(8), sync(8) and their system calls (kern/vfs_syscalls.c).
Differs from DragonFly: an addition; there these are programs.
Token and lock order: takes none. umount may raise Block while the file system is in use.
Invariants: a command is checked whole before anything is done.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from dfuser.libkern.errno import EEXIST, EINVAL, KError
from dfuser.libkern.log import LOG_NOTICE

from ..mountflags import MNT
from ..nlookup import NLC, NlookupData, nlookup
from ..syscalls import kern_mount, kern_unmount

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dfuser.libkern.ucred import Ucred

    from ..namecache import NcHandle
    from ..vfs import Vfs
    from .registry import KernViews

#: A command: its words after the name, and who gave it; may return a text to be read back.
Command = Callable[[list[str], "Ucred"], str | None]
#: Characters of a malformed command that are put into the log.
LOGGED_MAX: Final = 80


class CommandEntry(NamedTuple):
    """One command of the table."""

    usage: str
    run: Command


class ControlCommands:
    """The commands of one kernel."""

    def __init__(self, vfs: Vfs) -> None:
        self.vfs = vfs
        self._commands: dict[str, CommandEntry] = {}
        self.add("mount", "mount [-u] [-t type] [-o options] source directory", self.cmd_mount)
        self.add("umount", "umount [-f] directory", self.cmd_umount)
        self.add("sync", "sync", self.cmd_sync)

    def register(self, views: KernViews) -> None:
        """Show /kern/ctl."""
        views.add_control("ctl", "commands: mount, umount, sync ...", self.lines, self.obey)

    def add(self, name: str, usage: str, run: Command) -> None:
        """Add a command. Raises KError EEXIST when the name is taken."""
        if name in self._commands:
            raise KError(EEXIST, f"command {name} exists")
        self._commands[name] = CommandEntry(usage, run)

    def lines(self) -> Iterable[str]:
        """How each command is written."""
        return [entry.usage for _, entry in sorted(self._commands.items())]

    def obey(self, text: str, cred: Ucred) -> str | None:
        """Run one command line.

        Raises:
            KError: EINVAL, or the command's own error.
        """
        try:
            return self._run(text, cred)
        except KError as error:
            if error.errno == EINVAL:
                line = text.strip()[:LOGGED_MAX]
                self.vfs.msgbuf.log(LOG_NOTICE, f"ctl: {line!r}: {error.strerror}\n")
            raise

    def _run(self, text: str, cred: Ucred) -> str | None:
        try:
            words = shlex.split(text, comments=True)
        except ValueError as error:
            raise KError(EINVAL, str(error)) from None
        entry = self._commands.get(words[0]) if words else None
        if entry is None:
            raise KError(EINVAL, "unknown command")
        return entry.run(words[1:], cred)

    # --- the commands ------------------------------------------------------------------------

    def mount(self, fstype: str, source: str, path: str, options: str, cred: Ucred) -> None:
        """Mount a file system on a directory, or with the option ``update`` change a mount.

        Raises:
            KError: EINVAL, the path is not absolute; those of the walk and of `kern_mount`.
            Block: a file system must wait.
        """
        nch = self._lookup(path, cred)
        try:
            kern_mount(self.vfs, fstype, source, nch, options, cred)
        finally:
            self.vfs.cache.drop_nch(nch)

    def umount(self, path: str, cred: Ucred, *, force: bool = False) -> None:
        """Unmount what is mounted on a directory; with ``force`` although it is in use.

        Raises:
            KError: EINVAL, the path is not absolute; those of the walk and of `kern_unmount`.
            Block: the file system must wait.
        """
        nch = self._lookup(path, cred)
        self.vfs.cache.drop_nch(nch)
        kern_unmount(self.vfs, nch, MNT.FORCE if force else 0, cred)

    def cmd_mount(self, words: list[str], cred: Ucred) -> str | None:
        """Mount a file system, or with ``-u`` change how it is mounted."""
        update, fstype, options = self._mount_words(words)
        if len(words) != (1 if update else 2):
            raise KError(EINVAL, self._commands["mount"].usage)
        self.mount(fstype, words[0], words[-1], options, cred)
        return None

    @staticmethod
    def _mount_words(words: list[str]) -> tuple[bool, str, str]:
        """Take the switches off ``words``: whether to update, type, options joined by commas."""
        update, fstype, options = False, "tmpfs", []
        while words and words[0].startswith("-"):
            switch = words.pop(0)
            if switch == "-u":
                update = True
                options.append("update")
            elif switch in ("-t", "-o") and words:
                value = words.pop(0)
                if switch == "-t":
                    fstype = value
                else:
                    options.append(value)
            else:
                raise KError(EINVAL, f"mount: unknown switch {switch}")
        return update, fstype, ",".join(options)

    def cmd_umount(self, words: list[str], cred: Ucred) -> str | None:
        """Unmount what is mounted on a directory; ``-f`` although it is in use."""
        force = words[:1] == ["-f"]
        if len(words) != 1 + force:
            raise KError(EINVAL, self._commands["umount"].usage)
        self.umount(words[-1], cred, force=force)
        return None

    def cmd_sync(self, words: list[str], cred: Ucred) -> str | None:
        """Write everything dirty of every mount."""
        if words:
            raise KError(EINVAL, "sync takes no words")
        self.vfs.sync_all()
        return None

    def _lookup(self, path: str, cred: Ucred) -> NcHandle:
        """The place of an absolute path, held; mounts are crossed. Raises KError EINVAL."""
        if not path.startswith("/") or "\0" in path:
            raise KError(EINVAL, "the directory must be an absolute path")
        name = path.encode("utf-8", "surrogateescape")
        with NlookupData(self.vfs, None, None, name, cred, NLC.FOLLOW) as nd:
            nlookup(nd)
            return self.vfs.cache.hold(nd.found)
