"""``dfuser demo``: a world with everything on, and what to try in it."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from collections.abc import Iterator

import click

from .exits import CliError, ExitCode
from .plan import make_plan
from .verb import verb


def lines(directory: str) -> list[str]:
    """Six things to try."""
    where = shlex.quote(directory)

    def inside(name: str) -> str:
        return shlex.quote(os.path.join(directory, name))

    return [
        f"look around:              ls -l {where} {inside('dev')}",
        f"see the kernel's threads: cat {inside('proc/0/threads')}; dfuser ps",
        f"read and set a variable:  cat {inside('sysctl/kern/ostype')}; dfuser sysctl vfs.cache",
        f"read the kernel itself:   cat {inside('kern/README')} {inside('kern/ncache')}",
        "watch the namecache work: dfuser nlookup /tmp/no/such/file; dfuser ktr -e namecache -f",
        f"leave:                    dfuser umount {where}  (or Ctrl-C here)",
    ]


@contextlib.contextmanager
def place(directory: str | None) -> Iterator[str]:
    """The directory to mount on; made if it is not there, and removed again if it was made."""
    if directory is None:
        made = tempfile.mkdtemp(prefix="dfuser-")
    else:
        made = ""
        with contextlib.suppress(FileExistsError):
            try:
                os.mkdir(directory)
                made = directory
            except OSError as error:
                if isinstance(error, FileExistsError):
                    raise
                raise CliError(
                    ExitCode.MOUNTPOINT, f"cannot make {directory}: {error.strerror}"
                ) from None
    try:
        yield directory or made
    finally:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(made)


@verb()
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("-o", "options", multiple=True, metavar="OPT[,OPT]...",
              help="Options as for 'dfuser mount'.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Show the kernel log.")
def command(directory: str | None, options: tuple[str, ...], verbose: bool) -> int:
    """Mount a world with everything on and say what to try.

    The world is mounted on DIR, which is made if it does not exist; without DIR on a new temporary
    directory. Everything is in memory and gone afterwards. It lives until it is unmounted or
    Ctrl-C.

    Examples:
      dfuser demo
      dfuser demo ~/dragonfly
    """
    import logging

    with place(directory) as where:
        plan = make_plan("tmpfs", where, options)
        from .logs import ServerLog
        from .server import Server

        def on_ready() -> None:
            for line in lines(plan.mountpoint):
                print(line, flush=True)

        log = ServerLog(logging.INFO if verbose else logging.WARNING)
        return Server(plan, log, on_ready).serve()
