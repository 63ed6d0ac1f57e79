"""What verbs that talk to a running kernel share: options, connecting, errors in words."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from dfuser.client import Connection, ConnectionLost, KernelError, NoInstance, choose

from .exits import CliError, ExitCode

_F = TypeVar("_F", bound=Callable[..., Any])
#: DragonFly's EPERM and EACCES, EINVAL.
_DENIED: Final = (1, 13)
_INVALID: Final = 22


def explain(error: BaseException) -> CliError | None:
    """A known error as what the user is told; None for a bug."""
    if isinstance(error, NoInstance):
        return CliError(ExitCode.NOT_RUNNING, str(error.args[0]))
    if isinstance(error, KernelError):
        code = ExitCode.KERNEL
        if error.errno in _DENIED:
            code = ExitCode.PERMISSION
        elif error.errno == _INVALID:
            code = ExitCode.USAGE
        return CliError(code, error.strerror or str(error))
    if isinstance(error, ConnectionLost):
        return CliError(ExitCode.NOT_RUNNING, f"{error}: it may have been unmounted meanwhile")
    if isinstance(error, TimeoutError):
        return CliError(
            ExitCode.NOT_RUNNING,
            "the kernel does not answer: 'dfuser umount --lazy DIR' takes its mount away",
        )
    if isinstance(error, ConnectionRefusedError):
        return CliError(
            ExitCode.NOT_RUNNING,
            "the control socket has no server: dfuser was killed; 'dfuser umount DIR' clears up",
        )
    if isinstance(error, PermissionError):
        name = f" ({error.filename})" if error.filename else ""
        return CliError(ExitCode.PERMISSION, f"the host does not permit it{name}: {error.strerror}")
    return None


def connect(mountpoint: str | None = None) -> Connection:
    """A connection to the kernel on ``mountpoint``, else that of ``-m``, else the only one."""
    if mountpoint is None:
        ctx = click.get_current_context(silent=True)
        mountpoint = ctx.find_root().obj if ctx is not None else None
    instance = choose(mountpoint)
    try:
        return Connection(instance.socket, "dfuser")
    except FileNotFoundError:
        raise CliError(
            ExitCode.NOT_RUNNING,
            f"the dfuser on {instance.mountpoint} (pid {instance.pid}) has no control socket: "
            "it is starting or ending; try again",
        ) from None


def mount_option(fn: _F) -> _F:
    """Add ``-m DIR`` behind the verb as well; it becomes the group's."""

    def note(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.find_root().obj = value

    option = click.option(
        "-m", "--mount", metavar="DIR", expose_value=False, callback=note,
        help="Talk to the dfuser mounted on DIR (default: the only one).",
    )  # fmt: skip
    return option(fn)


def json_option(fn: _F) -> _F:
    """Add ``--json`` as the argument ``as_json``."""
    option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
    return option(fn)


def talks(fn: _F) -> _F:
    """Both options, and a connection as the first argument."""

    @functools.wraps(fn)
    def inner(*args: Any, **kwargs: Any) -> Any:
        with connect() as kernel:
            return fn(kernel, *args, **kwargs)

    return mount_option(json_option(inner))  # type: ignore[return-value]
