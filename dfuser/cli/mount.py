"""``dfuser mount``: boot a kernel and mount it on a directory. Counterpart: mount(8)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .exits import CliError, ExitCode
from .plan import TRANSPORTS, make_plan
from .verb import verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from .logs import ServerLog
    from .plan import Plan


def log_path(plan: Plan, given: str | None) -> Path:
    """The log file of a daemon: the one given, or one in the state directory."""
    if given is not None:
        return Path(given).absolute()
    name = plan.mountpoint.strip("/").replace("/", "-") or "root"
    return plan.config.state_path().absolute() / f"{name[-200:]}.log"


def in_foreground(plan: Plan, verbose: bool, log: str | None) -> int:
    """Serve in this process until unmounted."""
    import logging

    from .logs import ServerLog
    from .server import Server

    sink = ServerLog(
        logging.INFO if verbose else logging.WARNING, Path(log).absolute() if log else None
    )
    if sink.path is not None:
        _to_file(sink)
    return Server(plan, sink).serve()


def in_background(plan: Plan, log: str | None) -> int:
    """Serve in a child process; returns when the mount is ready or has failed."""
    import logging

    from . import daemon
    from .logs import ServerLog

    def serve(on_ready: Callable[[], None]) -> int:
        from .server import Server

        sink = ServerLog(logging.INFO, log_path(plan, log))

        def ready() -> None:
            _to_file(sink)
            on_ready()

        return Server(plan, sink, ready).serve()

    return daemon.in_background(serve)


def _to_file(sink: ServerLog) -> None:
    try:
        sink.to_file()
    except OSError as error:
        raise CliError(
            ExitCode.USAGE, f"cannot write the log {sink.path}: {error.strerror}; use --log FILE"
        ) from None


@verb()
@click.argument("source", metavar="SRC")
@click.argument("directory", metavar="DIR")
@click.option("-f", "--foreground", is_flag=True,
              help="Stay in the foreground (the rule on a terminal).")  # fmt: skip
@click.option("-d", "--daemon", is_flag=True, help="Return when the mount is ready.")
@click.option("-o", "options", multiple=True, metavar="OPT[,OPT]...", help="See above.")
@click.option("--transport", type=click.Choice(TRANSPORTS),
              help="Who serves requests (default: device).")  # fmt: skip
@click.option("--log", type=click.Path(dir_okay=False), metavar="FILE",
              help="Write the log there (a daemon: default in the state directory).")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="In the foreground: warnings and errors only.")
def command(
    source: str, directory: str, foreground: bool, daemon: bool, options: tuple[str, ...],
    transport: str | None, log: str | None, quiet: bool,
) -> int:  # fmt: skip
    """Boot a kernel and mount it on a directory.

    SRC is 'tmpfs' for an empty world in memory, a TOML file that describes one, or an image of a
    volume. DIR must exist and be empty. A mount left by a killed dfuser is cleared first.

    Options after -o:
      allow_other      let other users in (the rule where the host permits it)
      ro               nobody can change anything
      nonempty         mount over a directory that is not empty
      writeback        let the host collect small writes: faster, less coherent
      onemount         show /tmp, /dev and the rest through the root's mount, not as their own
      noopen           no requests for open and close; opens and locks are not seen inside
      noxattr          no extended attributes and access control lists: fewer requests
      ncpu=N           logical CPUs
      memory=SIZE      physical memory, as 512m or 2g
      hostname=NAME, seed=N, maxvnodes=N, state_dir=DIR
      size=SIZE, mode=OCTAL, noatime ...   for the root file system
      noauto, user, _netdev, x-* ...       accepted for fstab, no effect

    Examples:
      dfuser mount tmpfs /mnt
      dfuser mount -d -o size=1g,ncpu=4 tmpfs /mnt && ls /mnt
      dfuser mount world.toml ~/world
    """
    if foreground and daemon:
        raise click.UsageError("-f and -d contradict each other: use one")
    plan = make_plan(source, directory, options, transport=transport)
    if daemon or not (foreground or sys.stderr.isatty() or os.environ.get("NOTIFY_SOCKET")):
        return in_background(plan, log)
    return in_foreground(plan, not quiet, log)
