"""From the words of a command line to what to boot and how to mount it.

``-o`` takes options of the bridge (``allow_other``), of the kernel (``ncpu=4``), of the root file
system (``size=1g``, ``noatime``), and words that only mount(8), fstab(5) and systemd care about,
which are accepted and dropped. Whatever is not known here goes to the root file system, which
judges it.

Counterpart: getmntopts(3), mount_std(8).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .exits import CliError, ExitCode

if TYPE_CHECKING:
    from dfuser.boot.config import Config

#: Words for mount(8) and fstab(5). dev and suid are the host's to grant: see docs.
_DROPPED: Final = frozenset(
    {
        "rw", "dev", "suid", "nodev", "nosuid", "exec", "noexec", "auto", "noauto", "nofail",
        "user", "users", "owner", "group", "nouser", "_netdev", "defaults", "async", "relatime",
        "default_permissions",
    }
)  # fmt: skip
_KERNEL: Final = frozenset({"ncpu", "memory", "hostname", "seed", "maxvnodes", "state_dir"})
_NUMBERS: Final = frozenset({"ncpu", "seed", "maxvnodes"})
_SWITCHES: Final = frozenset(
    {"allow_other", "nonempty", "writeback", "ro", "onemount", "noopen", "noxattr"}
)

#: Who may serve requests, the default first.
TRANSPORTS: Final = ("device", "pyfuse3")


class MountWords(NamedTuple):
    """What the words after ``-o`` say."""

    switches: frozenset[str]
    """Of allow_other, nonempty, writeback, ro, onemount, noopen, noxattr."""
    kernel: dict[str, str]
    """Settings of the kernel."""
    root: str
    """Options for the root file system, comma separated."""


class Plan(NamedTuple):
    """What to boot and how to mount it."""

    config: Config
    mountpoint: str
    """Absolute, without symbolic links."""
    fsname: str
    switches: frozenset[str]
    transport: str = "device"
    """Who serves requests: "device" or "pyfuse3"."""


def parse_words(options: Iterable[str]) -> MountWords:
    """Sort the options of all ``-o``. Raises `CliError` for one that lacks its value."""
    switches: set[str] = set()
    kernel: dict[str, str] = {}
    root: list[str] = []
    for word in (word.strip() for option in options for word in option.split(",")):
        name, equals, value = word.partition("=")
        if not word or name.startswith("x-") or word in _DROPPED:
            if word == "rw":
                switches.discard("ro")
        elif word in _SWITCHES:
            switches.add(word)
        elif name in _KERNEL:
            if not equals or not value:
                raise CliError(ExitCode.USAGE, f"-o {name} needs a value: '-o {name}=...'")
            if name in _NUMBERS and not value.isdecimal():
                raise CliError(ExitCode.USAGE, f"-o {word}: {value!r} is not a number")
            kernel[name] = value
        elif name in _SWITCHES:
            raise CliError(ExitCode.USAGE, f"-o {name} takes no value: write '-o {name}'")
        else:
            root.append(word)
    return MountWords(frozenset(switches), kernel, ",".join(root))


def make_plan(
    source: str,
    mountpoint: str,
    options: Iterable[str],
    flags: dict[str, Any] | None = None,
    transport: str | None = None,
) -> Plan:
    """The plan for ``dfuser mount source mountpoint -o options``.

    ``transport`` is who serves; None: what the environment variable DFUSER_TRANSPORT says, else the
    default.

    Raises `CliError`: a source that cannot be mounted, a setting that cannot be used.
    """
    from dfuser.boot.config import ConfigError, load
    from dfuser.client.instances import canonical

    words = parse_words(options)
    transport = transport or os.environ.get("DFUSER_TRANSPORT") or TRANSPORTS[0]
    if transport not in TRANSPORTS:
        known = " or ".join(TRANSPORTS)
        raise CliError(ExitCode.USAGE, f"there is no transport {transport!r}: use {known}")
    path = _toml_path(source)
    try:
        config = load({**words.kernel, **(flags or {})}, os.environ, path)
    except ConfigError as error:
        if path is not None and not os.access(path, os.R_OK):
            raise CliError(ExitCode.SOURCE, str(error)) from None
        raise CliError(ExitCode.USAGE, str(error)) from None
    config = _root_options(config, words.root)
    fsname = "tmpfs" if path is None else os.path.abspath(path)
    return Plan(config, canonical(mountpoint), fsname, words.switches, transport)


def _root_options(config: Config, options: str) -> Config:
    """The same world with further options for its root.

    A root in memory belongs to the user who mounts it, who could not make a file there otherwise.
    """
    root = next(spec for spec in config.world if spec.on == "/")
    merged = [word for word in (root.options, options) if word]
    if root.fstype == "tmpfs" and os.geteuid() and "uid=" not in ",".join(merged):
        merged.append(f"uid={os.geteuid()},gid={os.getegid()}")
    return config.with_root(root.fstype, root.source, ",".join(merged)) if merged else config


def _toml_path(source: str) -> str | None:
    """The TOML file that ``source`` is; None for tmpfs. Raises `CliError` for anything else."""
    if source == "tmpfs":
        return None
    if source.endswith(".toml"):
        if not os.path.exists(source):
            raise CliError(
                ExitCode.SOURCE, f"there is no file {source}: name a TOML file, or use 'tmpfs'"
            )
        return source
    image, at, _label = source.partition("@")
    if at or os.path.exists(image):
        raise CliError(
            ExitCode.SOURCE,
            f"{source} cannot be mounted: HAMMER2 volumes are not there yet; use 'tmpfs' or a "
            "TOML file",
        )
    raise CliError(
        ExitCode.SOURCE,
        f"there is no {source}: SRC is 'tmpfs', a TOML file, an image or IMAGE@LABEL",
    )
