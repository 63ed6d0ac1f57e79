"""``dfuser umount``: sync, unmount, and wait until nothing is left. Counterpart: umount(8)."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import Final

import click

from dfuser.client import Connection, Instance, KernelError, instances
from dfuser.client.instances import birth, canonical, unregister
from dfuser.fuse import mountpoint as host
from dfuser.fuse.mountpoint import MountError

from .exits import CliError, ExitCode
from .output import warn
from .stale import is_stale
from .verb import verb

#: Seconds that a sync with the unmount may take, and the server after it.
EXIT_TIME: Final = 60.0


def find(path: str) -> Instance | None:
    """The instance mounted exactly on ``path``; None when there is none of this user."""
    return next((item for item in instances() if item.mountpoint == path), None)


def detach(path: str, lazy: bool) -> None:
    """Unmount; a mount in use is told with who uses it. Raises `CliError`."""
    try:
        host.detach(path, lazy=lazy)
    except MountError as error:
        if error.kind != "busy":
            code = ExitCode.FUSE if error.kind == "fuse" else ExitCode.PERMISSION
            raise CliError(code, str(error)) from None
        who = ", ".join(f"{name} ({pid})" for pid, name in host.holders(path))
        raise CliError(
            ExitCode.MOUNTPOINT,
            f"{path} is in use by {who or 'somebody you may not see'}: end them, or use --lazy",
        ) from None


def ask(instance: Instance, lazy: bool) -> bool:
    """Have the server sync and detach all its mounts, inner before outer.

    Returns:
        False when it cannot be asked: the mount is to be taken away from outside.

    Raises:
        CliError: somebody is inside.
    """
    try:
        with Connection(instance.socket, "dfuser umount") as kernel:
            kernel.waitmsg(kernel.sendmsg("kernel", "stop", lazy=lazy), EXIT_TIME)
    except KernelError as error:
        text = f"{error.strerror}: end them, or use --lazy"
        raise CliError(ExitCode.MOUNTPOINT, text) from None
    except OSError:
        return False
    return True


def wait_for_exit(instance: Instance, seconds: float) -> bool:
    """Wait for the server's process to end; False when it has not after ``seconds``."""
    try:
        descriptor = os.pidfd_open(instance.pid)
    except OSError:
        return True
    try:
        if birth(instance.pid) != instance.birth:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def check(path: str) -> Instance | None:
    """Whose mount it is. Raises `CliError` when it is none of ours."""
    instance = find(path)
    info = host.mounted_at(path)
    if info is None and instance is None:
        raise CliError(ExitCode.NOT_RUNNING, f"{path} is not mounted: nothing to do")
    if info is not None and info.fstype not in ("fuse.dfuser", "fuse"):
        raise CliError(
            ExitCode.MOUNTPOINT,
            f"{path} is no dfuser but {info.fstype} ({info.source}): use umount(8)",
        )
    return instance


@verb()
@click.argument("directory", metavar="DIR")
@click.option("-l", "--lazy", is_flag=True,
              help="Unmount although it is in use; whoever is inside gets errors.")  # fmt: skip
def command(directory: str, lazy: bool) -> None:
    """Sync and unmount, and wait until all is gone.

    A mount that is in use stays, and you are told by whom. The mount of a killed dfuser is cleared.
    Exits with 0 only when neither the mount nor its process is left.

    Examples:
      dfuser umount /mnt
      dfuser umount --lazy /mnt
    """
    path = canonical(directory)
    instance = check(path)
    if instance is None:
        if is_stale(path):
            warn(f"cleared the mount of a killed dfuser on {path}")
            lazy = True
        detach(path, lazy)
        return
    if host.mounted_at(path) is not None:
        deadline = time.monotonic() + EXIT_TIME
        if not ask(instance, lazy) and host.mounted_at(path) is not None:
            with contextlib.suppress(CliError) if _ended(instance) else contextlib.nullcontext():
                detach(path, lazy)
    else:
        deadline = time.monotonic() + EXIT_TIME
    if lazy:
        _end(instance)
    if not wait_for_exit(instance, max(1.0, deadline - time.monotonic())):
        raise CliError(
            ExitCode.INTERNAL,
            f"{path} is unmounted, but process {instance.pid} goes on: look at its log, or kill it",
        )
    unregister(instance)
    if host.mounted_at(path) is not None and find(path) is None:
        detach(path, lazy=True)


def _ended(instance: Instance) -> bool:
    return birth(instance.pid) != instance.birth


def _end(instance: Instance) -> None:
    """A lazily unmounted server goes on for those inside: ask it to end."""
    import signal

    if not _ended(instance):
        with contextlib.suppress(ProcessLookupError):
            os.kill(instance.pid, signal.SIGTERM)
