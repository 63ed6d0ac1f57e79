"""How commands end: exit codes, and the one error a verb raises.

Counterpart: sysexits(3) in spirit; the numbers are dfuser's own and are part of its interface.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every verb. A command killed by signal n, or ended by it, exits 128 + n."""

    OK = 0
    USAGE = 1
    """The command line, a setting or a value was wrong."""
    INTERNAL = 2
    """A bug in dfuser."""
    MOUNTPOINT = 10
    """The mount point cannot be used: missing, not empty, no directory, in use."""
    SOURCE = 11
    """What should be mounted cannot be; an image, or something in one, is not there."""
    MOUNTED = 12
    """Something is mounted there already."""
    FUSE = 13
    """The host does not do FUSE, or refused."""
    NOT_RUNNING = 14
    """No dfuser runs there, or it went away."""
    PERMISSION = 15
    """Not allowed, by the host or by the kernel inside."""
    KERNEL = 16
    """The kernel inside answered with an error."""
    OUTPUT = 17
    """What was to be written on the host could not be, or not all of it."""
    DAMAGED = 21
    """A volume is damaged: fsck found errors, or something could not be read. Nothing changed."""
    PANIC = 30
    """The kernel inside panicked; the message names the dump."""
    HELPER = 32
    """Any failure, when run by mount(8) as a helper."""
    SIGNAL = 128


class CliError(Exception):
    """What a user is told: one line that says what, why, and what to do.

    Args:
        code: how the command ends.
        text: the line, without the command's name in front.
    """

    def __init__(self, code: ExitCode, text: str) -> None:
        super().__init__(text)
        self.code = code
